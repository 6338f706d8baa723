"""The public API as a type checker sees it; mypy reads this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import TypedDict, assert_type

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel

from graphguard import (
    Breach,
    Budget,
    BudgetExceeded,
    Call,
    Charge,
    HoldMismatch,
    MemoryLedger,
    MissingKey,
    ModelNode,
    NoModelNodes,
    PastTrip,
    PriceBook,
    Spend,
    Trip,
    UnknownNode,
    UnknownPrice,
    backtest,
    charge,
    guard,
    model_nodes,
    remaining,
    replay,
    to,
    top_up,
    trips,
)
from graphguard.middleware import BudgetMiddleware


def errors_carry_what_they_are_about(
    exceeded: BudgetExceeded, hold: HoldMismatch, nothing: NoModelNodes, node: UnknownNode, price: UnknownPrice
) -> None:
    """Each error's attributes have types of their own."""
    assert_type(exceeded.trip, Trip)
    assert_type(hold.id, str)
    assert_type(nothing.nodes, tuple[str, ...])
    assert_type(node.nodes, tuple[str, ...])
    assert_type(price.model, str)


def errors_are_the_fitting_built_ins(exceeded: BudgetExceeded, price: UnknownPrice, node: UnknownNode) -> None:
    """Handlers for built-in errors catch them."""
    runtime: RuntimeError = exceeded
    lookup: LookupError = price
    value: ValueError = node
    assert_type((runtime, lookup, value), tuple[RuntimeError, LookupError, ValueError])


class State(TypedDict):
    """A user's state."""

    text: str


def the_same_kind_of_graph_comes_out(
    builder: StateGraph[State], compiled: CompiledStateGraph[State, None, State, State], limit: Budget
) -> None:
    """A builder stays a builder of its state, and a compiled graph a compiled one."""
    assert_type(guard(builder, limit), StateGraph[State])
    assert_type(
        guard(compiled, limit, on_trip=to("summary"), ledger=MemoryLedger(), prices=PriceBook()),
        CompiledStateGraph[State, None, State, State],
    )
    assert_type(model_nodes(builder), dict[str, ModelNode])


def a_workflow_stays_a_workflow(essay: Pregel[State, None, State, State]) -> None:
    """What `@entrypoint` made keeps its type."""
    assert_type(guard(essay, Budget(usd=1)), Pregel[State, None, State, State])


def middleware_fits_into_an_agent(model: BaseChatModel) -> None:
    """`create_agent` takes it without a word from the checker."""
    agent = create_agent(model, middleware=[BudgetMiddleware(Budget(usd=1), downgrade={0.8: "openai:gpt-5-nano"})])
    guard(agent, Budget(calls=9))


def amounts_are_decimals(charged: Charge, spent: Spend, trip: Trip) -> None:
    """Money at the surface is Decimal, counts are whole numbers."""
    assert_type(charged.usd, Decimal)
    assert_type((spent.usd, spent.calls), tuple[Decimal, int])
    assert_type(trip.needed_usd, Decimal | None)
    assert_type(remaining().usd, Decimal | None)
    assert_type(charge(usd="0.01"), Charge)


def no_big_prompts(spent: Spend, call: Call) -> Breach | None:
    """A rule of a user's own is an ordinary function."""
    return Breach(budget="no_big_prompts") if call.worst.input_tokens > 1_000 and spent.calls else None


def a_function_is_a_budget_too(builder: StateGraph[State]) -> None:
    """Rules stand beside budgets."""
    assert_type(guard(builder, Budget(usd=1), no_big_prompts), StateGraph[State])


def histories_are_typed(graph: CompiledStateGraph[State, None, State, State], config: RunnableConfig) -> None:
    """Trips know their place; a replay is streamed when asked to be; backtests hold trips and amounts."""
    for trip in trips(graph, config):
        assert_type(trip, PastTrip)
        assert_type((trip.thread, trip.root, trip.config), tuple[str, str | None, RunnableConfig])
        assert_type(replay(graph, trip, Budget(usd=1)), object)
        assert_type(replay(graph, trip, stream_mode="updates"), Iterator[object])
    told = backtest(graph, None, Budget(usd=1)).outcomes[0]
    assert_type((told.trips, told.saved, told.sentence), tuple[tuple[PastTrip, ...], Spend, str])
    assert_type(top_up(graph, config, usd="0.50"), object)


def budgets_per_key_and_window(missing: MissingKey, trip: Trip) -> None:
    """Any key is a place, and windows are words or timedeltas."""
    daily = Budget(usd=5, per="user_id", every="day", keep="0.05")
    hourly = Budget(calls=5, per="thread", every=timedelta(hours=1), keep=1)
    lookup: LookupError = missing
    assert_type((daily.in_state, hourly.key, lookup), tuple[bool, str, LookupError])
    assert_type(missing.key, str)
    assert_type((trip.account, trip.kept), tuple[str | None, int])
