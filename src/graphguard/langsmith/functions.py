"""`guarded_traceable`: LangSmith's `@traceable` under the ceilings of a `RecursiveTraceGuard`."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from langsmith import traceable

from graphguard.langsmith.errors import AgentBudgetError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from langsmith.run_helpers import SupportsLangsmithExtra

    from graphguard.langsmith.recursion import RecursiveTraceGuard

    _P = ParamSpec("_P")
    _R = TypeVar("_R")

__all__ = ["guarded_traceable"]


def guarded_traceable(
    guard: RecursiveTraceGuard, name: str | None = None, **options: object
) -> Callable[[Callable[_P, _R]], SupportsLangsmithExtra[_P, _R]]:
    """A decorator that traces a function, and lets its body run only while its root trace has room.

    Functions of all kinds keep what they are: plain, async, generator and async generator. A call without room is
    traced as a failed run, tagged `runguard_trip` like its root; the guarded functions around it don't count as
    failed for LangSmith.

    Args:
        guard: Whose ceilings count.
        name: The run's name; None is the function's.
        options: What `langsmith.traceable` takes: `run_type`, `metadata`, `tags`, `project_name`, …

    Raises:
        AgentBudgetError: By the decorated function, when it is called (a generator: when it is begun).

    ```python
    from graphguard.langsmith import AgentBudgetError, RecursiveTraceGuard, guarded_traceable

    guard = RecursiveTraceGuard(max_depth=3)

    @guarded_traceable(guard)
    def reflect(draft: str) -> str:
        return reflect(draft + "!")

    try:
        reflect("A draft")
    except AgentBudgetError as stopped:
        assert stopped.reason == "depth_exceeded (depth=3, max=3)"
    ```
    """
    handled = cast("tuple[type[BaseException], ...]", options.pop("exceptions_to_handle", None) or ())
    process = cast("Callable[[dict[str, object]], dict[str, object]] | None", options.pop("process_inputs", None))
    options.setdefault("client", guard.client)

    def noted(inputs: dict[str, object]) -> dict[str, object]:
        # LangSmith asks for this before it makes the run: the run around it is still the current one.
        guard.roots.note()
        return process(inputs) if process is not None else inputs

    def decorate(function: Callable[_P, _R]) -> SupportsLangsmithExtra[_P, _R]:
        label = name or str(getattr(function, "__name__", type(function).__name__))
        trace = traceable(
            name=label,
            process_inputs=noted,
            exceptions_to_handle=(AgentBudgetError, *handled),
            **options,  # type: ignore[call-overload] # passed on as they came
        )
        return cast("SupportsLangsmithExtra[_P, _R]", trace(_inside(guard, label, function)))

    return decorate


def _inside(guard: RecursiveTraceGuard, label: str, function: Callable[_P, object]) -> Callable[_P, object]:
    """The function with its body guarded, of the same kind."""
    if inspect.isasyncgenfunction(function):

        @wraps(function)
        async def async_generator(*args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[object, None]:
            async with guard.body(label), aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

        return async_generator
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*args: _P.args, **kwargs: _P.kwargs) -> Generator[object, object, object]:
            with guard.body(label):
                return (yield from function(*args, **kwargs))

        return generator
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def coroutine(*args: _P.args, **kwargs: _P.kwargs) -> object:
            async with guard.body(label):
                return await cast("Awaitable[object]", function(*args, **kwargs))

        return coroutine

    @wraps(function)
    def plain(*args: _P.args, **kwargs: _P.kwargs) -> object:
        with guard.body(label):
            return function(*args, **kwargs)

    return plain
