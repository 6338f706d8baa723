"""The file of a `SqliteLedger`: its tables, whether a file is one, and what its errors mean."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.records import AMOUNTS, NARROWING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["COUNTED", "advice", "attempts", "connect", "is_busy"]

COUNTED: Final = tuple(f"{kind}_{name}" for kind in ("spent", "held") for name in AMOUNTS)
"""The columns of an account."""

_APPLICATION: Final = 0x47524744  # "GRGD", in the file's header
_VERSION: Final = 1

_SCHEMA: Final = (
    f"""
    CREATE TABLE accounts (
        scope TEXT PRIMARY KEY NOT NULL,
        {", ".join(f"{name} INTEGER NOT NULL" for name in COUNTED)}
    ) STRICT, WITHOUT ROWID
    """,
    # One row an attempt, from its hold to its charge. `state` is held, charged, assumed or released.
    f"""
    CREATE TABLE attempts (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        call TEXT,
        expires REAL,
        charge TEXT,
        {", ".join(f"{name} INTEGER" for name in AMOUNTS)},
        {", ".join(f"{name} TEXT" for name in NARROWING)},
        time REAL
    ) STRICT
    """,
    "CREATE INDEX attempts_held ON attempts (expires) WHERE state = 'held'",
    "CREATE INDEX attempts_thread ON attempts (thread) WHERE thread IS NOT NULL",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's file, or make it one if it is new.

    Raises:
        LedgerUnavailable: It belongs to another program or to a newer version.
        sqlite3.Error: It can't be opened, or not now.
    """
    # Statements begin and end their transactions themselves; the connection moves between threads under a lock.
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("BEGIN")  # one look at all, while another process may be making it
        is_ledger = _is_ledger(db, path)
        db.execute("ROLLBACK")
        if not is_ledger:
            _make(db, path)
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            db.execute("PRAGMA journal_mode = WAL")
        # What is committed survives the end of the process; a power failure may take the last moments.
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def _is_ledger(db: sqlite3.Connection, path: Path) -> bool:
    """Whether it is one; False when it is empty."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION:
        if version > _VERSION:
            problem = f"its schema is {version}, and this version of graphguard knows {_VERSION}; upgrade graphguard"
            raise LedgerUnavailable(str(path), problem)
        return True
    if application or version or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        problem = f"it belongs to another program (application_id {application}); name a file of its own"
        raise LedgerUnavailable(str(path), problem)
    return False


def _make(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ledger(db, path):  # another process may have been faster
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def attempts(seconds: float) -> Iterator[bool]:
    """Attempts with short pauses in between; True with the last.

    SQLite's own busy handler sleeps for up to 0.1 s at a time, which gave one of 16 callers a 1.3 s tail.
    """
    until = time.monotonic() + seconds
    pause = 0.0002
    while (now := time.monotonic()) < until:
        yield False
        time.sleep(min(pause * random.uniform(0.5, 1.0), max(until - now, 0)))  # noqa: S311 - so that nobody is in step
        pause = min(pause * 1.5, 0.01)
    yield True


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another attempt may succeed, because somebody else is only busy with the file."""
    # The low byte is SQLite's primary code; the rest says which kind of busy.
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def advice(error: Exception) -> str:
    """What is wrong, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    known = {
        sqlite3.SQLITE_BUSY: "another process has held a transaction on it for too long",
        sqlite3.SQLITE_CANTOPEN: "make its folder and let this process write there",
        sqlite3.SQLITE_READONLY: "let this process write the file and its folder",
        sqlite3.SQLITE_FULL: "make room on its disk",
        sqlite3.SQLITE_IOERR: "look after its disk",
        sqlite3.SQLITE_NOTADB: "it is another kind of file; name a new one",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; keep it for inspection and name a new one",
    }.get(code)
    return f"{error}; {known}" if known else str(error)
