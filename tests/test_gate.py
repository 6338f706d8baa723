"""The gate's question, the answers it takes, where it leads, and how it closes a conversation."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command

from graphguard import Budget, BudgetExceeded, MemoryLedger, NoCheckpointer, Spend, Trip, guard, to
from graphguard.gate import REVIEW, question, read_answer
from graphguard.spend import NANO, add_spend
from tests.scripted import Scripted, tool_call

USD = Trip(budget="usd=0.5 per branch", limit=NANO // 2, spent=490_000_000, needed=20_000_000, node="plan")
CALLS = Trip(budget="calls=3 per branch", metric="calls", limit=3, spent=3, node="plan")
T: RunnableConfig = {"configurable": {"thread_id": "t"}}


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def line(model: Scripted, names: str = "abc") -> StateGraph:
    """One node after the other, each with one call."""
    builder = StateGraph(Log)
    for before, name in zip([START, *names], names, strict=False):
        builder.add_node(name, lambda _, name=name: {"log": [name + str(model.invoke("q").content)]})
        builder.add_edge(before, name)
    return builder


def asking(*budgets: Budget, model: Scripted | None = None, **options: Any) -> Any:
    """A line of three nodes that asks, with a checkpointer."""
    guarded = guard(line(model or Scripted()), *budgets, on_trip="interrupt", ledger=MemoryLedger(), **options)
    return guarded.compile(checkpointer=InMemorySaver())


# The question


@pytest.mark.parametrize("trip", [USD, CALLS], ids=["usd", "calls"])
def test_question_is_a_request_that_chat_uis_render(trip: Trip) -> None:
    """The payload is plain JSON: a human-in-the-loop request whose configs name its requests, args twice."""
    payload = json.loads(json.dumps(question(trip)))

    assert payload["kind"] == "graphguard.budget"
    (request,), (config,) = payload["action_requests"], payload["review_configs"]
    assert config == {"action_name": request["name"], "allowed_decisions": ["approve", "edit", "reject"]}
    assert request["args"] == request["arguments"]
    assert isinstance(request["description"], str)
    assert "error" not in payload


def test_question_about_money_says_both_amounts() -> None:
    """Spend and limit are decimal strings at the top of the payload, and in the name that a UI shows."""
    payload = question(USD)

    assert (payload["spend_usd"], payload["limit_usd"]) == ("0.49", "0.5")
    (request,) = payload["action_requests"]  # type: ignore[misc]
    assert request["name"] == "Budget exhausted: $0.49 of $0.50"
    assert request["args"] == {"new_limit_usd": 1.0}


def test_question_about_something_else_speaks_of_that() -> None:
    """A budget in calls proposes a new limit in calls, as a whole number."""
    payload = question(CALLS)

    assert payload["spend_usd"] is None
    assert payload["action_requests"][0]["args"] == {"new_limit_calls": 6}  # type: ignore[index]


def test_question_says_why_an_answer_was_no_good() -> None:
    """Asked again, the payload has `error`, and its description starts with it for UIs that show no more."""
    payload = question(USD, error="'x' is not a number")

    assert payload["error"] == "'x' is not a number"
    assert "'x' is not a number" in payload["action_requests"][0]["description"]  # type: ignore[index]


def test_proposal_is_enough_for_the_refused_call() -> None:
    """Where twice the limit would not pay for the refused call, the proposal does."""
    dear = Trip(budget="b", limit=NANO, spent=NANO // 2, held=NANO // 4, needed=3 * NANO)

    assert read_answer(answer=True, trip=dear).limit == 3_750_000_000


# The answers


APPROVED = [
    True,
    "approve",
    " Accept ",
    "yes",
    {"decisions": [{"type": "approve"}]},
    {"type": "approve"},
    [{"type": "accept"}],
    [{"type": "accept", "args": None}],
    {"approve": True},
    {"decisions": [{"type": "approve"}, {"type": "reject"}]},
]
STOPPED = [
    False,
    "stop",
    "reject",
    "No",
    {"decisions": [{"type": "reject", "message": "too dear"}]},
    [{"type": "ignore", "args": None}],
    [{"type": "response", "args": "please stop"}],
    {"approve": False},
    {"reject": True},
]
NAMED = [
    3,
    3.0,
    "3",
    "$3.00",
    {"new_limit_usd": 3},
    {"new_limit_usd": "3"},
    {"new_limit": "3.0"},
    {"add_usd": 2.5},
    {"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {"new_limit_usd": "3.00"}}}]},
    {"type": "edit", "args": {"new_limit_usd": "3"}},
    [{"type": "edit", "args": {"action": "x", "args": {"new_limit_usd": "3.0"}}}],
]
BAD = [
    "abc",
    "",
    "nan",
    float("inf"),
    "1e999999999",
    -1,
    0,
    0.1,
    "0.49",
    {"new_limit_usd": "0.2"},
    {"new_limit_usd": None},
    {"new_limit_usd": True},
    {"add_usd": -1},
    {},
    [],
    None,
    {"decisions": []},
    {"decisions": "approve"},
    {"decisions": [None]},
    {"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {}}}]},
    [{"type": "edit", "args": "text"}],
    {"type": "unheard of"},
]


@pytest.mark.parametrize("answer", APPROVED, ids=repr)
def test_every_yes_takes_the_proposal(answer: object) -> None:
    """A bool, a word, LangChain's decisions and Agent Inbox's list all approve the proposed limit."""
    assert read_answer(answer, USD).limit == NANO


@pytest.mark.parametrize("answer", STOPPED, ids=repr)
def test_every_no_stops(answer: object) -> None:
    """Each way to say no gives neither a limit nor an error."""
    heard = read_answer(answer, USD)

    assert heard.limit is None
    assert heard.error is None


@pytest.mark.parametrize("answer", NAMED, ids=repr)
def test_every_amount_is_the_new_limit(answer: object) -> None:
    """A number, a string with or without a dollar sign, and edited arguments all name the new limit."""
    assert read_answer(answer, USD).limit == 3 * NANO


@pytest.mark.parametrize("answer", BAD, ids=repr)
def test_every_bad_answer_says_what_is_wrong(answer: object) -> None:
    """What can't be used gives an error text and no limit: not a number, not finite, not above the spend."""
    heard = read_answer(answer, USD)

    assert heard.limit is None
    assert heard.error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "decisions", "args", "edited_action", "new_limit_usd", "add_usd", "approve"])
            | st.text(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(answer=JSON)
def test_no_answer_raises(answer: object) -> None:
    """Whatever JSON a client sends, reading it never raises, and a limit is always above the spend."""
    for trip in (USD, CALLS):
        heard = read_answer(answer, trip)
        assert heard.limit is None or heard.limit > trip.spent


def test_counts_are_read_in_their_own_name() -> None:
    """For a budget in calls, `new_limit_calls` and `add_calls` are read, and a plain number is a count."""
    assert read_answer({"new_limit_calls": "5"}, CALLS).limit == 5
    assert read_answer({"add_calls": 4}, CALLS).limit == 7
    assert read_answer(9, CALLS).limit == 9
    assert read_answer({"new_limit_usd": 5}, CALLS).error


# Where the gate and the review lead


def test_a_trip_leads_to_the_review_node() -> None:
    """In interrupt mode a tripped gate leads to `budget.review`, which waits with one question."""
    graph = asking(Budget(calls=1))

    out = graph.invoke({"log": []}, T)

    assert graph.get_state(T).next == (REVIEW,)
    assert [i.value["kind"] for i in out["__interrupt__"]] == ["graphguard.budget"]
    assert Trip.of(graph.get_state(T)).node == "b"


def test_approval_raises_the_limit_in_the_state_and_goes_on() -> None:
    """The answer raises the limit in the state's `spend`, the trip says so, and the run ends as it should."""
    graph = asking(Budget(calls=1))
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume={"new_limit_calls": 3}), T)

    assert out == {"log": ["aok", "bok", "cok"]}
    values = graph.get_state(T).values
    assert values["spend"]["limits"] == {"calls=1 per branch": {"calls": 3}}
    assert values["trip"]["answer"] == "raised"


