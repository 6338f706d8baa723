"""The door of a node: what happens in a node's own task before, around and after the user's code.

Every node of a guarded graph has one. It meters the calls made inside, and it is the second door of gated
nodes: the inline gate for nodes that can't have a gate node, for `Send`, replays and forks, and the place
where a call that was refused in the middle of a node is turned into an end, a question or an exception.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command, Send

from graphguard import gate as gates
from graphguard.errors import BudgetExceeded
from graphguard.metering import Question, Task, current_scope, metered
from graphguard.scope import Scope, limits_from_state, limits_to_state
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langchain_core.runnables import RunnableConfig

    from graphguard.scope import Meter

__all__ = ["Door", "Stop", "Visit"]


class Stop(Command[str]):
    """What a stopped task returns instead of its output.

    A `Command`, so that any graph can write its update; the node's own edges and branches are not taken.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The fixed side of a node's door.

    Attributes:
        meter: The guard's running object.
        node: The node's name.
        gated: Whether the inline gate decides before the node's code runs.
        gate: Name of the gate node in front, if there is one.
        talks: Whether the graph keeps a conversation in `messages`.
        edge: Whether this is the door of one of the node's conditional edges.
        first: Whether this is the first door of its task: the one that gates, and hears answers.
    """

    meter: Meter
    node: str
    gated: bool = False
    gate: str | None = None
    talks: bool = False
    edge: bool = False
    first: bool = True

    def inner(self, *, edge: bool = False) -> Door:
        """The door of what the same task runs later."""
        return replace(self, gated=False, first=False, edge=edge)

    def visit(self, config: RunnableConfig, given: object) -> Visit:
        """Begin one attempt of the node's task; `given` is the node's input."""
        task = Task.of(config)
        return Visit(self, Scope(self.meter, task, current_scope(), talks=self.talks), given)


class Visit:
    """One attempt of a node's task, from the door's side."""

    __slots__ = ("door", "given", "result", "scope")

    def __init__(self, door: Door, scope: Scope, given: object) -> None:
        """Begin an attempt."""
        self.door = door
        self.scope = scope
        self.given = given
        self.result: Stop | None = None

    @contextmanager
    def around(self) -> Iterator[bool]:
        """Run the user's code inside; False says to leave it out, because the door itself decided.

        Afterwards `result` is what the task returns instead of the code's output, if not None.
        """
        self.result = self._enter()
        if self.result is not None:
            yield False
            return
        token = var_child_runnable_config.set(self.scope.users_config) if self.scope.users_config is not None else None
        try:
            with metered(self.scope):
                yield True
        except BudgetExceeded:
            # A refusal of another guard's budget is for the door of that guard.
            if self.scope.refusal is None:
                raise
            self.result = self._act(self.scope.refusal)
        finally:
            if token is not None:
                var_child_runnable_config.reset(token)
        self.scope.meter.finish(self.scope)

    def output(self, value: object) -> object:
        """The task's output: the code's own, or a stop, decided here or by this guard in a graph inside."""
        if self.result is not None:
            if self.door.edge and isinstance(self.result.update, dict) and self.result.update:
                # The node's own writer ran before its edges, so nothing else would write this update.
                self.scope.task.send(list(self.result.update.items()))
            return self.result
        trip = self.scope.stopped
        if trip is None:
            return value
        update = value if isinstance(value, dict) else {}
        settings = self.scope.meter.settings
        outermost = settings.to is not None and self.scope.parent is None
        self.scope.trip = trip
        self.scope.meter.finish(self.scope)
        closing = {} if "messages" in update else gates.closing(self.scope, trip)
        return Stop(update={**update, **closing}, goto=[str(settings.to)] if outermost else ())

    def patched(self, kwargs: dict[str, object]) -> dict[str, object]:
        """Keyword arguments for the user's code, with the config that is meant for it."""
        return (
            {**kwargs, "config": self.scope.users_config}
            if self.scope.users_config is not None and "config" in kwargs
            else kwargs
        )

    def _enter(self) -> Stop | None:
        scope, task = self.scope, self.scope.task
        if not self.door.first:
            before = scope.meter.finished.get(task.id)
            if before is not None:
                scope.users_config = before.users_config
                for key, limits in before.new_limits.items():
                    scope.raise_limits(key, limits)
            return None
        asked = task.question()
        if asked is not None:
            stop = self._hear(asked)
            if stop is not None:
                return stop
        for question in task.beside():
            if self._hear_beside(question) and asked is None:
                return self._end(replace(self._trip(question), answer="stopped"))
        waiting = task.answers_waiting and not task.beside()
        if asked is None and self.door.gated and task.routable and not waiting and (breach := scope.breach()):
            return self._act(scope.tripped(breach, node=self.door.node))
        return None

    @staticmethod
    def _trip(question: Question) -> Trip:
        trip = Trip.of(question.asked)
        assert trip is not None  # noqa: S101 - a question always carries its trip
        return trip

    def _hear(self, question: Question) -> Stop | None:
        """Act on the answer to this task's own question; ask again where there is none that can be used."""
        scope, limits = self.scope, question.limits
        for key, raised in limits.items():
            scope.raise_limits(key, limits_from_state(raised))
        if question.asked is not None:
            trip = self._trip(question)
            if question.fresh is None:
                scope.task.ask(gates.question(trip))
            answer = gates.read_answer(question.fresh, trip)
            if answer.error is not None:
                scope.task.ask(gates.question(trip, error=answer.error))
            if answer.limit is None:
                return self._end(replace(trip, answer="stopped"))
            raised_now = {trip.metric: answer.limit}
            scope.raise_limits(trip.budget, raised_now)
            limits = {**limits, trip.budget: limits_to_state({trip.budget: raised_now})[trip.budget]}
            scope.trip = replace(trip, answer="raised")
        scope.users_config = scope.task.with_answers(question.users, limits)
        return None

    def _hear_beside(self, question: Question) -> bool:
        """Take over what was answered to a task beside this one; True says to stop."""
        trip = self._trip(question)
        if question.fresh is None or trip.budget not in self.scope.meter.keys:
            return False
        answer = gates.read_answer(question.fresh, trip)
        if answer.limit is not None:
            self.scope.raise_limits(trip.budget, {trip.metric: answer.limit})
        return answer.limit is None and answer.error is None

    def _act(self, trip: Trip) -> Stop:
        """What `on_trip` says, for a trip in this task."""
        scope, settings = self.scope, self.scope.meter.settings
        if not scope.task.routable:
            raise BudgetExceeded(trip)
        outermost = scope.parent is None or scope.parent.meter is not scope.meter
        if settings.to is not None and settings.to != self.door.node and outermost:
            return self._stop(trip, goto=[settings.to])
        if settings.on_trip == "end" or settings.to is not None or gates.stopped_before(scope):
            return self._end(trip)
        gates.may_ask(scope, trip)
        if self.door.gate is not None and not scope.task.pushed and not scope.field.get("parallel"):
            return self._stop(replace(trip, waiting=(self.door.gate,)), goto=[gates.REVIEW])
        asked_beside = any(
            (t := self._trip(q)).budget == trip.budget and t.limit == trip.limit for q in scope.task.beside()
        )
        if asked_beside or not scope.meter.asks(scope.task, trip):
            scope.task.pause()  # one question a superstep; this task hears its answer too
        scope.task.ask(gates.question(trip))
        raise GraphBubbleUp  # never reached: ask() always raises

    def _end(self, trip: Trip) -> Stop:
        self.scope.stop_outer(trip)
        return self._stop(trip, update=gates.closing(self.scope, trip))

    def _stop(
        self, trip: Trip | None, *, update: dict[str, object] | None = None, goto: Sequence[str | Send] = ()
    ) -> Stop:
        scope = self.scope
        scope.task.forget_cache()
        scope.trip = trip
        scope.meter.finish(scope)
        return Stop(update=update or {}, goto=list(goto))
