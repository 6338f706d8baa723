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

__all__ = ["COUNTED", "advice", "attempts", "connect", "connect_to_read", "is_busy"]

COUNTED: Final = tuple(f"{kind}_{name}" for kind in ("spent", "held") for name in AMOUNTS)
"""The columns of an account."""

_APPLICATION: Final = 0x47524744  # "GRGD", in the file's header
_VERSION: Final = 2

_NEW_IN_2: Final = (
    "CREATE INDEX attempts_time ON attempts (time) WHERE state <> 'held'",
    "CREATE INDEX attempts_user ON attempts (user) WHERE user IS NOT NULL",
    # Up to when attempts that are over have been forgotten: see `sqlite_pruning`.
    "CREATE TABLE upkeep (pruned REAL NOT NULL) STRICT",
    "INSERT INTO upkeep VALUES (0)",
)
_SCHEMA: Final = (
    f"""
    CREATE TABLE accounts (
        scope TEXT PRIMARY KEY NOT NULL,
        {", ".join(f"{name} INTEGER NOT NULL" for name in COUNTED)}
    ) STRICT, WITHOUT ROWID
    """,
    # One row an attempt, from its hold to its charge. `state` is held, charged, assumed or released; or final, a
    # charge that nothing replaces any more. `time` is that of the hold, then that of the end.
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
        time REAL,
        waited REAL
    ) STRICT
    """,
    "CREATE INDEX attempts_held ON attempts (expires) WHERE state = 'held'",
    "CREATE INDEX attempts_thread ON attempts (thread) WHERE thread IS NOT NULL",
    *_NEW_IN_2,
)

# From an older version, one step at a time; what it doesn't know of its attempts stays unknown.
_STEPS: Final = {
    1: (
        "ALTER TABLE attempts ADD COLUMN user TEXT",
        "ALTER TABLE attempts ADD COLUMN waited REAL",
        "UPDATE attempts SET time = CAST(strftime('%s', 'now') AS REAL) WHERE state = 'released'",
        *_NEW_IN_2,
    )
}


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's file; a new one is made, and an older version's is brought up to date.

    Raises:
        LedgerUnavailable: It belongs to another program or to a newer version.
        sqlite3.Error: It can't be opened, or not now.
    """
    # Statements begin and end their transactions themselves; the connection moves between threads under a lock.
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("BEGIN")  # one look at all, while another process may be making it
        version = _version(db, path)
        db.execute("ROLLBACK")
        if version < _VERSION:
            _make(db, path)
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            db.execute("PRAGMA journal_mode = WAL")
        # What is committed survives the end of the process; a power failure may take the last moments.
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger's file to look at it, an older version's too; nothing is made and nothing is changed.

    Raises:
        LedgerUnavailable: There is no such file, or it is not a ledger, or a newer version's.
        sqlite3.Error: It can't be opened.
    """
    if not path.is_file():
        raise LedgerUnavailable(str(path), "it is a folder" if path.is_dir() else "there is no such file")
    try:
        db = _look(path, "mode=rw")  # whoever may only read can't leave the file as found: its log stays beside it
    except sqlite3.OperationalError as error:
        unwritable = getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
        if not unwritable or path.with_name(f"{path.name}-wal").exists():
            raise
        db = _look(path, "immutable=1")  # in a folder that can't be written; nobody has the file open
    return db


def _look(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=5, isolation_level=None)
    try:
        if _version(db, path) == 1:
            db.execute("CREATE TEMP VIEW attempts AS SELECT *, NULL AS user, NULL AS waited FROM main.attempts")
        db.execute("PRAGMA query_only = 1")
    except BaseException:
        db.close()
        raise
    if not db.execute("PRAGMA user_version").fetchone()[0]:
        db.close()
        raise LedgerUnavailable(str(path), "it is an empty file")
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of its schema; 0 when it is empty."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION:
        if version > _VERSION:
            problem = f"its schema is {version}, and this version of graphguard knows {_VERSION}; upgrade graphguard"
            raise LedgerUnavailable(str(path), problem)
        return int(version)
    if application or version or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        problem = f"it belongs to another program (application_id {application}); name a file of its own"
        raise LedgerUnavailable(str(path), problem)
    return 0


def _make(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db, path)  # again: another process may have been faster
        missing = [_SCHEMA] if version == 0 else [_STEPS[step] for step in range(version, _VERSION)]
        for statement in (statement for step in missing for statement in step):
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
