"""Law 6: no call is free by accident: missing usage is estimated and marked, an unknown price breaches."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from graphguard import Budget, MemoryLedger, PriceBook, Spend, Trip, UnknownPrice, guard
from tests.laws.shapes import Bench, Trail
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG
from tests.scripted import Scripted, Streaming

RICH = Budget(usd=1000)
STRAIGHT = [shape for shape in SHAPES.values() if not shape.resumes]
over_straight = pytest.mark.parametrize("shape", STRAIGHT, ids=[shape.name for shape in STRAIGHT])
over_gates = pytest.mark.parametrize("gate", ["auto", "inline"])
over_models = pytest.mark.parametrize("kind", [Scripted, Streaming])


@over_models
@over_straight
async def test_missing_usage_is_estimated_and_marked(shape, kind):
    """A model that reports no usage is charged by what was sent and received, each charge marked as estimated."""
    bench = Bench(kind(script=[_wordy(entry) for entry in shape.script], usage=None))
    ledger = MemoryLedger()
    graph = shape.guarded(bench, RICH, saver=InMemorySaver(), ledger=ledger)

    await graph.ainvoke(shape.given, CONFIG)

    charges = ledger.charges()
    assert len(charges) == bench.model.billed
    assert all(c.estimated and c.nanousd > 0 and c.input_tokens > 0 and c.output_tokens > 0 for c in charges)
    if shape.keyed:
        assert Spend.of(await graph.aget_state(CONFIG)).estimated == bench.model.billed


def _wordy(entry: object) -> object:
    return entry if isinstance(entry, AIMessage) else f"{entry} " * 20


def _hidden() -> StateGraph:
    """Give a graph whose model comes with the run's config, so that nobody can see it beforehand."""

    def ask(state: Trail, config: RunnableConfig) -> dict[str, list[str]]:
        return {"trail": [str(config["configurable"]["model"].invoke("hi").content)]}

    builder = StateGraph(Trail)
    builder.add_node("model", ask)
    builder.add_node("again", ask)
    builder.add_edge(START, "model")
    builder.add_edge("model", "again")
    return builder


def _with(model: Scripted) -> RunnableConfig:
    return {"configurable": {"thread_id": "t", "model": model}}


def test_unknown_price_is_refused_when_the_graph_is_guarded():
    """A USD budget over a model whose price nobody knows is an error before anything runs."""
    bench = Bench(Scripted(model_name="no-such-model-1"))

    with pytest.raises(UnknownPrice, match="no-such-model-1"):
        SHAPES["plain_chain"].guarded(bench, RICH)


@over_gates
def test_unknown_price_trips_before_the_call(gate):
    """A model that shows its name only when it is called is refused then, before it is billed."""
    model, ledger = Scripted(model_name="no-such-model-1"), MemoryLedger()
    graph = guard(_hidden(), RICH, nodes=["model", "again"], gate=gate, ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )

    graph.invoke({"trail": []}, _with(model))

    trip = Trip.of(graph.get_state(CONFIG))
    assert model.billed == 0
    assert trip is not None
    assert trip.kind == "unpriced"
    assert ledger.open_holds() == ()


class Nameless(Scripted):
    """Tells its name only in its answer."""

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {"ls_model_type": "chat"}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {}


@over_gates
def test_unknown_price_trips_right_after_the_call(gate):
    """A model without a name beforehand may run once; if its price is unknown then, the next call is refused."""
    model, ledger = Nameless(model_name="no-such-model-1"), MemoryLedger()
    graph = guard(_hidden(), RICH, nodes=["model", "again"], gate=gate, ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )

    graph.invoke({"trail": []}, _with(model))

    state = graph.get_state(CONFIG)
    trip = Trip.of(state)
    assert model.billed == 1
    assert ledger.charges()[0].unpriced
    assert Spend.of(state).unpriced == 1
    assert trip is not None
    assert trip.kind == "unpriced"


def test_unknown_price_does_not_stop_other_budgets():
    """Budgets in calls or tokens need no price; the charge is marked all the same."""
    model, ledger = Scripted(model_name="no-such-model-1"), MemoryLedger()
    graph = guard(_hidden(), Budget(calls=5), nodes=["model", "again"], ledger=ledger).compile()

    graph.invoke({"trail": []}, _with(model))

    assert model.billed == 2
    assert [charge.unpriced for charge in ledger.charges()] == [True, True]


def test_a_given_price_makes_the_model_usable():
    """A price of the user's own is charged for a model that no list has."""
    bench, ledger = Bench(Scripted(model_name="no-such-model-1")), MemoryLedger()
    prices = PriceBook().alias("no-such-model-1", "gpt-4o-mini", provider="openai")
    graph = SHAPES["plain_chain"].guarded(bench, RICH, ledger=ledger, prices=prices)

    graph.invoke({"trail": []})

    assert ledger.total().nanousd == 210_000


def test_cut_off_stream_is_charged():
    """A stream that a node leaves after its first piece is charged for what came, marked as estimated."""
    ledger, model = MemoryLedger(), Streaming(script=["one two three four"])

    def first_piece(state: Trail) -> dict[str, list[str]]:
        pieces = model.stream([HumanMessage("hi")])
        piece = next(pieces)
        pieces.close()
        return {"trail": [str(piece.content)]}

    builder = StateGraph(Trail)
    builder.add_node("model", first_piece)
    builder.add_edge(START, "model")
    graph = guard(builder, RICH, ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke({"trail": []}, CONFIG)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.nanousd > 0
    assert ledger.open_holds() == ()
    assert Spend.of(graph.get_state(CONFIG)).calls == 1


def test_failed_call_that_may_be_billed_is_charged():
    """A call that fails in a way that doesn't say whether it was billed is charged its worst case."""
    ledger, model = MemoryLedger(), Scripted(script=[TimeoutError("no answer")])

    def ask(state: Trail) -> dict[str, list[str]]:
        try:
            model.invoke("hi")
        except TimeoutError:
            return {"trail": ["no answer"]}
        raise AssertionError

    builder = StateGraph(Trail)
    builder.add_node("model", ask)
    builder.add_edge(START, "model")

    guard(builder, RICH, ledger=ledger).compile().invoke({"trail": []})

    (charge,) = ledger.charges()
    assert charge.assumed
    assert charge.nanousd > 0
