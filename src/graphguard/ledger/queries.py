"""What ledgers are asked about their charges: which ones, and summed by what. Pure, the same for every database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from graphguard.accounts import STEP
from graphguard.ledger.records import NARROWING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphguard.spend import Charge, Spend

__all__ = ["GROUPS", "STEP", "STEP_END", "Which", "check_group", "groups_of", "ordered"]

GROUPS: Final = (*NARROWING, "scope", "day")
"""What `totals` can sum by; days are those of UTC."""

STEP_END: Final = "step;"
"""The first name that sorts behind all of them."""


@dataclass(frozen=True, slots=True)
class Which:
    """Which charges are meant.

    Attributes:
        where: What they say of `NARROWING` and the account they count in (`scope`); None means that they
            say nothing of it.
        since: Settled at this time or later, in seconds since the epoch.
        until: Settled before this time.
    """

    where: Mapping[str, str | None]
    since: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, where: Mapping[str, str | None], since: float | None = None, until: float | None = None) -> Self:
        """Check the words.

        Raises:
            TypeError: Charges can't be narrowed by one of them; as a call with an unknown keyword would.
        """
        if unknown := set(where) - {*NARROWING, "scope"}:
            words = [*NARROWING, "scope", "since", "until"]
            msg = f"charges can be narrowed by {words!r}, not by {sorted(unknown)!r}"
            raise TypeError(msg)
        return cls(where, since, until)

    @property
    def account(self) -> str | None:
        """The account, if all its charges are meant and no others: accounts know their sums."""
        return self.where.get("scope") if set(self.where) == {"scope"} and not self.timed else None

    @property
    def timed(self) -> bool:
        """Whether the time matters."""
        return self.since is not None or self.until is not None

    @property
    def everything(self) -> bool:
        """Whether all charges are meant."""
        return not self.where and not self.timed

    def has(self, charge: Charge) -> bool:
        """Whether a charge is meant."""
        return (
            all(getattr(charge, name) == value for name, value in self.where.items() if name != "scope")
            and ("scope" not in self.where or self.where["scope"] in charge.scopes)
            and (self.since is None or charge.time >= self.since)
            and (self.until is None or charge.time < self.until)
        )

    def condition(self, *, value: str, in_scope: str) -> tuple[str, tuple[str | float, ...]]:
        """It in SQL, and the values to bind, over a table of attempts.

        Args:
            value: How a bound value is written.
            in_scope: The condition that one bound value is among the charge's accounts.
        """
        # The first words are those of the indices; `IS ?` or IS NOT DISTINCT FROM could not use one.
        parts, values = ["state <> 'held'", "charge IS NOT NULL"], list[str | float]()
        for name, wanted in self.where.items():
            if name == "scope":
                parts.append(in_scope)
                values.append(wanted or "")
            elif wanted is None:
                parts.append(f'"{name}" IS NULL')
            else:
                parts.append(f'"{name}" = {value}')
                values.append(wanted)
        for bound, sign in ((self.since, ">="), (self.until, "<")):
            if bound is not None:
                parts.append(f"time {sign} {value}")
                values.append(bound)
        return " AND ".join(parts), tuple(values)


def check_group(by: str) -> None:
    """Refuse a word that charges can't be summed by.

    Raises:
        ValueError: It is none of `GROUPS`.
    """
    if by not in GROUPS:
        msg = f"charges can be summed by {list(GROUPS)!r}, not by {by!r}"
        raise ValueError(msg)


def ordered(by: str, sums: Iterable[tuple[str | None, Spend]]) -> dict[str | None, Spend]:
    """Sums as people want to see them: days one after the other, all else the most expensive first."""
    if by == "day":
        return dict(sorted(sums, key=lambda item: item[0] or ""))
    return dict(sorted(sums, key=lambda item: (-item[1].nanousd, -item[1].calls, item[0] or "")))


def groups_of(by: str, charge: Charge) -> Sequence[str | None]:
    """Under what a charge counts in such sums."""
    if by == "day":
        return [datetime.fromtimestamp(charge.time, UTC).date().isoformat()]
    if by == "scope":
        return [scope for scope in charge.scopes if not scope.startswith(STEP)]
    value: str | None = getattr(charge, by)
    return [value]
