"""`PostgresLedger` where things go wrong: lost connections, deadlocks, strange pools, forks."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from graphguard.errors import HoldMismatch, LedgerUnavailable
from graphguard.ledger import Hold, Refusal
from graphguard.ledger.postgres import PostgresLedger
from graphguard.testing import CENT, Clock, call, cents, charge, claim
from tests.conformance.faulty_proxy import FaultyProxy


@pytest.fixture
def ledger(postgres_opening):
    """Give a ledger on an empty schema."""
    with postgres_opening() as opened:
        yield opened


@pytest.fixture
def proxy(postgres):
    """Give a proxy before the server."""
    with FaultyProxy(f"{postgres.split()[0].removeprefix('host=')}/.s.PGSQL.5432") as one:
        yield one


@pytest.fixture
def shaky(ledger, proxy):
    """Give a ledger on the same schema, whose connections run through the proxy."""
    address = f"host=127.0.0.1 port={proxy.port} user=tests dbname=postgres sslmode=disable gssencmode=disable"
    with PostgresLedger(address, schema=ledger.schema) as opened:
        yield opened


def test_without_setup_it_says_so(postgres):
    """A ledger whose tables were never made tells how to make them."""
    with (
        PostgresLedger(postgres, schema="nobody made it") as ledger,
        pytest.raises(LedgerUnavailable, match=r"call setup\(\) once"),
    ):
        ledger.hold(call("a", 1))


def test_setup_may_be_repeated(ledger):
    """`setup` on a ledger in use changes nothing, from many processes at once neither."""
    ledger.hold(call("a", 1))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ledger.setup(), range(16)))

    assert [hold.id for hold in ledger.open_holds()] == ["a"]


async def test_setup_on_an_event_loop(postgres):
    """`asetup` does the same without blocking."""
    with PostgresLedger(postgres, schema="made by a task") as ledger:
        await ledger.asetup()
        assert isinstance(await ledger.ahold(call("a", 1)), Hold)


def test_a_newer_versions_tables_are_refused(postgres, ledger):
    """Tables of tomorrow are told by both versions."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'UPDATE "{ledger.schema}".version SET version = 7')  # noqa: S608 - the test's own

    with pytest.raises(LedgerUnavailable, match=r"version 7, .* knows 2; upgrade graphguard"):
        ledger.setup()


def test_no_server_is_told_in_time():
    """Where nobody answers, a ledger gives up after its patience, and its error has no password in it."""
    with (
        PostgresLedger("host=127.0.0.1 port=1 password=hunter2 dbname=d", patience=0.2) as ledger,
        pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1/d") as caught,
    ):
        ledger.hold(call("a", 1))
    assert "hunter2" not in str(caught.value)


def test_a_closed_ledger_says_so(ledger):
    """After `close` each question is answered with what to do."""
    ledger.close()
    ledger.close()

    with pytest.raises(LedgerUnavailable, match="make a new ledger"):
        ledger.hold(call("a", 1))


