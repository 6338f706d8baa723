"""Misuse of `guard` is found when the graph is guarded, and each error says what to do."""

from __future__ import annotations

import pickle

import pytest
from langgraph.channels import LastValue
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import NodeBuilder, Pregel

from graphguard import (
    Budget,
    GraphguardError,
    InvalidBudget,
    MemoryLedger,
    NoModelNodes,
    NotGuardable,
    PriceBook,
    StateConflict,
    UnknownNode,
    UnknownPrice,
    guard,
    model_nodes,
    to,
)
from tests.scripted import Scripted


def chat(model: Scripted | None = None, state: type = MessagesState) -> StateGraph:
    """Build a graph of one node, `chat`, that calls a model; without a model, of one that doesn't."""
    builder = StateGraph(state)
    if model is None:
        builder.add_node("chat", lambda _: {})
    else:
        builder.add_node("chat", lambda _: {"messages": [model.invoke("hi")]})
    builder.add_edge(START, "chat")
    return builder


BOTH = pytest.mark.parametrize("compiled", [False, True], ids=["builder", "compiled"])


def given(builder: StateGraph, compiled: bool) -> object:
    """Give the builder or what it compiles to."""
    return builder.compile() if compiled else builder


@BOTH
@pytest.mark.parametrize("budget", [0.5, "0.50", None, {"usd": 1}], ids=repr)
def test_something_else_than_a_budget(compiled, budget):
    """A bare amount is no budget; the error shows what one looks like."""
    with pytest.raises(InvalidBudget, match=r"expected Budget\(\.\.\.\) or a function \(Spend, Call\)"):
        guard(given(chat(Scripted()), compiled), budget)


@BOTH
@pytest.mark.parametrize("mode", ["interupt", "stop", None, ""], ids=repr)
def test_on_trip_with_a_typo(compiled, mode):
    """An unknown `on_trip` names the four ways there are, and what was given."""
    with pytest.raises(InvalidBudget, match=rf"'end', 'interrupt', 'raise' or to\('node'\), got {mode!r}"):
        guard(given(chat(Scripted()), compiled), Budget(calls=1), on_trip=mode)


@BOTH
def test_gate_with_a_typo(compiled):
    """An unknown `gate` names the three there are."""
    with pytest.raises(InvalidBudget, match="gate must be 'auto', 'node' or 'inline', got 'nodes'"):
        guard(given(chat(Scripted()), compiled), Budget(calls=1), gate="nodes")


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [{"nodes": ["chatt"]}, {"nodes": "chatt"}, {"on_trip": to("chatt")}],
    ids=["nodes", "nodes as text", "to"],
)
def test_node_that_is_not_there(compiled, wrong):
    """A wrong node name is told with the names that there are."""
    with pytest.raises(UnknownNode, match=r"no node 'chatt'; it has \['chat'\]") as caught:
        guard(given(chat(Scripted()), compiled), Budget(calls=1), **wrong)

    assert caught.value.node == "chatt"
    assert caught.value.nodes == ("chat",)


@BOTH
def test_budget_for_a_node_that_is_not_there(compiled):
    """A budget that is narrowed to a node nobody has would never count anything, so it is refused."""
    with pytest.raises(UnknownNode, match=r"no node 'chatt'; it has \['chat'\]"):
        guard(given(chat(Scripted()), compiled), Budget(calls=1, node="chatt"))


@BOTH
def test_graph_without_models(compiled):
    """Where no model is seen, `guard` says so, names the nodes it looked at and what to pass."""
    with pytest.raises(NoModelNodes, match=r"\['chat'\].*guard\(graph, \.\.\., nodes=\['\.\.\.'\]\)"):
        guard(given(chat(), compiled), Budget(calls=1))


@BOTH
def test_graph_without_models_may_be_metered(compiled):
    """Without a budget nothing needs a gate, so nothing need be found."""
    guard(given(chat(), compiled))


def test_nodes_named_by_the_user_need_no_evidence():
    """What `nodes=` names is a model node, whatever it looks like."""
    guarded = guard(chat().compile(), Budget(calls=1), nodes=["chat"])

    assert model_nodes(guarded)["chat"].found == "named by nodes="


class WithSpend(MessagesState):
    spend: float


class WithTrip(MessagesState):
    trip: str


@BOTH
@pytest.mark.parametrize(("state", "field"), [(WithSpend, "spend"), (WithTrip, "trip")], ids=["spend", "trip"])
def test_state_with_a_field_of_that_name(compiled, state, field):
    """A user's own field `spend` or `trip` is told by name, and not taken over."""
    with pytest.raises(StateConflict, match=f"already has a field '{field}'.*rename it"):
        guard(given(chat(Scripted(), state), compiled), Budget(calls=1))


@BOTH
def test_graph_inside_with_a_field_of_that_name(compiled):
    """A graph inside keeps its own account too, so its own field `spend` is told as well."""
    with pytest.raises(StateConflict, match="'spend'"):
        guard(given(around(chat(Scripted(), WithSpend)), compiled), Budget(calls=1))