def test_a_raised_limit_trips_again_when_it_is_used_up() -> None:
    """A limit raised to two lets one more call through, then asks with the new limit."""
    graph = asking(Budget(calls=1))
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume=2), T)

    assert out["log"] == ["aok", "bok"]
    assert Trip.of(graph.get_state(T)).limit == 2


def test_a_raise_is_not_taken_back_by_one_beside_it() -> None:
    """Lines beside each other tell the state of raises in any order; the highest limit stays."""
    told = [{"limits": {"b": {"calls": calls, "usd": usd}}} for calls, usd in ((9, "1.5"), (2, "10"))]

    for first, second in (told, told[::-1]):
        assert add_spend(add_spend({}, first), second)["limits"] == {"b": {"calls": 9, "usd": "10"}}


def test_a_run_budget_is_raised_for_its_run_only() -> None:
    """A limit raised for `per="run"` is kept with the run; the next input starts from the budget's own."""
    graph = asking(Budget(calls=2, per="run"))
    graph.invoke({"log": []}, T)
    graph.invoke(Command(resume=True), T)

    out = graph.invoke({"log": []}, T)

    assert out["__interrupt__"][0].value["trip"]["limit"] == 2


def test_rejection_ends_with_what_there_is() -> None:
    """Rejected, the run ends at END with the partial state, nothing more billed and the trip marked as stopped."""
    model = Scripted()
    graph = asking(Budget(calls=1), model=model)
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume={"decisions": [{"type": "reject"}]}), T)

    assert out == {"log": ["aok"]}
    assert graph.get_state(T).next == ()
    assert model.billed == 1
    assert Trip.of(graph.get_state(T)).answer == "stopped"


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_bad_answers_ask_again_until_one_is_good(gate: str) -> None:
    """Each bad answer brings the same question with `error`; nothing is charged and the good one counts."""
    model = Scripted()
    graph = asking(Budget(calls=1), model=model, gate=gate)
    graph.invoke({"log": []}, T)

    for bad in ("abc", {"new_limit_calls": 1}, {"decisions": []}, -5):
        out = graph.invoke(Command(resume=bad), T)
        assert out["__interrupt__"][0].value["error"]
        assert model.billed == 1
    out = graph.invoke(Command(resume="3"), T)

    assert out == {"log": ["aok", "bok", "cok"]}
    assert Spend.of(graph.get_state(T)).calls == 3


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_the_same_on_an_event_loop(gate: str) -> None:
    """Async runs ask, ask again and go on as sync ones do."""
    graph = asking(Budget(calls=1), gate=gate)

    out = await graph.ainvoke({"log": []}, T)
    assert out["__interrupt__"][0].value["kind"] == "graphguard.budget"
    out = await graph.ainvoke(Command(resume="abc"), T)
    assert out["__interrupt__"][0].value["error"]
    out = await graph.ainvoke(Command(resume=True), T)
    out = await graph.ainvoke(Command(resume=True), T)

    assert out == {"log": ["aok", "bok", "cok"]}


