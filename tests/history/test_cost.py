"""What reading a long history costs: one pass, about as long as LangGraph's own, in flat memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph.state import CompiledStateGraph

from graphguard import Budget, backtest, trips
from graphguard.history import steps
from tests.history.graphs import HI, chain, guarded, thread
from tests.needs import SOAK
from tests.scripted import Scripted

MANY = 10_000
pytestmark = [SOAK, pytest.mark.timeout(300), pytest.mark.xdist_group("long-history")]


def lengthened(saver: BaseCheckpointSaver[str], graph: CompiledStateGraph, count: int) -> None:
    """Run the graph into a trip on a thread, and put copies of its checkpoints after them, up to a count."""
    config = thread(str(count))
    graph.invoke(HI, config)
    real = list(reversed(list(saver.list(config))))
    *_, tripped, loop = real
    parent = loop.config
    for number in range(len(real), count):
        copied = {**loop.checkpoint, "id": str(uuid6(clock_seq=number % 16_000))}
        metadata = {**loop.metadata, "step": number}
        parent = saver.put(parent, copied, metadata, {})
        if number % 1_000 == 0:
            saver.put_writes(parent, [("trip", {**tripped_trip(tripped), "at": copied["id"]})], "task")


def tripped_trip(saved) -> dict[str, object]:
    """Give the trip that a task from a checkpoint wrote."""
    return next(value for _, channel, value in saved.pending_writes if channel == "trip")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Give a graph with a thread of 10,000 checkpoints and one of 2,000 in a SQLite file."""
    with SqliteSaver.from_conn_string(str(tmp_path_factory.mktemp("long") / "checkpoints.sqlite")) as saver:
        saver.setup()
        saver.conn.execute("PRAGMA synchronous = OFF")
        graph = guarded(chain(Scripted(), *"abc"), saver, Budget(calls=2), gate="inline")
        for count in (2_000, MANY):
            lengthened(saver, graph, count)
        yield graph


class Counting(SqliteSaver):
    """Counts the checkpoints that are read."""

    read = 0

    def list(self, *args, **options):
        for each in super().list(*args, **options):
            Counting.read += 1
            yield each


def seconds(reading: object) -> float:
    """Give the processor time that it takes to read everything."""
    began = time.process_time()
    deque(reading, maxlen=0)
    return time.process_time() - began


def test_all_trips_are_found_in_one_pass(long):
    """Of 10,000 checkpoints each is read once, and every trip is found."""
    counting = Counting(long.checkpointer.conn)
    Counting.read = 0

    found = list(trips(counting, thread(str(MANY))))

    assert Counting.read == MANY
    assert len(found) == 1 + (MANY - 1) // 1_000


def test_the_newest_trip_comes_before_the_rest_is_read(long):
    """Asking for the first trip reads a part of the history alone."""
    counting = Counting(long.checkpointer.conn)
    Counting.read = 0

    next(trips(counting, thread(str(MANY))))

    assert Counting.read < MANY / 4


@pytest.mark.parametrize("reading", [trips, steps])
def test_it_takes_about_as_long_as_langgraphs_own_loop(long, reading):
    """Reading takes at most 1.3 times what a bare `get_state_history` loop takes, beside it in one run."""
    config = thread(str(MANY))
    pairs = [(seconds(reading(long, config)), seconds(long.get_state_history(config))) for _ in range(2)]

    assert min(ours for ours, _ in pairs) / min(bare for _, bare in pairs) <= 1.3


PEAK = """
import resource, sys
from collections import deque
from langgraph.checkpoint.sqlite import SqliteSaver
from graphguard.history import steps, trips
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    deque({"trips": trips, "steps": steps}[sys.argv[2]](saver, {"configurable": {"thread_id": sys.argv[3]}}), maxlen=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak in KiB")
@pytest.mark.parametrize("reading", ["trips", "steps"])
def test_memory_stays_flat(long, reading):
    """Five times as many checkpoints take no more memory at once; kept in memory, they would take 50 MiB and more."""
    (_, _, file), *_ = long.checkpointer.conn.execute("PRAGMA database_list").fetchall()
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, file, reading, str(count)], check=True, capture_output=True
            ).stdout
        )
        for count in (2_000, MANY)
    ]

    assert peaks[1] - peaks[0] < 10 * 1024


def test_a_backtest_of_a_long_thread_takes_one_pass(long):
    """A backtest reads each checkpoint once."""
    counting = Counting(long.checkpointer.conn)
    Counting.read = 0

    backtest(counting, thread(str(MANY)), Budget(calls=1), Budget(calls=5))

    assert Counting.read == MANY
