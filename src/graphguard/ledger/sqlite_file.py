"""The file of a `SqliteLedger`: its tables, and whether a file is one."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.records import AMOUNTS, NARROWING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COUNTED", "connect"]

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
