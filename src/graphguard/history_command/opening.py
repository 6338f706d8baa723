"""Checkpoint databases by what is typed after `--db`: a SQLite file, or PostgreSQL's address."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from graphguard.demo.mistakes import WrongUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from graphguard.history.checkpoints import AnySaver

__all__ = ["opened", "opened_async"]

_POSTGRES: Final = ("postgres://", "postgresql://")
_TABLES: Final = {"checkpoints", "writes"}


@contextmanager
def opened(db: str) -> Iterator[AnySaver]:
    """Give the checkpointer of a database that is there.

    Raises:
        WrongUse: It is not there, or holds no checkpoints.
    """
    if db.startswith(_POSTGRES):
        with _postgres(db) as saver:
            yield saver
        return
    _check_file(db)
    from langgraph.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415 - `graphguard --help` does not wait for it

    with SqliteSaver.from_conn_string(db) as saver:
        yield saver


@asynccontextmanager
async def opened_async(db: str) -> AsyncIterator[AnySaver]:
    """The same as `opened`, for an event loop."""
    if db.startswith(_POSTGRES):
        with _postgres(db):
            pass  # says what is wrong
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - an extra

        async with AsyncPostgresSaver.from_conn_string(db) as postgres:
            yield postgres
        return
    _check_file(db)
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415 - see opened

    async with cast("AbstractAsyncContextManager[AnySaver]", AsyncSqliteSaver.from_conn_string(db)) as sqlite_saver:
        yield sqlite_saver


def _check_file(db: str) -> None:
    """Raise unless the file is a SQLite database that LangGraph keeps checkpoints in; never makes one."""
    path = Path(db)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise WrongUse(f"{db!r} {what}; pass the SQLite file of a checkpointer, or postgresql://..., as --db")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise WrongUse(
            f"{db!r} is no SQLite database that can be read ({error}); pass a checkpointer's file"
        ) from error
    if not found >= _TABLES:
        tables = f"it has the tables {', '.join(sorted(found))}" if found else "it has no tables"
        raise WrongUse(f"{db!r} holds no LangGraph checkpoints: {tables}; pass the file that SqliteSaver writes")


@contextmanager
def _postgres(db: str) -> Iterator[AnySaver]:
    try:
        import psycopg  # noqa: PLC0415 - an extra
        from langgraph.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise WrongUse("PostgreSQL needs the extra: pip install 'graphguard[postgres]'") from error
    try:
        with PostgresSaver.from_conn_string(db) as saver:
            row = saver.conn.execute("SELECT to_regclass('checkpoints') IS NOT NULL AS found").fetchone()  # type: ignore[union-attr] # from a string it is a connection
            if not (row and cast("dict[str, object]", row)["found"]):
                raise WrongUse(
                    "this PostgreSQL database holds no LangGraph checkpoints; PostgresSaver.setup() makes them"
                )
            yield saver
    except psycopg.Error as error:
        raise WrongUse(f"PostgreSQL can't be read: {error}") from error
