"""Ledgers: where real money is held and settled. One protocol; in memory, in a file, in PostgreSQL.

`PostgresLedger` is here too, and is loaded when it is asked for, because it needs `graphguard[postgres]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphguard.ledger.memory import MemoryLedger
from graphguard.ledger.protocol import Hold, Ledger, Refusal
from graphguard.ledger.sqlite import SqliteLedger

if TYPE_CHECKING:
    from graphguard.ledger.postgres import PostgresLedger as PostgresLedger

__all__ = ["Hold", "Ledger", "MemoryLedger", "Refusal", "SqliteLedger"]


def __getattr__(name: str) -> object:
    if name == "PostgresLedger":
        from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra

        return PostgresLedger
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
