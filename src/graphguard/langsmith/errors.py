"""The error by which `RecursiveTraceGuard` stops an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from graphguard.errors import BudgetExceeded
from graphguard.spend import usd_text

if TYPE_CHECKING:
    from graphguard.trip import Trip

__all__ = ["AgentBudgetError"]

_KINDS: Final = {"depth": "depth_exceeded", "calls": "call_budget_exceeded", "usd": "usd_budget_exceeded"}
_OPTIONS: Final = {"depth": "max_depth", "calls": "max_calls", "usd": "max_usd"}


class AgentBudgetError(BudgetExceeded):
    """A root trace has used up what its `RecursiveTraceGuard` allows, so a guarded function was not run.

    Being a `BudgetExceeded`, it is no failure for LangGraph's retries and tool nodes to handle.

    Attributes:
        trip: What ran out, with all amounts.
        run_id: Id of the LangSmith run that was refused; None when nothing was traced.
        trace_id: Id of the root trace; the guard's own where LangSmith has none.
    """

    def __init__(self, trip: Trip, run_id: str | None = None, trace_id: str | None = None) -> None:
        """Make the error of one trip."""
        super().__init__(trip)
        self.run_id = run_id
        self.trace_id = trace_id
        option = _OPTIONS.get(trip.metric, trip.metric)
        self.args = (
            f"RecursiveTraceGuard tripped: {self.reason}; answer with what there is, or allow more with {option}=",
        )

    @property
    def kind(self) -> str:
        """`"depth_exceeded"`, `"call_budget_exceeded"` or `"usd_budget_exceeded"`."""
        return _KINDS.get(self.trip.metric, f"{self.trip.metric}_exceeded")

    @property
    def limit(self) -> str:
        """The limit, as text; USD as a decimal number."""
        return self._text(self.trip.limit)

    @property
    def observed(self) -> str:
        """What had been used when the call was refused, as text."""
        return self._text(self.trip.spent)

    @property
    def label(self) -> str:
        """The function that was refused."""
        return self.trip.node or ""

    @property
    def reason(self) -> str:
        """The kind with both numbers."""
        return f"{self.kind} ({self.trip.metric}={self.observed}, max={self.limit})"

    def _text(self, amount: int) -> str:
        return usd_text(amount) if self.trip.metric == "usd" else str(amount)

    def to_json(self) -> dict[str, object]:
        """Everything as plain JSON types.

        >>> from graphguard import Trip
        >>> AgentBudgetError(Trip(budget="b", metric="calls", limit=25, spent=25, node="reflect")).to_json()["reason"]
        'call_budget_exceeded (calls=25, max=25)'
        """
        names = ("kind", "reason", "label", "limit", "observed", "run_id", "trace_id")
        return {**{name: getattr(self, name) for name in names}, "trip": self.trip.to_state()}

    def __reduce__(self) -> tuple[type[AgentBudgetError], tuple[Trip, str | None, str | None]]:  # type: ignore[override]
        """Rebuild from its parts, which are more than those of its base."""
        return type(self), (self.trip, self.run_id, self.trace_id)
