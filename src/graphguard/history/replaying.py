"""Run again from a trip: from the checkpoint before the refused call, as a fork, with the same budgets or others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, overload

from langgraph.constants import START
from langgraph.types import Command, Send

from graphguard.errors import HistoryUnavailable, UnknownNode
from graphguard.guard import rebudgeted
from graphguard.history.attempts import is_gate
from graphguard.history.checkpoints import saver_of
from graphguard.history.found import PastTrip
from graphguard.history.steps import BY_HAND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.types import StateSnapshot, StreamMode

    from graphguard.budget import Budget, Policy
    from graphguard.placement import AnyGraph
    from graphguard.trip import Trip

__all__ = ["areplay", "replay"]

# A copy of the checkpoint, rather than the checkpoint itself: LangGraph would find the answers, and the limits that
# were raised by them, which are stored with it.
_COPY: Final = "__copy__"
_BRANCH: Final = "branch:to:"
Modes: TypeAlias = "StreamMode | Sequence[StreamMode]"


@overload
def replay(graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: None = None) -> object: ...
@overload
def replay(graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: Modes) -> Iterator[object]: ...
def replay(
    graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: Modes | None = None
) -> object | Iterator[object]:
    """Run again from right before a trip, as a fork of the thread.

    The fork's branch spend is what it was at that checkpoint; real money (`per="thread"`, per key) never goes
    back. Answers that were given after the trip don't count in the fork: there, it asks anew.

    Args:
        graph: The guarded graph, with the checkpointer that has the trip.
        trip: One of `trips(graph, config)`.
        budgets: Budgets instead of the graph's own; none repeats the same trip.
        stream_mode: As in `graph.stream`, to get an iterator of chunks instead.

    Returns:
        What `graph.invoke` returns, or with `stream_mode` what `graph.stream` does. The thread's newest
        checkpoints are then those of the fork.

    Raises:
        HistoryUnavailable: The trip is none of a history, or the checkpoint before it was not kept.
        UnknownNode: The graph has no longer the node that tripped.

    ```python
    newest = next(trips(graph, config))
    replay(graph, newest, Budget(usd=2))
    ```
    """
    again, config = _prepared(graph, trip, budgets)
    begun = _begun(saver_of(graph).get_tuple(config), trip)
    _check(again, trip, again.get_state(config), begun)
    fork = again.update_state(config, None, as_node=_COPY)
    if stream_mode is None:
        return again.invoke(begun, fork)
    return again.stream(begun, fork, stream_mode=stream_mode)


@overload
async def areplay(graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: None = None) -> object: ...
@overload
async def areplay(
    graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: Modes
) -> AsyncIterator[object]: ...
async def areplay(
    graph: AnyGraph, trip: Trip, *budgets: Budget | Policy, stream_mode: Modes | None = None
) -> object | AsyncIterator[object]:
    """The same as `replay`, on an event loop; with `stream_mode` what is awaited is an async iterator of chunks."""
    again, config = _prepared(graph, trip, budgets)
    begun = _begun(await saver_of(graph).aget_tuple(config), trip)
    _check(again, trip, await again.aget_state(config), begun)
    fork = await again.aupdate_state(config, None, as_node=_COPY)
    if stream_mode is None:
        return await again.ainvoke(begun, fork)
    return again.astream(begun, fork, stream_mode=stream_mode)


def _prepared(graph: AnyGraph, trip: Trip, budgets: Sequence[Budget | Policy]) -> tuple[AnyGraph, RunnableConfig]:
    """The graph with its budgets, and the checkpoint to run it from."""
    if not isinstance(trip, PastTrip):
        problem = "this trip does not say in which thread it happened; take it from trips(graph, config)"
        raise HistoryUnavailable(problem)
    if trip.root is None:
        problem = (
            f"the checkpoint before the trip at {trip.node!r} was not kept, as with durability='exit'; "
            "top_up() goes on from where the thread is, and durability='sync' or 'async' keeps checkpoints to replay"
        )
        raise HistoryUnavailable(problem)
    return rebudgeted(graph, budgets), trip.config


def _begun(saved: CheckpointTuple | None, trip: Trip) -> Command[str] | None:
    """What a client's `Command` told the tasks from a checkpoint; LangGraph keeps it beside the checkpoint."""
    if saved is None:
        problem = (
            f"the checkpoint before the trip at {trip.node!r} is not there any more; "
            "was the thread deleted or pruned, or is this another checkpointer?"
        )
        raise HistoryUnavailable(problem)
    told = [(channel, value) for task, channel, value in saved.pending_writes or () if task == BY_HAND]
    goto = [channel.removeprefix(_BRANCH) for channel, _ in told if channel.startswith(_BRANCH)]
    sends = [value for _, value in told if isinstance(value, Send)]
    update = [(c, v) for c, v in told if not c.startswith(("__", _BRANCH))]  # not the answer to a question
    return Command(goto=[*goto, *sends], update=update or None) if goto or sends or update else None


def _check(graph: AnyGraph, trip: Trip, snapshot: StateSnapshot, begun: Command[str] | None) -> None:
    """Raise unless the graph can run from the checkpoint before the trip."""
    led = begun.goto if begun is not None else ()
    for way in [led] if isinstance(led, (str, Send)) else led:
        if (name := way if isinstance(way, str) else way.node) not in graph.nodes:
            raise _missing(graph, name)
    if snapshot.next or led:
        return
    inside = {name for _, inner in graph.get_subgraphs(recurse=True) for name in getattr(inner, "nodes", ())}
    if trip.node is not None and trip.node not in {*graph.nodes, *inside}:
        raise _missing(graph, trip.node)
    problem = (
        f"no node of the graph would run from the checkpoint before the trip at {trip.node!r}; "
        "replay with the graph that tripped: the same nodes, and gates in the same places"
    )
    raise HistoryUnavailable(problem)


def _missing(graph: AnyGraph, node: str) -> UnknownNode:
    return UnknownNode(node, [name for name in graph.nodes if name != START and not is_gate(name)])
