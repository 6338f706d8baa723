"""The question that a trip puts to a person, and who answers it: a person, a flag, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, TypeAlias

from rich.text import Text

from graphguard.budget import amount_text
from graphguard.demo.mistakes import WrongUse
from graphguard.spend import NANO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Asker",
    "NobodyToAsk",
    "Question",
    "ask_nobody",
    "ask_person",
    "budget_text",
    "money",
    "say_no",
    "say_yes_once",
    "usd_amount",
]


def budget_text(usd: Decimal) -> str:
    """Give a limit as people write it.

    >>> budget_text(Decimal("0.050"))
    '$0.05'
    """
    return amount_text("usd", int(usd * NANO))


def money(usd: Decimal) -> str:
    """Give an amount spent, with enough digits to see small ones.

    >>> money(Decimal("0.04216")), money(Decimal("0.0000123"))
    ('$0.0422', '$0.000012')
    """
    return f"${usd:.6f}" if 0 < usd < Decimal("0.0005") else f"${usd:.4f}"


def usd_amount(text: str) -> Decimal | None:
    """Give the amount that somebody typed, or None if it isn't one.

    >>> usd_amount("$0.20"), usd_amount("lots"), usd_amount("-1")
    (Decimal('0.20'), None, None)
    """
    try:
        usd = Decimal(text.strip().removeprefix("$").strip())
    except InvalidOperation:
        return None
    return usd if usd.is_finite() and usd * NANO >= 1 else None


@dataclass(frozen=True)
class Question:
    """What a tripped run asks: may it go on, and up to which limit?

    Attributes:
        nth: 1 for the first question of a run, 2 for the next.
        spent_usd: Spent so far.
        limit_usd: The limit that was reached.
        suggested_usd: The new limit that yes stands for.
    """

    nth: int
    spent_usd: Decimal
    limit_usd: Decimal
    suggested_usd: Decimal

    @classmethod
    def of(cls, payload: Mapping[str, object], *, nth: int) -> Question:
        """Give the question in an interrupt's payload."""
        limit = Decimal(str(payload["limit_usd"]))
        suggested = payload
        requests = payload.get("action_requests")
        if isinstance(requests, list) and requests and isinstance(requests[0].get("args"), Mapping):
            suggested = requests[0]["args"]
        return cls(
            nth=nth,
            spent_usd=Decimal(str(payload["spend_usd"])),
            limit_usd=limit,
            suggested_usd=Decimal(str(suggested.get("new_limit_usd", 2 * limit))),
        )

    @property
    def reason(self) -> str:
        """What was reached, from the payload alone."""
        return f"{budget_text(self.spent_usd)} of {budget_text(self.limit_usd)} spent, no room for the next call"

    @property
    def text(self) -> str:
        """The question in words. Enter means yes the first time, and no from then on."""
        choices = "Y/n/amount" if self.nth == 1 else "y/N/amount"
        return f"Raise the budget to {budget_text(self.suggested_usd)}? [{choices}]"

    def read(self, typed: str) -> Decimal | str:
        """Give the limit that an answer stands for: 0 for no, and a sentence for one that can't be read."""
        word = typed.strip().lower()
        if word in {"y", "yes"} or (not word and self.nth == 1):
            return self.suggested_usd
        if word in {"n", "no"} or not word:
            return Decimal(0)
        amount = usd_amount(word)
        if amount is None or amount <= self.limit_usd:
            return f"Please answer y, n, or an amount above {budget_text(self.limit_usd)}."
        return amount

    def resume(self, new_limit_usd: Decimal | None) -> object:
        """Give the answer as the graph takes it, in `Command(resume=...)`."""
        if new_limit_usd is None:
            return "stop"
        if new_limit_usd == self.suggested_usd:
            return {"decisions": [{"type": "approve"}]}
        return float(new_limit_usd)


Asker: TypeAlias = Callable[[Question], Decimal | None]
"""Who answers: given the question, the new limit in USD, or None to stop."""


class NobodyToAsk(WrongUse):
    """A run waits for an answer, and there is no terminal to ask on."""

    def __init__(
        self,
        problem: str = "nobody to ask, as this is not a terminal; the run waits in its checkpoint file; "
        "pass --yes to raise the budget once, --no to stop there, or --on-trip end",
    ) -> None:
        """Say what to pass."""
        super().__init__(problem)


def ask_person(console: Console) -> Asker:
    """Give one who asks the person at the terminal, until the answer can be read."""

    def ask(question: Question) -> Decimal | None:
        while True:
            try:
                answer = question.read(console.input(Text(f"{question.text} ", style="bold")))
            except EOFError:
                console.print()
                return None
            if isinstance(answer, Decimal):
                return answer or None
            console.print(answer, style="yellow")

    return ask


def say_yes_once(console: Console) -> Asker:
    """Give one who agrees to the first raise, refuses the next, and shows both."""

    def ask(question: Question) -> Decimal | None:
        agreed = question.nth == 1
        console.print(Text(question.text, style="bold"), "yes (--yes)" if agreed else "no (--yes says yes once)")
        return question.suggested_usd if agreed else None

    return ask


def say_no(console: Console) -> Asker:
    """Give one who refuses, and shows it."""

    def ask(question: Question) -> Decimal | None:
        console.print(Text(question.text, style="bold"), "no (--no)")
        return None

    return ask


def ask_nobody(question: Question) -> Decimal | None:
    """Refuse to answer.

    Raises:
        NobodyToAsk: always.
    """
    del question
    raise NobodyToAsk