def test_several_gate_nodes_ask_one_question() -> None:
    """Gate nodes that trip in one superstep lead to one review; its answer leads back to every one of them."""
    model = Scripted()
    builder = StateGraph(Log)
    for name in "abc":
        builder.add_node(name, lambda _, name=name: {"log": [name + str(model.invoke("q").content)]})
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge("a", "c")
    guarded = guard(builder, Budget(calls=1), on_trip="interrupt", gate="node", ledger=MemoryLedger())
    graph = guarded.compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, T)
    assert len(out["__interrupt__"]) == 1
    out = graph.invoke(Command(resume=3), T)

    assert out == {"log": ["aok", "bok", "cok"]}


def test_to_leads_to_the_named_node_once() -> None:
    """With `to("node")` a trip leads there instead of to END; its own call is still held and it never loops."""
    model = Scripted()
    builder = line(model)
    builder.add_node("summary", lambda _: {"log": ["summary:" + str(model.invoke("q").content)]})
    graph = guard(builder, Budget(calls=2), on_trip=to("summary"), ledger=MemoryLedger()).compile()

    out = graph.invoke({"log": []})

    assert out["log"] == ["aok", "bok"]
    assert model.billed == 2


def test_to_a_node_that_needs_no_model_runs_it() -> None:
    """The node of `to("node")` runs after the trip, and the run ends behind it."""
    builder = line(Scripted())
    builder.add_node("summary", lambda state: {"log": [f"summary of {len(state['log'])}"]})
    graph = guard(builder, Budget(calls=2), on_trip=to("summary"), ledger=MemoryLedger()).compile()

    out = graph.invoke({"log": []})

    assert out["log"] == ["aok", "bok", "summary of 2"]


