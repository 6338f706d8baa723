"""Go on from a trip: raise the limit where it tripped, and resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph.graph.state import CompiledStateGraph

from graphguard.errors import NothingToTopUp
from graphguard.guard import settings_of
from graphguard.history.line import aline, line
from graphguard.history.raising import Stopped, answering, going_on, questions, raising
from graphguard.history.serving import atop_up_served, is_async_client, is_client, top_up_served
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from langchain_core.runnables import RunnableConfig
    from langgraph.types import Command, StateSnapshot
    from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

    from graphguard.history.raising import Added
    from graphguard.placement import AnyGraph

__all__ = ["atop_up", "top_up"]


def top_up(
    graph: AnyGraph | SyncLangGraphClient,
    config: RunnableConfig,
    *,
    usd: str | float | Decimal | None = None,
    calls: int | None = None,
    tokens: int | None = None,
) -> object:
    """Raise the limit that tripped, and go on from there, whatever `on_trip` said.

    All questions that wait are answered together; all nodes that a trip of the run kept from running run now.

    Args:
        graph: The guarded graph, with its checkpointer; or a client of the LangGraph SDK, for a thread that a
            server keeps.
        config: The thread's config.
        usd: USD to add to the limit, when USD ran out.
        calls: Calls to add, when calls ran out.
        tokens: Tokens to add, when tokens of any kind ran out.

    Returns:
        What `graph.invoke` returns, or the client's `runs.wait`: the output of the resumed run.

    Raises:
        NothingToTopUp: The thread is not at a trip, the amount is for another metric than the one that ran
            out, or the trip can't be gone on from.

    ```python
    top_up(graph, {"configurable": {"thread_id": "t1"}}, usd="0.50")
    ```
    """
    added: Added = {"usd": usd, "calls": calls, "tokens": tokens}
    if is_client(graph):
        return top_up_served(graph, config, added)
    if is_async_client(graph):
        problem = "this client is asynchronous; await atop_up(client, ...), or use get_sync_client()"
        raise NothingToTopUp(problem)
    snapshot = graph.get_state(config)
    stopped = () if questions(snapshot.interrupts) else line(graph, snapshot)
    return graph.invoke(_command(graph, snapshot, stopped, added), config)


async def atop_up(
    graph: AnyGraph | LangGraphClient | SyncLangGraphClient,
    config: RunnableConfig,
    *,
    usd: str | float | Decimal | None = None,
    calls: int | None = None,
    tokens: int | None = None,
) -> object:
    """The same as `top_up`, on an event loop."""
    added: Added = {"usd": usd, "calls": calls, "tokens": tokens}
    if is_async_client(graph):
        return await atop_up_served(graph, config, added)
    if is_client(graph):
        problem = "this client would block the event loop; use get_client(), or top_up(client, ...)"
        raise NothingToTopUp(problem)
    snapshot = await graph.aget_state(config)
    stopped = () if questions(snapshot.interrupts) else await aline(graph, snapshot)
    return await graph.ainvoke(_command(graph, snapshot, stopped, added), config)


def _command(graph: AnyGraph, snapshot: StateSnapshot, stopped: Sequence[Stopped], added: Added) -> Command[str]:
    """What goes on from where the thread is."""
    if asked := questions(snapshot.interrupts):
        return answering(asked, added)
    settings = settings_of(graph) if isinstance(graph, CompiledStateGraph) else None  # not a RemoteGraph
    if stopped:
        return going_on(stopped, added, snapshot.values, settings)
    trip = Trip.of(snapshot)
    if trip is not None and trip.answer != "raised" and trip.node is not None:
        if trip.pushed:
            problem = f"{trip.node!r} was started by a Send whose payload was not kept; use on_trip='interrupt'"
            raise NothingToTopUp(problem)
        return going_on([Stopped(trip, trip.node)], added, snapshot.values, settings)
    if settings is None or settings.on_trip != "raise" or not snapshot.next:
        problem = "the thread is not at a trip; look at Trip.of(graph.get_state(config)), or at trips(graph, config)"
        raise NothingToTopUp(problem)
    return raising(settings, snapshot.values, added)
