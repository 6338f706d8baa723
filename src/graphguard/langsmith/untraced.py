"""The outermost `@traceable` around some code, where nothing is traced.

With tracing off, LangSmith's SDK makes no run, and leaves no mark by which calls under one root could be told from
those under another; a ceiling per root trace would then hold with tracing on only. So the SDK's preparation of a call
is followed by a step of ours, which puts a mark into the context that the SDK has made for the body. Threads and tasks
that the body starts inherit it. Nothing else about the call changes.
"""

from __future__ import annotations

import threading
from contextvars import Context, ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from langsmith import run_helpers

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphguard.langsmith.counts import GuardedTrace

__all__ = ["UntracedRoot", "untraced_root", "watch"]


class UntracedRoot:
    """One call of an outermost `@traceable`, with what it has used under each guard."""

    __slots__ = ("_lock", "_traces")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._traces: dict[int, GuardedTrace] = {}

    def trace(self, guard: object, make: Callable[[], GuardedTrace]) -> GuardedTrace:
        """The counts of a guard, made when they are first asked for."""
        with self._lock:
            known = self._traces.get(id(guard))
            if known is None:
                known = self._traces[id(guard)] = make()
            return known


_root: ContextVar[UntracedRoot | None] = ContextVar("graphguard_untraced_root", default=None)


def untraced_root() -> UntracedRoot | None:
    """The outermost untraced `@traceable` that this code runs in, or None."""
    return _root.get()


def watch() -> None:
    """Mark the roots of untraced calls from now on in this process."""
    prepare: Callable[..., Any] | None = getattr(run_helpers, "_setup_run", None)
    if prepare is None or hasattr(prepare, "__graphguard__"):
        return

    @wraps(prepare)
    def marked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the SDK's own signature
        container = prepare(*args, **kwargs)
        context = container.get("context")
        if container.get("new_run") is None and isinstance(context, Context) and context.get(_root) is None:
            context.run(_root.set, UntracedRoot())
        return container

    marked.__graphguard__ = True  # type: ignore[attr-defined] # so that it is done once
    run_helpers._setup_run = marked  # noqa: SLF001 - there is no public step between a call and its body
