"""What a ledger costs: hold and settle pairs, beside equal transactions on the bare database in the same run.

    python benchmarks/ledger.py [--pairs 2000] [--rounds 3] [--ledger sqlite] [--postgres DSN]

All callers spend from one account, the worst case for locks. A bare transaction changes the same rows in the
same way, with numbers made beforehand and nothing checked. Both take turns, and the median round counts.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from graphguard.budget import Call, Claim
from graphguard.ledger import Hold, MemoryLedger, SqliteLedger
from graphguard.ledger.records import amounts, call_to_text, charge_to_text
from graphguard.ledger.sqlite import _ADD, _BALANCE, _FIND, _HOLD, _OPEN, _SETTLE
from graphguard.ledger.sqlite_file import connect
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from graphguard.ledger import Ledger

    Pair = Callable[[str], None]

CALLERS: Final = (1, 4, 16)

GOAL: Final = 0.7
"""The least share of the bare database's throughput."""

TAIL: Final = 5.0
"""The most that the 99th percentile may be, times the median, for SQLite at 16 callers."""

_CLAIM: Final = Claim(budget="usd=1000000 per thread", scope="thread:t", limits={"usd": 10**15})
_WORST: Final = Spend(nanousd=20_000_000, input_tokens=3_000, output_tokens=1_000, calls=1)
_USED: Final = Spend(nanousd=5_000_000, input_tokens=2_500, output_tokens=200, calls=1)
_TEXT: Final = "x" * 300
_NONE: Final = (0,) * 12
_ids: Final = itertools.count()


@dataclass(frozen=True)
class Figures:
    """One round: pairs per second, and what one pair took, in milliseconds."""

    rate: float
    p50: float
    p99: float
    worst: float


