"""`TolerantLedger`: calls go on while another ledger can't answer, and are charged to it when it can again."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from graphguard.errors import LedgerUnavailable
from graphguard.ledger.memory import MemoryLedger
from graphguard.ledger.protocol import Hold
from graphguard.spend import Charge, Spend, usd_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graphguard.budget import Call, Claim
    from graphguard.ledger.protocol import Ledger, Refusal

__all__ = ["TolerantLedger"]

logger = logging.getLogger("graphguard")
_KEPT: Final = 10_000  # accounts whose last known amount is remembered
_T = TypeVar("_T")


class TolerantLedger:
    """What `guard(..., on_ledger_error="allow")` puts in front of a ledger.

    While the ledger can't answer, calls are held in this process's memory instead, against what was last known of
    their accounts; so a budget may be overspent by what other processes spend meanwhile, and by no more. What was
    spent is owed, and charged with the ledger's first answer. It is lost if this process ends before that.

    Args:
        ledger: The ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Begin with nothing owed."""
        self.ledger = ledger
        self._memory = MemoryLedger()
        self._lock = threading.Lock()
        self._here: set[str] = set()  # ids of calls that are held in memory
        self._owed: OrderedDict[str, Charge | None] = OrderedDict()  # None is a hold to release
        self._known: OrderedDict[str, Spend] = OrderedDict()
        self._down = False

    @property
    def owed(self) -> tuple[Charge, ...]:
        """What the ledger still has to be told, the oldest first."""
        with self._lock:
            return tuple(charge for charge in self._owed.values() if charge is not None)

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""
        try:
            self._pay()
            return self._answered(self.ledger.hold(call, wait=wait))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._held(self._memory.hold(self._as_known(call), wait=wait))

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """The same on an event loop."""
        try:
            await self._apay()
            return self._answered(await self.ledger.ahold(call, wait=wait))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._held(await self._memory.ahold(self._as_known(call), wait=wait))

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call; see `Ledger.room`."""
        try:
            self._pay()  # before the ledger takes the floors of the claims for what it has forgotten
            return self._answered(self.ledger.room(call))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._memory.room(self._as_known(call))

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        try:
            await self._apay()
            return self._answered(await self.ledger.aroom(call))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._memory.room(self._as_known(call))

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        try:
            self._pay()
            return self._learned(claim, self.ledger.balance(claim))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._memory.balance(self._claim_as_known(claim))

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        try:
            await self._apay()
            return self._learned(claim, await self.ledger.abalance(claim))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return self._memory.balance(self._claim_as_known(claim))

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002 - the protocol's
        """Replace a hold by what was really used; see `Ledger.settle`."""
        if id not in self._here:
            try:
                return self._answered(self.ledger.settle(id, charge))
            except LedgerUnavailable as problem:
                self._complain(problem)
        return self._owe(id, charge)

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002 - the protocol's
        """The same on an event loop."""
        if id not in self._here:
            try:
                return self._answered(await self.ledger.asettle(id, charge))
            except LedgerUnavailable as problem:
                self._complain(problem)
        return self._owe(id, charge)

    def release(self, id: str) -> None:  # noqa: A002 - the protocol's
        """Give a hold back; see `Ledger.release`."""
        if self._released_here(id):
            return
        try:
            self.ledger.release(id)
            self._answered(None)
        except LedgerUnavailable as problem:
            self._complain(problem)
            self._owe_release(id)

    async def arelease(self, id: str) -> None:  # noqa: A002 - the protocol's
        """The same on an event loop."""
        if self._released_here(id):
            return
        try:
            await self.ledger.arelease(id)
            self._answered(None)
        except LedgerUnavailable as problem:
            self._complain(problem)
            self._owe_release(id)

    def _complain(self, problem: LedgerUnavailable) -> None:
        if not self._down:
            logger.error("%s; calls go on without it, and are charged when it answers again", problem)
        self._down = True

    def _answered(self, answer: _T) -> _T:
        self._down = False
        return answer

    def _learned(self, claim: Claim, balance: tuple[Spend, Spend]) -> tuple[Spend, Spend]:
        with self._lock:
            self._known[claim.scope] = balance[0] + -claim.base
            self._known.move_to_end(claim.scope)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return self._answered(balance)

    def _claim_as_known(self, claim: Claim) -> Claim:
        known = self._known.get(claim.scope)
        return claim if known is None else replace(claim, floor=claim.floor.at_least(known))

    def _as_known(self, call: Call) -> Call:
        return replace(call, claims=tuple(map(self._claim_as_known, call.claims)))

    def _held(self, answer: Hold | Refusal) -> Hold | Refusal:
        if isinstance(answer, Hold):
            with self._lock:
                self._here.add(answer.id)
        return answer

    def _owe(self, id: str, charge: Charge) -> Charge:  # noqa: A002 - the protocol's
        known = self._memory.settle(id, charge)
        with self._lock:
            self._here.discard(id)
            if known is charge:
                self._owed[id] = charge
        return known

    def _released_here(self, id: str) -> bool:  # noqa: A002 - the protocol's
        with self._lock:
            here = id in self._here
            self._here.discard(id)
        if here:
            self._memory.release(id)
        return here

    def _owe_release(self, id: str) -> None:  # noqa: A002 - the protocol's
        with self._lock:
            self._owed.setdefault(id, None)

    def _pay(self) -> None:
        for id_, charge in self._debts():
            if charge is None:
                self.ledger.release(id_)
            else:
                self.ledger.settle(id_, charge)
            self._paid(id_)

    async def _apay(self) -> None:
        for id_, charge in self._debts():
            if charge is None:
                await self.ledger.arelease(id_)
            else:
                await self.ledger.asettle(id_, charge)
            self._paid(id_)

    def _debts(self) -> Iterator[tuple[str, Charge | None]]:
        # Whoever else pays the same at the same time does no harm: a repeat gets the first answer.
        with self._lock:
            debts = list(self._owed.items())
        yield from debts
        if debts:
            owed = sum(charge.nanousd for _, charge in debts if charge is not None)
            logger.warning("the ledger answers again; %d calls for $%s are charged to it", len(debts), usd_text(owed))

    def _paid(self, id: str) -> None:  # noqa: A002 - the protocol's
        with self._lock:
            self._owed.pop(id, None)

    def charges(self, **which: Any) -> tuple[Charge, ...]:  # noqa: ANN401 - the protocol's
        """The charges; see `Ledger.charges`. None while the ledger can't tell."""
        try:
            return self._answered(self.ledger.charges(**which))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return ()

    async def acharges(self, **which: Any) -> tuple[Charge, ...]:  # noqa: ANN401 - the protocol's
        """The same on an event loop."""
        try:
            return self._answered(await self.ledger.acharges(**which))
        except LedgerUnavailable as problem:
            self._complain(problem)
        return ()

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released; see `Ledger.open_holds`. None while the ledger can't tell."""
        try:
            return self._answered(self.ledger.open_holds())
        except LedgerUnavailable as problem:
            self._complain(problem)
        return ()

    async def aopen_holds(self) -> tuple[Hold, ...]:
        """The same on an event loop."""
        try:
            return self._answered(await self.ledger.aopen_holds())
        except LedgerUnavailable as problem:
            self._complain(problem)
        return ()

    # The rest is the ledger's alone: what it can't tell, nobody can.

    def __getattr__(self, name: str) -> Callable[..., object]:
        """Anything else that the ledger can do."""
        return getattr(self.ledger, name)  # type: ignore[no-any-return] # a ledger's methods
