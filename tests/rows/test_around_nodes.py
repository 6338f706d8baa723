"""Rows B15, B18, B20, B22, B38 and B54: what stands around a node, where the laws' table of shapes says nothing."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, interrupt

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, Trip, guard
from tests.laws.watching import plain, watch
from tests.needs import NODE_ERROR_HANDLERS, needs
from tests.scripted import Scripted, tool_call

T: Any = {"configurable": {"thread_id": "t"}}
RICH = Budget(usd=1000, calls=1000)
over_gates = pytest.mark.parametrize("gate", ["auto", "inline"])


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


EMPTY: Any = {"log": []}


def mapped(model: Scripted, workers: int) -> StateGraph:
    """So many workers, one call each, and a node that counts what came back."""

    def work(state: Any) -> Log:
        model.invoke("q")
        return {"log": [state["n"]]}

    builder = StateGraph(Log).add_node("work", work).add_node("count", lambda state: {"log": [len(state["log"])]})
    builder.add_conditional_edges(START, lambda _: [Send("work", {"n": n}) for n in range(workers)], ["work"])
    return builder.add_edge("work", "count")


@over_gates
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_b15_hundreds_of_workers_are_each_charged_once(ledger, gate, mode):
    """Map-reduce over three hundred workers gives what the bare graph gives, and is three hundred charges."""
    bare, other = Scripted(), Scripted()
    graph = guard(mapped(other, 300), RICH, gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver())

    expected = mapped(bare, 300).compile().invoke(EMPTY)
    given = graph.invoke(EMPTY, T) if mode == "sync" else await graph.ainvoke(EMPTY, T)

    assert given == expected
    assert ledger.total().calls == Spend.of(graph.get_state(T)).calls == other.billed == 300


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_b15_hundreds_of_workers_never_overshoot(ledger, mode):
    """Of three hundred workers on a budget for 123 calls, 123 are paid, and what they made is kept."""
    model = Scripted()
    graph = guard(mapped(model, 300), Budget(calls=123, warn_at=()), ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )

    given = graph.invoke(EMPTY, T) if mode == "sync" else await graph.ainvoke(EMPTY, T)

    assert given["log"][-1] == len(given["log"]) - 1 == model.billed == ledger.total().calls == 123
    assert Trip.of(graph.get_state(T)).spent == 123


def test_b15_hundreds_that_wait_are_one_question(ledger):
    """Of three hundred workers, those that the budget has no room for wait for one answer, and all are served then."""
    model = Scripted()
    options = {"on_trip": "interrupt", "ledger": ledger}
    graph = guard(mapped(model, 300), Budget(calls=100), **options).compile(checkpointer=InMemorySaver())

    asked = graph.invoke(EMPTY, T)["__interrupt__"]
    given = graph.invoke(Command(resume=300), T)

    assert len(asked) == 1
    assert sorted(given["log"][:-1]) == list(range(300))
    assert model.billed == ledger.total().calls == 300


class Flaky:
    """Pays, and fails so many times first."""

    def __init__(self, model: Scripted, failures: int) -> None:
        self.model, self.failures = model, failures

    def __call__(self, state: Log) -> Log:
        answer = self.model.invoke("q").content
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("again")
        return {"log": [answer]}


@pytest.mark.parametrize("jitter", [True, False])
@pytest.mark.parametrize("sequence", [True, False])
def test_b20_every_retry_policy_retries_as_before(ledger, jitter, sequence):
    """With jitter and without, one policy or several: a node that fails twice pays three times."""
    policy = RetryPolicy(initial_interval=0.001, max_interval=0.002, jitter=jitter, retry_on=ConnectionError)
    other = RetryPolicy(retry_on=KeyError)
    builder = StateGraph(Log)
    builder.add_node("n", Flaky(Scripted(), 2), retry_policy=[other, policy] if sequence else policy)
    graph = guard(builder.add_edge(START, "n"), RICH, nodes=["n"], ledger=ledger).compile(checkpointer=InMemorySaver())

    assert graph.invoke(EMPTY, T) == {"log": ["ok"]}
    assert ledger.total().calls == Spend.of(graph.get_state(T)).calls == 3


def defaulted(model: Scripted, failures: int, **defaults: Any) -> StateGraph:
    """A node that fails, in a graph whose policies are defaults of all its nodes."""
    builder = StateGraph(Log).set_node_defaults(**defaults)
    return builder.add_node("n", Flaky(model, failures)).add_edge(START, "n")


QUICK = RetryPolicy(initial_interval=0.001, max_attempts=3, retry_on=ConnectionError)


def handler(state: Log) -> Log:
    """Write that something failed."""
    return {"log": ["handled"]}


@needs(*NODE_ERROR_HANDLERS)
@over_gates
@pytest.mark.parametrize(
    ("defaults", "failures", "calls"),
    [
        ({"retry_policy": QUICK}, 2, 3),
        ({"retry_policy": QUICK, "error_handler": handler}, 9, 3),
        ({"error_handler": handler}, 1, 1),
        ({"timeout": 60}, 0, 1),
    ],
    ids=["retry", "retry and handler", "handler", "timeout"],
)
async def test_b20_defaults_of_all_nodes_are_kept(ledger, gate, defaults, failures, calls):
    """Retries, error handlers and timeouts that a graph sets for all its nodes work as in the bare graph."""

    async def seen(builder: StateGraph) -> Any:
        return await builder.compile(checkpointer=InMemorySaver()).ainvoke(EMPTY, T)

    def made(model: Scripted) -> StateGraph:
        flaky = Flaky(model, failures)

        async def node(state: Log) -> Log:  # a timeout is for async nodes
            return flaky(state)

        return StateGraph(Log).set_node_defaults(**defaults).add_node("n", node).add_edge(START, "n")

    options = {"gate": gate, "nodes": ["n"], "ledger": ledger}

    assert await seen(guard(made(Scripted()), RICH, **options)) == await seen(made(Scripted()))
    assert ledger.total().calls == calls


@needs(*NODE_ERROR_HANDLERS)
def test_b20_a_default_handler_hears_of_no_trip():
    """An error handler of all nodes handles failures, and leaves a trip alone."""
    options = {"nodes": ["n"], "on_trip": "raise", "ledger": MemoryLedger()}
    builder = defaulted(Scripted(), 0, error_handler=handler, retry_policy=QUICK)

    with pytest.raises(BudgetExceeded):
        guard(builder, Budget(usd="0.0001"), **options).compile().invoke(EMPTY)


@needs(*NODE_ERROR_HANDLERS)
def test_b19_a_default_cache_costs_nothing(ledger):
    """A cache for all nodes is hit as in the bare graph, and a hit is free."""
    model = Scripted()
    builder = defaulted(model, 0, cache_policy=CachePolicy())
    graph = guard(builder, RICH, nodes=["n"], ledger=ledger).compile(cache=InMemoryCache())

    assert [graph.invoke(EMPTY) for _ in range(3)] == [{"log": ["ok"]}] * 3
    assert model.billed == ledger.total().calls == 1


@needs(*NODE_ERROR_HANDLERS)
def test_b20_defaults_set_later_stay_with_their_graph():
    """Defaults that are set on the guarded builder are not the bare one's."""
    bare = defaulted(Scripted(), 2)
    guarded = guard(bare, RICH, nodes=["n"], ledger=MemoryLedger()).set_node_defaults(retry_policy=QUICK)

    assert guarded.compile().invoke(EMPTY) == {"log": ["ok"]}
    assert not bare.compile().nodes["n"].retry_policy


