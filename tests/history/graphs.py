"""Graphs that the tests of histories run: a line with a subgraph, and a fan-out with a join."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

from graphguard import Budget, guard
from tests.scripted import Scripted

HI = {"messages": "hi"}


def thread(name: str = "t") -> RunnableConfig:
    """Give the config of a thread."""
    return {"configurable": {"thread_id": name}}


def chain(model: Scripted, *names: str) -> StateGraph:
    """Give nodes in a line, one call each."""
    builder = StateGraph(MessagesState)

    def call(state: MessagesState, config: RunnableConfig) -> dict[str, object]:
        return {"messages": [model.invoke(state["messages"], config)]}

    for name in names:
        builder.add_node(name, call)
    for before, name in zip((START, *names), names, strict=False):
        builder.add_edge(before, name)
    return builder


def nested(model: Scripted) -> StateGraph:
    """Give a node `a`, then a subgraph `s` of `x`, `y` and `z`: four calls."""
    builder = chain(model, "a")
    builder.add_node("s", chain(model, "x", "y", "z").compile())
    builder.add_edge("a", "s")
    return builder


def fan(model: Scripted) -> StateGraph:
    """Give `plan`, then two Sends to `u` beside `v` and `w`, then `end` after them: six calls."""
    builder = chain(model, "plan")
    for name in ("u", "v", "w", "end"):
        builder.add_node(name, chain(model, name).nodes[name].runnable)
    builder.add_conditional_edges("plan", lambda state: [Send("u", state), Send("u", state), "v", "w"], ["u", "v", "w"])
    for name in ("u", "v", "w"):
        builder.add_edge(name, "end")
    return builder


def guarded(
    builder: StateGraph, saver: BaseCheckpointSaver[str], *budgets: Budget, **options: object
) -> CompiledStateGraph:
    """Give the compiled graph of a builder, guarded."""
    return guard(builder, *budgets, **options).compile(checkpointer=saver)
