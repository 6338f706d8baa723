"""What one root trace has used: the locked counts that all of its bodies share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal

    from graphguard.langsmith.metered import Metered, MeteredBlock

__all__ = ["GuardedTrace"]


class GuardedTrace:
    """What one root trace has used, as its guard counts it.

    Attributes:
        id: LangSmith's id of the trace; the guard's own where nothing is traced.
        calls: Guarded bodies begun.
        deepest: The most bodies that ran inside each other.
    """

    __slots__ = ("_lock", "_metered", "calls", "deepest", "id", "running")

    def __init__(self, id: str, metered: Metered | None) -> None:  # noqa: A002 - LangSmith's trace id
        """Begin with nothing."""
        self.id = id
        self.calls = 0
        self.deepest = 0
        self.running = 0
        self._metered = metered
        self._lock = threading.Lock()

    @property
    def usd(self) -> Decimal | None:
        """Spent on models in USD; None without `max_usd`."""
        return self._metered.spend.usd if self._metered else None

    def block(self, label: str) -> MeteredBlock | None:
        """A block in which models are metered; None without `max_usd`."""
        return self._metered.block(label) if self._metered else None

    def take(self, depth: int, max_depth: int, max_calls: int) -> tuple[str, int, int] | None:
        """Count one call, or say what has no room for it: the metric, its limit, and what is used."""
        with self._lock:
            if depth > max_depth:
                return "depth", max_depth, depth - 1
            if self.calls >= max_calls:
                return "calls", max_calls, self.calls
            self.calls += 1
            self.deepest = max(self.deepest, depth)
            return None

    def run(self, change: int) -> None:
        """Count the bodies that run."""
        with self._lock:
            self.running += change
