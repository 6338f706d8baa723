"""Rows B45, B111, B113, B114 and B117: real money across threads, cancelled and rolled back runs, and workers."""

from __future__ import annotations

import asyncio
import operator
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, SqliteLedger, guard
from graphguard.errors import NoCheckpointer
from tests.conftest import thread
from tests.scripted import Scripted

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 12


class Log(TypedDict):
    log: Annotated[list[str], operator.add]


def loop(model: Scripted, turns: int = 100) -> StateGraph:
    """Build a loop of so many model calls."""
    builder = StateGraph(Log)
    builder.add_node("agent", lambda _: {"log": [str(model.invoke("q").content)]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: "agent" if len(s["log"]) < turns else "__end__")
    return builder


def of(user: str, thread_id: str) -> Any:
    """Give the config of a user's thread."""
    return thread(thread_id, user_id=user, tenant="acme")


def make_calls(path: str, thread_id: str) -> None:
    """Make calls until the tenant's budget is spent, in whatever process this runs."""
    model = Scripted()
    graph = guard(loop(model), Budget(calls=LIMIT, per="tenant"), ledger=SqliteLedger(path)).compile()
    graph.invoke({"log": []}, of("ada", thread_id))
    sys.stdout.write(str(model.billed))


# B45


def test_b45_concurrent_threads_of_one_user_lose_no_charge(tmp_path):
    """Sixteen threads of a user spend exactly what the user has, and every call is charged."""
    model, ledger = Scripted(), SqliteLedger(tmp_path / "ledger.sqlite")
    graph = guard(loop(model), Budget(calls=40, per="user_id"), ledger=ledger).compile(checkpointer=InMemorySaver())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda at: graph.invoke({"log": []}, of("ada", str(at))), range(16)))

    assert model.billed == ledger.total(scope="user_id:ada").calls == 40
    assert ledger.open_holds() == ()


# B111


def test_b111_a_run_without_a_thread_has_its_budget():
    """Without a checkpointer each run has the run's budget, and the user's is shared by all of them."""
    model = Scripted()
    budgets = Budget(calls=3, per="run"), Budget(calls=5, per="user_id")
    graph = guard(loop(model), *budgets, ledger=MemoryLedger()).compile()
    made = []
    for _ in range(3):
        before = model.billed
        graph.invoke({"log": []}, {"configurable": {"user_id": "ada"}})
        made.append(model.billed - before)

    assert made == [3, 2, 0]


def test_b111_nobody_can_be_asked_without_a_thread():
    """A question that nobody could answer is an error that says what to do, and no call is made for it."""
    model = Scripted()
    graph = guard(loop(model), Budget(calls=2, per="user_id"), on_trip="interrupt", ledger=MemoryLedger()).compile()

    with pytest.raises(NoCheckpointer, match="spent by user_id 'ada'; on_trip='interrupt' needs a checkpointer"):
        graph.invoke({"log": []}, {"configurable": {"user_id": "ada"}})
    assert model.billed == 2


# B113


@pytest.mark.parametrize("per", ["user_id", "thread"])
def test_b113_a_rollback_refunds_nothing(tmp_path, per):
    """A run whose checkpoints are deleted, as a server's rollback does, stays in the real accounts."""
    model, ledger = Scripted(), SqliteLedger(tmp_path / "ledger.sqlite")
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as saver:
        graph = guard(loop(model, 2), Budget(calls=4, per=per), Budget(calls=100), ledger=ledger)
        compiled = graph.compile(checkpointer=saver)
        compiled.invoke({"log": []}, of("ada", "t"))
        kept = compiled.get_state(of("ada", "t")).config["configurable"]["checkpoint_id"]
        compiled.invoke({"log": []}, of("ada", "t"))
        for table in ("checkpoints", "writes"):
            saver.conn.execute(f"DELETE FROM {table} WHERE checkpoint_id > ?", (kept,))  # noqa: S608 - two names

        assert compiled.get_state(of("ada", "t")).values["spend"]["calls"] == 2
        before = model.billed
        compiled.invoke({"log": []}, of("ada", "t"))
        assert model.billed - before == 1


async def test_b113_a_cancelled_run_stays_charged(tmp_path):
    """A run that is cut off in its second call has paid for both, and asks nobody anything."""
    ledger, begun = SqliteLedger(tmp_path / "ledger.sqlite"), asyncio.Event()
    model = Scripted()

    async def node(_: Log) -> Log:
        text = str((await model.ainvoke("q")).content)
        if model.billed > 1:
            begun.set()
            await asyncio.Event().wait()
        return {"log": [text]}

    builder = StateGraph(Log).add_node("agent", node).add_edge(START, "agent").add_edge("agent", "agent")
    budgets = Budget(calls=3, per="thread"), Budget(calls=3, per="user_id", every="day")
    graph = guard(builder, *budgets, on_trip="interrupt", ledger=ledger).compile(checkpointer=InMemorySaver())
    running = asyncio.create_task(graph.ainvoke({"log": []}, of("ada", "t")))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert ledger.total(scope="thread:t").calls == ledger.total(user="ada").calls == 2
    assert (await graph.aget_state(of("ada", "t"))).interrupts == ()


# B114


@pytest.mark.parametrize("every", [None, "month"])
def test_b114_an_expired_thread_grants_nothing(every):
    """A thread that was deleted when its time was up, and its user's other threads, find the tenant's budget spent."""
    model, saver = Scripted(), InMemorySaver()
    budgets = Budget(calls=4, per="tenant", every=every), Budget(calls=100)
    graph = guard(loop(model), *budgets, ledger=MemoryLedger()).compile(checkpointer=saver)
    graph.invoke({"log": []}, of("ada", "t"))
    saver.delete_thread("t")

    for thread_id in ("t", "new"):
        graph.invoke({"log": []}, of("ada", thread_id))
    assert model.billed == 4


# B117


def test_b117_workers_share_one_limit(tmp_path):
    """Three processes that are started together make in all exactly the calls that the tenant's budget allows."""
    path = str(tmp_path / "ledger.sqlite")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", f"from tests.rows.test_real_money import make_calls; make_calls({path!r}, '{at}')"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in range(3)
    ]
    made = [int(worker.communicate()[0]) for worker in workers]

    assert sum(made) == LIMIT
    with SqliteLedger(path) as ledger:
        assert ledger.total(scope="tenant:acme").calls == LIMIT
        assert ledger.open_holds() == ()
