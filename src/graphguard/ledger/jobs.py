"""One thing to do for a ledger's writer, and who waits for it: a thread or a task."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["Job"]

T = TypeVar("T")


class Job(Generic[T]):
    """One thing to do in a transaction, and who waits for it."""

    __slots__ = ("_future", "_lock", "_loop", "done", "error", "given_up", "result", "undo", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Cursor], T],
        undo: Callable[[T], Callable[[sqlite3.Cursor], object]] | None,
    ) -> None:
        """Nobody waits yet."""
        self.work = work
        self.undo = undo
        self.result: T
        self.error: BaseException | None = None
        self.done = False
        self.given_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None
        self._lock: threading.Lock | None = None

    def prepare(self) -> None:
        """Be waited for by a thread."""
        self._lock = threading.Lock()
        self._lock.acquire()

    def aprepare(self) -> asyncio.Future[None]:
        """Be waited for by a task."""
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        return self._future

    def wait(self) -> None:
        """Wait in the thread that prepared it."""
        assert self._lock is not None  # noqa: S101 - prepared before it was handed over
        self._lock.acquire()

    def finish(self) -> None:
        """Tell who waits."""
        self.done = True
        if self._lock is not None:
            self._lock.release()
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
