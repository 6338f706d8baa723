"""Ledgers: where real money is held and settled. One protocol; here also the one that lives in memory."""

from graphguard.ledger.memory import MemoryLedger
from graphguard.ledger.protocol import Hold, Ledger, Refusal

__all__ = ["Hold", "Ledger", "MemoryLedger", "Refusal"]
