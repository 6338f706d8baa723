"""`SqliteLedger` where things go wrong: other files, locks, full disks, forks, ends of processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphguard.errors import HoldMismatch, LedgerUnavailable
from graphguard.ledger import Hold, Refusal, SqliteLedger
from graphguard.testing import CENT, Clock, call, cents, charge, claim


@pytest.fixture
def path(tmp_path):
    """Give a place for a ledger."""
    return tmp_path / "ledger.sqlite"


@contextlib.contextmanager
def locked(path):
    """Hold a transaction on the file, as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        other.execute("ROLLBACK")


def in_python(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the words as `sys.argv[1:]`."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_for(condition):
    """Wait until something is so."""
    for _ in range(5_000):
        if condition():
            return
        threading.Event().wait(0.002)
    raise AssertionError


def test_another_programs_file_is_refused_and_left_alone(path):
    """A database with other tables is not taken for a ledger, and nothing is written into it."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()

    with pytest.raises(LedgerUnavailable, match=r"belongs to another program.*name a file of its own"):
        SqliteLedger(path)

    assert path.read_bytes() == before


def test_a_newer_versions_file_is_refused(path):
    """A file with a schema of tomorrow is told by both versions."""
    SqliteLedger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 7")

    with pytest.raises(LedgerUnavailable, match=r"its schema is 7, .* knows \d; upgrade graphguard"):
        SqliteLedger(path)


def test_no_database_is_refused(path):
    """A file that is not a database is told."""
    path.write_bytes(b"Dear diary, " * 200)

    with pytest.raises(LedgerUnavailable, match=r"not a database; .*name a new one") as caught:
        SqliteLedger(path)

    assert caught.value.ledger == str(path)


@pytest.mark.parametrize("name", ["no/such/folder/ledger.sqlite", "."])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name):
    """A missing folder, or a folder instead of a file, is told, with what to do."""
    with pytest.raises(LedgerUnavailable, match="make its folder"):
        SqliteLedger(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="this system has no users like nobody")
def test_a_file_that_may_not_be_written_is_refused():
    """A ledger of somebody else, which this process may only read, is told with what to do; it is left as it was."""
    code = """
import os, sys
from graphguard.errors import LedgerUnavailable
from graphguard.ledger import SqliteLedger
from graphguard.testing import call
if os.getuid() == 0:  # who may write everything
    os.setuid(65534)
try:
    SqliteLedger(sys.argv[1]).hold(call("b", 1))
except LedgerUnavailable as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        path = Path(folder, "ledger.sqlite")
        with SqliteLedger(path) as ledger:
            ledger.hold(call("a", 1))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        done = in_python(code, path)
        Path(folder).chmod(0o755)
        path.chmod(0o644)

        assert "let this process write the file and its folder" in done.stdout, done
        with SqliteLedger(path) as ledger:
            assert [hold.id for hold in ledger.open_holds()] == ["a"]


def test_a_file_locked_for_long_is_told(path):
    """After its patience a ledger says who is in the way, and holds nothing; later it works again."""
    with SqliteLedger(path, patience=0.1) as ledger:
        with locked(path):
            begun = time.monotonic()
            with pytest.raises(LedgerUnavailable, match="another process has held a transaction"):
                ledger.hold(call("a", 1))
            assert time.monotonic() - begun < 5
        assert ledger.open_holds() == ()
        assert isinstance(ledger.hold(call("a", 1)), Hold)


def test_a_lock_that_goes_away_is_waited_for(path):
    """A transaction of another process only delays."""
    with SqliteLedger(path) as ledger, ThreadPoolExecutor(1) as pool:
        with locked(path):
            hold = pool.submit(ledger.hold, call("a", 1))
            threading.Event().wait(0.05)
            assert not hold.done()
        assert isinstance(hold.result(10), Hold)


def test_a_full_disk_is_told_and_nothing_is_lost(path):
    """When the disk is full, calls are refused with an error; what was answered before is there afterwards."""
    code = """
import resource, sys
from graphguard.errors import LedgerUnavailable
from graphguard.ledger import SqliteLedger
from graphguard.testing import call, charge, claim
ledger = SqliteLedger(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
n = 0
try:
    while n < 10_000:
        ledger.hold(call(f"a{n}", 1, claim(10**6)))
        ledger.settle(f"a{n}", charge(f"a{n}", 1))
        n += 1
except LedgerUnavailable as error:
    print(n, error)
    import os; os._exit(0)
"""
    done = in_python(code, path)
    count, _, told = done.stdout.partition(" ")

    assert "look after its disk" in told or "make room on its disk" in told, done
    with SqliteLedger(path) as ledger:
        assert int(count) > 10
        assert len(ledger.charges()) - int(count) in {0, 1}
        assert cents(ledger.total()) == len(ledger.charges())


def test_one_bad_call_does_not_disturb_others(path):
    """Calls are committed together, and a mistake in one of them is only its own."""
    with SqliteLedger(path) as ledger, ThreadPoolExecutor(16) as pool:
        ledger.hold(call("a", 1))
        with locked(path):  # so that all wait for one transaction
            bad = [pool.submit(ledger.hold, call("a", 2)) for _ in range(4)]
            good = [pool.submit(ledger.hold, call(f"b{n}", 1)) for n in range(4)]
            bad.append(pool.submit(ledger.settle, "x", charge("x", 10**18)))  # more than a column holds
            threading.Event().wait(0.05)
        assert all(isinstance(one.exception(10), (HoldMismatch, OverflowError)) for one in bad)
        assert all(isinstance(one.result(10), Hold) for one in good)
        assert len(ledger.open_holds()) == 5
        assert ledger.charges() == ()


def test_a_closed_ledger_says_so(path):
    """After `close` nothing hangs, and each question is answered with what to do."""
    ledger = SqliteLedger(path)
    ledger.close()
    ledger.close()

    for ask in (functools.partial(ledger.hold, call("a", 1)), ledger.charges, ledger.sweep):
        with pytest.raises(LedgerUnavailable, match="it is closed; make a new ledger"):
            ask()


def test_closing_while_others_ask_hangs_nobody(path):
    """Who asks while the ledger is closed is answered, or told that it is closed."""

    def ask(ledger: SqliteLedger, worker: int) -> str:
        try:
            for n in range(1_000):
                if worker % 2:
                    ledger.hold(call(f"{worker}-{n}", 1, claim(10**6)))
                else:
                    asyncio.run(ledger.ahold(call(f"{worker}-{n}", 1, claim(10**6))))
        except LedgerUnavailable as error:
            return error.problem
        return "all held"

    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            ledger = SqliteLedger(path)
            answers = [pool.submit(ask, ledger, worker) for worker in range(6)]
            wait_for(lambda one=ledger: one._calls)  # noqa: SLF001 - they have begun
            ledger.close()
            assert {answer.result(20) for answer in answers} <= {"it is closed; make a new ledger", "all held"}
            assert not Path(f"{path}-wal").exists()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that interrupt")
def test_interrupts_disturb_nobody_else(path):
    """Whatever Ctrl-C interrupts in the main thread, others' calls are answered, and the ledger goes on."""
    code = """
import signal, sys, threading
from graphguard.ledger import SqliteLedger
from graphguard.testing import call, charge, claim
ledger, big, asking, interrupted = SqliteLedger(sys.argv[1]), claim(10**6), False, 0
def interrupt(*_):
    global asking
    if asking:
        asking = False
        raise KeyboardInterrupt
def spend(worker):
    for n in range(100):
        ledger.hold(call(f"{worker}-{n}", 1, big))
        ledger.settle(f"{worker}-{n}", charge(f"{worker}-{n}", 1, "s", thread="others"))
threads = [threading.Thread(target=spend, args=(worker,)) for worker in range(3)]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
for n in range(200):
    try:
        asking = True
        ledger.hold(call(f"main-{n}", 1, big))
        ledger.settle(f"main-{n}", charge(f"main-{n}", 1))
        asking = False
    except KeyboardInterrupt:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
for thread in threads:
    thread.join()
ledger.release("nothing")
print(interrupted > 0, ledger.total(thread="others").calls)
"""
    done = in_python(code, path)

    assert (done.stdout, done.stderr) == ("True 300\n", "")
    with SqliteLedger(path) as ledger:
        held, spent = ledger.balance(claim(10**6))[1], ledger.total()
        assert held.calls == len(ledger.open_holds())
        assert spent.calls == len(ledger.charges()) == ledger.balance(claim(10**6))[0].calls


def test_ledgers_on_one_file_share_one_thread(path):
    """However many ledgers a process has on a file, one thread writes it, and the last to close ends it."""

    def writers():
        return sum(thread.name == "graphguard-ledger" for thread in threading.enumerate())

    before = writers()
    ledgers = [SqliteLedger(path) for _ in range(5)]
    for ledger in ledgers:
        asyncio.run(ledger.ahold(call("a", 1)))
    assert writers() == before + 1
    for ledger in ledgers:
        ledger.close()
    assert writers() == before


def test_a_forgotten_ledger_is_closed(path):
    """Who forgets to close leaves no thread and no open file."""
    ledger = SqliteLedger(path)
    ledger.hold(call("a", 1))
    assert Path(f"{path}-wal").exists()
    del ledger
    gc.collect()

    assert not Path(f"{path}-wal").exists()


def test_the_end_of_a_process_closes_the_file(path):
    """A process that just ends leaves a complete file without a log beside it."""
    code = """
import sys
from graphguard.ledger import SqliteLedger
from graphguard.testing import call
ledger = SqliteLedger(sys.argv[1])
ledger.hold(call("a", 1))
"""
    done = in_python(code, path)

    assert (done.returncode, done.stderr) == (0, "")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with SqliteLedger(path) as ledger:
        assert len(ledger.open_holds()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_with_the_same_ledger(path):
    """Parent and child both write after a fork, and neither loses what the other wrote."""
    code = """
import os, sys
from graphguard.ledger import SqliteLedger
from graphguard.testing import call, charge, claim
ledger = SqliteLedger(sys.argv[1])
big = claim(10**6)
ledger.hold(call("before", 1, big))
for round in range(5):
    pid = os.fork()
    who = "child" if pid == 0 else "parent"
    for n in range(50):
        id_ = f"{who}-{round}-{n}"
        ledger.hold(call(id_, 1, big))
        ledger.settle(id_, charge(id_, 1))
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
ledger.settle("before", charge("before", 1))
"""
    done = in_python(code, path)

    assert (done.returncode, done.stderr) == (0, "")
    with SqliteLedger(path) as ledger:
        assert cents(ledger.total()) == len(ledger.charges()) == 501
        assert ledger.open_holds() == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_share_one_limit(path):
    """Eight processes with 40 calls each on a limit for 100: exactly 100 run."""
    code = """
import os, sys
from graphguard.ledger import Hold, SqliteLedger
from graphguard.testing import call, charge, claim
children = []
for child in range(8):
    if pid := os.fork():
        children.append(pid)
        continue
    with SqliteLedger(sys.argv[1]) as ledger:
        for n in range(40):
            if isinstance(ledger.hold(call(f"{child}-{n}", 1, claim(100))), Hold):
                ledger.settle(f"{child}-{n}", charge(f"{child}-{n}", 1))
    os._exit(0)
print([os.waitpid(pid, 0)[1] for pid in children])
"""
    done = in_python(code, path)

    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0, 0, 0, 0, 0]\n", "")
    with SqliteLedger(path) as ledger:
        assert cents(ledger.total()) == 100


def test_first_come_first_served(path):
    """A large call that came first is not overtaken for ever by small ones that would fit."""
    with SqliteLedger(path, wait=30) as ledger, ThreadPoolExecutor(4) as pool:
        line = ledger._writer.line  # noqa: SLF001 - how a test knows that they wait
        ledger.hold(call("a", 6))
        large = pool.submit(ledger.hold, call("large", 9))
        wait_for(lambda: len(line) == 1)
        small = [pool.submit(ledger.hold, call(f"small{n}", 2)) for n in range(2)]
        wait_for(lambda: len(line) == 3)
        assert not any(one.done() for one in (large, *small))

        ledger.settle("a", charge("a", 0))

        assert isinstance(large.result(10), Hold)
        assert not any(one.done() for one in small)
        ledger.release("large")
        assert all(isinstance(one.result(10), Hold) for one in small)


def test_who_cannot_wait_may_overtake(path):
    """A call that may not wait takes the room there is, and a repeat is answered at once, whoever waits."""
    with SqliteLedger(path, wait=30) as ledger, ThreadPoolExecutor(1) as pool:
        ledger.hold(call("a", 6))
        large = pool.submit(ledger.hold, call("large", 9))
        wait_for(lambda: len(ledger._writer.line) == 1)  # noqa: SLF001 - how a test knows that it waits

        assert isinstance(ledger.hold(call("b", 2), wait=0), Hold)
        assert isinstance(ledger.hold(call("a", 6)), Hold)

        ledger.release("a")
        ledger.release("b")
        assert isinstance(large.result(10), Hold)


def test_other_accounts_do_not_wait(path):
    """Who waits for one account is in nobody's way in another."""
    with SqliteLedger(path, wait=30) as ledger, ThreadPoolExecutor(1) as pool:
        ledger.hold(call("a", 8))
        waiting = pool.submit(ledger.hold, call("b", 8))
        wait_for(lambda: len(ledger._writer.line) == 1)  # noqa: SLF001 - how a test knows that it waits

        assert isinstance(ledger.hold(call("c", 8, claim(scope="other"))), Hold)

        ledger.release("a")
        assert isinstance(waiting.result(10), Hold)


def test_a_living_process_keeps_its_leases(path):
    """A call that runs longer than its lease stays held, because its process is alive."""
    with SqliteLedger(path, lease=0.3) as ledger, SqliteLedger(path) as other:
        hold = ledger.hold(call("a", 6))
        wait_for(lambda: other.open_holds()[0].expires > hold.expires + 0.3)

        assert other.sweep() == ()
        assert cents(other.balance(claim())[1]) == 6


def test_holds_are_swept_while_others_hold(path, monkeypatch):
    """Nobody needs to call `sweep`: a hold that another process left is charged by the next calls."""
    clock = Clock()
    with SqliteLedger(path, clock=clock) as dead:
        dead.hold(call("a", 6))
    monkeypatch.setattr("graphguard.ledger.sqlite._SWEEP_EVERY", 0.0)
    with SqliteLedger(path, clock=clock) as ledger:
        clock.now += 61
        refused = ledger.hold(call("b", 5), wait=30)

        assert isinstance(refused, Refusal)
        assert (refused.breach.kind, refused.breach.spent) == ("spent", 6 * CENT)
