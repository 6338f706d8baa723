"""Ledgers: where real money is held and settled. One protocol; in memory, in a file, in PostgreSQL."""

from graphguard.ledger.memory import MemoryLedger
from graphguard.ledger.protocol import Hold, Ledger, Refusal
from graphguard.ledger.sqlite import SqliteLedger

__all__ = ["Hold", "Ledger", "MemoryLedger", "Refusal", "SqliteLedger"]
