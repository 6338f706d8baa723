"""What a process writes to a SQLite file: one transaction at a time, and what many ask together in one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import sqlite3
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.waiting import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["Writer"]

T = TypeVar("T")

_BATCH: Final = 128
_CLOSED: Final = "it is closed; make a new ledger"
_shared: dict[Path, Writer] = {}
_alive: set[Writer] = set()  # these and those that are closing
_sharing = threading.RLock()  # again by the same thread, when it forgets a ledger meanwhile


class _Job(Generic[T]):
    """One thing to do in a transaction, and who waits for it."""

    __slots__ = ("_future", "_loop", "done", "error", "given_up", "result", "undo", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None,
    ) -> None:
        self.work = work
        self.undo = undo
        self.result: T
        self.error: BaseException | None = None
        self.done = False
        self.given_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def aprepare(self) -> asyncio.Future[None]:
        """Be waited for by a task."""
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        return self._future

    def finish(self) -> None:
        """Tell the task that waits, if it is one."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop has ended, and whoever waited on it
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def answer(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result


class Writer:
    """Does what it is handed in transactions: at once if it is alone, else many in one.

    Threads take turns, and whose turn it is does what all others wait for by then. Tasks have a thread of the
    writer's own for that, so that their event loops go on.

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
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        # Held while a connection is used: whoever forks or closes waits for the end of a transaction.
        self._using = threading.Lock()
        self._reading = threading.Lock()
        self._lining_up = threading.RLock()  # again by the same thread, when it forgets another ledger meanwhile
        self._waiting: deque[_Job[object]] = deque()
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
        job = _Job(work, undo)
        self._waiting.append(cast("_Job[object]", job))
        try:
            self._lead(job)
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
        job = _Job(work, undo)
        future = job.aprepare()
        self._hand_over(job)
        try:
            await future
        except BaseException:
            self._give_up(job)
            raise
        return job.answer()

    def _lead(self, job: _Job[T]) -> None:
        """Wait for one's turn, and find the job done by somebody before; or do it, with all that wait by then."""
        with self._using:
            if job.done:
                return
            batch = self._gather(None)
            freed = self._do(batch)
        self._tell(batch, freed)

    def _hand_over(self, job: _Job[T]) -> None:
        with self._lining_up:  # so that nothing lines up behind the end
            if self._users == 0:
                raise LedgerUnavailable(str(self.path), _CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="graphguard-ledger", daemon=True)
                self._thread.start()
            self._jobs.put(cast("_Job[object]", job))

    def _give_up(self, job: _Job[T]) -> None:
        # The writer looks at `given_up` after it has set `done`, so that one of the two sees both.
        job.given_up = True
        if job.done:
            self._take_back(job)

    def _take_back(self, job: _Job[T]) -> None:
        if job.undo is not None and job.error is None:
            with contextlib.suppress(LedgerUnavailable):  # closed: then its lease ends it
                self._hand_over(_Job(job.undo(job.result), None))

    def read(self, question: Callable[[sqlite3.Cursor], T]) -> T:
        """Ask in the caller's own thread and on a connection of its own, so that a long list delays nobody."""
        if self._users == 0:
            raise LedgerUnavailable(str(self.path), _CLOSED)
        with self._reading:
            for last in _attempts(self._patience):
                try:
                    with contextlib.closing(self._connect(self.path)) as db:
                        db.execute("PRAGMA query_only = 1")
                        return question(db.cursor())
                except sqlite3.Error as error:
                    if last or not _is_busy(error):
                        raise LedgerUnavailable(str(self.path), _advice(error)) from error
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
        first = self._jobs.get()
        if first is None:
            return True
        with self._using:
            batch = self._gather(first)
            freed = self._do(batch)
        self._tell(batch, freed)
        return False

    def _gather(self, first: _Job[object] | None) -> list[_Job[object]]:
        """What waits now: jobs of threads, which line up for the turn themselves, and those of tasks."""
        batch = [first] if first is not None else []
        with contextlib.suppress(IndexError):
            while len(batch) < _BATCH:
                batch.append(self._waiting.popleft())
        with contextlib.suppress(queue.Empty):
            while len(batch) < _BATCH:
                job = self._jobs.get_nowait()
                if job is None:  # the end, which is the thread's
                    self._jobs.put(None)
                    break
                batch.append(job)
        return batch

    def _tell(self, batch: list[_Job[object]], freed: tuple[str, ...]) -> None:
        self.line.stir(freed)
        for job in batch:
            job.finish()
            if job.given_up:
                self._take_back(job)

    def _do(self, batch: list[_Job[object]]) -> tuple[str, ...]:
        """Do all of it, and give the accounts where it made room; each job has its result or error then."""
        todo = [job for job in batch if not (job.given_up and job.undo)]
        try:
            if self._users == 0:
                raise LedgerUnavailable(str(self.path), _CLOSED)
            if todo and not self._try(todo) and len(todo) > 1:
                for job in todo:
                    job.error = None
                    self._try([job])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear it
            for job in todo:
                job.error = error
            self._roll_back()
        for job in batch:
            job.done = True
        freed, self._freed = self._freed, set()
        return tuple(freed)

    def _try(self, batch: list[_Job[object]]) -> bool:
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
                job.error = error if known else LedgerUnavailable(str(self.path), _advice(error))
            return known  # when not even a transaction could begin, another attempt is no use
        except BaseException:  # Ctrl-C in a caller's own thread
            self._roll_back()
            raise
        return True

    def _begin(self) -> sqlite3.Cursor:
        for last in _attempts(self._patience):
            try:
                if self._db is None:
                    self._db = self._connect(self.path)
                    self._cursor = self._db.cursor()
                self._cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if last or not _is_busy(error):
                    raise LedgerUnavailable(str(self.path), _advice(error)) from error
            except sqlite3.Error as error:
                raise LedgerUnavailable(str(self.path), _advice(error)) from error
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


def _attempts(seconds: float) -> Iterator[bool]:
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


def _is_busy(error: sqlite3.Error) -> bool:
    # The low byte is SQLite's primary code; the rest says which kind of busy.
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _advice(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        sqlite3.SQLITE_BUSY: "another process has held a transaction on it for too long",
        sqlite3.SQLITE_CANTOPEN: "make its folder and let this process write there",
        sqlite3.SQLITE_READONLY: "let this process write the file and its folder",
        sqlite3.SQLITE_FULL: "make room on its disk",
        sqlite3.SQLITE_IOERR: "look after its disk",
        sqlite3.SQLITE_NOTADB: "it is another kind of file; name a new one",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; keep it for inspection and name a new one",
    }.get(code)
    return f"{error}; {advice}" if advice else str(error)


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