def test_raw_pregel():
    """A raw `Pregel` has no nodes with names and edges to guard; the error says what to pass."""
    node = NodeBuilder().subscribe_only("a").do(lambda a: a).write_to("b")
    pregel = Pregel(
        nodes={"n": node}, channels={"a": LastValue(str), "b": LastValue(str)}, input_channels="a", output_channels="b"
    )

    with pytest.raises(NotGuardable, match=r"can't guard a 'Pregel'; pass a StateGraph"):
        guard(pregel, Budget(calls=1))
    with pytest.raises(NotGuardable, match="Pregel"):
        model_nodes(pregel)


@pytest.mark.parametrize(
    "thing", [None, "graph", Scripted(), lambda state: state], ids=["None", "str", "model", "function"]
)
def test_no_graph_at_all(thing):
    """Something else than a graph is a TypeError, as is usual in Python."""
    with pytest.raises(TypeError, match="pass a StateGraph"):
        guard(thing, Budget(calls=1))


@BOTH
def test_model_without_a_price(compiled):
    """A USD budget over a model that nobody knows the price of is found before the first call."""
    model = Scripted(model_name="in-house-7b")

    with pytest.raises(UnknownPrice, match=r"'in-house-7b'; add one with PriceBook\.add\(\), or budget in tokens"):
        guard(given(chat(model), compiled), Budget(usd=1))
    assert model.billed == 0


@BOTH
def test_model_without_a_price_may_be_budgeted_in_tokens(compiled):
    """Both ways out that the error names do work: tokens, and a price of one's own."""
    graph = given(chat(Scripted(model_name="in-house-7b")), compiled)
    prices = PriceBook().add("in-house-7b", input_usd="0.1", output_usd="0.2")

    guard(graph, Budget(tokens=1_000))
    guard(graph, Budget(usd=1), prices=prices)


def test_node_added_after_the_guard_is_checked_too():
    """A builder that is guarded while it is empty is checked when it is compiled."""
    builder = guard(StateGraph(MessagesState), Budget(usd=1))
    builder.add_node("chat", lambda _: {})
    builder.add_edge(START, "chat")

    with pytest.raises(NoModelNodes):
        builder.compile()


def around(inner: StateGraph, depth: int = 1) -> StateGraph:
    """Build a graph whose only node is another graph, and so on."""
    outer = StateGraph(MessagesState)
    outer.add_node(f"inner{depth}", inner.compile())
    outer.add_edge(START, f"inner{depth}")
    return outer if depth == 1 else around(outer, depth - 1)


@BOTH
@pytest.mark.parametrize("depth", [1, 3])
def test_models_of_graphs_inside_are_seen(compiled, depth):
    """A graph whose models are all in graphs inside it is guarded, and its budget holds there."""
    model = Scripted()
    ledger = MemoryLedger()
    guarded = guard(given(around(chat(model), depth), compiled), Budget(calls=1, per="run"), ledger=ledger)

    graph = guarded if compiled else guarded.compile()
    graph.invoke({"messages": []})

    assert ledger.total().calls == model.billed == 1


@BOTH
@pytest.mark.parametrize("depth", [1, 3])
def test_nodes_of_graphs_inside_may_be_budgeted(compiled, depth):
    """A budget may name a node of a graph inside, however deep; a name that is nowhere is refused."""
    graph = given(around(chat(Scripted()), depth), compiled)

    guard(graph, Budget(calls=1, node="chat"))
    with pytest.raises(UnknownNode, match="'chatt'"):
        guard(graph, Budget(calls=1, node="chatt"))


@BOTH
def test_model_without_a_price_in_a_graph_inside(compiled):
    """A model in a graph inside is priced when the outer graph is guarded, too."""
    with pytest.raises(UnknownPrice, match="in-house-7b"):
        guard(given(around(chat(Scripted(model_name="in-house-7b"))), compiled), Budget(usd=1))


ERRORS = [
    (lambda: guard(chat(Scripted()), 1), ValueError),
    (lambda: guard(chat(), Budget(calls=1)), ValueError),
    (lambda: guard(chat(Scripted()), Budget(calls=1), nodes=["x"]), ValueError),
    (lambda: guard(chat(Scripted(), WithSpend), Budget(calls=1)), ValueError),
    (lambda: guard(chat(Scripted(model_name="x-1")), Budget(usd=1)), LookupError),
    (lambda: guard(None, Budget(calls=1)), TypeError),
]


@pytest.mark.parametrize(("misuse", "kind"), ERRORS, ids=["budget", "models", "node", "state", "price", "graph"])
def test_errors_are_ours_and_the_fitting_builtin(misuse, kind):
    """Each error is a GraphguardError and the built-in one would expect, and survives pickle."""
    with pytest.raises(GraphguardError) as caught:
        misuse()

    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - pickled on the same line
    assert isinstance(caught.value, kind)
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_a_failed_guard_changes_nothing():
    """A graph that could not be guarded compiles and runs as before."""
    builder = chat(Scripted())
    with pytest.raises(UnknownNode):
        guard(builder, Budget(calls=1), nodes=["x"])

    assert type(builder) is StateGraph
    assert len(builder.compile().invoke({"messages": []})["messages"]) == 1


def test_budget_given_twice_counts_once():
    """The same budget in two guards is one budget."""
    ledger = MemoryLedger()
    graph = chat(Scripted(), MessagesState)
    guarded = guard(guard(graph, Budget(calls=1), ledger=ledger), Budget(calls=1)).compile()

    guarded.invoke({"messages": []})

    assert ledger.total().calls == 1
