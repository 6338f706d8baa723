"""What a ledger promises: hold before a call is sent, settle after, never forget in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from graphguard.spend import to_usd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from graphguard.budget import Breach, Call, Claim
    from graphguard.spend import Charge, Spend

__all__ = ["Hold", "Ledger", "Refusal"]


@dataclass(frozen=True, slots=True)
class Hold:
    """Room set aside for one call; counts as spent until it is settled or released.

    Attributes:
        call: The call, with the amounts held (`call.worst`) and the accounts (`call.claims`).
        waited: Seconds waited for room.
        expires: When its lease ends unless it is renewed, in seconds since the epoch; None is never.
        time: When it was made, as `open_holds` tells it; None is not known.
    """

    call: Call
    waited: float = 0.0
    expires: float | None = None
    time: float | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """The call's id."""
        return self.call.id

    @property
    def usd(self) -> Decimal:
        """Held, in USD."""
        return to_usd(self.call.worst.nanousd)


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room for a call.

    Attributes:
        call: The call.
        claim: The claim that has no room.
        breach: Why, with all amounts.
        waited: Seconds waited in vain.
    """

    call: Call
    claim: Claim
    breach: Breach
    waited: float = 0.0


@runtime_checkable
class Ledger(Protocol):
    """Accounts of real money, shared by everything that must not overspend together.

    The only comparison is `spent + held + worst case <= limit`, made for all claims of a call in one
    atomic step: the call is held in every account, or in none. Ids are minted by the caller for each
    attempt; a repeat answers with the first result, and the same id with other amounts or accounts is a
    `HoldMismatch`. Held and spent amounts are kept apart, so a charge may be more than its hold.

    A hold may have a lease. Past its end the owner counts as gone, and `sweep` charges the worst case,
    because most calls of a process that died were billed. Ledgers sweep by themselves too, now and then
    while they hold. A lease that ended too early does no harm: the settle that comes late replaces the charge.

    Every method is safe to call from any thread. The `a` methods are the same for event loops, which they
    never block. A ledger that can't answer raises `LedgerUnavailable`.

    `graphguard.testing.LedgerConformance` tries all of this on a ledger of your own.
    """

    def now(self) -> float:
        """The time by its clock, in seconds since the epoch; windows of budgets follow it. Never waits."""
        ...

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, waiting up to `wait` seconds for others to settle.

        `wait=None` takes the ledger's own time limit; 0 never waits. Refusals are not remembered: the
        same call may ask again.
        """
        ...

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """The same on an event loop; a task that is cancelled meanwhile holds nothing."""
        ...

    def room(self, call: Call) -> Refusal | None:
        """Why even without others' holds there is no room for a call, or None; holds nothing."""
        ...

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        ...

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now: spent and held."""
        ...

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        ...

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; without a hold, just charge `charge.scopes`.

        A later settle replaces an assumed charge (`charge.assumed`); any other repeat answers with the
        first charge. The charge given is itself returned when, and only when, it now counts.
        """
        ...

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """The same on an event loop; it is done even if the task is cancelled meanwhile."""
        ...

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back, or its assumed charge, for a call that was surely not billed.

        Unknown and settled ids are ignored.
        """
        ...

    async def arelease(self, id: str) -> None:  # noqa: A002
        """The same on an event loop; it is done even if the task is cancelled meanwhile."""
        ...

    def renew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Begin the leases of these holds anew; those of them that are still held."""
        ...

    async def arenew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The same on an event loop."""
        ...

    def sweep(self) -> tuple[Charge, ...]:
        """Charge the holds whose leases have ended, at their worst case; what was charged."""
        ...

    async def asweep(self) -> tuple[Charge, ...]:
        """The same on an event loop."""
        ...

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges.

        Args:
            since: Only those settled at this time or later, in seconds since the epoch.
            until: Only those settled before this time.
            **where: Only those of this `thread=`, `run=`, `node=`, `model=`, `task=`, `user=` or `scope=` (an
                account); None is for those that say nothing of it.
        """
        ...

    async def atotal(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The same on an event loop."""
        ...

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges, narrowed as in `total`.

        Args:
            by: `"thread"`, `"run"`, `"node"`, `"model"`, `"task"`, `"user"`, `"scope"` or `"day"`, which is one of
                UTC. A charge that names several accounts counts in each; accounts of single supersteps are left out.
            since: As in `total`.
            until: As in `total`.
            **where: As in `total`.

        Returns:
            The most expensive first; days one after the other.
        """
        ...

    async def atotals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """The same on an event loop."""
        ...

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges, oldest first, narrowed as in `total`; with `last`, so many of the latest."""
        ...

    async def acharges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The same on an event loop."""
        ...

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released, the oldest first."""
        ...

    async def aopen_holds(self) -> tuple[Hold, ...]:
        """The same on an event loop."""
        ...
