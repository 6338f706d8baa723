"""Guard an `@entrypoint` of LangGraph's functional API: hold each call in it and in its tasks, tell the state once.

An entrypoint is one node that starts its tasks itself, so there is no place for a gate. Its door meters what its own
code calls, and each `@task` has a door too, whose last write is saved with the task's result: a task that LangGraph
doesn't run again on resume is not charged again either.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal import _constants as keys
from langgraph._internal._runnable import RunnableCallable, is_async_callable
from langgraph.channels import BinaryOperatorAggregate
from langgraph.pregel import Pregel

from graphguard.choices import FIELDS, check_prices, joined
from graphguard.door import Door, Stop, Visit
from graphguard.errors import BudgetExceeded, InvalidBudget, UnknownNode
from graphguard.meter import Meter
from graphguard.scope import Scope
from graphguard.spend import add_spend
from graphguard.task import Task
from graphguard.trip import merge_trip
from graphguard.ways import Finish, finish_of, finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig

    from graphguard.meter import Settings

__all__ = ["guarded_entrypoint", "is_entrypoint"]

_Entrypoint: TypeAlias = "Pregel[Any, Any, Any, Any]"
_Func: TypeAlias = "Callable[..., Any]"
_Around: TypeAlias = "Callable[[_Func | None, _Func | None, Door], tuple[_Func | None, _Func | None]]"
_REDUCERS: Final = dict(zip(FIELDS, (add_spend, merge_trip), strict=True))


def is_entrypoint(graph: object) -> bool:
    """Whether this is what `@entrypoint` made of a function."""
    return type(graph) is Pregel and keys.PREVIOUS in graph.channels and len(graph.nodes) == 1


def guarded_entrypoint(graph: _Entrypoint, settings: Settings, around: _Around) -> _Entrypoint:
    """A copy of an entrypoint in which no model call starts that the budgets can't pay for.

    Args:
        graph: What `@entrypoint` made; guarded or not.
        settings: What `guard()` was told. With `on_trip="end"` a trip raises, as nothing else could end a function.
        around: Puts a door around a node's functions, sync and async.

    Raises:
        UnknownNode: `nodes` names something else than the entrypoint.
        InvalidBudget: `on_trip=to(...)`, which needs a node to go to.
        UnknownPrice: A USD budget, and a model in the entrypoint without a known price.
    """
    ((name, node),) = graph.nodes.items()
    if (before := finish_of(node)) is not None and before.meter is not None and before.original is not None:
        node, settings = before.original, joined(before.meter.settings, settings)
    if settings.to is not None:
        problem = f"on_trip=to({settings.to!r}) needs a graph with nodes; an @entrypoint asks or raises"
        raise InvalidBudget(problem)
    for named in settings.nodes or ():
        if named != name:
            raise UnknownNode(named, [name])
    check_prices({name: node.bound}, settings)
    meter = Meter(replace(settings, on_trip="raise") if settings.on_trip == "end" else settings, {})
    bound = copy.copy(node.bound)
    assert isinstance(bound, RunnableCallable)  # noqa: S101 - @entrypoint makes nothing else
    bound.func, bound.afunc = around(bound.func, bound.afunc, _EntryDoor(meter=meter, node=name))
    finish = _Finish(node, None, meter, once=bool(node.cache_policy or graph.cache_policy))
    new = copy.copy(graph)
    new.nodes = {name: node.copy({"bound": bound, "writers": finished(node.flat_writers, finish)})}
    new.channels = dict(graph.channels)
    for field, reducer in _REDUCERS.items():
        channel = BinaryOperatorAggregate(dict[str, object], reducer)
        channel.key = field
        new.channels[field] = channel
    return new.validate()


@dataclass(slots=True)
class _RunTask(Task):
    """A task of an entrypoint's run. Nothing begins a run in the state before it, so it reads the state as if."""

    run: str = ""

    def read(self, channel: str) -> dict[str, object]:
        """One of graphguard's own state fields, without what it tells of an earlier run."""
        found = Task.read(self, channel)
        if channel == "trip":
            return found if found.get("run") == self.run else {}
        run = found.get("run")
        known = isinstance(run, dict) and run.get("id") == self.run
        return found if known else {**found, "run": {"id": self.run}}


