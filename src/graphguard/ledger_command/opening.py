"""Which ledger is meant on the command line, opened so that nothing is made that was not there."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.sqlite import SqliteLedger
from graphguard.ledger.sqlite_queries import SqliteReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphguard.ledger.postgres import PostgresLedger
    from graphguard.ledger.protocol import Hold
    from graphguard.spend import Charge, Spend

__all__ = ["Readable", "is_server", "name_of", "to_read", "to_sweep"]

_PATIENCE: Final = 3
"""Seconds to try to reach a server: a person waits."""


class Readable(Protocol):
    """What can be asked without changing anything."""

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges."""
        ...

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges."""
        ...

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges."""
        ...

    def open_holds(self) -> tuple[Hold, ...]:
        """What is held."""
        ...


def is_server(place: str) -> bool:
    """Whether this is PostgreSQL's address, rather than a file.

    >>> [is_server(place) for place in ("postgresql://host/db", "host=/tmp dbname=db", "ledger.sqlite", "a=b.sqlite")]
    [True, True, False, False]
    """
    if place.startswith(("postgresql://", "postgres://")):
        return True
    return any(word.startswith(("host=", "dbname=", "service=")) for word in place.split()) and not Path(place).exists()


def name_of(place: str) -> str:
    """The ledger as it is shown: without a password."""
    if not is_server(place):
        return place
    from graphguard.ledger.connections import Connections  # noqa: PLC0415 - an extra

    return Connections(place, patience=0).name


@contextmanager
def to_read(place: str, schema: str) -> Iterator[Readable]:
    """The ledger, to be looked at.

    Raises:
        LedgerUnavailable: It can't be.
        ModuleNotFoundError: PostgreSQL's extra is not installed.
    """
    if is_server(place):
        with _server(place, schema) as ledger:
            yield ledger
    else:
        with SqliteReader(place) as reader:
            yield reader


@contextmanager
def to_sweep(place: str, schema: str) -> Iterator[SqliteLedger | PostgresLedger]:
    """The ledger, to be swept; raises as `to_read` does."""
    if is_server(place):
        with _server(place, schema) as server:
            yield server
    else:
        SqliteReader(place).close()  # whether it is a ledger at all: opening it to write would make it one
        with SqliteLedger(place) as ledger:
            yield ledger


def _server(place: str, schema: str) -> PostgresLedger:
    from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra

    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the error that is raised says it once
    _knock(place)
    return PostgresLedger(place, schema=schema, patience=_PATIENCE)


def _knock(place: str) -> None:
    """Raise `LedgerUnavailable` with the server's own reason; a pool would try again, and in the end not say why."""
    import psycopg  # noqa: PLC0415 - an extra

    try:
        psycopg.connect(place, connect_timeout=_PATIENCE).close()
    except psycopg.OperationalError as error:
        raise LedgerUnavailable(name_of(place), str(error).strip().splitlines()[0].strip()) from error
    except psycopg.Error as error:  # which may repeat the password
        problem = "its address can't be read; write postgresql://user@host:5432/database"
        raise LedgerUnavailable(name_of(place), problem) from error
