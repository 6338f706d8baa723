"""No method for event loops blocks one: not for the disk, the network, a lock or a sleep."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from blockbuster import blockbuster_ctx

from graphguard.errors import HoldMismatch, LedgerUnavailable
from graphguard.ledger import Hold, Ledger, MemoryLedger, Refusal, SqliteLedger
from graphguard.testing import call, charge, claim

ASYNC = {name for name, _ in inspect.getmembers(Ledger, inspect.iscoroutinefunction)}
BIG = claim(10**6, "big")


class Watched:
    """A ledger that remembers which of its async methods were asked."""

    def __init__(self, ledger) -> None:
        self.ledger = ledger
        self.asked: set[str] = set()

    def __getattr__(self, name: str):
        self.asked.add(name)
        return getattr(self.ledger, name)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request, tmp_path):
    """Give an empty ledger of each kind."""
    if request.param == "memory":
        yield MemoryLedger()
        return
    opening = request.getfixturevalue("postgres_opening") if request.param == "postgres" else None
    with opening() if opening else SqliteLedger(tmp_path / "ledger.sqlite") as opened:
        yield opened


async def test_no_method_blocks(ledger):
    """Each async method of the protocol is asked, with waits, refusals and mistakes, and none blocks."""
    watched = Watched(ledger)
    with blockbuster_ctx():
        await asyncio.gather(*(watched.ahold(call(f"a{n}", 1)) for n in range(10)))
        waiting = asyncio.create_task(watched.ahold(call("b", 1)))
        assert isinstance(await watched.ahold(call("c", 1), wait=0), Refusal)
        assert isinstance(await watched.ahold(call("c", 1), wait=0.02), Refusal)
        with pytest.raises(HoldMismatch):
            await watched.ahold(call("a1", 2))
        await watched.aroom(call("c", 1))
        await watched.abalance(claim())
        await watched.arenew(["a1"])
        await watched.asweep()
        await watched.asettle("a0", charge("a0", 0))
        await watched.arelease("a1")
        await watched.atotal()
        await watched.atotals("scope")
        await watched.acharges()
        await watched.aopen_holds()
        assert isinstance(await waiting, Hold)
    assert watched.asked >= ASYNC


async def test_cancelled_tasks_do_not_block(ledger):
    """Tasks that are cancelled while they hold, wait or settle are cleaned up without blocking."""
    with blockbuster_ctx():
        await ledger.ahold(call("a", 10))
        tasks = [asyncio.create_task(ledger.ahold(call(f"b{n}", 1))) for n in range(8)]
        tasks += [asyncio.create_task(ledger.asettle(f"c{n}", charge(f"c{n}", 1, "other"))) for n in range(8)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.arelease("a")


async def test_threads_at_work_do_not_block(ledger):
    """While threads hold and settle as fast as they can, a loop's own calls get through without blocking it."""
    stop = threading.Event()

    def spend(worker: int) -> int:
        made = 0
        while not stop.is_set():
            ledger.hold(call(f"{worker}-{made}", 1, BIG))
            ledger.settle(f"{worker}-{made}", charge(f"{worker}-{made}", 1, "big"))
            made += 1
        return made

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(spend, worker) for worker in range(4)]
        with contextlib.ExitStack() as stack:
            stack.callback(stop.set)
            stack.enter_context(blockbuster_ctx("graphguard"))
            for n in range(50):
                assert isinstance(await ledger.ahold(call(f"loop-{n}", 1, BIG)), Hold)
                await ledger.asettle(f"loop-{n}", charge(f"loop-{n}", 1, "big"))
        made = sum(one.result(30) for one in working)

    assert (await ledger.atotal()).calls == made + 50


async def test_a_closed_ledger_says_so(tmp_path):
    """After `close` a task is told so at once."""
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    ledger.close()
    with blockbuster_ctx("graphguard"), pytest.raises(LedgerUnavailable, match="make a new ledger"):
        await ledger.ahold(call("a", 1))