class _EntryDoor(Door):
    """The door of the entrypoint's own code."""

    def visit(self, config: RunnableConfig, given: object) -> Visit:
        """Begin one attempt."""
        return _Visit(self, config, given)


class _Visit(Visit):
    """One attempt to run an entrypoint: its tasks get doors, and a stop is an exception."""

    @property
    def scope(self) -> Scope:
        """The attempt's scope, made when it is first needed."""
        if self._scope is None:
            with self.door.meter.lock:
                if self._scope is None:
                    self._scope = Scope(self.door.meter, self._task(), self.parent)
        return self._scope

    def _task(self) -> Task:
        task = Task.of(self.config)
        return _RunTask(**_fields(task), run=_run_of(task))

    def _begin(self) -> bool:
        inside = super()._begin()
        config = var_child_runnable_config.get() or self.config
        self._doors_token = var_child_runnable_config.set(_with_doors(config, self.door.meter))
        return inside

    def _restore(self) -> None:
        var_child_runnable_config.reset(self._doors_token)
        super()._restore()

    def output(self, value: object) -> object:
        """What the code returned, unless it was stopped."""
        out = super().output(value)
        if isinstance(out, Stop):
            trip = self.scope.trip
            assert trip is not None  # noqa: S101 - a stop always has one
            raise BudgetExceeded(trip)
        return out


class _TaskVisit(_Visit):
    """One attempt to run a `@task`. What is decided about a refused call is decided by the entrypoint."""

    def __enter__(self) -> bool:
        self.scope.recover()
        return self._begin()

    async def __aenter__(self) -> bool:
        await self.scope.arecover()
        return self._begin()

    def _task(self) -> Task:
        task = Task.of(self.config)
        assert self.parent is not None  # noqa: S101 - the entrypoint's, or another task's
        # LangGraph gives a task a namespace below the entrypoint's, but its writes go to the same state.
        return _RunTask(**{**_fields(task), "graph_ns": self.parent.task.graph_ns}, run=self.parent.run)

    def _left(self, error: BaseException | None) -> bool:
        scope = self._scope
        if error is None and scope is not None and (delta := scope.delta(once=scope.task.is_cached)):
            scope.task.send([("spend", delta)])
        return False


def _fields(task: Task) -> dict[str, Any]:
    return {field.name: getattr(task, field.name) for field in fields(task)}


def _run_of(task: Task) -> str:
    """A run's id, the same in every process that resumes it."""
    return task.id.replace("-", "")[:12]


def _with_doors(config: RunnableConfig, meter: Meter) -> RunnableConfig:
    """A config in which tasks that are started get a door."""
    conf = config.get(keys.CONF, {})
    start = conf.get(keys.CONFIG_KEY_CALL)
    if start is None:
        return config

    def call(func: _Func, *args: object, **kwargs: object) -> object:
        return start(_doored(func, meter), *args, **kwargs)

    return cast("RunnableConfig", {**config, keys.CONF: {**conf, keys.CONFIG_KEY_CALL: call}})


def _doored(func: _Func, meter: Meter) -> _Func:
    """A task's function with a door around it; LangGraph knows the task by the function's name."""

    def visit() -> _TaskVisit:
        config = var_child_runnable_config.get() or {}
        return _TaskVisit(Door(meter=meter, node=getattr(func, "__name__", "")), config, None)

    if is_async_callable(func):

        async def arun(*args: object, **kwargs: object) -> object:
            attempt, value = visit(), None
            async with attempt:
                value = await func(*args, **kwargs)
            return attempt.output(value)

        return functools.wraps(func)(arun)

    def run(*args: object, **kwargs: object) -> object:
        attempt, value = visit(), None
        with attempt:
            value = func(*args, **kwargs)
        return attempt.output(value)

    return functools.wraps(func)(run)


class _Finish(Finish):
    """Tells the state what a run's own code spent, and which run it was."""

    def __call__(self, value: object, config: RunnableConfig) -> None:  # noqa: ARG002 - as its base
        """Finish the one task of a run."""
        task = Task.of(config)
        if self.meter is None or not task.is_run:
            return
        scope = self.meter.finished.pop(task.key, None)
        spend = scope.delta(once=self.once) if scope is not None else {}
        trip = scope.trip.to_state() if scope is not None and scope.trip is not None else {}
        task.send([("spend", {"run_id": _run_of(task), **spend}), ("trip", trip)])
