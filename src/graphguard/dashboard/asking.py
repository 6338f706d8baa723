"""Threads as the dashboard asks for them: which wait for an answer, how they stand, and what a person said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Protocol, TypeAlias

from graphguard.budget import amount_text, progress_text
from graphguard.limits import limits_from_state
from graphguard.spend import NANO, Spend
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from graphguard.budget import Budget
    from graphguard.ledger_command.opening import Readable
    from graphguard.report.story import Story

__all__ = ["Answered", "Asker", "Book", "Question", "Refused", "Standing", "Threads", "decided", "standing"]


Book: TypeAlias = "Callable[[], AbstractContextManager[Readable]]"
"""Opens the ledger for one look, in the thread that looks."""


class Answered(Exception):
    """The question does not wait any more: somebody else was quicker, or the thread went on."""


class Refused(Exception):
    """The answer was not taken; the text says why, to a person."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who looks at the dashboard.

    Attributes:
        user: The server's authenticated user; None where nobody is told apart.
        everything: Whether other users' money is shown too.
        headers: What the server knows the user by, to ask it in the user's name.
    """

    user: str | None = None
    everything: bool = True
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def narrowed(self) -> dict[str, str | None]:
        """What charges are narrowed by for this person."""
        return {} if self.everything else {"user": self.user}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A trip that waits for an answer.

    Attributes:
        thread: The thread.
        id: LangGraph's id of the interrupt.
        trip: The trip.
        time: Since when, in ISO format.
        proposed: The limit that an approval means, in the metric's unit; None if it is not told.
        error: Why the last answer was not taken.
        going_on: Whether it was answered here, and the run is under way.
    """

    thread: str
    id: str
    trip: Trip
    time: str | None = None
    proposed: str | None = None
    error: str | None = None
    going_on: bool = False

    @classmethod
    def of(cls, thread: str, id: str, payload: object, time: str | None) -> Question | None:  # noqa: A002
        """The question that an interrupt's payload is; None if it is none of ours."""
        if not isinstance(payload, Mapping) or payload.get("kind") != "graphguard.budget":
            return None
        trip = Trip.of({"trip": payload.get("trip")})
        if trip is None:
            return None
        requests = payload.get("action_requests") or [{}]
        limit = (requests[0].get("args") or {}).get(f"new_limit_{trip.metric}")
        error = payload.get("error")
        return cls(
            thread=thread,
            id=id,
            trip=trip,
            time=time,
            proposed=None if limit is None else f"{Decimal(str(limit)):f}",
            error=error and str(error),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a thread stands against its tightest budget."""

    metric: str
    spent: int
    limit: int

    @property
    def share(self) -> float:
        """Spent of the limit, from 0 to 1."""
        return min(self.spent / self.limit, 1.0) if self.limit > 0 else 1.0

    @property
    def text(self) -> str:
        """Spent of limit, as people read it."""
        return progress_text(self.metric, self.spent, self.limit)


class Threads(Protocol):
    """Where threads are kept, asked in the name of who looks."""

    answers: bool
    """Whether it can take answers at all."""

    async def waiting(self, asker: Asker) -> Sequence[Question]:
        """The questions that wait, the oldest first."""
        ...

    async def standings(self, asker: Asker, threads: Sequence[str]) -> Mapping[str, Standing]:
        """How these threads stand, those of which it is known."""
        ...

    async def story(self, asker: Asker, thread: str, book: Book) -> Story:
        """One thread's story.

        Raises:
            HistoryUnavailable: It has none, or none for this person.
        """
        ...

    async def answer(self, asker: Asker, thread: str, question: str, answer: object) -> None:
        """Answer, and let the run go on without waiting for its end.

        Raises:
            Answered: The question does not wait any more.
            Refused: It can't be answered, or not by this person.
        """
        ...

    async def close(self) -> None:
        """Let go of everything: the dashboard ends."""
        ...


def decided(decision: str, trip: Trip, limit: str) -> object:
    """What a person's decision is as the answer to a trip's question.

    Args:
        decision: `"approve"`, `"edit"` or `"stop"`.
        trip: What it is about.
        limit: The new limit as it was typed, for `"edit"`.

    Raises:
        Refused: It is none, or no limit above what is spent.
    """
    if decision in {"approve", "stop"}:
        return decision
    if decision != "edit":
        raise Refused(f"{decision!r} is no decision; send approve, edit or stop")
    typed = limit.strip().removeprefix("$").replace(",", "").replace("_", "")
    try:
        amount = Decimal(typed) * (NANO if trip.metric == "usd" else 1)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise Refused(
            f"{limit!r} is no number; write an amount such as {Decimal('0.50') if trip.metric == 'usd' else 50}"
        )
    if amount <= max(trip.spent, trip.limit):
        least = amount_text(trip.metric, max(trip.spent, trip.limit))
        raise Refused(f"the new limit must be more than {least}, got {limit!r}")
    return {f"new_limit_{trip.metric}": typed}


def standing(values: object, budgets: Iterable[Budget] = ()) -> Standing | None:
    """How a thread stands by its state: against the tightest of the budgets that live there, or its trip's."""
    spend = values.get("spend") if isinstance(values, Mapping) else None
    if not isinstance(spend, Mapping):
        return None
    trip = Trip.of(values)
    if trip is not None and trip.answer is None and trip.kind != "policy":
        return Standing(metric=trip.metric, spent=trip.spent, limit=trip.limit)
    run = spend.get("run")
    found: list[Standing] = []
    for budget in budgets:
        if not budget.in_state or budget.narrowed:
            continue
        place = run if budget.per == "run" else spend
        place = place if isinstance(place, Mapping) else {}
        raised = limits_from_state((place.get("limits") or {}).get(budget.key) or {})
        for metric, limit in budget.limits.items():
            spent = Spend.of({"spend": place}).amount(metric)
            found.append(Standing(metric=metric, spent=spent, limit=max(raised.get(metric, 0), limit)))
    # Beyond a limit without a trip: the thread ran with other budgets than these.
    fitting = (each for each in found if each.spent <= each.limit)
    return max(fitting, key=lambda each: each.share, default=None)
