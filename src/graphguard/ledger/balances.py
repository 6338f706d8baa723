"""Accounts of a SQLite file as one transaction sees them: each is read once and written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from graphguard.ledger.records import AMOUNTS, amounts, spend_from
from graphguard.ledger.sqlite_file import COUNTED
from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ADD", "BALANCE", "OPEN", "Balances"]

BALANCE: Final = f"SELECT {', '.join(COUNTED)} FROM accounts WHERE scope = ?"  # noqa: S608 - made of constants, as below
ADD: Final = f"UPDATE accounts SET {', '.join(f'{name} = {name} + ?' for name in COUNTED)} WHERE scope = ?"  # noqa: S608
OPEN: Final = f"INSERT INTO accounts ({', '.join(COUNTED)}, scope) VALUES ({', '.join('?' * len(COUNTED))}, ?)"  # noqa: S608

_NOTHING: Final = (ZERO, ZERO)


class Balances:
    """What is spent and held in accounts, with the changes that this transaction has yet to write.

    Many calls that are answered together mostly share their accounts, so this saves most of the statements.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._read: dict[str, tuple[Spend, Spend]] = {}
        self._changes: dict[str, tuple[Spend, Spend]] = {}

    def forget(self) -> None:
        """Begin anew: a transaction ends, or never came to its end."""
        self._read.clear()
        self._changes.clear()

    def of(self, scope: str, db: sqlite3.Cursor) -> tuple[Spend, Spend]:
        """What is spent and held in an account now."""
        before = self._read.get(scope)
        if before is None:
            row = db.execute(BALANCE, (scope,)).fetchone()
            before = (spend_from(row), spend_from(row[len(AMOUNTS) :])) if row else _NOTHING
            self._read[scope] = before
        change = self._changes.get(scope)
        return before if change is None else (before[0] + change[0], before[1] + change[1])

    def change(self, scope: str, spent: Spend, held: Spend) -> None:
        """Add these amounts, negative ones too; `write` writes them."""
        before = self._changes.get(scope)
        self._changes[scope] = (spent, held) if before is None else (before[0] + spent, before[1] + held)

    def write(self, db: sqlite3.Cursor) -> None:
        """Write what has changed."""
        for scope, (spent, held) in self._changes.items():
            row = (*amounts(spent), *amounts(held), scope)
            if not db.execute(ADD, row).rowcount:
                db.execute(OPEN, row)
        self.forget()
