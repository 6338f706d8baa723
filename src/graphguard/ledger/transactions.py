"""Transactions on a SQLite file: what many asked together in one, and nobody harmed by another's mistake."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.balances import Balances
from graphguard.ledger.sqlite_file import advice, attempts, is_busy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graphguard.ledger.jobs import Job

__all__ = ["Transactions"]

_LOG: Final = 16_000  # pages; a log that grew to that, since nobody else came to its end, is copied by who commits


class Transactions:
    """Does jobs on one connection, for one caller at a time.

    Every transaction is `BEGIN IMMEDIATE`, so a process never learns at its commit that it decided on old
    numbers. Work must decide before it writes: an error it raises after a write undoes the batch, and the
    others in it are done again, one by one.

    Attributes:
        balances: The accounts, as the transaction under way sees and changes them.

    Args:
        path: The file.
        connect: Opens and checks it.
        patience: Seconds to wait for other processes' transactions before giving up.
    """

    def __init__(self, path: Path, connect: Callable[[Path], sqlite3.Connection], *, patience: float) -> None:
        """Open nothing yet."""
        self._path = path
        self._connect = connect
        self._patience = patience
        self.balances = Balances()
        self._db: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor  # made with the connection; one for all, since making them costs as much as using

    def forget(self) -> None:
        """Begin anew, in a forked child: the file is the parent's to close."""
        self._db = None

    def close(self) -> None:
        """Close the file; the next transaction opens it anew."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def do(self, batch: list[Job[object]]) -> None:
        """Do these together, or each alone if one of them fails after it has written; each has an answer then."""
        if len(batch) > 1:
            batch[:] = [job for job in batch if not (job.given_up and job.undo)]
        if self._try(batch) or len(batch) == 1:
            return
        for job in batch:
            job.error = None
            self._try([job])

    def _try(self, batch: list[Job[object]]) -> bool:
        """Whether all of the batch is committed, or known to be refused; else nothing is written."""
        try:
            db = self._begin()
            if not self._work(batch, db):
                self._roll_back()
                return False
            self.balances.write(db)
            db.execute("COMMIT")
        except (sqlite3.Error, LedgerUnavailable) as error:
            self._roll_back()
            known = isinstance(error, LedgerUnavailable)
            for job in batch:
                job.error = error if known else LedgerUnavailable(str(self._path), advice(error))
            return known  # when not even a transaction could begin, another attempt is no use
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear it
            self._roll_back()
            for job in batch:
                job.error = error
            return False
        except BaseException:  # Ctrl-C in a caller's own thread
            self._roll_back()
            raise
        return True

    def _work(self, batch: list[Job[object]], db: sqlite3.Cursor) -> bool:
        """Whether no job has written something and failed then."""
        for job in batch:
            if not job.sums:
                self.balances.write(db)
            before = db.connection.total_changes
            try:
                job.result = job.work(db)
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - handed on to who asked for the work
                job.error = error
                if db.connection.total_changes != before:
                    return False
        return True

    def _begin(self) -> sqlite3.Cursor:
        if self._db is not None:  # nearly always it is open, and no other process has a transaction
            with contextlib.suppress(sqlite3.Error):
                return self._cursor.execute("BEGIN IMMEDIATE")
        for last in attempts(self._patience):
            try:
                if self._db is None:
                    self._open()
                return self._cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if last or not is_busy(error):
                    raise LedgerUnavailable(str(self._path), advice(error)) from error
            except sqlite3.Error as error:
                raise LedgerUnavailable(str(self._path), advice(error)) from error
        raise AssertionError  # pragma: no cover - the last attempt returned or raised

    def _open(self) -> None:
        self._db = self._connect(self._path)
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_LOG}")
        self._cursor = self._db.cursor()

    def _roll_back(self) -> None:
        self.balances.forget()
        # Opened anew at the next transaction: after an I/O error an old connection may not recover.
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self.close()
