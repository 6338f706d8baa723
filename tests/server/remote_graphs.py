"""Graphs that others call as `RemoteGraph`; what they spend is theirs to tell."""

from __future__ import annotations

import sys
from pathlib import Path

# The server loads this file by its path, from a folder of its own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import operator
from typing import Annotated

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from tests.scripted import Scripted

model, mute, nameless = Scripted(), Scripted(usage=None), Scripted(model_name="of-nobody")


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def calling(*models: Scripted) -> object:
    """One call of each of these models, one after the other."""

    async def call(state: MessagesState) -> dict[str, object]:
        return {"messages": [await one.ainvoke(state["messages"]) for one in models]}

    return StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile()


def fail(state: MessagesState) -> dict[str, object]:
    """Pay, and fail."""
    model.invoke("hi")
    raise ValueError("no answer")


def ask(state: MessagesState) -> dict[str, object]:
    """Ask a person for an answer that nobody bills."""
    return {"messages": [AIMessage(interrupt("well?"))]}


two_calls = calling(model, model)
untold = calling(mute)
unpriced = calling(nameless)
failing = StateGraph(MessagesState).add_node("fail", fail).add_edge(START, "fail").compile()
asking = (
    StateGraph(MessagesState)
    .add_node("call", lambda state: {"messages": [model.invoke(state["messages"])]})
    .add_node("ask", ask)
    .add_edge(START, "call")
    .add_edge("call", "ask")
    .compile()
)
silent = StateGraph(Log).add_node("say", lambda state: {"log": ["said"]}).add_edge(START, "say").compile()
