"""Graphs for the server: compiled without a checkpointer, since the server brings its own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# The server loads this file by its path, from a folder of its own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph_sdk import Auth

from graphguard import Budget, guard
from graphguard.server import adjustable
from tests.scripted import Scripted, tool_call

model = Scripted()


def answer(state: MessagesState) -> dict[str, object]:
    """One call, in a sync node."""
    return {"messages": [model.invoke(state["messages"])]}


async def aanswer(state: MessagesState) -> dict[str, object]:
    """One call, in an async node."""
    return {"messages": [await model.ainvoke(state["messages"])]}


def loop(node: object, gate: str) -> object:
    """Six calls in a loop, on a budget for two."""
    builder = StateGraph(MessagesState)
    builder.add_node("agent", node)
    builder.add_node("user", lambda _: {"messages": [("user", "again")]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: "user" if len(s["messages"]) < 12 else END, ["user", END])
    builder.add_edge("user", "agent")
    return guard(builder, Budget(calls=2), on_trip="interrupt", gate=gate).compile()


@tool
def look(q: str) -> str:
    """Look something up."""
    return f"nothing about {q}"


sync_node = loop(answer, "node")
async_node = loop(aanswer, "node")
inline = loop(aanswer, "inline")

_single = StateGraph(MessagesState)
_single.add_node("agent", aanswer)
_single.add_edge(START, "agent")
raising = guard(_single, Budget(usd="0.00001"), on_trip="raise").compile()


def endless(budget: Budget) -> object:
    """Calls until its budget is spent."""
    builder = StateGraph(MessagesState)
    builder.add_node("agent", aanswer)
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "agent")
    return guard(builder, budget).compile()


of_organization = endless(Budget(calls=3, per="x-organization-id"))
of_user = endless(Budget(calls=3, per="langgraph_auth_user", every="month"))
of_team = endless(Budget(calls=3, per="team"))


def of_assistant(config: RunnableConfig) -> object:
    """A graph whose budget the assistant's own settings say."""
    return endless(Budget(calls=config["configurable"].get("max_calls", 1), per="run"))


adjusted = adjustable(endless(Budget(calls=9, per="run")), max_calls=Budget(calls=2, per="run"))


@asynccontextmanager
async def of_manager(config: RunnableConfig) -> AsyncIterator[object]:
    """A graph that is made for each run, with something that is closed after it."""
    yield endless(Budget(calls=config["configurable"].get("max_calls", 1), per="run"))


def of_plan(config: RunnableConfig) -> object:
    """A graph whose budget is the plan of whoever was authenticated."""
    user = config["configurable"]["langgraph_auth_user"]
    return endless(Budget(calls={"free": 1, "pro": 4}[user["plan"]], per="run"))


auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> dict[str, object]:
    """Let everybody in, under the name that they give; one has a limit and a plan of her own."""
    name = headers.get(b"x-name", b"nobody").decode()
    return {"identity": name, "plan": "pro", "max_calls": 5} if name == "vera" else {"identity": name, "plan": "free"}


_calls = [tool_call("look", f"c{at}", q="x") for at in range(30)]
agent = guard(create_agent(Scripted(script=_calls), [look]), Budget(calls=3))
