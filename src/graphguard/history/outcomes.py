"""What a backtest tells: for each budget where it would have tripped, what it would have saved, and what missed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphguard.budget import Budget, amount_text
from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphguard.history.found import PastTrip

__all__ = ["Backtest", "Outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one budget would have done.

    Attributes:
        budget: The budget.
        trips: Where it would have tripped: the first time on each line of a thread, oldest first. For a budget
            per run, the first time in each run. `replay(graph, trip, ...)` takes them too.
        threads: How many threads were looked at.
        stopped: The threads that it would have stopped.
        spent: What the threads spent.
        saved: What they spent after it would have stopped them: at least what it would have saved.
        missed: How often each node ran after that.
    """

    budget: Budget
    trips: tuple[PastTrip, ...] = ()
    threads: int = 0
    stopped: tuple[str, ...] = ()
    spent: Spend = ZERO
    saved: Spend = ZERO
    missed: Mapping[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """It in one sentence.

        >>> Outcome(budget=Budget(usd="0.30"), threads=120, stopped=("t1", "t2"), saved=Spend(nanousd=10**10)).sentence
        'with $0.30, 2 of 120 threads would have stopped, saving $10.00'
        """
        limits = " and ".join(amount_text(metric, limit) for metric, limit in self.budget.limits.items())
        place = "" if self.budget.per == "branch" else f" per {self.budget.per}"
        place += f" of node {self.budget.node!r}" if self.budget.node else ""
        if not self.stopped:
            return f"with {limits}{place}, none of {self.threads} threads would have stopped"
        saved = amount_text("usd", self.saved.nanousd) if self.saved.nanousd else amount_text("calls", self.saved.calls)
        return f"with {limits}{place}, {len(self.stopped)} of {self.threads} threads would have stopped, saving {saved}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """What several budgets would have done, each by itself.

    Attributes:
        outcomes: One for each budget, in the order in which they were given.
        unmetered: Threads in which no guard counted anything, so that nothing can be said of them.
    """

    outcomes: tuple[Outcome, ...]
    unmetered: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Each outcome in a sentence, one a line."""
        lines = [outcome.sentence for outcome in self.outcomes]
        if self.unmetered:
            count = len(self.unmetered)
            who, where = ("thread was", "it") if count == 1 else ("threads were", "them")
            lines.append(f"{count:,} {who} not metered: no guard ran in {where}")
        return "\n".join(lines)