@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_to_runs_its_node_with_money_that_the_tripped_budget_does_not_count(gate: str) -> None:
    """A loop that tripped its own budget is summed up by a call that the budget doesn't cover."""
    model = Scripted()
    builder = StateGraph(Log)
    builder.add_node("think", lambda _: {"log": ["t" + str(model.invoke("q").content)]})
    builder.add_node("summary", lambda _: {"log": ["s" + str(model.invoke("q").content)]})
    builder.add_edge(START, "think")
    builder.add_edge("think", "think")
    budget = Budget(calls=2, node="think")
    graph = guard(builder, budget, on_trip=to("summary"), gate=gate, ledger=MemoryLedger()).compile()

    assert graph.invoke({"log": []})["log"] == ["tok", "tok", "sok"]


def test_a_trip_in_the_node_of_to_ends_the_run() -> None:
    """When the node of `to("node")` trips in the middle of its own code, the run ends rather than loops."""
    model = Scripted()
    builder = line(model, "a")
    builder.add_node("summary", lambda _: {"log": [str(model.invoke("q").content) for _ in range(3)]})
    builder.add_edge("a", "summary")
    graph = guard(builder, Budget(calls=2), on_trip=to("summary"), ledger=MemoryLedger()).compile()

    assert graph.invoke({"log": []}) == {"log": ["aok"]}
    assert model.billed == 2


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_raise_raises_with_the_trip(gate: str) -> None:
    """In raise mode the run raises `BudgetExceeded` with the trip, and the checkpoint before it stays."""
    graph = guard(line(Scripted()), Budget(calls=1), on_trip="raise", gate=gate, ledger=MemoryLedger())
    graph = graph.compile(checkpointer=InMemorySaver())

    with pytest.raises(BudgetExceeded, match="1 of 1 calls spent") as caught:
        graph.invoke({"log": []}, T)

    assert caught.value.trip.node == "b"
    assert graph.get_state(T).values["log"] == ["aok"]


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_interrupt_without_a_checkpointer_is_a_clear_error(gate: str) -> None:
    """Without a checkpointer the first trip raises an error that says what is missing and what to do."""
    graph = guard(line(Scripted()), Budget(calls=1), on_trip="interrupt", gate=gate, ledger=MemoryLedger()).compile()

    with pytest.raises(NoCheckpointer, match=r"needs a checkpointer.*compile with checkpointer="):
        graph.invoke({"log": []})


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_a_servers_checkpointer_is_no_false_alarm(gate: str) -> None:
    """A graph compiled without a checkpointer asks when a server puts in its own, as the Agent Server does."""
    graph = guard(line(Scripted()), Budget(calls=1), on_trip="interrupt", gate=gate, ledger=MemoryLedger()).compile()
    served = graph.copy(update={"checkpointer": InMemorySaver()})

    assert served.invoke({"log": []}, T)["__interrupt__"]
    assert served.invoke(Command(resume=3), T) == {"log": ["aok", "bok", "cok"]}


# The closing message


@tool
def look(where: str = "") -> str:
    """Look somewhere."""
    return "seen"


def roles(messages: list[AnyMessage]) -> list[str]:
    """The type of each message."""
    return [message.type for message in messages]


