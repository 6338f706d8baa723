"""A large ledger and many tabs: pages stay quick, memory stays where it is."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from contextlib import ExitStack, closing

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra graphguard[dashboard] is not installed")
pytest.importorskip("uvicorn", reason="the extra graphguard[dashboard] is not installed")

from graphguard.ledger import SqliteLedger
from graphguard.spend import Charge
from tests.dashboard.conftest import running

THREADS, CHARGES, TABS = 1_000, 100_000, 20
# Copies of the one charge that the ledger wrote itself, each with a thread, a user and a time of its own.
COPIES = """
WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < :charges)
INSERT INTO attempts (id, state, charge, nanousd, input_tokens, output_tokens, calls, estimated, unpriced,
                      thread, run, node, model, task, user, time, waited)
SELECT 'copy' || n, state,
       json_set(charge, '$.id', 'copy' || n, '$.thread', 'thread-' || (n % :threads), '$.user', 'user-' || (n % 37)),
       nanousd, input_tokens, output_tokens, calls, estimated, unpriced,
       'thread-' || (n % :threads), run, node, model, task || n, 'user-' || (n % 37),
       time - 2592000.0 * n / :charges, waited
FROM attempts, more WHERE id = 'first'
"""


@pytest.fixture(scope="module")
def large(folder):
    """Give a dashboard over a ledger of 1,000 threads and 100,000 charges of the last month."""
    path = folder / "large.sqlite"
    charge = Charge(id="first", nanousd=1_000_000, input_tokens=1_000, output_tokens=100, model="gpt-5-mini")
    with SqliteLedger(path) as ledger:
        ledger.settle("first", charge)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(COPIES, {"charges": CHARGES, "threads": THREADS})
    with running(folder, "--db", "checkpoints.sqlite", "--ledger", "large.sqlite") as board:
        yield board


def resident(board):
    """Give the dashboard's memory in MB."""
    try:
        text = (board.process_folder / "status").read_text()
    except FileNotFoundError:
        pytest.skip("how much memory a process takes is read from /proc, which is not here")
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1_000


def test_the_first_page_does_not_wait_for_the_sums(large):
    """A window's very first page comes in 300 ms, before all was added up; what is missing follows live."""
    took = {}
    with httpx.Client(timeout=60) as client:
        client.get(f"{large.url}style.css")
        for window in ("24h", "30d", "7d"):
            begun = time.perf_counter()
            page = client.get(f"{large.url}?window={window}")
            took[window] = time.perf_counter() - begun
            assert page.status_code == 200
        with client.stream("GET", f"{large.url}live?window=30d") as live:
            assert any("thread-" in line for line in live.iter_lines())

    assert min(took.values()) < 0.3, took  # the quickest: the others' time may be another process's


def test_twenty_tabs_take_no_more_memory_than_one(large):
    """With 20 tabs open and new charges all the time, memory stays within a few MB of what it was."""
    with ExitStack() as stack, SqliteLedger(large.folder / "large.sqlite") as ledger:
        tabs = [stack.enter_context(httpx.stream("GET", f"{large.url}live", timeout=60)) for _ in range(TABS)]
        told = [0] * TABS
        enough = threading.Event()

        def read(at):
            for line in tabs[at].iter_lines():
                told[at] += line.startswith("event: now")
                if all(count > 6 for count in told):
                    enough.set()
                if enough.is_set():
                    return

        readers = [threading.Thread(target=read, args=(at,)) for at in range(TABS)]
        for reader in readers:
            reader.start()
        memory = []
        for at in range(1_000):
            ledger.settle(f"new{at}", Charge(id=f"new{at}", nanousd=1_000_000, thread="now", model="gpt-5-mini"))
            if all(count > 1 for count in told):
                memory.append(resident(large))
            if enough.wait(0.1):
                break
        for reader in readers:
            reader.join(30)

    assert min(told) > 6
    assert max(memory) - memory[0] < 8
