"""What a `SqliteLedger` is asked about its file; and the file opened to look at, not to change."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.protocol import Hold
from graphguard.ledger.queries import STEP, STEP_END, Which, check_group, ordered
from graphguard.ledger.records import AMOUNTS, call_from_text, charge_from_text, spend_from
from graphguard.ledger.sqlite_file import COUNTED, advice, connect_to_read
from graphguard.spend import ZERO

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from graphguard.spend import Charge, Spend

__all__ = ["SqliteReader", "charges", "open_holds", "total", "totals"]

_IN_SCOPE: Final = "EXISTS (SELECT 1 FROM json_each(charge, '$.scopes') AS counted WHERE counted.value = ?)"
_BALANCE: Final = f"SELECT {', '.join(COUNTED[: len(AMOUNTS)])} FROM accounts WHERE scope = ?"  # noqa: S608 - made of constants, as all below
_ACCOUNTS: Final = (
    f"SELECT scope, {', '.join(COUNTED[: len(AMOUNTS)])} FROM accounts "  # noqa: S608
    f"WHERE (scope < '{STEP}' OR scope >= '{STEP_END}') AND ({' OR '.join(COUNTED[: len(AMOUNTS)])})"
)
_SUMS: Final = ", ".join(f"coalesce(sum({name}), 0)" for name in AMOUNTS)


def total(which: Which, db: sqlite3.Cursor) -> Spend:
    """The sum of these charges."""
    if which.account is not None:  # which may know of more than its charges (`Claim.floor`)
        row = db.execute(_BALANCE, (which.account,)).fetchone()
        return spend_from(row) if row else ZERO
    condition, values = which.condition(value="?", in_scope=_IN_SCOPE)
    return spend_from(db.execute(f"SELECT {_SUMS} FROM attempts WHERE {condition}", values).fetchone())  # noqa: S608


def totals(by: str, which: Which, db: sqlite3.Cursor) -> dict[str | None, Spend]:
    """Sums of these charges; see `Ledger.totals`."""
    check_group(by)
    condition, values = which.condition(value="?", in_scope=_IN_SCOPE)
    if by == "scope" and which.everything:
        rows = db.execute(_ACCOUNTS)
    elif by == "scope":
        rows = db.execute(
            f"SELECT place.value, {_SUMS} FROM attempts, json_each(charge, '$.scopes') AS place "  # noqa: S608
            f"WHERE {condition} AND (place.value < '{STEP}' OR place.value >= '{STEP_END}') GROUP BY place.value",
            values,
        )
    else:
        group = "date(time, 'unixepoch')" if by == "day" else f'"{by}"'
        rows = db.execute(f"SELECT {group}, {_SUMS} FROM attempts WHERE {condition} GROUP BY {group}", values)  # noqa: S608
    return ordered(by, ((row[0], spend_from(row[1:])) for row in rows))


def charges(which: Which, last: int | None, db: sqlite3.Cursor) -> tuple[Charge, ...]:
    """These charges, oldest first; with `last`, so many of the latest."""
    condition, values = which.condition(value="?", in_scope=_IN_SCOPE)
    wanted = f"SELECT charge FROM attempts WHERE {condition} ORDER BY time"  # noqa: S608
    if last is None:
        rows = db.execute(f"{wanted}, number", values).fetchall()
    else:
        rows = db.execute(f"{wanted} DESC, number DESC LIMIT ?", (*values, max(last, 0))).fetchall()[::-1]
    return tuple(charge_from_text(text) for (text,) in rows)


def open_holds(db: sqlite3.Cursor) -> tuple[Hold, ...]:
    """Holds neither settled nor released, the oldest first."""
    rows = db.execute("SELECT call, expires, time, waited FROM attempts WHERE state = 'held' ORDER BY number")
    return tuple(
        Hold(call_from_text(text), expires=expires, time=time, waited=waited or 0.0)
        for text, expires, time, waited in rows
    )


class SqliteReader:
    """A `SqliteLedger`'s file to look at: it changes nothing, and disturbs no process that writes there.

    All that one reader tells is of one moment, that of its first answer.

    Args:
        path: The file, an older version's too.

    Raises:
        LedgerUnavailable: There is no such file, or it is not a ledger, or a newer version's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file."""
        self.path = Path(path).resolve()
        with self._errors():
            self._db = connect_to_read(self.path)
        with self._errors():
            self._db.execute("BEGIN")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            alien = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB
            raise LedgerUnavailable(str(self.path), "it is no ledger" if alien else advice(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        """Itself, to be closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        with self._errors():
            return total(Which.of(where, since, until), self._db.cursor())

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges; see `Ledger.totals`."""
        with self._errors():
            return totals(by, Which.of(where, since, until), self._db.cursor())

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        with self._errors():
            return charges(Which.of(where, since, until), last, self._db.cursor())

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released, of all processes."""
        with self._errors():
            return open_holds(self._db.cursor())