def test_end_leaves_a_closing_message_with_the_trip() -> None:
    """END leaves an AIMessage that says what was reached, with the trip as JSON in its metadata."""
    agent = guard(
        create_agent(Scripted(script=[tool_call("look", "c1"), "done"]), [look]), Budget(calls=1), ledger=MemoryLedger()
    )

    messages = agent.invoke({"messages": [HumanMessage("hi")]})["messages"]

    assert isinstance(messages[-1], AIMessage)
    assert "1 of 1 calls spent" in messages[-1].content
    assert json.loads(json.dumps(messages[-1].additional_kwargs["graphguard"]))["budget"] == "calls=1 per branch"
    assert roles(messages) == ["human", "ai", "tool", "ai"]


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_open_tool_calls_are_answered(gate: str) -> None:
    """A history that ends in tool calls gets an answer to each before the closing message, so it stays valid."""
    model = Scripted()

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("think", think).add_edge(START, "think")
    ledger = MemoryLedger()
    graph = guard(builder, Budget(calls=1), gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver())
    graph.invoke({"messages": [HumanMessage("hi")]}, T)
    calls = [{"name": "look", "args": {}, "id": f"c{i}", "type": "tool_call"} for i in range(3)]

    history = [AIMessage("", tool_calls=calls), ToolMessage("seen", tool_call_id="c1")]
    messages = graph.invoke({"messages": history}, T)["messages"]

    assert roles(messages) == ["human", "ai", "ai", "tool", "tool", "tool", "ai"]
    assert {m.tool_call_id for m in messages if isinstance(m, ToolMessage)} == {"c0", "c1", "c2"}
    assert all(m.status == "error" for m in messages[-3:-1])


def test_rejection_closes_the_conversation_too() -> None:
    """A person's no leaves the same closing message."""
    agent = guard(
        create_agent(Scripted(script=[tool_call("look", "c1"), "done"]), [look], checkpointer=InMemorySaver()),
        Budget(calls=1),
        on_trip="interrupt",
        ledger=MemoryLedger(),
    )
    agent.invoke({"messages": [HumanMessage("hi")]}, T)

    messages = agent.invoke(Command(resume=False), T)["messages"]

    assert roles(messages) == ["human", "ai", "tool", "ai"]
    assert messages[-1].additional_kwargs["graphguard"]["answer"] == "stopped"


def test_no_closing_message_without_a_conversation() -> None:
    """A graph without a `messages` channel with a reducer, or with other things in it, gets no message."""

    class Texts(TypedDict):
        messages: Annotated[list[str], operator.add]

    class Plain(TypedDict):
        messages: list[Any]

    model = Scripted()
    for schema in (Texts, Plain):
        builder = StateGraph(schema)
        builder.add_node("a", lambda _: {"messages": ["a" + str(model.invoke("q").content)]})
        builder.add_node("b", lambda _: {"messages": ["b" + str(model.invoke("q").content)]})
        builder.add_edge(START, "a")
        builder.add_edge("a", "b")

        out = guard(builder, Budget(calls=1), ledger=MemoryLedger()).compile().invoke({"messages": ["hi"]})

        assert out["messages"][-1] == "aok"


def test_parallel_trips_close_the_conversation_once() -> None:
    """Several inline trips in one superstep leave one closing message, not one each."""
    model = Scripted()

    class Talk(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    builder = StateGraph(Talk)
    for name in "abcd":
        builder.add_node(name, lambda _: {"messages": [model.invoke("q")]})
    builder.add_edge(START, "a")
    for name in "bcd":
        builder.add_edge("a", name)
    graph = guard(builder, Budget(calls=1), ledger=MemoryLedger()).compile()

    messages = graph.invoke({"messages": [HumanMessage("hi")]})["messages"]

    assert [m for m in messages if "graphguard" in m.additional_kwargs] == messages[-1:]


def test_a_stop_is_heard_by_later_lines_of_the_run() -> None:
    """After a person said stop, whatever else trips in that run ends without asking, however often."""
    model = Scripted()
    builder = StateGraph(Log)
    for name in "abcd":
        builder.add_node(name, lambda _, name=name: {"log": [name + str(model.invoke("q").content)]})
    builder.add_node("slow", lambda _: {"log": ["slow"]})
    builder.add_node("slower", lambda _: {"log": ["slower"]})
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge("a", "slow")
    builder.add_edge("slow", "c")
    builder.add_edge("slow", "slower")
    builder.add_edge("slower", "d")
    guarded = guard(builder, Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
    graph = guarded.compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume=False), T)

    assert "__interrupt__" not in out
    assert graph.get_state(T).next == ()
    assert model.billed == 1