@pytest.mark.parametrize("kwargs", [{"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}, {}])
def test_it_works_on_a_pool_of_others(postgres, ledger, kwargs):
    """A pool made for LangGraph's checkpointer, or with psycopg's own settings, serves, and stays open."""
    with ConnectionPool(postgres, min_size=1, kwargs=kwargs) as pool:
        with PostgresLedger(pool, schema=ledger.schema) as mine:
            mine.setup()
            mine.hold(call("a", 6))
            mine.settle("a", charge("a", 2))
            assert isinstance(mine.hold(call("b", 9), wait=0), Refusal)
        assert not pool.closed
    assert cents(ledger.total()) == 2


async def test_it_works_beside_an_async_pool(postgres, ledger):
    """Of an async pool the address is used, so the ledger works in threads too."""
    async with AsyncConnectionPool(postgres, min_size=1, open=False) as pool:
        with PostgresLedger(pool, schema=ledger.schema) as mine:
            await mine.ahold(call("a", 6))
            assert [hold.id for hold in await asyncio.to_thread(mine.open_holds)] == ["a"]


@pytest.mark.parametrize("kind", ["drop_answers", "drop_questions"])
def test_a_lost_hold_is_held_once(ledger, shaky, proxy, kind):
    """A connection that breaks after the question was sent, or before: the call is held, and only once."""
    shaky.hold(call("a", 1))
    setattr(proxy, kind, 1)

    assert isinstance(shaky.hold(call("b", 6)), Hold)

    assert getattr(proxy, kind) == 0
    assert [hold.id for hold in ledger.open_holds()] == ["a", "b"]
    assert cents(ledger.balance(claim())[1]) == 7


@pytest.mark.parametrize("kind", ["drop_answers", "drop_questions"])
def test_a_lost_settle_is_charged_once(ledger, shaky, proxy, kind):
    """The charge counts once, and who settled is told that it is the one that counts."""
    shaky.hold(call("a", 6))
    mine = charge("a", 2)
    setattr(proxy, kind, 1)

    assert shaky.settle("a", mine) is mine

    assert ledger.charges() == (mine,)
    assert ledger.balance(claim())[1].nanousd == 0
    assert shaky.settle("a", charge("a", 2)) is not mine


@pytest.mark.parametrize("kind", ["drop_answers", "drop_questions"])
def test_a_lost_release_is_done(ledger, shaky, proxy, kind):
    """A release gets through, too."""
    shaky.hold(call("a", 6))
    setattr(proxy, kind, 1)

    shaky.release("a")

    assert ledger.open_holds() == ()
    assert ledger.balance(claim())[1].nanousd == 0


def test_a_lost_question_is_asked_again(ledger, shaky, proxy):
    """Sums and lists come through, too."""
    ledger.settle("a", charge("a", 2))
    shaky.total()
    for ask in (shaky.charges, shaky.total, functools.partial(shaky.totals, "scope"), shaky.open_holds):
        proxy.drop_answers = 1
        assert ask() == getattr(ledger, getattr(ask, "func", ask).__name__)(*getattr(ask, "args", ()))
        assert proxy.drop_answers == 0


def test_connections_lost_at_random(ledger, shaky, proxy):
    """Eight threads whose connections keep breaking: each call is held once, charged once, and all adds up."""
    chance = random.Random(7)

    def spend(n: int) -> bool:
        if chance.random() < 0.2:
            setattr(proxy, chance.choice(["drop_answers", "drop_questions"]), 1)
        if isinstance(shaky.hold(call(str(n), 1, claim(100))), Refusal):
            return False
        if chance.random() < 0.2:
            proxy.cut()
        mine = charge(str(n), 1)
        return shaky.settle(str(n), mine) is mine

    with ThreadPoolExecutor(8) as pool:
        ran = sum(pool.map(spend, range(120)))

    assert ran == cents(ledger.total()) == len(ledger.charges()) == 100
    assert ledger.open_holds() == ()


def test_a_server_that_comes_back_is_waited_for(shaky, proxy):
    """While the server is gone a call waits for it within the ledger's patience, and then goes on."""
    shaky.hold(call("a", 1))
    proxy.refuses = True
    proxy.cut()
    with ThreadPoolExecutor(1) as pool:
        hold = pool.submit(shaky.hold, call("b", 1))
        threading.Event().wait(0.2)
        assert not hold.done()
        proxy.refuses = False
        assert isinstance(hold.result(30), Hold)


def test_a_server_gone_in_mid_hold_loses_nothing(ledger, proxy):
    """A settle that can't reach the server says so in time and leaves the hold; asked again, it is charged once."""
    address = f"host=127.0.0.1 port={proxy.port} user=tests dbname=postgres sslmode=disable gssencmode=disable"
    with PostgresLedger(address, schema=ledger.schema, patience=0.3) as shaky:
        shaky.hold(call("a", 6))
        proxy.refuses = True
        proxy.cut()
        with pytest.raises(LedgerUnavailable, match="is the server up"):
            shaky.settle("a", charge("a", 2))
        with pytest.raises(LedgerUnavailable, match="is the server up"):
            shaky.hold(call("b", 1))
        assert [hold.id for hold in ledger.open_holds()] == ["a"]
        proxy.refuses = False

        mine = charge("a", 2)
        for _ in range(100):  # psycopg's pool tries to connect again after pauses that grow
            try:
                assert shaky.settle("a", mine) is mine
                break
            except LedgerUnavailable:
                threading.Event().wait(0.05)
        assert ledger.charges() == (mine,)
        assert ledger.open_holds() == ()


def test_nobody_waits_in_a_circle(postgres, ledger):
    """12 threads with calls over random sets of accounts in random order: the server finds no deadlock."""
    names = [f"account {n}" for n in range(6)]

    def spend(worker: int) -> None:
        chance = random.Random(worker)
        for n in range(25):
            scopes = chance.sample(names, chance.randrange(1, 5))
            id_ = f"{worker}-{n}"
            ledger.hold(call(id_, 1, *(claim(10**6, scope) for scope in scopes)))
            if chance.random() < 0.2:
                ledger.release(id_)
            else:
                ledger.settle(id_, charge(id_, 1, *chance.sample(scopes, len(scopes))))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(spend, range(12)))

    log = Path(postgres.split()[0].removeprefix("host="), "log").read_text("utf-8")
    assert "deadlock" not in log
    assert ledger.open_holds() == ()


def test_mismatch_and_amounts_beyond_bounds_leave_nothing(ledger):
    """A mistake in a call is its own: nothing is written, and the connection serves on."""
    ledger.hold(call("a", 1))
    with pytest.raises(HoldMismatch):
        ledger.hold(call("a", 2))
    with pytest.raises(LedgerUnavailable, match="out of range"):
        ledger.settle("b", charge("b", 10**18))

    assert ledger.charges() == ()
    assert cents(ledger.balance(claim())[1]) == 1


def test_first_come_first_served(ledger):
    """A large call that came first is not overtaken by small ones that would fit."""
    line = ledger._line  # noqa: SLF001 - how a test knows that they wait
    with ThreadPoolExecutor(4) as pool:
        ledger.hold(call("a", 6))
        waiting = []
        for id_, worst in (("large", 9), ("small", 2)):
            waiting.append(pool.submit(ledger.hold, call(id_, worst)))
            while len(line) < len(waiting):
                threading.Event().wait(0.002)
        ledger.settle("a", charge("a", 0))

        assert isinstance(waiting[0].result(10), Hold)
        assert not waiting[1].done()
        ledger.release("large")
        assert isinstance(waiting[1].result(10), Hold)


def test_the_servers_clock_counts(postgres_opening):
    """Without a clock of its own a ledger goes by the server's, the same for all machines."""
    with postgres_opening(clock=None, lease=0.05) as short, postgres_opening(clock=None, lease=60) as long:
        short.close()
        long.hold(call("a", 1))
        assert long.sweep() == ()
        assert long.renew(["a"]) == ("a",)
    with postgres_opening(clock=Clock(), lease=60) as early:
        assert early.sweep() == ()


def test_a_living_process_keeps_its_leases(postgres_opening):
    """A call that runs longer than its lease stays held, because its process is alive."""
    with postgres_opening(lease=0.6) as ledger, postgres_opening() as other:
        first = ledger.hold(call("a", 6)).expires
        for _ in range(2_000):
            if other.open_holds()[0].expires > first + 0.6:
                break
            threading.Event().wait(0.005)
        assert other.sweep() == ()
        assert [hold.id for hold in other.open_holds()] == ["a"]


def test_holds_are_swept_while_others_hold(postgres_opening, monkeypatch):
    """Nobody needs to call `sweep`: a hold that another process left is charged by the next calls."""
    clock = Clock()
    with postgres_opening(clock=clock) as dead:
        dead.hold(call("a", 6))
    monkeypatch.setattr("graphguard.ledger.postgres._SWEEP_EVERY", 0.0)
    with postgres_opening(clock=clock) as ledger:
        clock.now += 61
        refused = ledger.hold(call("b", 5), wait=30)

        assert isinstance(refused, Refusal)
        assert (refused.breach.kind, refused.breach.spent) == ("spent", 6 * CENT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_share_one_limit(postgres, ledger):
    """Eight processes, forked from one that uses the ledger too, on a limit for 100: exactly 100 calls run."""
    code = """
import os, sys
from graphguard.ledger import Hold
from graphguard.ledger.postgres import PostgresLedger
from graphguard.testing import call, charge, claim
ledger = PostgresLedger(sys.argv[1], schema=sys.argv[2])
def spend(who):
    for n in range(40):
        if isinstance(ledger.hold(call(f"{who}-{n}", 1, claim(100))), Hold):
            ledger.settle(f"{who}-{n}", charge(f"{who}-{n}", 1))
ledger.hold(call("first", 1, claim(100)))
ledger.settle("first", charge("first", 1))
children = []
for child in range(8):
    if pid := os.fork():
        children.append(pid)
    else:
        spend(child)
        os._exit(0)
spend("parent")
print([os.waitpid(pid, 0)[1] for pid in children])
ledger.close()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, postgres, ledger.schema]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0, 0, 0, 0, 0]\n", "")
    assert cents(ledger.total()) == 100


def test_without_psycopg_it_says_what_to_install():
    """Without the extra, all but this ledger works, and asking for it tells the extra's name."""
    code = """
import sys
sys.modules["psycopg"] = None
import graphguard.ledger
try:
    graphguard.ledger.PostgresLedger
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert "pip install 'graphguard[postgres]'" in done.stdout
