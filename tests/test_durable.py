"""Guarded graphs on a ledger in a file: real money outlives the process, and no event loop waits for the disk."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from graphguard import Budget, MemoryLedger, SqliteLedger, acharge, aremaining, guard
from tests.conftest import thread
from tests.scripted import Scripted

ROOT = Path(__file__).resolve().parents[1]


def loop(model: Scripted, turns: int) -> StateGraph:
    """Build a loop of so many model calls, in a sync and an async version of one node."""

    def answer(state: MessagesState):
        return {"messages": [model.invoke(state["messages"])]}

    async def aanswer(state: MessagesState):
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("sync", answer)
    builder.add_node("async", aanswer)
    builder.add_conditional_edges(START, lambda s: s["messages"][0].content)
    for name in ("sync", "async"):
        builder.add_conditional_edges(name, lambda s, n=name: n if len(s["messages"]) <= turns else "__end__")
    return builder


def call_once(path: str) -> None:
    """Make one call on the thread's account, in whatever process this runs."""
    graph = guard(loop(Scripted(), 1), Budget(calls=3, per="thread"), ledger=SqliteLedger(path))
    graph.compile(checkpointer=InMemorySaver()).invoke({"messages": "sync"}, thread("t1"))


def test_a_thread_budget_outlives_processes(tmp_path):
    """Two processes that end leave their calls in the ledger; a third one has one call left of three."""
    path = str(tmp_path / "ledger.sqlite")
    for _ in range(2):
        code = f"from tests.test_durable import call_once; call_once({path!r})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    model = Scripted()
    graph = guard(loop(model, 9), Budget(calls=3, per="thread"), ledger=SqliteLedger(path))

    graph.compile(checkpointer=InMemorySaver()).invoke({"messages": "sync"}, thread("t1"))

    assert model.billed == 1
    assert SqliteLedger(path).total(thread="t1").calls == 3


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_a_file_never_blocks_the_event_loop(tmp_path, gate):
    """Holding, settling, asking for room and refusing happen off the loop."""
    ledger, model = SqliteLedger(tmp_path / "ledger.sqlite"), Scripted()
    graph = guard(loop(model, 9), Budget(calls=3), Budget(usd=1, per="thread"), ledger=ledger, gate=gate).compile()
    with blockbuster_ctx("graphguard"):
        state = await graph.ainvoke({"messages": "async"})

    assert model.billed == 3
    assert "budget exhausted" in state["messages"][-1].content
    assert ledger.open_holds() == ()


async def test_both_ledgers_charge_alike(tmp_path):
    """The same run costs the same on a ledger in memory and on one in a file, to the nano-USD."""
    totals = []
    for ledger in (MemoryLedger(), SqliteLedger(tmp_path / "ledger.sqlite")):
        graph = guard(loop(Scripted(), 4), Budget(usd=1), ledger=ledger).compile()
        await graph.ainvoke({"messages": "async"})
        totals.append(ledger.total())

    assert totals[0] == totals[1]
    assert totals[0].calls == 4


async def test_charging_and_asking_in_an_async_node_block_no_event_loop(tmp_path):
    """`acharge` and `aremaining` wait for the file without blocking; both count what their twins count."""
    left = []

    async def pays(state: MessagesState):
        await acharge(usd="0.25")
        left.append((await aremaining()).usd)
        return {"messages": []}

    builder = StateGraph(MessagesState)
    builder.add_node("pays", pays)
    builder.add_edge(START, "pays")
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    graph = guard(builder, Budget(usd=1, per="thread"), nodes=["pays"], ledger=ledger).compile()

    with blockbuster_ctx("graphguard"):
        await graph.ainvoke({"messages": "hi"}, thread("t1"))

    assert left == [Decimal("0.75")]
    assert ledger.total(thread="t1").usd == Decimal("0.25")
