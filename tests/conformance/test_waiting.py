"""A call that waited for room says how long, in its hold and in its charge."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

from graphguard import Budget, guard
from graphguard.ledger import Hold, MemoryLedger, SqliteLedger
from graphguard.testing import Clock, call, charge
from tests.conftest import thread
from tests.scripted import Scripted

PAUSE = 0.05


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def opening(request, tmp_path):
    """Give what opens a ledger of each kind."""
    if request.param == "memory":
        return MemoryLedger
    if request.param == "sqlite":
        return functools.partial(SqliteLedger, tmp_path / "ledger.sqlite")
    return request.getfixturevalue("postgres_opening")


def line_of(ledger):
    """Give where calls stand that wait for room: how a test knows that they do."""
    if isinstance(ledger, SqliteLedger):
        return ledger._writer.line  # noqa: SLF001
    return ledger._waiters if isinstance(ledger, MemoryLedger) else ledger._line  # noqa: SLF001


def until_one_waits(ledger):
    """Come back when a call has stood in the line for a while."""
    nothing = threading.Event()
    until = time.monotonic() + 20
    while len(line_of(ledger)) == 0 and time.monotonic() < until:
        nothing.wait(0.002)
    nothing.wait(PAUSE)


def test_an_open_hold_says_how_long_it_waited(opening):
    """What the caller is told is what others are told, and what is charged when it never reports back."""
    clock = Clock()
    with ThreadPoolExecutor(1) as pool:
        ledger = opening(wait=60, lease=60, clock=clock)
        ledger.hold(call("a", 8))
        begun = time.monotonic()
        waiting = pool.submit(ledger.hold, call("b", 5))
        until_one_waits(ledger)
        ledger.settle("a", charge("a", 1))
        hold = waiting.result(20)
        elapsed = time.monotonic() - begun

        assert isinstance(hold, Hold)
        assert PAUSE <= hold.waited <= elapsed
        assert [(one.id, one.waited) for one in ledger.open_holds()] == [("b", hold.waited)]
        clock.now += 61
        assert [one.waited for one in ledger.sweep()] == [hold.waited]
        getattr(ledger, "close", lambda: None)()


def test_the_charge_of_a_call_says_how_long_it_waited(opening):
    """In a graph, the call that had to wait for its sibling says so in its charge, and the sibling does not."""
    ledger = opening(wait=60)
    first = threading.Event()

    def before():
        if not first.is_set():
            first.set()
            until_one_waits(ledger)

    model = Scripted(before=before)
    builder = StateGraph(MessagesState)
    builder.add_node("work", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_conditional_edges(START, lambda state: [Send("work", state)] * 2, ["work"])
    # Room for one worst case of 100 output tokens and what a call really uses, but not for two worst cases.
    graph = guard(builder, Budget(output_tokens=199, per="thread"), ledger=ledger).compile()
    model.usage = (10, 10)

    graph.invoke({"messages": "Hi"}, thread("t"))

    waited = sorted(one.waited for one in ledger.charges())
    assert model.billed == 2
    assert waited[0] == 0
    assert waited[1] >= PAUSE
    getattr(ledger, "close", lambda: None)()
