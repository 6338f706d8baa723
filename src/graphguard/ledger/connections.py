"""Connections to PostgreSQL: lost ones are replaced, and what was asked on them is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed

from graphguard.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Ask", "Connections", "Pool"]

T = TypeVar("T")

Pool: TypeAlias = ConnectionPool[Any] | AsyncConnectionPool[Any]
"""A psycopg pool of any kind of connection."""

_CONNECTIONS: Final = 8
_SETUP: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


class Ask(Protocol):
    """Sends one statement and gives its rows."""

    def __call__(self, statement: str, words: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Send it."""
        ...


class Connections:
    """Runs work on a connection, again if the connection is lost meanwhile; so work must bear repeating.

    Args:
        dsn_or_pool: An address; or a pool, which stays open when this is closed. Of an
            `AsyncConnectionPool` only the address is used.
        patience: Seconds to try again before giving up.
    """

    def __init__(self, dsn_or_pool: str | Pool, *, patience: float) -> None:
        """Connect at the first use."""
        self._patience = patience
        self._theirs = dsn_or_pool if isinstance(dsn_or_pool, ConnectionPool) else None
        self._address = dsn_or_pool if isinstance(dsn_or_pool, str) else str(dsn_or_pool.conninfo)
        self._ours: ConnectionPool[Any] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._opening = threading.Lock()
        self._abandoned: list[object] = []
        self._process = os.getpid()
        self._closed = False

    @property
    def name(self) -> str:
        """The server as errors name it, without passwords."""
        try:
            told = psycopg.conninfo.conninfo_to_dict(self._address)
        except psycopg.Error:
            return "PostgreSQL"
        return f"{told.get('host', 'localhost')}/{told.get('dbname', '')}"

    def run(self, work: Callable[[Ask], T], *, whole: bool = False) -> T:
        """Do this on a connection, and once more on another when that is lost.

        Args:
            work: Gets a function that sends statements.
            whole: Whether they are one transaction; else each may be its own.

        Raises:
            LedgerUnavailable: The server could not be reached in time, or is not set up.
        """
        until = time.monotonic() + self._patience
        pause = 0.005
        while True:
            try:
                return self._once(work, max(until - time.monotonic(), 0.1), whole=whole)
            except _SETUP as error:
                raise LedgerUnavailable(self.name, f"{_line(error)}; call setup() once") from error
            except PoolClosed as error:
                raise LedgerUnavailable(self.name, "its pool is closed; make a new ledger") from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() + pause > until:
                    raise LedgerUnavailable(self.name, f"{_line(error)}; is the server up?") from error
            except psycopg.Error as error:
                raise LedgerUnavailable(self.name, _line(error)) from error
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that nobody is in step
            pause = min(pause * 2, 0.5)

    async def arun(
        self, work: Callable[[Ask], T], undo: Callable[[T], object] | None = None, *, whole: bool = False
    ) -> T:
        """The same on an event loop, in a thread of our own; `undo` is for a task that is cancelled meanwhile."""
        future = self._executor().submit(self.run, work, whole=whole)
        try:
            # Shielded: work that still waits for a thread is done too when its task is cancelled.
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: _take_back(done, undo))
            raise

    def _once(self, work: Callable[[Ask], T], seconds: float, *, whole: bool) -> T:
        with (
            self._pool(seconds).connection(timeout=seconds) as connection,
            connection.cursor(row_factory=tuple_row) as cursor,
            connection.transaction() if whole else contextlib.nullcontext(),
        ):

            def ask(statement: str, words: Sequence[object] = ()) -> list[tuple[Any, ...]]:
                # Several statements in one message, as in `setup`, can't be prepared.
                cursor.execute(statement.encode(), words or None, prepare=None if words else False)
                return cursor.fetchall() if cursor.description else []

            return work(ask)

    def _pool(self, seconds: float) -> ConnectionPool[Any]:
        if self._closed:
            raise LedgerUnavailable(self.name, "it is closed; make a new ledger")
        if self._theirs is not None:
            return self._theirs
        self._leave_parent()
        if self._ours is None:
            self._open(seconds)
        return cast("ConnectionPool[Any]", self._ours)

    def _open(self, seconds: float) -> None:
        with self._opening:
            if self._ours is not None:  # another thread was faster
                return
            self._ours = ConnectionPool(
                self._address,
                min_size=1,
                max_size=_CONNECTIONS,
                kwargs={"autocommit": True},
                timeout=seconds,
                open=True,
                name="graphguard",
            )

    def _leave_parent(self) -> None:
        if self._process != os.getpid():
            # Forked: the parent's connections are never used nor closed here, and so must not be collected either.
            self._abandoned += [self._ours, self._threads]
            self._opening = threading.Lock()
            self._ours, self._threads, self._process = None, None, os.getpid()

    def _executor(self) -> ThreadPoolExecutor:
        self._leave_parent()
        with self._opening:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="graphguard-ledger")
            return self._threads

    def close(self) -> None:
        """Close what was opened here, after what is under way."""
        if self._closed or self._process != os.getpid():
            return
        if self._threads is not None:
            self._threads.shutdown()
        self._closed = True
        if self._ours is not None:
            self._ours.close()


def _take_back(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        with contextlib.suppress(LedgerUnavailable):  # then the lease ends it
            undo(done.result())


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
