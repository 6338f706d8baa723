"""Facts about how LangGraph streams what it else calls, and what LangChain makes of messages from a server."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph


class Watched(Runnable[Any, Any]):
    """A runnable that notes how it is run."""

    def __init__(self) -> None:
        self.ways: list[tuple[str, dict[str, Any]]] = []

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 - its name
        self.ways.append(("invoke", kwargs))
        return {}

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 - its name
        self.ways.append(("ainvoke", kwargs))
        return {}

    async def astream(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 - its name
        self.ways.append(("astream", kwargs))
        yield {}


@pytest.mark.parametrize(("way", "run"), [("ainvoke", "ainvoke"), ("astream", "events")])
async def test_events_have_nodes_streamed(way, run):
    """Under `astream_events`, and only then, a node's runnable is streamed, without any keyword argument."""
    watched = Watched()
    graph = StateGraph(MessagesState).add_node("n", watched).add_edge(START, "n").compile()

    if run == "events":
        async for _ in graph.astream_events({"messages": []}, version="v2"):
            pass
    else:
        await graph.ainvoke({"messages": []})

    assert watched.ways == [(way, {})]


async def test_a_graph_that_is_called_streams_itself_and_names_a_mode(monkeypatch):
    """`ainvoke` of a graph is its `astream` with a `stream_mode`, which tells the two apart."""
    named: list[bool] = []
    original = CompiledStateGraph.astream

    def astream(self: Any, *args: Any, **kwargs: Any) -> Any:
        named.append("stream_mode" in kwargs)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CompiledStateGraph, "astream", astream)
    graph = StateGraph(MessagesState).add_node("n", lambda state: {}).add_edge(START, "n").compile()

    await graph.ainvoke({"messages": []})

    assert named == [True]


def test_usage_is_lost_in_conversions():
    """`convert_to_messages` leaves out the usage of a message in JSON; `AIMessage.model_validate` keeps it."""
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    told = AIMessage("hi", usage_metadata=usage).model_dump()

    assert convert_to_messages([told])[0].usage_metadata is None
    assert AIMessage.model_validate(told).usage_metadata == usage
