"""What a ledger costs: hold and settle pairs, beside equal transactions on the bare database in the same run.

    python benchmarks/ledger.py [--pairs 2000] [--rounds 5] [--ledger sqlite] [--postgres DSN]

All callers spend from one account, the worst case for locks. A bare transaction sends the ledger's own statements,
with values made beforehand and nothing checked. Both take turns, and the median round counts. Then the same for a
graph whose budget is kept in a file, beside one kept in memory. README.md says how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from graphguard import Budget, guard
from graphguard.budget import Call, Claim
from graphguard.ledger import Hold, MemoryLedger, SqliteLedger
from graphguard.ledger.balances import ADD, BALANCE, OPEN
from graphguard.ledger.records import AMOUNTS, NARROWING, amounts, call_to_text, charge_to_text, narrowing
from graphguard.ledger.sqlite import _HOLD, _SETTLE
from graphguard.ledger.sqlite_file import COUNTED, connect
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from graphguard.ledger import Ledger

    Pair = Callable[[Call, Charge], None]

CALLERS: Final = (1, 4, 16)

GOAL: Final = 0.7
"""The least share of the bare database's throughput."""

TAIL: Final = 5.0
"""The most that the 99th percentile may be, times the median, for SQLite at 16 callers."""

GRAPH_GOAL: Final = 1.5
"""The most that a guarded call may take with its ledger in a file, times one with its ledger in memory."""

_CLAIM: Final = Claim(budget="usd=1000000 per thread", scope="thread:t", limits={"usd": 10**15})
_WORST: Final = Spend(nanousd=20_000_000, input_tokens=3_000, output_tokens=1_000, calls=1)
_USED: Final = Spend(nanousd=5_000_000, input_tokens=2_500, output_tokens=200, calls=1)
_NONE: Final = (0,) * 12
_ids: Final = itertools.count()


@dataclass(frozen=True)
class Figures:
    """One round: pairs per second, and what one pair took, in milliseconds; `cpu` is this process's share."""

    rate: float
    cpu: float
    p50: float
    p99: float
    worst: float


