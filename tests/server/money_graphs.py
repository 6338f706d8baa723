"""Graphs whose money is in one ledger file, called by a real client; for a server that tests start."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

# The server loads this file by its path, from a folder of its own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from graphguard import Budget, SqliteLedger, acharge, aremaining, guard

ledger = SqliteLedger(os.environ["TEST_LEDGER"], lease=3)
model = ChatOpenAI(
    model="gpt-4o-mini",
    max_completion_tokens=100,
    base_url=f"{os.environ['TEST_PROVIDER']}/v1",
    api_key="of-the-test",
    disable_streaming=True,
    max_retries=0,
)


async def call(state: MessagesState) -> dict[str, object]:
    """One call."""
    return {"messages": [await model.ainvoke(state["messages"])]}


async def call_late(state: MessagesState) -> dict[str, object]:
    """One call that the provider keeps waiting."""
    thread = state["messages"][0].content
    return {"messages": [await model.ainvoke([("user", f"wait for the second of {thread}")])]}


async def pay(state: MessagesState) -> dict[str, object]:
    """A fee, and what it leaves; a ledger on disk is asked in a thread."""
    await acharge(usd="0.01")
    left = await aremaining()
    return {"messages": [("ai", f"{left.usd} left")]}


def steps(*nodes: object) -> StateGraph[MessagesState]:
    """Nodes one after the other."""
    builder = StateGraph(MessagesState)
    builder.add_sequence([(f"step{at}", node) for at, node in enumerate(nodes, 1)])
    builder.add_edge(START, "step1")
    return builder


def endless() -> StateGraph[MessagesState]:
    """Calls without end."""
    builder = steps(call)
    builder.add_edge("step1", "step1")
    return builder


of_thread = guard(steps(call), Budget(calls=2, per="thread"), ledger=ledger)
of_team = guard(steps(call), Budget(calls=5, per="team"), ledger=ledger)
of_assistant = guard(endless(), Budget(calls=3, per="assistant_id"), ledger=ledger)
raising = guard(of_assistant, on_trip="raise")
of_run = guard(endless(), Budget(calls=2, per="run"), ledger=ledger)
asking = guard(endless(), Budget(calls=2), on_trip="interrupt", ledger=ledger)
two_steps = guard(steps(call, call_late), Budget(usd=1, per="thread"), ledger=ledger)
paying = guard(steps(pay, call), Budget(usd="0.05", per="thread"), ledger=ledger)


@asynccontextmanager
async def checkpoints() -> object:
    """The server's checkpoints, in a file that outlives it."""
    async with AsyncSqliteSaver.from_conn_string(os.environ["TEST_CHECKPOINTS"]) as saver:
        yield saver
