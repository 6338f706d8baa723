"""Rows B61-B64: what a guarded graph streams, and what streaming does to the usage."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph

from graphguard import Budget, MemoryLedger, Spend, guard
from tests.scripted import Scripted, Streaming

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
WORDS = "one two three four five"


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def talk(model: Scripted) -> StateGraph:
    """A node that answers the conversation."""

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")


def hello() -> dict[str, Any]:
    """One question."""
    return {"messages": [HumanMessage("hi")]}


def tokens(graph: Any) -> list[tuple[str, str, list[str]]]:
    """Text, node and tags of each streamed piece."""
    return [
        (str(chunk.content), metadata["langgraph_node"], sorted(metadata.get("tags") or []))
        for chunk, metadata in graph.stream(hello(), T, stream_mode="messages")
        if isinstance(chunk, AIMessageChunk) and chunk.content
    ]


@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b61_tokens_name_their_node_and_tags(gate: str) -> None:
    """Tokens of a guarded node come one by one, under the node's own name and the model's own tags."""

    def tagged() -> Any:
        return talk(Streaming(script=[WORDS], tags=["mine"]))

    plain = tokens(tagged().compile(checkpointer=InMemorySaver()))
    guarded = guard(tagged(), Budget(calls=5), gate=gate, ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    assert tokens(guarded) == plain
    assert {(node, *tags) for _, node, tags in plain} == {("answer", "mine")}
    assert len(plain) == 5


def test_b61_an_agents_tokens_name_its_model_node() -> None:
    """The tokens of `create_agent` come from `model`, as in the bare agent."""
    agent = guard(create_agent(Streaming(script=[WORDS]), []), Budget(calls=5), ledger=MemoryLedger())

    assert {node for _, node, _ in tokens(agent)} == {"model"}


def test_b61_a_closing_message_is_streamed_too() -> None:
    """A client that only listens to messages is told why it stopped."""
    agent = guard(talk(Streaming()), Budget(calls=1), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())
    agent.invoke(hello(), T)

    told = [chunk.content for chunk, _ in agent.stream(hello(), T, stream_mode="messages")]

    assert any("1 of 1 calls spent" in text for text in told)


def test_b62_custom_events_are_warnings_and_trips() -> None:
    """The guard writes to the custom stream when a share is crossed and when it stops, and is silent otherwise."""
    model = Scripted()

    def node(state: Log) -> Log:
        get_stream_writer()("mine")
        return {"log": [str(model.invoke("q").content)]}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(calls=4, warn_at=(0.5,)), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())

    told = [list(graph.stream({"log": []}, T, stream_mode="custom")) for _ in range(5)]

    assert [[e if isinstance(e, str) else e["event"] for e in chunk] for chunk in told] == [
        ["mine"],
        ["mine", "warning"],
        ["mine"],
        ["mine"],
        ["trip"],
    ]


def test_b62_an_event_says_spent_and_remaining() -> None:
    """A warning carries what was spent and what remains, in its own units."""
    graph = guard(talk(Scripted()), Budget(calls=2, warn_at=(0.5,)), ledger=MemoryLedger()).compile()

    (event,) = graph.stream(hello(), stream_mode="custom")

    assert (event["type"], event["spent"], event["limit"], event["remaining"]) == ("budget", 1, 2, 1)


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "tasks", "debug"])
def test_b63_usage_lost_by_streaming_is_estimated(mode: str) -> None:
    """A streamed app makes the model stream; where usage is lost on the way the call is estimated, never free."""
    ledger = MemoryLedger()
    builder = talk(Streaming(script=[WORDS], usage=None))
    graph = guard(builder, Budget(usd=1), ledger=ledger).compile(checkpointer=InMemorySaver())

    list(graph.stream(hello(), T, stream_mode=mode))

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.nanousd > 0
    assert Spend.of(graph.get_state(T)).estimated == 1


@pytest.mark.parametrize("mode", ["values", "updates", "messages"])
def test_b63_usage_that_is_told_is_exact(mode: str) -> None:
    """Streamed with its usage, a call costs what it costs without streaming."""
    ledger = MemoryLedger()
    graph = guard(talk(Streaming(script=[WORDS])), Budget(usd=1), ledger=ledger).compile()

    list(graph.stream(hello(), stream_mode=mode))

    assert ledger.total() == Spend(nanousd=210_000, input_tokens=1_000, output_tokens=100, calls=1)


async def test_b63_the_same_on_an_event_loop() -> None:
    """Async streams are metered as sync ones are."""
    ledger = MemoryLedger()

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Streaming(script=[WORDS]).ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")
    graph = guard(builder, Budget(usd=1), nodes=["answer"], ledger=ledger).compile()

    told = [chunk.content async for chunk, _ in graph.astream(hello(), stream_mode="messages")]

    assert "".join(told[:5]) == WORDS
    assert ledger.total().calls == 1


def test_b64_nostream_stays_nostream() -> None:
    """A model tagged `nostream` is kept out of the messages stream by a guarded graph as by the bare one."""

    def quiet(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"]).text]}

    model = Streaming(script=[WORDS], tags=["nostream"])
    builder = StateGraph(MessagesState).add_node("answer", quiet).add_edge(START, "answer")

    plain = tokens(builder.compile(checkpointer=InMemorySaver()))
    guarded = tokens(guard(builder, Budget(calls=9), ledger=MemoryLedger()).compile(checkpointer=InMemorySaver()))

    assert guarded == plain == []


@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_updates_of_the_users_nodes_stay_their_own(gate: str) -> None:
    """In the updates stream, each node shows what it wrote, with the amount it spent beside that."""
    builder = talk(Scripted())
    graph = guard(builder, Budget(calls=5), gate=gate, ledger=MemoryLedger()).compile()

    chunks = [chunk["answer"] for chunk in graph.stream(hello(), stream_mode="updates") if "answer" in chunk]

    assert [sorted(chunk) for chunk in chunks] == [["messages", "spend"]]
    assert chunks[0]["spend"] == {"usd": "0.00021", "input_tokens": 1_000, "output_tokens": 100, "calls": 1}