def measured(pairs: Sequence[Pair], count: int) -> Figures:
    """Run `count` pairs, shared among the callers, and give the figures."""
    took: list[list[float]] = [[] for _ in pairs]
    began: list[tuple[float, float]] = []
    ready = threading.Barrier(len(pairs), lambda: began.append((time.perf_counter(), time.process_time())))

    def call(at: int) -> None:
        pair, mine = pairs[at], took[at]
        asked = [asked_for(f"{next(_ids):032x}") for _ in range(count // len(pairs))]
        ready.wait()
        for one, cost in asked:
            begun = time.perf_counter()
            pair(one, cost)
            mine.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=call, args=(at,)) for at in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, worked = time.perf_counter() - began[0][0], time.process_time() - began[0][1]
    every = sorted(1_000 * one for mine in took for one in mine)
    middle, high = every[len(every) // 2], every[len(every) * 99 // 100]
    return Figures(len(every) / seconds, 1_000 * worked / len(every), middle, high, every[-1])


def guarded(ledger: Ledger) -> Pair:
    """A hold and a settle through a ledger."""

    def pair(call: Call, charge: Charge) -> None:
        assert isinstance(ledger.hold(call), Hold)
        ledger.settle(call.id, charge)

    return pair


def asked_for(name: str) -> tuple[Call, Charge]:
    """A call as graphs make them, and what it cost."""
    call = Call(id=name, node="agent", model="gpt-5-mini", provider="openai", worst=_WORST, claims=(_CLAIM,))
    charge = Charge(
        id=name,
        nanousd=_USED.nanousd,
        input_tokens=_USED.input_tokens,
        output_tokens=_USED.output_tokens,
        model="gpt-5-mini",
        node="agent",
        thread="t",
        run="r",
        task="k",
        scopes=(_CLAIM.scope,),
    )
    return call, charge


@contextlib.contextmanager
def in_memory(callers: int) -> Iterator[tuple[list[Pair], list[Pair]]]:
    """A dict behind a lock, and the ledger in memory."""
    lock, account, held = threading.Lock(), {"spent": 0, "held": 0}, {}

    def bare(call: Call, _: Charge) -> None:
        with lock:
            held[call.id] = 20
            account["held"] += 20
        with lock:
            account["held"] -= held.pop(call.id)
            account["spent"] += 5

    yield [bare] * callers, [guarded(MemoryLedger())] * callers


@contextlib.contextmanager
def in_file(callers: int) -> Iterator[tuple[list[Pair], list[Pair]]]:
    """A connection for each caller, and the ledger in a file."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder, "bare.sqlite")
        connections = [stack.enter_context(contextlib.closing(connect(path))) for _ in range(callers)]
        for db in connections:
            db.execute("PRAGMA busy_timeout = 60000")
        connections[0].execute(OPEN, (*_NONE, _CLAIM.scope))
        ledger = stack.enter_context(SqliteLedger(Path(folder, "ledger.sqlite")))
        yield [bare_sqlite(db) for db in connections], [guarded(ledger)] * callers


def bare_sqlite(db: sqlite3.Connection) -> Pair:
    """The ledger's own statements for a pair, on a connection of one's own, with values made beforehand."""
    call, charge = asked_for("0" * 32)
    held_text, charge_text = call_to_text(call), charge_to_text(charge)
    held, settled = (*_NONE[:6], *amounts(_WORST)), (*amounts(_USED), *amounts(-_WORST))
    settled_row = ("charged", None, charge_text, *amounts(_USED), *narrowing(charge), 1e9)

    def pair(call: Call, _: Charge) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute(BALANCE, (_CLAIM.scope,)).fetchone()
        db.execute(_HOLD, (call.id, held_text, 2e9, 1e9))
        db.execute(ADD, (*held, _CLAIM.scope))
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute(_SETTLE, (*settled_row, call.id))
        db.execute(ADD, (*settled, _CLAIM.scope))
        db.execute("COMMIT")

    return pair


@contextlib.contextmanager
def in_postgres(callers: int, address: str) -> Iterator[tuple[list[Pair], list[Pair]]]:
    """A connection for each caller, and the ledger in PostgreSQL on a pool with as many."""
    import psycopg  # noqa: PLC0415 - an extra
    from psycopg_pool import ConnectionPool  # noqa: PLC0415 - likewise

    from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - likewise

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(address, autocommit=True)) for _ in range(callers)]
        connections[0].execute(bare_schema())
        pool = ConnectionPool(address, min_size=callers, kwargs={"autocommit": True})
        stack.enter_context(pool)
        pool.wait()
        ledger = stack.enter_context(PostgresLedger(pool, schema="ledger_benchmark"))
        ledger.setup()
        yield [bare_postgres(connection) for connection in connections], [guarded(ledger)] * callers


def bare_schema() -> str:
    """The ledger's own tables, and the two transactions of a pair that write the same rows, nothing checked.

    Functions, because a transaction in one round trip is the least that a database can be asked.
    """
    from graphguard.ledger.postgres_schema import tables  # noqa: PLC0415 - an extra

    step = ", ".join(f"{name} = {name} + p[{at}]" for at, name in enumerate(COUNTED, 1))
    row = "state, expires, charge, scopes, time, " + ", ".join(f'"{name}"' for name in (*AMOUNTS, *NARROWING))
    values = [*(f"p[{at}]" for at in range(1, len(AMOUNTS) + 1)), *(f"t[{at}]" for at in range(1, len(NARROWING) + 1))]
    return f"""
DROP SCHEMA IF EXISTS bare_benchmark CASCADE;
DROP SCHEMA IF EXISTS ledger_benchmark CASCADE;
CREATE SCHEMA bare_benchmark;
{tables("bare_benchmark")}
INSERT INTO bare_benchmark.accounts (scope) VALUES ('{_CLAIM.scope}');
CREATE FUNCTION bare_benchmark.hold(p_id text, p_call text, p bigint[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO bare_benchmark.attempts (id, state, call, held_in, worst, expires, time)
        VALUES (p_id, 'held', p_call, ARRAY['{_CLAIM.scope}'], p, 2e9, 1e9);
    UPDATE bare_benchmark.accounts SET {step} WHERE scope = '{_CLAIM.scope}';
END $$;
CREATE FUNCTION bare_benchmark.settle(p_id text, p_charge text, p bigint[], t text[]) RETURNS void
LANGUAGE plpgsql AS $$ BEGIN
    UPDATE bare_benchmark.attempts SET ({row}) =
        ROW ('charged', NULL, p_charge, ARRAY['{_CLAIM.scope}'], 1e9, {", ".join(values)}) WHERE id = p_id;
    UPDATE bare_benchmark.accounts SET {step} WHERE scope = '{_CLAIM.scope}';
END $$;
"""  # noqa: S608 - constants


def bare_postgres(connection: object) -> Pair:
    """The two transactions of a pair, on a connection of one's own."""
    execute: Callable[..., object] = connection.execute  # type: ignore[attr-defined] # psycopg is an extra
    call, charge = asked_for("0" * 32)
    held_text, charge_text = call_to_text(call), charge_to_text(charge)
    held = "{" + ",".join(map(str, (*_NONE[:6], *amounts(_WORST)))) + "}"
    settled = "{" + ",".join(map(str, (*amounts(_USED), *amounts(-_WORST)))) + "}"
    told = "{" + ",".join(value or "NULL" for value in narrowing(charge)) + "}"

    def pair(call: Call, _: Charge) -> None:
        execute("SELECT bare_benchmark.hold(%s, %s, %s::bigint[])", (call.id, held_text, held))
        execute("SELECT bare_benchmark.settle(%s, %s, %s::bigint[], %s::text[])", (call.id, charge_text, settled, told))

    return pair


def compare(name: str, place: Callable[[int], object], *, count: int, rounds: int) -> list[str]:
    """Print a ledger's lines, and give what is beyond the goals."""
    missed = []
    for callers in CALLERS:
        both: list[tuple[Figures, Figures]] = []
        with place(callers) as (bare, ours):  # type: ignore[attr-defined] # a context manager
            for pairs in (bare, ours):
                measured(pairs, max(count // 10, callers))
            for at in range(rounds):  # each begins as often
                plain, mine = (measured(pairs, count) for pairs in ((bare, ours) if at % 2 else (ours, bare)))
                both.append((plain, mine) if at % 2 else (mine, plain))
        ratio = statistics.median(mine.rate / plain.rate for plain, mine in both)
        cpu = statistics.median(plain.cpu / mine.cpu for plain, mine in both)
        for who, figures in (("bare", [plain for plain, _ in both]), ("ledger", [mine for _, mine in both])):
            keys = ("rate", "p50", "p99", "cpu")
            rate, p50, p99, used = (statistics.median(getattr(f, key) for f in figures) for key in keys)
            worst = max(f.worst for f in figures)
            share = f"{ratio:6.2f} {cpu:6.2f}" if who == "ledger" else ""
            print(
                f"{name:9}{callers:3} {who:7}{rate:9.0f}{p50:9.3f}{p99:9.3f}{worst:9.1f}{used:9.3f}{share}", flush=True
            )
        if name != "memory" and ratio < GOAL:
            missed.append(f"{name} at {callers}: {ratio:.2f} of the bare throughput, goal {GOAL}; by cpu {cpu:.2f}")
        tail = statistics.median(mine.p99 / mine.p50 for _, mine in both)
        if name == "sqlite" and callers == CALLERS[-1] and tail > TAIL:
            missed.append(f"{name} at {callers}: p99 is {tail:.1f} times p50, goal {TAIL}")
    return missed


def compare_graphs(*, rounds: int) -> list[str]:
    """Print what a guarded model call takes in a graph, by where its ledger is; give what is beyond the goal."""
    from calls import loop  # noqa: PLC0415 - LangChain takes seconds to load
    from langchain_core.messages import HumanMessage  # noqa: PLC0415 - likewise

    calls, missed = 10, []
    given = {"messages": [HumanMessage("Where is my parcel?")]}
    for kind in ("sync", "async"):
        took: list[list[tuple[float, float]]] = []
        with tempfile.TemporaryDirectory() as folder, SqliteLedger(Path(folder, "ledger.sqlite")) as ledger:
            graphs = [
                guard(loop(calls=calls, aio=kind == "async"), Budget(usd=10**6), ledger=one).compile()
                for one in (MemoryLedger(), ledger)
            ]
            with asyncio.Runner() as runner:
                for _ in range(10 * rounds):
                    took.append([])
                    for graph in graphs:
                        begun, worked = time.perf_counter(), time.process_time()
                        graph.invoke(given) if kind == "sync" else runner.run(graph.ainvoke(given))
                        took[-1].append((time.perf_counter() - begun, time.process_time() - worked))
        del took[: len(took) // 10]  # first calls load what they need
        times = [1_000 * statistics.median(row[at][0] for row in took) / calls for at in (0, 1)]
        ratio, cpu = (statistics.median(row[1][at] / row[0][at] for row in took) for at in (0, 1))
        print(
            f"graph, {kind:5}: {times[0]:.3f} ms a call in memory, {times[1]:.3f} in a file: {ratio:.2f}, cpu {cpu:.2f}"
        )
        if ratio > GRAPH_GOAL:
            missed.append(f"graph, {kind}: {ratio:.2f} times the call in memory, goal {GRAPH_GOAL}; by cpu {cpu:.2f}")
    return missed


@contextlib.contextmanager
def server(address: str | None) -> Iterator[str]:
    """That server's address, or a server of one's own, which writes to the disk at each commit as in production."""
    if address is not None:
        yield address
        return
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tests.conformance.postgres_server import running  # noqa: PLC0415 - an extra

    with running(sync=True) as own:
        yield own


def main() -> int:
    """Print the table and which goals were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ledger", action="append", choices=("memory", "sqlite", "postgres", "graph"))
    parser.add_argument(
        "--postgres", metavar="DSN", help="use this server; two schemas named *_benchmark are made in it"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal was missed")
    asked = parser.parse_args()
    print(f"{'ledger':9}{'callers':11}{'pairs/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'cpu ms':>9} ratio by cpu")
    missed = []
    for name in asked.ledger or ("memory", "sqlite", "postgres", "graph"):
        if name == "graph":
            missed += compare_graphs(rounds=asked.rounds)
            continue
        with contextlib.ExitStack() as stack:
            place: Callable[[int], object] = in_memory if name == "memory" else in_file
            if name == "postgres":
                place = functools.partial(in_postgres, address=stack.enter_context(server(asked.postgres)))
            count = asked.pairs // (5 if name == "postgres" else 1)  # it waits for the disk at each commit
            missed += compare(name, place, count=count, rounds=asked.rounds)
    print("\n".join(missed) or "all goals met")
    return 1 if missed and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
