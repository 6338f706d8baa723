"""What a process writes to a SQLite file: one transaction at a time, and what many ask together in one."""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Final, TypeVar, cast

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.jobs import Job
from graphguard.ledger.sqlite_file import advice, attempts, is_busy
from graphguard.ledger.waiting import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Writer"]

T = TypeVar("T")

_BATCH: Final = 128
_CLOSED: Final = "it is closed; make a new ledger"
_shared: dict[Path, Writer] = {}
_alive: set[Writer] = set()  # these and those that are closing
_sharing = threading.RLock()  # again by the same thread, when it forgets a ledger meanwhile


class Writer:
    """Does what it is handed in transactions: at once if it is alone, else many in one, in a thread of its own.

    Every transaction is `BEGIN IMMEDIATE`, so a process never learns at its commit that it decided on
    old numbers. Work must decide before it writes: an error it raises after a write undoes the batch, and
    the others in it are done again, one by one.

    Attributes:
        path: The file.
        line: Where calls of this process wait for room.

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
        self._users = 0
        self._freed: set[str] = set()
        self._forget()

    @classmethod
    def of(cls, path: Path, connect: Callable[[Path], sqlite3.Connection], *, patience: float) -> Writer:
        """The writer of a file in this process, one for all who use the file; `detach` from it when done."""
        with _sharing:
            writer = _shared.get(path)
            if writer is None:
                writer = _shared[path] = cls(path, connect, patience=patience)
                _alive.add(writer)
            writer._users += 1
            return writer

    def _forget(self) -> None:
        self._jobs: queue.SimpleQueue[Job[object] | None] = queue.SimpleQueue()
        # Held while a connection is used: whoever forks or closes waits for the end of a transaction.
        self._using = threading.Lock()
        self._reading = threading.Lock()
        self._lining_up = threading.RLock()  # again by the same thread, when it forgets another ledger meanwhile
        self._busy = False
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor  # made with the connection; one for all, since making them costs as much as using

    def run(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None = None,
    ) -> T:
        """Do this in a transaction and give back its result, committed.

        Args:
            work: Gets a cursor, inside a transaction.
            undo: For a caller who is interrupted while it waits: makes the work that takes a result back.

        Raises:
            LedgerUnavailable: The file can't be used; nothing was written.
        """
        job = Job(work, undo)
        try:
            if not self._at_once(job):
                job.prepare()
                self._hand_over(job)
                job.wait()
        except BaseException:
            self._give_up(job)
            raise
        return job.answer()

    async def arun(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None = None,
    ) -> T:
        """The same on an event loop, which goes on meanwhile."""
        job = Job(work, undo)
        future = job.aprepare()
        self._hand_over(job)
        try:
            await future
        except BaseException:
            self._give_up(job)
            raise
        return job.answer()

    def _at_once(self, job: Job[T]) -> bool:
        """Whether nothing else is to be done, so that the caller's own thread did it: no need to wake another."""
        if self._users == 0 or self._busy or not self._jobs.empty() or not self._using.acquire(blocking=False):
            return False
        try:
            if self._users == 0:  # closed meanwhile
                return False
            self._do([cast("Job[object]", job)])
            freed = self._take_freed()
        finally:
            self._using.release()
        job.done = True
        self.line.stir(freed)
        return True

    def _take_freed(self) -> tuple[str, ...]:
        if not self._freed:
            return ()
        freed, self._freed = self._freed, set()
        return tuple(freed)

    def _hand_over(self, job: Job[T]) -> None:
        with self._lining_up:  # so that nothing lines up behind the end
            if self._users == 0:
                raise LedgerUnavailable(str(self.path), _CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="graphguard-ledger", daemon=True)
                self._thread.start()
            self._jobs.put(cast("Job[object]", job))

    def _give_up(self, job: Job[T]) -> None:
        # The writer looks at `given_up` after it has set `done`, so that one of the two sees both.
        job.given_up = True
        if job.done:
            self._take_back(job)

    def _take_back(self, job: Job[T]) -> None:
        if job.undo is not None and job.error is None:
            with contextlib.suppress(LedgerUnavailable):  # closed: then its lease ends it
                self._hand_over(Job(job.undo(job.result), None))

    def read(self, question: Callable[[sqlite3.Cursor], T]) -> T:
        """Ask in the caller's own thread and on a connection of its own, so that a long list delays nobody."""
        if self._users == 0:
            raise LedgerUnavailable(str(self.path), _CLOSED)
        with self._reading:
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
        self._freed.update(scopes)

    def detach(self) -> None:
        """Use it no more; the last user ends the thread and closes the file, after all that was handed over."""
        with _sharing, self._lining_up:
            self._users -= 1
            if self._users > 0:
                return
            _shared.pop(self.path, None)
            if (thread := self._thread) is not None:
                self._jobs.put(None)
        if thread is None:
            self._end()
        elif thread is not threading.current_thread():  # which may have been the last to know of the ledger
            thread.join(self._patience + 5)

    def _end(self) -> None:
        with self._using:
            self._close()
            self._thread = None
        _alive.discard(self)

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._run_batch()
        self._end()

    def _run_batch(self) -> bool:
        """Whether that was the last; keeps nothing alive while it waits for the next."""
        batch, ended = _gather(self._jobs)
        self._busy = True  # from here on callers line up behind this thread, until it has done all they asked
        with self._using:
            try:
                self._do(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear it
                for job in batch:
                    job.error = error
                self._roll_back()
            freed = self._take_freed()
        self._busy = False
        self.line.stir(freed)
        for job in batch:
            job.finish()
            if job.given_up:
                self._take_back(job)
        return ended

    def _do(self, batch: list[Job[object]]) -> None:
        batch[:] = [job for job in batch if not (job.given_up and job.undo)]
        if not batch or self._try(batch) or len(batch) == 1:
            return
        for job in batch:
            job.error = None
            self._try([job])

    def _try(self, batch: list[Job[object]]) -> bool:
        """Whether all of the batch is committed, or known to be refused; else nothing is written."""
        try:
            db = self._begin()
            for job in batch:
                before = db.connection.total_changes
                try:
                    job.result = job.work(db)
                except sqlite3.Error:
                    raise
                except Exception as error:  # noqa: BLE001 - handed on to who asked for the work
                    job.error = error
                    if db.connection.total_changes != before:
                        self._roll_back()
                        return False
            db.execute("COMMIT")
        except (sqlite3.Error, LedgerUnavailable) as error:
            self._roll_back()
            known = isinstance(error, LedgerUnavailable)
            for job in batch:
                job.error = error if known else LedgerUnavailable(str(self.path), advice(error))
            return known  # when not even a transaction could begin, another attempt is no use
        except BaseException:  # Ctrl-C in a caller's own thread
            self._roll_back()
            raise
        return True

    def _begin(self) -> sqlite3.Cursor:
        for last in attempts(self._patience):
            try:
                if self._db is None:
                    self._db = self._connect(self.path)
                    self._cursor = self._db.cursor()
                self._cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if last or not is_busy(error):
                    raise LedgerUnavailable(str(self.path), advice(error)) from error
            except sqlite3.Error as error:
                raise LedgerUnavailable(str(self.path), advice(error)) from error
            else:
                return self._cursor
        raise AssertionError  # pragma: no cover - the last attempt returned or raised

    def _roll_back(self) -> None:
        # Opened anew at the next transaction: after an I/O error an old connection may not recover.
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self._close()


def _gather(jobs: queue.SimpleQueue[Job[object] | None]) -> tuple[list[Job[object]], bool]:
    """The jobs that wait now, after waiting for the first, and whether the end was among them."""
    batch: list[Job[object]] = []
    job = jobs.get()
    while True:
        if job is None:
            return batch, True
        batch.append(job)
        if len(batch) == _BATCH:
            return batch, False
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return batch, False


# SQLite's locks belong to a process, and its memory of them would be copied by a fork: a child that opened the
# file anew would believe that it has the parent's. So nothing is open while a process forks.
def _before_fork() -> None:
    while True:
        writers = list(_alive)
        for writer in writers:
            writer._using.acquire()  # noqa: SLF001 - the same module, as below
            writer._reading.acquire()  # noqa: SLF001
        # Not held while waiting above: whoever uses a writer may want it, to forget a ledger.
        _sharing.acquire()
        _forking[:] = writers
        if _alive <= set(writers):
            break
        _after_fork_in_parent()
    for writer in writers:
        writer._close()  # noqa: SLF001


def _after_fork_in_parent() -> None:
    for writer in _forking:
        writer._reading.release()  # noqa: SLF001
        writer._using.release()  # noqa: SLF001
    _sharing.release()


def _after_fork_in_child() -> None:
    for writer in _forking:  # what waits in its queue belongs to the parent
        writer._forget()  # noqa: SLF001
    _sharing.release()


_forking: list[Writer] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