def measured(pairs: Sequence[Pair], count: int) -> Figures:
    """Run `count` pairs, shared among the callers, and give the figures."""
    took: list[list[float]] = [[] for _ in pairs]
    ready = threading.Barrier(len(pairs) + 1)

    def call(at: int) -> None:
        pair, mine = pairs[at], took[at]
        names = [f"{next(_ids):032x}" for _ in range(count // len(pairs))]
        ready.wait()
        for name in names:
            begun = time.perf_counter()
            pair(name)
            mine.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=call, args=(at,)) for at in range(len(pairs))]
    for thread in threads:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    every = sorted(1_000 * one for mine in took for one in mine)
    return Figures(len(every) / seconds, every[len(every) // 2], every[len(every) * 99 // 100], every[-1])


def guarded(ledger: Ledger) -> Pair:
    """A hold and a settle through a ledger."""

    def pair(name: str) -> None:
        assert isinstance(ledger.hold(_call(name)), Hold)
        ledger.settle(name, _charge(name))

    return pair


def _call(name: str) -> Call:
    return Call(id=name, node="agent", model="gpt-5-mini", provider="openai", worst=_WORST, claims=(_CLAIM,))


def _charge(name: str) -> Charge:
    return Charge(
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


@contextlib.contextmanager
def in_memory(callers: int) -> Iterator[tuple[list[Pair], list[Pair]]]:
    """A dict behind a lock, and the ledger in memory."""
    lock, account, held = threading.Lock(), {"spent": 0, "held": 0}, {}

    def bare(name: str) -> None:
        with lock:
            held[name] = 20
            account["held"] += 20
        with lock:
            account["held"] -= held.pop(name)
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
        connections[0].execute(_OPEN, (*_NONE, _CLAIM.scope))
        ledger = stack.enter_context(SqliteLedger(Path(folder, "ledger.sqlite")))
        yield [bare_sqlite(db) for db in connections], [guarded(ledger)] * callers


def bare_sqlite(db: sqlite3.Connection) -> Pair:
    """The ledger's own statements for a pair, on a connection of one's own, with values made beforehand."""
    charge = charge_to_text(_charge("0" * 32))
    call = call_to_text(_call("0" * 32))
    held, settled = (*_NONE[:6], *amounts(_WORST)), (*amounts(_USED), *amounts(-_WORST))
    narrowing = ("t", "r", "agent", "gpt-5-mini", "k")

    def pair(name: str) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute(_FIND, (name,)).fetchone()
        db.execute(_BALANCE, (_CLAIM.scope,)).fetchone()
        db.execute(_HOLD, (name, call, 2e9))
        db.execute(_ADD, (*held, _CLAIM.scope))
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute(_SETTLE, ("charged", None, charge, *amounts(_USED), *narrowing, 1e9, name))
        db.execute(_ADD, (*settled, _CLAIM.scope))
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
        connections[0].execute(_BARE_POSTGRES)
        pool = ConnectionPool(address, min_size=callers, kwargs={"autocommit": True})
        stack.enter_context(pool)
        pool.wait()
        ledger = stack.enter_context(PostgresLedger(pool, schema="ledger_benchmark"))
        ledger.setup()
        yield [bare_postgres(connection) for connection in connections], [guarded(ledger)] * callers


# Functions, because a transaction in one round trip is the least that a database can be asked.
_BARE_POSTGRES: Final = f"""
DROP SCHEMA IF EXISTS bare_benchmark CASCADE;
DROP SCHEMA IF EXISTS ledger_benchmark CASCADE;
CREATE SCHEMA bare_benchmark;
CREATE TABLE bare_benchmark.accounts (
    scope text PRIMARY KEY, {", ".join(f"n{n} bigint" for n in range(12))}) WITH (fillfactor = 50);
CREATE TABLE bare_benchmark.attempts (
    id text PRIMARY KEY, state text, call text, expires float8, charge text, thread text) WITH (fillfactor = 70);
CREATE INDEX ON bare_benchmark.attempts (expires) WHERE state = 'held';
CREATE INDEX ON bare_benchmark.attempts (thread) WHERE thread IS NOT NULL;
INSERT INTO bare_benchmark.accounts VALUES ('t', {", ".join("0" * 12)});
CREATE FUNCTION bare_benchmark.hold(p_id text, p_call text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO bare_benchmark.attempts VALUES (p_id, 'held', p_call, 1);
    UPDATE bare_benchmark.accounts SET {", ".join(f"n{n} = n{n} + 1" for n in range(12))} WHERE scope = 't';
END $$;
CREATE FUNCTION bare_benchmark.settle(p_id text, p_charge text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    UPDATE bare_benchmark.attempts SET state = 'charged', expires = NULL, charge = p_charge, thread = 't'
        WHERE id = p_id;
    UPDATE bare_benchmark.accounts SET {", ".join(f"n{n} = n{n} + 1" for n in range(12))} WHERE scope = 't';
END $$;
"""  # noqa: S608 - constants


def bare_postgres(connection: object) -> Pair:
    """The two transactions of a pair, on a connection of one's own."""
    execute: Callable[..., object] = connection.execute  # type: ignore[attr-defined] # psycopg is an extra

    def pair(name: str) -> None:
        execute("SELECT bare_benchmark.hold(%s, %s)", (name, _TEXT))
        execute("SELECT bare_benchmark.settle(%s, %s)", (name, _TEXT))

    return pair


def compare(name: str, place: Callable[[int], object], *, count: int, rounds: int) -> list[str]:
    """Print a ledger's lines, and give what is beyond the goals."""
    missed = []
    for callers in CALLERS:
        both: list[tuple[Figures, Figures]] = []
        with place(callers) as (bare, ours):  # type: ignore[attr-defined] # a context manager
            for pairs in (bare, ours):
                measured(pairs, max(count // 10, callers))
            both += [(measured(bare, count), measured(ours, count)) for _ in range(rounds)]
        ratio = statistics.median(mine.rate / plain.rate for plain, mine in both)
        for who, figures in (("bare", [plain for plain, _ in both]), ("ledger", [mine for _, mine in both])):
            rate, p50, p99 = (statistics.median(getattr(f, key) for f in figures) for key in ("rate", "p50", "p99"))
            worst = max(f.worst for f in figures)
            share = f"{ratio:6.2f}" if who == "ledger" else "      "
            print(f"{name:9} {callers:3} {who:7} {rate:9.0f} {p50:9.3f} {p99:9.3f} {worst:9.1f} {share}", flush=True)
        if name != "memory" and ratio < GOAL:
            missed.append(f"{name} at {callers}: {ratio:.2f} of the bare throughput, goal {GOAL}")
        tail = statistics.median(mine.p99 / mine.p50 for _, mine in both)
        if name == "sqlite" and callers == CALLERS[-1] and tail > TAIL:
            missed.append(f"{name} at {callers}: p99 is {tail:.1f} times p50, goal {TAIL}")
    return missed


def main() -> int:
    """Print the table; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ledger", action="append", choices=("memory", "sqlite", "postgres"))
    parser.add_argument("--postgres", metavar="DSN", help="a server; two schemas named *_benchmark are made in it")
    asked = parser.parse_args()
    names = asked.ledger or ["memory", "sqlite", *(["postgres"] if asked.postgres else [])]
    places: dict[str, Callable[[int], object]] = {
        "memory": in_memory,
        "sqlite": in_file,
        "postgres": lambda callers: in_postgres(callers, asked.postgres),
    }
    print(f"{'ledger':9} {'callers':11} {'pairs/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}  ratio")
    missed = [line for name in names for line in compare(name, places[name], count=asked.pairs, rounds=asked.rounds)]
    print("\n".join(missed) or "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
