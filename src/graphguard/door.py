"""The door of a node: what happens in a node's own task before, around and after the user's code.

Every node of a guarded graph has one. It meters the calls made inside, and it is the second door of gated
nodes: the inline gate for nodes that can't have a gate node, for `Send`, replays and forks, and the place
where a call that was refused in the middle of a node is turned into an end, a question or an exception.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, ParentCommand
from langgraph.types import Command, Send

from graphguard import gate as gates
from graphguard.errors import BudgetExceeded
from graphguard.limits import limits_from_state, limits_to_state
from graphguard.metering import Handler, current_scope
from graphguard.scope import Scope
from graphguard.task import Question, Task
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Token

    from langchain_core.runnables import RunnableConfig

    from graphguard.meter import Meter

__all__ = ["Door", "Stop", "Visit"]


def _refused(error: BaseException) -> BudgetExceeded | None:
    """The refusal that an exception is, or that a task group raised and nothing else; None if it isn't one."""
    if isinstance(error, BaseExceptionGroup):
        refused = [_refused(part) for part in error.exceptions]
        return refused[0] if None not in refused else None
    return error if isinstance(error, BudgetExceeded) else None


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
        review: Name of the graph's node that asks.
        talks: Whether the graph keeps a conversation in `messages`.
        edge: Whether this is the door of one of the node's conditional edges.
        first: Whether this is the first door of its task: the one that gates, and hears answers.
    """

    meter: Meter
    node: str
    gated: bool = False
    gate: str | None = None
    review: str = gates.REVIEW
    talks: bool = False
    edge: bool = False
    first: bool = True

    def inner(self, *, edge: bool = False) -> Door:
        """The door of what the same task runs later."""
        return replace(self, gated=False, first=False, edge=edge)

    def visit(self, config: RunnableConfig, given: object) -> Visit:
        """Begin one attempt of the node's task; `given` is the node's input."""
        return Visit(self, config, given)


class Visit(Handler):
    """One attempt of a node's task, from the door's side; it meters what the user's code calls inside."""

    def __init__(self, door: Door, config: RunnableConfig, given: object) -> None:
        """Begin an attempt."""
        super().__init__()
        self.door = door
        self.config = config
        self.given = given
        self.parent = current_scope()
        self._scope: Scope | None = None
        self.result: Stop | None = None
        self._gates = False
        self._config_token: Token[RunnableConfig | None] | None = None

    @property
    def scope(self) -> Scope:
        """The attempt's scope, made when it is first needed: most tools and edges never spend anything."""
        if self._scope is None:
            with self.door.meter.lock:  # the user's code may call models in several threads
                if self._scope is None:
                    self._scope = Scope(self.door.meter, Task.of(self.config), self.parent, talks=self.door.talks)
        return self._scope

    def __enter__(self) -> bool:
        """Let the user's code run inside; False says to leave it out, because the door itself decided."""
        if not self._nothing_to_decide():
            if self.door.first:
                self.scope.recover()
            self.result = self._enter()
            if self._gates and (breach := self.scope.breach()) is not None:
                self.result = self._act(self.scope.tripped(breach, node=self.door.node))
        return self._begin()

    async def __aenter__(self) -> bool:
        """The same as `__enter__`, on an event loop."""
        if not self._nothing_to_decide():
            if self.door.first:
                await self.scope.arecover()
            self.result = self._enter()
            if self._gates and (breach := await self.scope.abreach()) is not None:
                self.result = self._act(self.scope.tripped(breach, node=self.door.node))
        return self._begin()

    def _begin(self) -> bool:
        if self.result is not None:
            return False
        if self._scope is not None and (config := self._scope.users_config) is not None:
            self._config_token = var_child_runnable_config.set(config)
        self.begin()
        return True

    def _nothing_to_decide(self) -> bool:
        """Whether the user's code may run as it is, with nothing to gate, to hear or to take over."""
        door, meter = self.door, self.door.meter
        if self.parent is not None or door.gated:
            return False
        if door.first:
            began = Task.began_in(self.config, meter.loops)
            return began and meter.unfolded.empty and Task.undisturbed(self.config)
        before = meter.finished.get(Task.key_in(self.config))
        return before is None or (before.users_config is None and not before.new_limits)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Act on a refused call; `result` is then what the task returns instead of the code's output."""
        try:
            self.end()
            return self._left(error)
        finally:
            self._restore()

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """The same as `__exit__`, on an event loop."""
        try:
            await self.aend()
            return self._left(error)
        finally:
            self._restore()

    def _restore(self) -> None:
        if self._config_token is not None:
            var_child_runnable_config.reset(self._config_token)

    def _left(self, error: BaseException | None) -> bool:
        scope = self._scope
        if scope is None or not self.began:  # nothing spent, or nothing run
            return False
        # A refusal of another guard's budget is for the door of that guard.
        refused = None if error is None else _refused(error)
        refusal = scope.refusal if refused is not None else None
        if refusal is not None:
            self.result = self._act(refusal)
        # The task's writers run for a command that a graph inside has for this one, too.
        if error is None or refusal is not None or isinstance(error, ParentCommand):
            scope.meter.finish(scope)
        if refusal is None and refused is not None and refused is not error:
            raise refused from error
        return refusal is not None

    def output(self, value: object) -> object:
        """The task's output: the code's own, or a stop, decided here or by this guard in a graph inside."""
        if self.result is not None:
            if self.door.edge and isinstance(self.result.update, dict) and self.result.update:
                # The node's own writer ran before its edges, so nothing else would write this update.
                self.scope.task.send(list(self.result.update.items()))
            return self.result
        if self._scope is None or (trip := self._scope.stopped) is None:
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
        if self._scope is None or (config := self._scope.users_config) is None or "config" not in kwargs:
            return kwargs
        return {**kwargs, "config": config}

    def _enter(self) -> Stop | None:
        """Hear what was answered; `_gates` then says whether the inline gate decides before the node's code runs."""
        if not self.door.first:
            self._follow()
            return None
        scope, task = self.scope, self.scope.task
        if Task.undisturbed(self.config):
            self._gates = self.door.gated and task.routable and not task.has_answers(())
            return None
        asked, beside = task.question(), task.beside()
        if asked is not None and (stop := self._hear(asked)) is not None:
            return stop
        for raised in task.raised_beside():
            for key in filter(scope.meter.has_limit, raised):
                scope.raise_limits(key, limits_from_state(raised[key]))
        for question in beside:
            if self._hear_beside(question) and asked is None:
                return self._end(replace(self._trip(question), answer="stopped"))
        if scope.users_config is None:
            scope.users_config = task.without_ours()
        users_turn = asked is not None or task.has_answers(beside)
        self._gates = self.door.gated and task.routable and not users_turn
        return None

    def _follow(self) -> None:
        """Go on with what the first door of the task was told."""
        before = self.scope.meter.finished.get(self.scope.task.key)
        if before is not None:
            self.scope.users_config = before.users_config
            for key, limits in before.new_limits.items():
                self.scope.raise_limits(key, limits)

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
                scope.task.ask(gates.question(trip), question.kept)
            answer = gates.read_answer(question.fresh, trip)
            if answer.error is not None:
                scope.task.ask(gates.question(trip, error=answer.error), question.kept)
            if answer.limit is None:
                return self._end(replace(trip, answer="stopped"))
            raised_now = {trip.metric: answer.limit}
            scope.raise_limits(trip.limit_key, raised_now)
            limits = {**limits, **limits_to_state({trip.limit_key: raised_now})}
            scope.trip = replace(trip, answer="raised")
        scope.users_config = scope.task.with_answers(question.users, limits)
        return None

    def _hear_beside(self, question: Question) -> bool:
        """Take over what was answered to a task beside this one; True says to stop."""
        trip = self._trip(question)
        if question.fresh is None or trip.budget not in self.scope.meter.budgets:
            return False
        answer = gates.read_answer(question.fresh, trip)
        if answer.limit is not None:
            self.scope.raise_limits(trip.limit_key, {trip.metric: answer.limit})
        return answer.limit is None and answer.error is None

    def _act(self, trip: Trip) -> Stop:
        """What `on_trip` says, for a trip in this task."""
        scope, settings = self.scope, self.scope.meter.settings
        if not scope.task.routable:
            raise BudgetExceeded(trip)
        outermost = scope.parent is None or scope.parent.meter is not scope.meter
        if settings.to is not None and settings.to != self.door.node and outermost:
            return self._stop(trip, goto=[settings.to])
        if gates.stopped_before(scope):
            return self._end(replace(trip, answer="stopped"))  # so that the next one hears it too
        if settings.on_trip == "end" or settings.to is not None:
            return self._end(trip)
        gates.may_ask(scope, trip)
        alone = not scope.task.pushed and not scope.field.get("parallel") and not scope.task.accompanied
        # Not from an edge: the node has written by then, and would write again after the gate.
        if self.door.gate is not None and alone and not self.door.edge and not scope.task.answered:
            return self._stop(replace(trip, waiting=(self.door.gate,)), goto=[self.door.review])
        # One question a superstep: who trips later leaves it to that one, and hears its answer too.
        again = (q.interrupt for q in scope.task.beside() if self._is_asked_again(q))
        scope.task.ask(gates.question(trip), instead=next(again, None) or scope.meter.asked_first)
        raise GraphBubbleUp  # never reached: ask() always raises

    def _is_asked_again(self, question: Question) -> bool:
        """Whether a task beside this one waits for an answer, or got one that can't be used."""
        trip = self._trip(question)
        return question.fresh is None or gates.read_answer(question.fresh, trip).error is not None

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
