"""Every trip of a thread: where it stopped, why, from which checkpoint, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from graphguard.budget import amount_text
from graphguard.history import steps as reading
from graphguard.history.checkpoints import aeach_checkpoint, each_checkpoint, saver_of, thread_of
from graphguard.limits import limits_from_state
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph

__all__ = ["PastTrip", "Search", "atrips", "trips"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTrip(Trip):
    """One stop at one budget, as a thread's history tells it: a `Trip`, with its place.

    Attributes:
        thread: The thread.
        ns: Checkpoint namespace of the graph in which it happened; empty at the top, `"node:task|…"` in subgraphs.
        root: Id of the top graph's checkpoint from which the task ran, in which it happened.
        step: LangGraph's count of supersteps there.
        time: When the checkpoint before the refused call was made, in ISO format; None if it wasn't kept.
        kept: Whether that checkpoint was kept, so that the trip can be replayed.
        new_limit: The limit that the answer raised it to, nano-USD for `usd`; None while unanswered or stopped.
    """

    thread: str
    ns: str = ""
    root: str | None = None
    step: int = 0
    time: str | None = None
    kept: bool = True
    new_limit: int | None = None

    @property
    def config(self) -> RunnableConfig:
        """The config of the checkpoint right before the refused call; in a subgraph, of the top graph's around it."""
        return {"configurable": {"thread_id": self.thread, "checkpoint_ns": "", "checkpoint_id": self.root}}

    @property
    def outcome(self) -> str:
        """What became of it, as people read it: the new limit, or that it stopped or waits.

        >>> PastTrip(budget="b", metric="calls", limit=2, spent=2, thread="t", answer="raised", new_limit=4).outcome
        'raised to 4 calls'
        """
        if self.answer == "raised":
            return f"raised to {amount_text(self.metric, self.new_limit)}" if self.new_limit else "raised"
        if self.answer is not None:
            return self.answer
        return "waits for an answer" if self.mode == "interrupt" else "not answered"


def trips(source: AnyGraph | AnySaver, config: RunnableConfig) -> Iterator[PastTrip]:
    """Every trip of a thread, newest first: in the graph and its subgraphs, across all forks.

    Reads the checkpoints once, a page at a time, as far as trips are asked for. A trip in the mode `"raise"` is
    in the exception alone: nothing of it is written anywhere.

    Args:
        source: The graph with its checkpointer, or the checkpointer.
        config: The thread's config.

    Raises:
        HistoryUnavailable: There is no checkpointer, or no such thread.

    ```python
    for trip in trips(graph, {"configurable": {"thread_id": "t1"}}):
        print(trip.time, trip.reason, trip.outcome)
    ```
    """
    search = Search()
    yield from each_checkpoint(saver_of(source), thread_of(config), search.feed)
    yield from search.rest()


async def atrips(source: AnyGraph | AnySaver, config: RunnableConfig) -> AsyncIterator[PastTrip]:
    """The same as `trips`, on an event loop."""
    search = Search()
    async for trip in aeach_checkpoint(saver_of(source), thread_of(config), search.feed):
        yield trip
    for trip in search.rest():
        yield trip


_Limits = set[tuple[str, str, int]]  # budget, metric and what it was raised to; all raises, as they only go up


@dataclass(slots=True)
class _Later:
    """What the checkpoints that followed one tell of answers, as far as its own run reached."""

    raised: _Limits = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)


