"""Where the gates go: a node of its own only where nothing can run beside it, inline everywhere else."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import EphemeralValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.managed import RemainingSteps
from langgraph.types import CachePolicy, Command

from graphguard import Budget, MemoryLedger, guard, model_nodes
from tests.scripted import Scripted


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


MODEL = Scripted()


def _call(_: Log) -> Log:
    return {"log": [MODEL.invoke("q").content]}


def builder(*names: str, model: Scripted | None = None, schema: type = Log) -> StateGraph:
    """Nodes that call a model, not yet connected."""
    model = model or Scripted()
    graph = StateGraph(schema)
    for name in names:
        graph.add_node(name, lambda _, name=name: {"log": [name + str(model.invoke("q").content)]})
    return graph


def connected(*edges: tuple[Any, str]) -> StateGraph:
    """Model nodes for all names in the edges."""
    names = dict.fromkeys(n for edge in edges for n in (*([edge[0]] if isinstance(edge[0], str) else edge[0]), edge[1]))
    graph = builder(*[name for name in names if name not in (START, END)])
    for start, end in edges:
        graph.add_edge(start, end)
    return graph


def gates(graph: Any) -> dict[str, str]:
    """Where the gate of each model node is."""
    return {name: node.gate for name, node in model_nodes(graph).items()}


def test_a_line_has_gate_nodes() -> None:
    """Where one node follows the other, every gate is a node."""
    assert gates(connected((START, "a"), ("a", "b"), ("b", END))) == {"a": "node", "b": "node"}


def test_a_loop_has_a_gate_node() -> None:
    """An agent's loop has its gate as a node."""
    graph = builder("a").add_edge(START, "a")
    graph.add_conditional_edges("a", lambda _: END, ["a", END])

    assert gates(graph) == {"a": "node"}


def test_a_fork_is_inline_from_there_on() -> None:
    """Behind a fork nothing can be sure to run alone, and the reason names the fork."""
    graph = connected((START, "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))

    assert gates(graph) == {"a": "node", "b": "inline", "c": "inline", "d": "inline"}
    assert "'a'" in model_nodes(graph)["b"].reason


def test_a_fork_at_the_start_is_inline() -> None:
    """The start may fork as well."""
    graph = connected((START, "a"), (START, "b"))

    assert gates(graph) == {"a": "inline", "b": "inline"}
    assert "the start" in model_nodes(graph)["a"].reason


def test_a_join_is_inline() -> None:
    """A node that waits for several is gated inline."""
    assert gates(connected((START, "a"), (START, "b"), (("a", "b"), "c")))["c"] == "inline"


def test_a_deferred_node_is_inline() -> None:
    """A deferred node runs when all else is done, so a gate before it would not know when."""
    graph = StateGraph(Log).add_node("a", _call, defer=True)

    assert gates(graph.add_edge(START, "a")) == {"a": "inline"}


def test_a_cached_node_is_inline() -> None:
    """An answer out of the node's cache needs no budget, so nothing asks in front of it."""
    graph = StateGraph(Log).add_node("a", _call, cache_policy=CachePolicy())
    compiled = graph.add_edge(START, "a").compile(cache=InMemoryCache())

    assert gates(compiled) == {"a": "inline"}
    assert "cache" in model_nodes(compiled)["a"].reason


def test_static_breakpoints_make_all_inline() -> None:
    """A gate node would shift the breakpoints that the graph was compiled with."""
    compiled = connected((START, "a"), ("a", "b")).compile(checkpointer=InMemorySaver(), interrupt_before=["b"])

    assert gates(compiled) == {"a": "inline", "b": "inline"}
    assert "breakpoints" in model_nodes(compiled)["a"].reason


def test_counted_steps_make_all_inline() -> None:
    """A state that counts steps would count the gates' ones."""

    class Counting(TypedDict, total=False):
        log: Annotated[list[Any], operator.add]
        left: RemainingSteps

    graph = builder("a", schema=Counting).add_edge(START, "a")

    assert gates(graph) == {"a": "inline"}
    assert "left" in model_nodes(graph)["a"].reason


def test_fields_that_live_for_a_step_make_all_inline() -> None:
    """A value that is gone after one step would not reach the node behind a gate."""

    class Passing(TypedDict, total=False):
        log: Annotated[list[Any], operator.add]
        now: Annotated[str, EphemeralValue(str)]

    graph = builder("a", schema=Passing).add_edge(START, "a")

    assert gates(graph) == {"a": "inline"}
    assert "now" in model_nodes(graph)["a"].reason


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_the_user_may_choose(gate: str) -> None:
    """`gate=` puts all gates where the user wants them."""
    guarded = guard(connected((START, "a"), (START, "b")), Budget(calls=9), gate=gate, ledger=MemoryLedger())

    assert gates(guarded) == gates(guarded.compile()) == {"a": gate, "b": gate}


def test_gate_nodes_are_named_after_their_nodes() -> None:
    """The gate of `a` is the node `a.budget`, seen in drawings with the way to END."""
    graph = guard(connected((START, "a"), ("a", END)), Budget(calls=1), ledger=MemoryLedger()).compile()

    drawn = graph.get_graph()

    assert set(drawn.nodes) == {START, "a", "a.budget", END}
    assert ("a.budget", "a") in {(edge.source, edge.target) for edge in drawn.edges}
    assert ("a.budget", END) in {(edge.source, edge.target) for edge in drawn.edges}


def test_review_is_one_node_and_only_where_people_are_asked() -> None:
    """`budget.review` is there once, in interrupt mode only."""
    plain = connected((START, "a"), ("a", "b"))
    asking = guard(plain, Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger()).compile()
    ending = guard(plain, Budget(calls=1), ledger=MemoryLedger()).compile()

    assert [name for name in asking.nodes if "review" in name] == ["budget.review"]
    assert "budget.review" not in ending.nodes


def test_a_users_node_of_that_name_is_left_alone() -> None:
    """A node that is called as a gate would be keeps its name; the gate takes another."""
    graph = connected((START, "a"), ("a", "a.budget"), ("a.budget", "budget.review"))
    guarded = guard(graph, Budget(calls=2), on_trip="interrupt", ledger=MemoryLedger())
    compiled = guarded.compile(checkpointer=InMemorySaver())

    out = compiled.invoke({"log": []}, {"configurable": {"thread_id": "t"}})
    assert out["log"] == ["aok", "a.budgetok"]
    out = compiled.invoke(Command(resume=9), {"configurable": {"thread_id": "t"}})

    assert out == {"log": ["aok", "a.budgetok", "budget.reviewok"]}


def test_lines_that_only_show_when_they_run_pass_no_gate_node() -> None:
    """A Command that wakes several model nodes at once is seen as it happens: siblings stay in step."""
    model = Scripted()
    graph = builder("b", "c", model=model)
    graph.add_node("d", lambda state: {"log": [len(state["log"])]})

    def plan(state: Log) -> Command[Literal["b", "d"]]:
        return Command(goto=["b", "d"])

    graph.add_node("plan", plan)
    graph.add_edge(START, "plan").add_edge("b", "c")
    compiled = guard(graph, Budget(calls=9), ledger=MemoryLedger()).compile()

    steps = [sorted(chunk) for chunk in compiled.stream({"log": []}, stream_mode="updates")]

    assert model_nodes(compiled)["b"].gate == "node"
    assert compiled.invoke({"log": []}) == graph.compile().invoke({"log": []})
    assert not any("budget" in name for step in steps for name in step)
