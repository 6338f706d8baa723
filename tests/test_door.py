"""The door of a node: a trip in the middle of its code, the second door of gated nodes, and nothing else."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import CachePolicy, Command, RetryPolicy, Send

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, Trip, guard, model_nodes, to
from tests.scripted import Scripted

T: RunnableConfig = {"configurable": {"thread_id": "t"}}


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    x: int


def middle(model: Scripted, seen: list[str], way: str = "edge") -> StateGraph:
    """A node with three calls, and what follows it in one of several ways."""
    builder = StateGraph(Log)

    def work(state: Log) -> Any:
        update = {"log": [str(model.invoke("q").content) for _ in range(3)]}
        if way == "command":
            return Command(update=update, goto="next")
        if way == "send":
            return Command(update=update, goto=[Send("next", {"x": i}) for i in range(2)])
        return update

    def after(state: Log) -> Log:
        seen.append("next")
        return {"log": ["next"]}

    ends = ("next",) if way in ("command", "send") else None
    builder.add_node("work", work, destinations=ends)
    builder.add_node("next", after)
    builder.add_edge(START, "work")
    if way == "edge":
        builder.add_edge("work", "next")
    elif way == "branch":
        builder.add_conditional_edges("work", lambda _: seen.append("branch") or "next", ["next", END])
    elif way == "join":
        builder.add_node("side", after)
        builder.add_edge(START, "side")
        builder.add_edge(["work", "side"], "next")
    return builder


WAYS = ["edge", "branch", "command", "send", "join"]
GATES = ["auto", "inline"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("way", WAYS)
def test_a_trip_in_the_middle_ends(way: str, gate: str) -> None:
    """Refused in the middle, none of the node's output is written and none of its successors run; the graph ends."""
    model, seen = Scripted(), []
    graph = guard(middle(model, seen, way), Budget(calls=2), gate=gate, ledger=MemoryLedger())
    graph = graph.compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, T)

    side = ["next"] if way == "join" else []
    assert out["log"] == seen == side
    assert graph.get_state(T).next == ()
    assert Trip.of(graph.get_state(T)).node == "work"
    assert Spend.of(graph.get_state(T)).calls == model.billed == 2


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("way", WAYS)
def test_a_trip_in_the_middle_asks(way: str, gate: str) -> None:
    """Refused in the middle, the graph asks before anything of the node is written; then it runs once, whole."""
    model, seen = Scripted(), []
    graph = guard(middle(model, seen, way), Budget(calls=2), gate=gate, on_trip="interrupt", ledger=MemoryLedger())
    graph = graph.compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, T)
    assert out["__interrupt__"][0].value["kind"] == "graphguard.budget"
    assert [entry for entry in out["log"] if entry == "ok"] == []

    out = graph.invoke(Command(resume=9), T)

    plain = middle(Scripted(), [], way).compile().invoke({"log": []})
    assert sorted(out["log"]) == sorted(plain["log"])
    assert Spend.of(graph.get_state(T)).calls == model.billed == 5


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("way", WAYS)
def test_a_trip_in_the_middle_raises(way: str, gate: str) -> None:
    """Refused in the middle, the run raises, and can go on from the checkpoint before the node."""
    model, seen = Scripted(), []
    graph = guard(middle(model, seen, way), Budget(calls=2), gate=gate, on_trip="raise", ledger=MemoryLedger())
    graph = graph.compile(checkpointer=InMemorySaver())

    with pytest.raises(BudgetExceeded, match="2 of 2 calls spent"):
        graph.invoke({"log": []}, T)

    assert "work" in graph.get_state(T).next
    assert "ok" not in graph.get_state(T).values["log"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("way", WAYS)
def test_a_trip_in_the_middle_goes_to_the_named_node(way: str, gate: str) -> None:
    """Refused in the middle, the graph goes on at the node of `to(...)` and nowhere else."""
    model, seen = Scripted(), []
    builder = middle(model, seen, way)
    builder.add_node("sum", lambda _: {"log": ["sum"]})
    graph = guard(builder, Budget(calls=2), gate=gate, on_trip=to("sum"), ledger=MemoryLedger()).compile()

    out = graph.invoke({"log": []})

    assert out["log"] == [*seen, "sum"]
    assert seen == (["next"] if way == "join" else [])


@pytest.mark.parametrize("on_trip", ["end", "interrupt"])
async def test_a_trip_in_the_middle_of_an_async_node(on_trip: str) -> None:
    """The same on an event loop."""
    model = Scripted()

    async def work(state: Log) -> Log:
        return {"log": [(await model.ainvoke("q")).content for _ in range(3)]}

    builder = StateGraph(Log).add_node("work", work).add_node("next", lambda _: {"log": ["next"]})
    builder.add_edge(START, "work").add_edge("work", "next")
    graph = guard(builder, Budget(calls=2), on_trip=on_trip, ledger=MemoryLedger())
    graph = graph.compile(checkpointer=InMemorySaver())

    out = await graph.ainvoke({"log": []}, T)

    assert out["log"] == []
    assert model.billed == 2
    if on_trip == "interrupt":
        assert await graph.ainvoke(Command(resume=9), T) == {"log": ["ok", "ok", "ok", "next"]}


def test_a_trip_in_the_middle_of_one_line_leaves_the_others() -> None:
    """Beside a line that trips, other lines run to their end and write what they found."""
    model = Scripted()
    builder = StateGraph(Log)
    builder.add_node("a", lambda _: {"log": [str(model.invoke("q").content) for _ in range(9)]})
    builder.add_node("b", lambda _: {"log": ["b"]})
    builder.add_node("c", lambda _: {"log": ["c"]})
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c")

    out = guard(builder, Budget(calls=2), ledger=MemoryLedger()).compile().invoke({"log": []})

    assert out == {"log": ["b", "c"]}


class Talk(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("gate", GATES)
def test_a_trip_in_the_middle_closes_the_conversation(gate: str) -> None:
    """Half a node's messages are not written; the closing message is."""
    model = Scripted()
    builder = StateGraph(Talk)
    builder.add_node("n", lambda _: {"messages": [model.invoke("q") for _ in range(3)]})
    builder.add_edge(START, "n")

    out = (
        guard(builder, Budget(calls=2), gate=gate, ledger=MemoryLedger())
        .compile()
        .invoke({"messages": [HumanMessage("hi")]})
    )

    assert [m.type for m in out["messages"]] == ["human", "ai"]
    assert "graphguard" in out["messages"][-1].additional_kwargs


def test_a_trip_in_a_graph_inside_ends_the_whole_run() -> None:
    """A trip in a graph inside ends that graph and the one around it; what was done before is kept."""
    model = Scripted()
    inside = StateGraph(Log)
    for before, name in ((START, "x"), ("x", "y")):
        inside.add_node(name, lambda _, name=name: {"log": [name + str(model.invoke("q").content)]})
        inside.add_edge(before, name)
    builder = StateGraph(Log).add_node("sub", inside.compile()).add_node("next", lambda _: {"log": ["next"]})
    builder.add_edge(START, "sub").add_edge("sub", "next")
    graph = guard(builder, Budget(calls=1), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, T)

    assert out == {"log": ["xok"]}
    assert graph.get_state(T).next == ()
    assert Trip.of(graph.get_state(T)).node == "y"


def test_a_guard_inside_another_trips_its_own_graph_only() -> None:
    """A guarded graph called by a node of another keeps its own budget: its trip ends it alone."""
    model = Scripted()
    inside = StateGraph(Log).add_node("x", lambda _: {"log": ["x" + str(model.invoke("q").content)]})
    inside.add_edge(START, "x").add_conditional_edges("x", lambda _: "x", ["x"])
    sub = guard(inside, Budget(calls=3, per="run"), ledger=MemoryLedger()).compile()
    builder = StateGraph(Log).add_node("n", lambda _: {"log": [len(sub.invoke({"log": []})["log"])]})
    builder.add_edge(START, "n")
    graph = guard(builder, Budget(calls=9), nodes=["n"], ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    assert graph.invoke({"log": []}, T) == {"log": [3]}
    assert Spend.of(graph.get_state(T)).calls == 3
    assert Trip.of(graph.get_state(T)) is None


def test_an_outer_budget_reaches_into_a_guarded_graph_inside() -> None:
    """The outer budget trips the outer graph, even when the call is made in a graph with a guard of its own."""
    model = Scripted()
    inside = StateGraph(Log).add_node("x", lambda _: {"log": ["x" + str(model.invoke("q").content)]})
    inside.add_edge(START, "x").add_conditional_edges("x", lambda _: "x", ["x"])
    sub = guard(inside, Budget(calls=9, per="run"), ledger=MemoryLedger()).compile()
    builder = StateGraph(Log).add_node("n", lambda _: {"log": [len(sub.invoke({"log": []})["log"])]})
    builder.add_edge(START, "n")
    graph = guard(builder, Budget(calls=4), nodes=["n"], ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    assert graph.invoke({"log": []}, T) == {"log": []}
    assert model.billed == 4
    assert Trip.of(graph.get_state(T)).budget == "calls=4 per branch"


# The second door


def send_to(model: Scripted) -> StateGraph:
    """A loop node, and another way into it by `Send` and by `Command`."""
    builder = StateGraph(Log)
    builder.add_node("think", lambda _: {"log": [str(model.invoke("q").content)]})

    def plan(state: Log) -> Command[Literal["think"]]:
        return Command(goto=Send("think", {"x": 1}) if len(state["log"]) % 2 else "think")

    builder.add_node("plan", plan)
    builder.add_edge(START, "plan").add_edge("think", "plan")
    return builder


def test_send_and_command_pass_a_door_too() -> None:
    """Whichever way leads into a model node, no call is made without room: here by `Command` and `Send` in turn."""
    model = Scripted()
    graph = guard(send_to(model), Budget(calls=3), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, T)

    assert model_nodes(graph)["think"].gate == "node"
    assert out == {"log": ["ok"] * 3}
    assert model.billed == 3


def test_a_replay_from_between_gate_and_node_passes_the_door() -> None:
    """Replayed from the checkpoint behind the gate node, the node is stopped by its own door."""
    model = Scripted()
    builder = StateGraph(Log).add_node("n", lambda _: {"log": [str(model.invoke("q").content)]})
    builder.add_edge(START, "n")
    graph = guard(builder, Budget(calls=1, per="thread"), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, T)
    behind = next(s.config for s in graph.get_state_history(T) if s.next == ("n",))

    graph.invoke(None, behind)

    assert model.billed == 1


def test_a_second_trip_runs_no_code() -> None:
    """An inline gate stops before the first line of the user's code."""
    ran: list[str] = []
    model = Scripted()

    def node(state: Log) -> Log:
        ran.append("ran")
        return {"log": [str(model.invoke("q").content)]}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(calls=1), gate="inline", ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())
    for _ in "ab":
        graph.invoke({"log": []}, T)

    assert ran == ["ran"]


def test_a_stop_is_not_kept_in_the_nodes_cache() -> None:
    """A stopped task's output is no answer: once there is money, the node runs."""
    model = Scripted()
    builder = StateGraph(Log)
    builder.add_node(
        "n",
        lambda _: {"log": [str(model.invoke("q").content) for _ in "ab"]},
        cache_policy=CachePolicy(key_func=lambda _: "same"),
    )
    builder.add_edge(START, "n")
    cache = InMemoryCache()

    def run(calls: int) -> dict[str, Any]:
        graph = guard(builder, Budget(calls=calls), ledger=MemoryLedger()).compile(cache=cache)
        return dict(graph.invoke({"log": []}))

    assert run(1) == {"log": []}
    assert run(5) == {"log": ["ok", "ok"]}
    assert run(5) == {"log": ["ok", "ok"]}
    assert model.billed == 3


def test_a_trip_is_neither_retried_nor_handled() -> None:
    """A refusal is no failure of the node: no retry policy runs it again, no error handler takes it."""
    model, handled = Scripted(), []
    builder = StateGraph(Log)

    def handler(state: Log) -> Log:
        handled.append("handled")
        return {"log": ["handled"]}

    builder.add_node(
        "n",
        lambda _: {"log": [str(model.invoke("q").content) for _ in "abc"]},
        retry_policy=RetryPolicy(initial_interval=0.001, retry_on=Exception),
        error_handler=handler,
    )
    builder.add_edge(START, "n")
    graph = guard(builder, Budget(calls=2), nodes=["n"], ledger=MemoryLedger()).compile()

    assert graph.invoke({"log": []}) == {"log": []}
    assert model.billed == 2
    assert handled == []


@pytest.mark.parametrize("kind", ["function", "lambda", "sequence", "runnable", "method", "config", "partial"])
def test_every_kind_of_node_has_a_door(kind: str) -> None:
    """Functions, lambdas, sequences, runnables and bound methods are metered, and get what they got before."""
    import functools  # noqa: PLC0415 - for one of the kinds only

    model, ledger = Scripted(), MemoryLedger()

    class Worker:
        def run(self, _: Log) -> Log:
            return {"log": [str(model.invoke("q").content)]}

    def with_config(state: Log, config: RunnableConfig) -> Log:
        return {"log": [str(model.invoke("q", config).content)]}

    def plain(state: Log, *, more: int = 0) -> Log:
        return Worker().run(state)

    nodes: dict[str, Any] = {
        "function": plain,
        "lambda": lambda state: plain(state, more=1),
        "sequence": RunnableLambda(lambda _: "q") | model | RunnableLambda(lambda m: {"log": [str(m.content)]}),
        "runnable": RunnableLambda(plain),
        "method": Worker().run,
        "config": with_config,
        "partial": functools.partial(plain, more=1),
    }
    builder = StateGraph(Log).add_node("n", nodes[kind]).add_edge(START, "n")
    graph = guard(builder, Budget(calls=1), nodes=["n"], ledger=ledger).compile(checkpointer=InMemorySaver())

    assert graph.invoke({"log": []}, T) == {"log": ["ok"]}
    assert graph.invoke({"log": []}, T) == {"log": ["ok"]}
    assert ledger.total().calls == model.billed == 1


def test_a_stopped_sequence_runs_none_of_its_steps() -> None:
    """When the first step of a sequence is stopped, the later ones see nothing."""
    model, seen = Scripted(), []
    steps = model | RunnableLambda(lambda m: seen.append(m) or {"log": ["x"]})
    builder = StateGraph(Log).add_node("n", RunnableLambda(lambda _: "q") | steps).add_edge(START, "n")
    graph = guard(builder, Budget(calls=1), gate="inline", ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    for _ in "ab":
        graph.invoke({"log": []}, T)

    assert [type(m) for m in seen] == [AIMessage]
