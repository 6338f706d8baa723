"""Go on from a trip: raise the limit where it tripped, and resume.

The only module that reads checkpoints, through LangGraph's public methods alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph.types import Command

from graphguard.budget import amount_text
from graphguard.errors import NothingToTopUp
from graphguard.gate import CLOSING
from graphguard.scope import limits_to_state
from graphguard.spend import NANO
from graphguard.trip import Trip

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.types import StateSnapshot

    from graphguard.placement import AnyGraph

__all__ = ["atop_up", "top_up"]


def top_up(
    graph: AnyGraph,
    config: RunnableConfig,
    *,
    usd: str | float | Decimal | None = None,
    calls: int | None = None,
    tokens: int | None = None,
) -> object:
    """Raise the limit that tripped, and go on from there; all questions that wait are answered together.

    Args:
        graph: The guarded graph, with its checkpointer.
        config: The thread's config.
        usd: USD to add to the limit, when USD ran out.
        calls: Calls to add, when calls ran out.
        tokens: Tokens to add, when tokens of any kind ran out.

    Returns:
        What `graph.invoke` returns: the output of the resumed run.

    Raises:
        NothingToTopUp: The thread is not at a trip, the amount is for another metric than the one that ran
            out, or the trip can't be gone on from.

    ```python
    top_up(graph, {"configurable": {"thread_id": "t1"}}, usd="0.50")
    ```
    """
    answer = _command(graph.get_state(config), {"usd": usd, "calls": calls, "tokens": tokens})
    return graph.invoke(answer, config)


async def atop_up(
    graph: AnyGraph,
    config: RunnableConfig,
    *,
    usd: str | float | Decimal | None = None,
    calls: int | None = None,
    tokens: int | None = None,
) -> object:
    """The same as `top_up`, on an event loop."""
    answer = _command(await graph.aget_state(config), {"usd": usd, "calls": calls, "tokens": tokens})
    return await graph.ainvoke(answer, config)


def _command(snapshot: StateSnapshot, added: Mapping[str, str | int | float | Decimal | None]) -> Command[str]:
    questions = {
        interrupt.id: trip
        for interrupt in snapshot.interrupts
        if isinstance(interrupt.value, Mapping) and (trip := Trip.of(interrupt.value.get("trip") or {}))
    }
    if questions:
        return Command(resume={id_: _new_limit(trip, added) for id_, trip in questions.items()})
    trip = Trip.of(snapshot)
    if trip is None or trip.answer == "raised" or trip.node is None:
        problem = "the thread is not at a trip; look at Trip.of(graph.get_state(config))"
        raise NothingToTopUp(problem)
    if trip.pushed:
        problem = f"{trip.node!r} was started by a Send whose payload is gone; use on_trip='interrupt' to go on there"
        raise NothingToTopUp(problem)
    limit = limits_to_state({trip.budget: {trip.metric: _raised(trip, added)}})
    place = "run_limits" if " per run" in trip.budget else "limits"
    update: dict[str, object] = {"spend": {place: limit}, "trip": {"answer": "raised"}}
    messages = snapshot.values.get("messages") if isinstance(snapshot.values, dict) else None
    if removed := [
        RemoveMessage(id=str(message.id))
        for message in messages or ()
        if isinstance(message, BaseMessage) and CLOSING in message.additional_kwargs
    ]:
        update["messages"] = removed
    return Command(update=update, goto=trip.node)


def _new_limit(trip: Trip, added: Mapping[str, str | int | float | Decimal | None]) -> dict[str, object]:
    raised = _raised(trip, added)
    return {f"new_limit_{trip.metric}": str(Decimal(raised) / NANO) if trip.metric == "usd" else raised}


def _raised(trip: Trip, added: Mapping[str, str | int | float | Decimal | None]) -> int:
    name = "tokens" if trip.metric.endswith("tokens") else trip.metric
    amount = added.get(name)
    if amount is None:
        problem = f"{trip.reason}; pass {name}= to raise that limit"
        raise NothingToTopUp(problem)
    raised = trip.limit + int(Decimal(str(amount)) * (NANO if name == "usd" else 1))
    if raised <= trip.spent:
        missing = amount_text(trip.metric, trip.spent - trip.limit)
        problem = f"{trip.reason}; {name}={amount!r} does not even cover the {missing} spent beyond the limit"
        raise NothingToTopUp(problem)
    return raised
