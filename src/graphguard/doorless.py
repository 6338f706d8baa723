"""What an agent needs whose middleware can't put a door around every node.

Model calls in tasks that have no door are metered too: the agent's state field `spend` knows the meter, and the
context of the call knows the task.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Self, cast

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.channels import BinaryOperatorAggregate

from graphguard.choices import FIELDS
from graphguard.errors import StateConflict
from graphguard.metering import Either, Handler, is_metered
from graphguard.scope import Scope
from graphguard.spend import add_spend
from graphguard.task import Task
from graphguard.trip import merge_trip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from graphguard.meter import Meter

__all__ = ["MeteredSpend", "check_fields", "guard_around", "told_by", "watch"]

_OF_BUDGETS: Final = frozenset({"by", "run_by", "limits", "run_limits"})
"""What the field `spend` keeps by budget, so that a guard around the agent knows nothing of it."""


class MeteredSpend(BinaryOperatorAggregate[dict[str, object]]):
    """The state field `spend` of an agent, which knows the meter of the middleware that brought it."""

    meter: Meter

    def __init__(self, typ: type[dict[str, object]] = dict, operator: object = add_spend) -> None:  # noqa: ARG002 - LangGraph's signature
        """Begin empty."""
        super().__init__(typ, add_spend)

    def copy(self) -> Self:
        """The same once more."""
        new = super().copy()
        new.meter = self.meter
        return new

    def from_checkpoint(self, checkpoint: dict[str, object]) -> Self:
        """The field as a checkpoint has it."""
        new = super().from_checkpoint(checkpoint)
        new.meter = self.meter
        return new


def watch() -> None:
    """Meter, from now on in this process, what is called in doorless tasks of graphs with a `MeteredSpend`."""
    if not _watching:
        _watching.append(_Unmetered())
        register_configure_hook(cast("ContextVar[object]", _watching[0]), inheritable=False)


def check_fields(task: Task) -> None:
    """Raise `StateConflict` where the agent's own state uses graphguard's field names for something else."""
    for name in FIELDS:
        if getattr(task.channel(name), "operator", None) not in (add_spend, merge_trip):
            raise StateConflict(name)


def guard_around(scope: Scope | None, task: Task) -> Scope | None:
    """The scope of the guard, if there is one, whose door is around this very task; `scope` is the one in force."""
    return scope if scope is not None and scope.task.id == task.id else None


def told_by(scope: Scope) -> dict[str, object]:
    """What a task that is done has to tell the state, by field."""
    done = scope.meter.finished.pop(scope.task.key, None)
    if done is None:
        return {}
    told: dict[str, object] = {}
    delta = done.delta(once=False)
    if guard_around(done.parent, done.task) is not None:  # it tells the amounts
        delta = {name: part for name, part in delta.items() if name in _OF_BUDGETS}
    if delta:
        told["spend"] = delta
    return {**told, "trip": done.trip.to_state()} if done.trip is not None else told


class _Unmetered:
    """What LangChain asks for a handler, in place of a ContextVar: there is one only where it has something to do.

    Elsewhere it would be one handler more, whose coroutine is left behind when another one refuses a call.
    """

    def __init__(self) -> None:
        self.handler = _DoorlessHandler()

    def get(self) -> _DoorlessHandler | None:
        return None if _meter_here() is None else self.handler


class _DoorlessHandler(Handler):
    """Holds and settles calls for the task that makes each; a refused call raises, for no door hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self._scopes: dict[UUID, Scope] = {}

    @property
    def scope(self) -> Scope:
        """The scope of the call that is being started or ended."""
        scope = _scope.get()
        assert scope is not None  # noqa: S101 - asked for only where a call has one
        return scope

    def _start_here(self, *told: object, run_id: UUID, **more: object) -> None:
        with self._on_behalf_of(_scope_here()) as scope:
            if scope is not None:
                self._llm_start(*told, run_id=run_id, **more)  # type: ignore[arg-type] # passed on as it came
                self._scopes[run_id] = scope

    async def _astart_here(self, *told: object, run_id: UUID, **more: object) -> None:
        with self._on_behalf_of(_scope_here()) as scope:
            if scope is not None:
                await self._allm_start(*told, run_id=run_id, **more)  # type: ignore[arg-type] # passed on as it came
                self._scopes[run_id] = scope

    on_chat_model_start = Either(_start_here, _astart_here)
    on_llm_start = Either(_start_here, _astart_here)

    def _end_there(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        with self._on_behalf_of(self._scopes.pop(run_id, None)):
            self._llm_end(response, run_id=run_id)

    async def _aend_there(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        with self._on_behalf_of(self._scopes.pop(run_id, None)):
            await self._allm_end(response, run_id=run_id)

    on_llm_end = Either(_end_there, _aend_there)

    def _error_there(self, error: BaseException, *, run_id: UUID, **_: object) -> None:
        with self._on_behalf_of(self._scopes.pop(run_id, None)):
            self._llm_error(error, run_id=run_id)

    async def _aerror_there(self, error: BaseException, *, run_id: UUID, **_: object) -> None:
        with self._on_behalf_of(self._scopes.pop(run_id, None)):
            await self._allm_error(error, run_id=run_id)

    on_llm_error = Either(_error_there, _aerror_there)

    @staticmethod
    @contextmanager
    def _on_behalf_of(scope: Scope | None) -> Iterator[Scope | None]:
        token = _scope.set(scope)
        try:
            yield scope
        finally:
            _scope.reset(token)


_scope: ContextVar[Scope | None] = ContextVar("graphguard_doorless_scope", default=None)
_watching: Final[list[_Unmetered]] = []


def _meter_here() -> tuple[Meter, Task] | None:
    """The meter of the graph whose task this code runs in, and the task, if nobody meters it."""
    config = var_child_runnable_config.get()
    if config is None or is_metered():
        return None
    task = Task.of(config)
    field = task.channel("spend")
    return (field.meter, task) if isinstance(field, MeteredSpend) else None


def _scope_here() -> Scope | None:
    found = _meter_here()
    return None if found is None else Scope(*found, None, talks=True)