@tool
def note(text: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[str]:
    """Note something, and go on with the summary."""
    return Command(update={"messages": [ToolMessage(f"noted {text}", tool_call_id=tool_call_id)]}, goto="summary")


@tool
def send(text: str) -> str:
    """Send something, once a person has approved it."""
    return f"{text}: {interrupt({'send': text})}"


def tooled(model: Scripted, *tools: Any) -> StateGraph:
    """A model, its tools, and the model again."""
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda state: {"messages": [model.bind_tools(tools).invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(list(tools)))
    builder.add_node("summary", lambda state: {"messages": [model.invoke(state["messages"])]})
    return builder.add_edge(START, "agent").add_edge("agent", "tools")


@over_gates
@pytest.mark.parametrize(("calls", "billed"), [(1, 1), (2, 2)])
def test_b18_a_command_of_a_tool_is_led_through_the_gate(ledger, gate, calls, billed):
    """A tool's Command updates the state and goes where it says, if the budget has room there; no tool call is open."""
    model = Scripted(script=[tool_call("note", text="x"), "done"])
    options = {"gate": gate, "ledger": ledger}
    graph = guard(tooled(model, note), Budget(calls=calls), **options).compile(checkpointer=InMemorySaver())

    answer = graph.invoke({"messages": ["hi"]}, T)["messages"]

    assert model.billed == ledger.total().calls == billed
    assert answer[2].content == "noted x"
    opened = {call["id"] for m in answer if isinstance(m, AIMessage) for call in m.tool_calls}
    assert opened == {m.tool_call_id for m in answer if isinstance(m, ToolMessage)}


@over_gates
def test_b54_a_tools_question_and_the_budgets_are_answered_apart(ledger, gate):
    """A tool that asks its user and a budget that asks for money, in one run: each is asked once and hears its own."""
    model = Scripted(script=[tool_call("send", text="mail"), "done"])
    builder = tooled(model, send).add_edge("tools", "summary")
    options = {"gate": gate, "on_trip": "interrupt", "ledger": ledger}
    graph = guard(builder, Budget(calls=1), **options).compile(checkpointer=InMemorySaver())

    (users,) = graph.invoke({"messages": ["hi"]}, T)["__interrupt__"]
    (ours,) = graph.invoke(Command(resume="yes"), T)["__interrupt__"]
    answer = graph.invoke(Command(resume=2), T)["messages"]

    assert users.value == {"send": "mail"}
    assert ours.value["kind"] == "graphguard.budget"
    assert [m.content for m in answer[2:]] == ["mail: yes", "done"]
    assert model.billed == ledger.total().calls == 2


@over_gates
def test_b54_a_tool_that_pays_and_asks_beside_a_budget(ledger, gate):
    """A tool whose model is refused asks for money before its user is asked, and after both answers it is done."""
    inside = Scripted()

    @tool
    def check(text: str) -> str:
        """Check something with a model, and ask the user."""
        found = inside.invoke(text).content
        return f"{found}: {interrupt('sure?')}"

    model = Scripted(script=[tool_call("check", text="x"), "done"])
    builder = tooled(model, check).add_edge("tools", "summary")
    options = {"gate": gate, "on_trip": "interrupt", "ledger": ledger}
    graph = guard(builder, Budget(calls=1), **options).compile(checkpointer=InMemorySaver())

    (ours,) = graph.invoke({"messages": ["hi"]}, T)["__interrupt__"]
    (users,) = graph.invoke(Command(resume=9), T)["__interrupt__"]
    answer = graph.invoke(Command(resume="sure"), T)["messages"]

    assert ours.value["trip"]["node"] == "tools"
    assert users.value == "sure?"
    assert [m.content for m in answer[2:]] == ["ok: sure", "done"]
    assert ledger.total().calls == model.billed + inside.billed == 4  # the tool starts over with the user's answer


@over_gates
@pytest.mark.parametrize("saved", [True, False])
def test_b22_a_branch_that_fails_loses_no_spend_of_its_siblings(ledger, gate, saved):
    """Of two branches one fails: what both paid is in the ledger, and after a resume in the state, once each."""
    model, failing = Scripted(), Flaky(Scripted(), 1)
    builder = StateGraph(Log)
    builder.add_node("a", lambda state: {"log": [model.invoke("q").content]})
    builder.add_node("b", failing)
    builder.add_edge(START, "a").add_edge(START, "b")
    saver = InMemorySaver() if saved else None
    options = {"gate": gate, "nodes": ["a", "b"], "ledger": ledger}
    graph = guard(builder, RICH, **options).compile(checkpointer=saver)

    with pytest.raises(ConnectionError):
        graph.invoke(EMPTY, T)
    graph.invoke(None if saved else EMPTY, T)

    assert ledger.total().calls == model.billed + failing.model.billed == (3 if saved else 4)
    if saved:
        assert Spend.of(graph.get_state(T)).calls == 3


@over_gates
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_b38_every_durability_keeps_what_the_bare_graph_keeps(ledger, gate, durability):
    """Whichever checkpoints are kept, a run with a user's question ends as the bare one, and its spend is kept."""

    def asks(state: Log) -> Log:
        return {"log": [interrupt("sure?")]}

    def made(model: Scripted) -> StateGraph:
        builder = StateGraph(Log).add_node("asks", asks)
        builder.add_node("a", lambda state: {"log": [model.invoke("q").content]})
        builder.add_node("b", lambda state: {"log": [model.invoke("q").content]})
        return builder.add_edge(START, "a").add_edge("a", "asks").add_edge("asks", "b")

    told = []
    for graph in (made(Scripted()), guard(made(Scripted()), RICH, gate=gate, ledger=ledger)):
        compiled = graph.compile(checkpointer=InMemorySaver())
        asked = compiled.invoke(EMPTY, T, durability=durability)
        ended = compiled.invoke(Command(resume="yes"), T, durability=durability)
        told.append((plain(asked["__interrupt__"]), ended, plain(compiled.get_state(T).values)))

    assert told[0] == told[1]
    assert ledger.total().calls == Spend.of(compiled.get_state(T)).calls == 2


@over_gates
def test_b56_breakpoints_and_questions_of_several_nodes_stay_in_order(ledger, gate):
    """Static breakpoints before and after model nodes, with a user's question between: all as on the bare graph."""

    def made(model: Scripted) -> StateGraph:
        builder = StateGraph(Log)
        for name in ("a", "b"):
            builder.add_node(name, lambda state: {"log": [model.invoke("q").content, interrupt("sure?")]})
        return builder.add_edge(START, "a").add_edge("a", "b")

    options: Any = {"interrupt_before": ["a", "b"], "interrupt_after": ["b"]}
    resumes = [None, "yes", None, "no", None]
    bare = made(Scripted()).compile(checkpointer=InMemorySaver(), **options)
    graph = guard(made(Scripted()), RICH, gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver(), **options)

    assert watch(graph, EMPTY, resumes).told() == watch(bare, EMPTY, resumes).told()
    assert ledger.total().calls == 4
