"""What a process writes to a SQLite file: one transaction at a time, and what many ask together in one."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar, cast

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.jobs import Job, Jobs
from graphguard.ledger.sqlite_file import advice, attempts, is_busy
from graphguard.ledger.transactions import Transactions
from graphguard.ledger.waiting import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Writer"]

T = TypeVar("T")

_BATCH: Final = 128
_COPIED: Final = 256  # after so many jobs, of about four pages each, the log is copied into the file by another thread


class Writer:
    """Does what it is handed in transactions, what came meanwhile together in the next one.

    Threads that ask do it themselves, by turns, for all that wait; for tasks on event loops a thread of its own
    does.

    Attributes:
        path: The file.
        line: Where calls of this process wait for room.
        file: Its transactions; only for work, and for whoever holds `using`.
        using: Held while the connection is used: whoever forks or closes waits for the end of a transaction.
        reading: Held while others are open.

    Args:
        path: The file.
        connect: Opens and checks it.
        patience: Seconds to wait for other processes' transactions before giving up.
    """

    def __init__(self, path: Path, connect: Callable[[Path], sqlite3.Connection], *, patience: float) -> None:
        """Open nothing yet."""
        self.path = path
        self._connect = connect
        self._patience = patience
        self.line = Line()
        self.file = Transactions(path, connect, patience=patience)
        self._freed: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: what waits, runs and is open belongs to the parent."""
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._jobs = Jobs(str(self.path), self._ring)
        self.using = threading.Lock()
        self.reading = threading.Lock()
        self._thread: threading.Thread | None = None
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="graphguard-log")  # begins with its first work
        self._done = 0
        self._copying = False
        self.file.forget()

    def run(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None = None,
        *,
        sums: bool = False,
    ) -> T:
        """Do this in a transaction and give back its result, committed.

        Args:
            work: Gets a cursor, inside a transaction.
            undo: For a caller who is interrupted while it waits: makes the work that takes a result back.
            sums: Whether the work changes accounts by way of `Balances` only.

        Raises:
            LedgerUnavailable: The file can't be used; nothing was written.
        """
        job = Job(work, undo, sums=sums)
        plain = cast("Job[object]", job)
        try:
            if not self._jobs.lead(plain):
                job.wait()
            while not job.done:
                self._lead(plain)
                if not job.done:
                    job.wait()
        except BaseException:
            self._give_up(plain)
            raise
        return job.answer()

    async def arun(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None = None,
        *,
        sums: bool = False,
    ) -> T:
        """The same on an event loop, which goes on meanwhile."""
        job = Job(work, undo, sums=sums)
        future = job.awaited()
        self._jobs.add(cast("Job[object]", job))
        try:
            await future
        except BaseException:
            self._give_up(cast("Job[object]", job))
            raise
        return job.answer()

    def _lead(self, leader: Job[object]) -> None:
        """Do what waits, in one transaction, and let others go on."""
        batch = self._jobs.batch(leader, _BATCH)
        with self.using:
            self.file.do(batch)
            freed = self._take_freed()
            self._done += len(batch)
        self._jobs.hand_over(leader)
        if freed:
            self.line.stir(freed)
        for job in batch:
            job.done = True
            if job is not leader:
                job.wake()
            if job.given_up:
                self._take_back(job)
        if self._done >= _COPIED and not self._copying:
            self._done, self._copying = 0, True
            with contextlib.suppress(RuntimeError):  # the process ends, or it was closed meanwhile
                self._aside.submit(self._copy_log)

    def _take_freed(self) -> tuple[str, ...]:
        if not self._freed:
            return ()
        freed, self._freed = self._freed, set()
        return tuple(freed)

    def _give_up(self, job: Job[object]) -> None:
        self._jobs.leave(job)
        # Who does it looks at `given_up` after it has set `done`, so that one of the two sees both.
        job.given_up = True
        if job.done:
            self._take_back(job)

    def _take_back(self, job: Job[object]) -> None:
        if job.undo is not None and job.error is None:
            with contextlib.suppress(LedgerUnavailable):  # closed: then its lease ends it
                self._jobs.add(Job(job.undo(job.result), sums=True))

    def _ring(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="graphguard-ledger", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process ends and starts no more threads; somebody must lead
                return self._lead(self._jobs.ours)
            self._thread = thread
        return self._bell.put(True)  # noqa: FBT003 - a queue's only argument

    def _serve(self) -> None:
        """For whoever can't lead, until the end."""
        while self._bell.get():
            self._lead(self._jobs.ours)

    def read(self, question: Callable[[sqlite3.Cursor], T]) -> T:
        """Ask in the caller's own thread and on a connection of its own, so that a long list delays nobody."""
        self._jobs.check_open()
        with self.reading:
            for last in attempts(self._patience):
                try:
                    with contextlib.closing(self._connect(self.path)) as db:
                        db.execute("PRAGMA query_only = 1")
                        return question(db.cursor())
                except sqlite3.Error as error:
                    if last or not is_busy(error):
                        raise LedgerUnavailable(str(self.path), advice(error)) from error
        raise AssertionError  # pragma: no cover - the last attempt returned or raised

    def freed(self, scopes: Iterable[str]) -> None:
        """Told by work that makes room in these accounts; who waits for it is woken after the commit."""
        if not self.line.is_empty:  # who comes later sees what is committed by then
            self._freed.update(scopes)

    def end(self) -> None:
        """Close the file, after all that was asked before; nothing can be asked any more."""
        if self._thread is threading.current_thread():  # the last to know of the ledger; it can't wait for itself
            threading.Thread(target=self.end, name="graphguard-end").start()
            return
        last: Job[object] = Job(lambda _: None, undo=lambda _: lambda _: None)
        try:
            if not self._jobs.close(last):
                last.wait(self._patience + 5)
            with self.using, self.reading:
                self.file.close()
        finally:
            self._jobs.leave(last)
        self._aside.shutdown(wait=False)
        if (thread := self._thread) is not None:
            self._bell.put(False)  # noqa: FBT003 - a queue's only argument
            thread.join(self._patience + 5)

    def _copy_log(self) -> None:
        """Copy SQLite's log into the file meanwhile, so that nobody who commits has to wait for it."""
        with self.reading, contextlib.suppress(sqlite3.Error, LedgerUnavailable):
            self._jobs.check_open()
            with contextlib.closing(self._connect(self.path)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._copying = False
