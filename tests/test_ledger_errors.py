"""What a guarded graph does while its ledger can't answer: a SQLite file that another process keeps locked."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from graphguard import Budget, LedgerUnavailable, Spend, SqliteLedger, guard
from graphguard.errors import InvalidBudget
from tests.scripted import NANOUSD_PER_CALL, Scripted


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """A ledger that gives up on a locked file at once."""
    with closing(SqliteLedger(tmp_path / "ledger.db", patience=0.05)) as found:
        yield found


@contextmanager
def locked(ledger: SqliteLedger) -> Iterator[None]:
    """Somebody else writes to the ledger's file, and doesn't stop."""
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def chain(model: Scripted, ledger: SqliteLedger, *budgets: Budget, on_ledger_error: str = "refuse") -> Any:
    """One model call a run."""

    async def aagent(state: MessagesState) -> dict[str, object]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def agent(state: MessagesState) -> dict[str, object]:
        return {"messages": [model.invoke(state["messages"])]}

    from langgraph._internal._runnable import RunnableCallable  # noqa: PLC0415 - a node both sync and async

    graph = StateGraph(MessagesState)
    graph.add_node("agent", RunnableCallable(agent, aagent))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", END)
    guarded = guard(graph, *budgets, ledger=ledger, on_ledger_error=on_ledger_error, nodes=["agent"])
    return guarded.compile(checkpointer=InMemorySaver())


def told(thread: str) -> tuple[dict[str, object], RunnableConfig]:
    """Something to say, in a thread."""
    return {"messages": [("user", "hi")]}, {"configurable": {"thread_id": thread, "user_id": "ada"}}


def test_a_call_is_refused_while_the_ledger_cannot_answer(ledger: SqliteLedger) -> None:
    """By default nothing is sent that can't be held; with the ledger back, the same graph goes on."""
    model = Scripted()
    graph = chain(model, ledger, Budget(usd=1, per="thread"))

    with locked(ledger), pytest.raises(LedgerUnavailable, match=r"ledger\.db"):
        graph.invoke(*told("t"))

    assert model.billed == 0
    graph.invoke(*told("t"))
    assert ledger.total(thread="t").calls == model.billed == 1


def test_an_allowed_call_is_charged_when_the_ledger_answers_again(
    ledger: SqliteLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """The outage is logged once; the state counts at once, the ledger from its first answer on."""
    model = Scripted()
    graph = chain(model, ledger, Budget(usd=1, per="thread"), on_ledger_error="allow")

    with caplog.at_level(logging.WARNING, "graphguard"):
        with locked(ledger):
            graph.invoke(*told("t"))
            graph.invoke(*told("t"))
        assert ledger.total().calls == 0
        graph.invoke(*told("t"))

    assert model.billed == 3
    assert ledger.total(thread="t") == Spend.of(graph.get_state(told("t")[1]))
    assert ledger.total(scope="thread:t").nanousd == 3 * NANOUSD_PER_CALL
    assert ledger.open_holds() == ()
    messages = [record.getMessage() for record in caplog.records if record.name == "graphguard"]
    assert [("can't be used" in m, "2 calls for $0.00042 are charged" in m) for m in messages] == [
        (True, False),
        (False, True),
    ], messages


async def test_an_allowed_call_on_an_event_loop_is_charged_too(ledger: SqliteLedger) -> None:
    """The same with `ainvoke`."""
    model = Scripted()
    graph = chain(model, ledger, Budget(usd=1, per="thread"), on_ledger_error="allow")

    with locked(ledger):
        await graph.ainvoke(*told("t"))
    await graph.ainvoke(*told("t"))

    assert ledger.total(thread="t").calls == model.billed == 2


def test_an_outage_gives_nobody_the_whole_budget_again(ledger: SqliteLedger) -> None:
    """While the ledger is gone, calls are held against what was known of their account before."""
    model = Scripted()
    graph = chain(model, ledger, Budget(calls=3, per="user_id"), on_ledger_error="allow")
    graph.invoke(*told("a"))
    graph.invoke(*told("b"))

    with locked(ledger):
        for thread in "cdef":
            graph.invoke(*told(thread))

    assert model.billed == 3


def test_a_call_that_cannot_be_settled_is_charged_later(ledger: SqliteLedger) -> None:
    """The ledger goes away in the middle of a call: what was held there is settled when it is back."""
    lock = sqlite3.connect(ledger.path, isolation_level=None, check_same_thread=False)
    model = Scripted(before=lambda: lock.execute("BEGIN IMMEDIATE") and None)
    graph = chain(model, ledger, Budget(usd=1, per="thread"), on_ledger_error="allow")

    graph.invoke(*told("t"))
    assert len(ledger.open_holds()) == 1
    lock.execute("ROLLBACK")
    lock.close()
    model.before = None
    graph.invoke(*told("t"))

    assert ledger.total(thread="t").nanousd == 2 * NANOUSD_PER_CALL
    assert ledger.open_holds() == ()


def test_an_unknown_choice_is_refused_at_once(ledger: SqliteLedger) -> None:
    """A typing error must not mean that calls are allowed."""
    with pytest.raises(InvalidBudget, match="'refuse' or 'allow', got 'ignore'"):
        chain(Scripted(), ledger, Budget(usd=1), on_ledger_error="ignore")