class Search:
    """Finds the trips of checkpoints that come newest first."""

    def __init__(self) -> None:
        """Begin before the newest checkpoint."""
        self._later: dict[tuple[str, str], _Later] = {}  # by the checkpoint they followed
        self._told: dict[str, PastTrip] = {}  # trips in the state, until the checkpoint they ran from comes

    def feed(self, saved: CheckpointTuple) -> Iterator[PastTrip]:
        """The trips of tasks that ran from this checkpoint."""
        conf, own = saved.config["configurable"], saved.checkpoint["id"]
        ns = str(conf.get("checkpoint_ns", ""))
        later = self._later.pop((ns, own), None) or _Later()
        later.raised |= _raised(saved)
        found = list(_tripped(saved))
        for at in [at for at in self._told if own < at]:
            yield self._told.pop(at)
        told = self._told.pop(own, None)
        if told is not None and not found:  # a copy of a thread, without its tasks' writes
            here = _placed(told, saved, ns)
            yield replace(here, answer=told.answer, new_limit=told.new_limit)
        around = [self._later.get(place) for place in (saved.metadata.get("parents") or {}).items()]
        for trip in found:
            past = _placed(trip, saved, ns)
            yield _answered(past, [later, *(place for place in around if place is not None)])
        self._note(saved, ns, later)

    def rest(self) -> Iterator[PastTrip]:
        """The trips whose checkpoints were not kept."""
        yield from self._told.values()
        self._told.clear()

    def _note(self, saved: CheckpointTuple, ns: str, later: _Later) -> None:
        """Pass on to the checkpoint before what its followers and this one tell."""
        trip = Trip.of({"trip": reading.field(saved, "trip")})
        if trip is not None and trip.at is not None:
            if trip.answer == "stopped":
                later.stopped.add(trip.at)
            past = _answered(replace(_placed(trip, saved, ns), root=None, time=None, kept=False), [later])
            known_so_far = self._told.get(trip.at)
            if known_so_far is not None and past.answer is None:
                past = replace(past, answer=known_so_far.answer, new_limit=known_so_far.new_limit)
            self._told[trip.at] = past
        # A new input ends what was asked before it; a fork is a run of its own, whose trips are its own too.
        if saved.metadata.get("source") not in ("input", "fork") and saved.parent_config is not None:
            parent = (ns, str(saved.parent_config["configurable"].get("checkpoint_id")))
            known = self._later.setdefault(parent, _Later())
            known.raised |= later.raised
            known.stopped |= later.stopped


def _tripped(saved: CheckpointTuple) -> Iterator[Trip]:
    """The trips of tasks from a checkpoint, one a task, answered or not."""
    # Those of other checkpoints are what the review node asks about, for a gate.
    found = {task: trip for task, trip in reading.asked(saved) if trip.at == saved.checkpoint["id"]}
    for task, channel, value in saved.pending_writes or ():
        if channel == "trip" and isinstance(value, Mapping) and value.get("at") == saved.checkpoint["id"]:
            trip_now = Trip.of({"trip": value})
            if trip_now is not None:
                found[task] = trip_now
    seen: list[Trip] = []
    for trip in found.values():
        # Tasks beside the one that asked write its trip too, when they hear that a person said stop.
        if trip.answer is None or trip not in seen:
            seen.append(trip)
            yield trip


def _raised(saved: CheckpointTuple) -> _Limits:
    """Limits raised as a checkpoint knows them, with what was told since."""
    spend = reading.field(saved, "spend")
    run = spend.get("run")
    places: list[Any] = [spend.get("limits"), run.get("limits") if isinstance(run, Mapping) else None]
    for _, channel, value in saved.pending_writes or ():
        if channel == "spend" and isinstance(value, Mapping):
            places += [value.get("limits"), value.get("run_limits")]
    return {
        (key, metric, limit)
        for place in places
        if place
        for key, limits in place.items()
        for metric, limit in limits_from_state(limits).items()
    }


def _placed(trip: Trip, saved: CheckpointTuple, ns: str) -> PastTrip:
    known = {each.name: getattr(trip, each.name) for each in fields(Trip)}
    parents = saved.metadata.get("parents") or {}
    return PastTrip(
        **known,
        thread=str(saved.config["configurable"]["thread_id"]),
        ns=ns,
        root=parents.get("", saved.checkpoint["id"]) if ns else saved.checkpoint["id"],
        step=saved.metadata.get("step", -1),
        time=saved.checkpoint["ts"],
    )


def _answered(trip: PastTrip, later: list[_Later]) -> PastTrip:
    """The trip with what became of it."""
    for told in later:
        place = (trip.limit_key, trip.metric)
        limits = (limit - trip.kept for *known, limit in told.raised if tuple(known) == place)  # as the trip says it
        limit = min((limit for limit in limits if limit > trip.limit), default=None)
        if trip.answer != "stopped" and limit is not None:
            return replace(trip, answer="raised", new_limit=limit)
        if trip.at in told.stopped:
            return replace(trip, answer="stopped")
    return trip
