"""What the current run of a thread left undone because of trips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Send

from graphguard.history.checkpoints import aeach_checkpoint, each_checkpoint
from graphguard.history.raising import Stopped
from graphguard.history.steps import BY_HAND
from graphguard.placement import Shape
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.types import StateSnapshot

    from graphguard.placement import AnyGraph

__all__ = ["aline", "line"]

_PUSHED: Final = "__pregel_push"


def line(graph: AnyGraph, snapshot: StateSnapshot) -> list[Stopped]:
    """The tasks of the current run that trips ended, on the line of checkpoints that leads to a state.

    Read from the checkpointer, newest first; empty if it keeps no single writes.
    """
    found: list[Stopped] = []
    walk = _Walk(snapshot)
    if isinstance(saver := getattr(graph, "checkpointer", None), BaseCheckpointSaver):
        for place in each_checkpoint(saver, walk.thread, walk.feed):
            if place is None:
                break
            found += place.stopped(graph.get_state(place.config))
    return _without_followers(graph, found)


async def aline(graph: AnyGraph, snapshot: StateSnapshot) -> list[Stopped]:
    """The same as `line`, on an event loop."""
    found: list[Stopped] = []
    walk = _Walk(snapshot)
    if isinstance(saver := getattr(graph, "checkpointer", None), BaseCheckpointSaver):
        async for place in aeach_checkpoint(saver, walk.thread, walk.feed):
            if place is None:
                break
            found += place.stopped(await graph.aget_state(place.config))
    return _without_followers(graph, found)


@dataclass(frozen=True, slots=True)
class _Place:
    """A checkpoint from which tasks ran that trips ended, with the trips by task and the Sends that wait in it."""

    config: RunnableConfig
    trips: Mapping[str, Trip]
    sends: Sequence[object]

    def stopped(self, snapshot: StateSnapshot) -> list[Stopped]:
        """The tasks, by what the graph says of the checkpoint."""
        found: list[Stopped] = []
        for task in snapshot.tasks:
            trip = self.trips.get(task.id)
            if trip is None:
                continue
            if task.path[0] != _PUSHED:
                found.append(Stopped(trip, str(trip.node) if task.name in trip.waiting else task.name))
                continue
            at = task.path[1]
            send = self.sends[at] if isinstance(at, int) and at < len(self.sends) else None
            if isinstance(send, Send):
                found.append(Stopped(trip, send))
        return found


class _Walk:
    """Goes from a thread's newest checkpoint back to where its run, or the last going on, began."""

    def __init__(self, snapshot: StateSnapshot) -> None:
        conf = snapshot.config["configurable"]
        self.thread = str(conf["thread_id"])
        self._next = conf.get("checkpoint_id")

    def feed(self, saved: CheckpointTuple) -> Iterator[_Place | None]:
        """A place on the line where tasks were ended; None when nothing of the run lies behind."""
        if self._next is None or saved.checkpoint["id"] < self._next:
            yield None
        if saved.checkpoint["id"] != self._next:
            return
        writes = saved.pending_writes or ()
        told = {task: Trip.of({"trip": v}) for task, channel, v in writes if channel == "trip" and task != BY_HAND}
        trips = {task: trip for task, trip in told.items() if trip is not None and _ended(trip)}
        sends = saved.checkpoint["channel_values"].get("__pregel_tasks")
        if trips:
            yield _Place(saved.config, trips, sends if isinstance(sends, list) else [])
        gone_on = any(task == BY_HAND and channel == "trip" for task, channel, _ in writes)
        over = saved.metadata.get("source") == "input" or gone_on or saved.parent_config is None
        self._next = None if over else (saved.parent_config or {})["configurable"].get("checkpoint_id")


def _ended(trip: Trip) -> bool:
    """Whether the trip ended its line; one that asked is told of by its question, or by the state."""
    return trip.answer is None and trip.mode not in ("interrupt", "raise")


def _without_followers(graph: AnyGraph, found: list[Stopped]) -> list[Stopped]:
    """Without tasks that come anyway after others that go on: both would run them."""
    if len(found) < 2:  # noqa: PLR2004 - nothing to follow
        return found
    ways = Shape(graph.builder).next
    reach = {name: _reach(name, ways) for name in {_node(each) for each in found}}

    def follows(later: Stopped, earlier: Stopped) -> bool:
        name, before = _node(later), _node(earlier)
        return later.trip.at != earlier.trip.at and name in reach[before] and before not in reach[name]

    # Newest first, so those after one in the list were stopped before it.
    return [each for at, each in enumerate(found) if not any(follows(each, earlier) for earlier in found[at + 1 :])]


def _node(stopped: Stopped) -> str:
    return stopped.goto if isinstance(stopped.goto, str) else stopped.goto.node


def _reach(name: str, ways: Mapping[str, set[str]]) -> set[str]:
    """The nodes that may run after one."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for after in ways.get(todo.pop(), ()):
            if after not in found:
                found.add(after)
                todo.append(after)
    return found
