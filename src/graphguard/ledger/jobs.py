"""What is asked of a ledger's file, and who does it: one of those who wait, for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from graphguard.errors import LedgerUnavailable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["Job", "Jobs"]

T = TypeVar("T")


class Job(Generic[T]):
    """One thing to do in a transaction, and who waits for it: a thread, a task, or nobody.

    Args:
        work: Gets a cursor, inside a transaction.
        undo: Makes the work that takes a result back, for a caller who is gone before the answer.
        sums: Whether it changes accounts by way of `Balances` only.

    Attributes:
        result: What it gave.
        error: What it raised.
        done: Whether that is known and, if it is a result, committed.
        given_up: Whether nobody waits any longer.
    """

    __slots__ = ("_future", "_loop", "_turn", "done", "error", "given_up", "leads", "result", "sums", "undo", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None = None,
        *,
        sums: bool = False,
    ) -> None:
        """Nobody waits yet."""
        self.work = work
        self.undo = undo
        self.sums = sums
        self.result: T
        self.error: BaseException | None = None
        self.done = False
        self.given_up = False
        self.leads = False
        self._turn: threading.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def stand(self) -> None:
        """Be waited for by this thread, which may lead if Ctrl-C can't interrupt it while it works for others."""
        self._turn = threading.Lock()
        self._turn.acquire()
        self.leads = not _is_main()

    def wait(self, seconds: float = -1) -> None:
        """Wait in that thread until it is done, or leads."""
        if self._turn is not None:
            self._turn.acquire(timeout=seconds)

    def awaited(self) -> asyncio.Future[None]:
        """What a task waits for."""
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        return self._future

    def wake(self) -> None:
        """End the wait."""
        if self._turn is not None:
            self._turn.release()
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop has ended, and whoever waited on it
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def answer(self) -> T:
        """Its result; its error is raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Jobs:
    """The jobs that wait, first come, first served, and who leads.

    Who leads does all that waits in one transaction, and hands over to the first thread that came meanwhile. So
    nobody is woken but for an answer, or to work. Tasks can't lead; a thread of our own does it for them.

    Args:
        name: The ledger, as errors name it.
        wake: Makes the thread of our own lead.
    """

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        """Nobody waits, and nobody leads."""
        self._name = name
        self._wake = wake
        # Again by the same thread: collecting garbage in here may close another ledger on the same file.
        self._lock = threading.RLock()
        self._waiting: deque[Job[object]] = deque()
        self._leader: Job[object] | None = None
        self._closed = False
        self.ours: Job[object] = Job(lambda _: None)
        """Stands for the thread of our own."""

    def lead(self, job: Job[object]) -> bool:
        """Whether the caller leads, with this as its first job; else it is in the line, and the caller waits."""
        with self._lock:
            self.check_open()
            if self._leader is None:
                self._leader = job
                return True
            job.stand()
            self._waiting.append(job)
            return False

    def close(self, last: Job[object]) -> bool:
        """The same for the last of all: nobody may come behind it."""
        with self._lock:
            leads = self.lead(last)
            self._closed = True
            return leads

    def add(self, job: Job[object]) -> None:
        """Let somebody else do it."""
        with self._lock:
            self.check_open()
            self._waiting.append(job)
            if self._leader is not None:
                return
            self._leader = self.ours
        self._wake()

    def check_open(self) -> None:
        """Raise `LedgerUnavailable` if it is closed."""
        if self._closed:
            raise LedgerUnavailable(self._name, "it is closed; make a new ledger")

    def batch(self, leader: Job[object], most: int) -> list[Job[object]]:
        """What the leader is to do now; in the main thread only its own, which Ctrl-C may interrupt."""
        if not self._waiting:
            return [leader]
        with self._lock:
            batch = [] if leader.leads or leader is self.ours else [leader]  # theirs waits in the line, ours is none
            if batch and _is_main():
                return batch
            while self._waiting and len(batch) < most:
                batch.append(self._waiting.popleft())
            return batch

    def hand_over(self, leader: Job[object]) -> None:
        """Lead no longer, if it does."""
        with self._lock:
            if self._leader is not leader:
                return
            self._leader = following = self._following()
        if following is self.ours:
            self._wake()
        elif following is not None:
            following.wake()

    def _following(self) -> Job[object] | None:
        if not self._waiting:
            return None
        return next((job for job in self._waiting if job.leads), self.ours)

    def leave(self, job: Job[object]) -> None:
        """Wait and lead no longer; what can be taken back isn't begun then."""
        with self._lock:
            job.leads = False
            if job.undo is not None and job in self._waiting:
                self._waiting.remove(job)
            self.hand_over(job)


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident
