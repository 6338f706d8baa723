"""`MemoryLedger`: accounts in this process's memory, behind one lock."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from graphguard.errors import HoldMismatch
from graphguard.ledger.admission import assumed, scopes_of, why_not
from graphguard.ledger.protocol import Hold, Refusal
from graphguard.ledger.queries import STEP, Which, check_group, groups_of, ordered
from graphguard.ledger.waiting import Line, ain_turn, in_turn
from graphguard.spend import ZERO as _ZERO
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from graphguard.budget import Call, Claim

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """A ledger that lives as long as its process.

    Args:
        wait: Seconds a call waits for others' holds to settle when that may make room.
        keep: Single charges and finished ids kept for `charges()` and repeats. Sums by account are
            exact without them; sums by node, model, run or task reach as far back as they do.
        lease: Seconds after which a hold is charged at its worst case unless it was renewed. None is never:
            whoever holds here ends together with the ledger.
        clock: Seconds since the epoch.

    >>> from graphguard.budget import Call
    >>> ledger = MemoryLedger()
    >>> hold = ledger.hold(Call.of("r1", node="plan", usd="0.02"))
    >>> hold.usd
    Decimal('0.02')
    >>> ledger.settle("r1", Charge(id="r1", nanousd=15_000_000)).usd, ledger.open_holds()
    (Decimal('0.015'), ())
    """

    def __init__(
        self,
        *,
        wait: float = 10.0,
        keep: int = 100_000,
        lease: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open an empty ledger."""
        self.wait = wait
        self.lease = lease
        self._clock = clock
        self._first_to_expire = math.inf
        self._keep = keep
        self._lock = threading.Lock()
        self._spent: dict[str, Spend] = {}
        self._steps: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, Spend] = {}
        self._holds: dict[str, Hold] = {}
        self._done: OrderedDict[str, tuple[Call | None, Charge | None]] = OrderedDict()
        self._charges: deque[Charge] = deque(maxlen=keep)
        self._threads: defaultdict[str, Spend] = defaultdict(Spend)
        self._total = _ZERO
        self._waiters = Line()

    def now(self) -> float:
        """The time; see `Ledger.now`."""
        return self._clock()

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""
        return in_turn(self._waiters, call, self.wait if wait is None else wait, functools.partial(self._try, call))

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, without blocking the event loop; see `Ledger.hold`."""

        async def attempt(only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `ain_turn`'s form
            return self._try(call, only_known, waited)

        return await ain_turn(self._waiters, call, self.wait if wait is None else wait, attempt)

    def _try(self, call: Call, only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `in_turn`'s form
        with self._lock:
            known = self._holds.get(call.id)
            if known is not None or call.id in self._done:
                before = known.call if known else self._done[call.id][0]
                if before is not None and (before.worst, before.claims) != (call.worst, call.claims):
                    raise HoldMismatch(call.id)
                return known or Hold(call)
            if only_known:
                return None
            if self.lease is not None and self._clock() >= self._first_to_expire:
                self._sweep()
            if refusal := why_not(call, self._balance):
                return refusal
            for scope in scopes_of(call):
                self._held[scope] = self._held.get(scope, _ZERO) + call.worst
            hold = self._holds[call.id] = Hold(call, waited, self._expiry(), self._clock())
            return hold

    def _expiry(self) -> float | None:
        if self.lease is None:
            return None
        expires = self._clock() + self.lease
        self._first_to_expire = min(self._first_to_expire, expires)
        return expires

    def _balance(self, claim: Claim) -> tuple[Spend, Spend]:
        spent = self._spent.get(claim.scope, _ZERO)
        if claim.floor is not _ZERO and claim.floor != _ZERO:
            spent = self._spent[claim.scope] = spent.at_least(claim.floor)
        return claim.base + spent, self._held.get(claim.scope, _ZERO)

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call even when all holds are given back; see `Ledger.room`."""
        with self._lock:
            return why_not(call, lambda claim: (self._balance(claim)[0], _ZERO))

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        return self.room(call)

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        with self._lock:
            return self._balance(claim)

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        return self.balance(claim)

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; see `Ledger.settle`."""
        with self._lock:
            hold = self._holds.pop(id, None)
            call, first = (hold.call, None) if hold else self._done.get(id, (None, None))
            if first is not None and not first.assumed:
                return first
            scopes = self._take_back(id, hold, first)
            self._charge(id, call, charge)
        self._waiters.stir(scopes)
        return charge

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """The same on an event loop."""
        return self.settle(id, charge)

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back; see `Ledger.release`."""
        with self._lock:
            hold = self._holds.pop(id, None)
            call, first = (hold.call, None) if hold else self._done.get(id, (None, None))
            if hold is None and (first is None or not first.assumed):
                return
            scopes = self._take_back(id, hold, first)
            self._finish(id, call, None)
        self._waiters.stir(scopes)

    async def arelease(self, id: str) -> None:  # noqa: A002
        """The same on an event loop."""
        self.release(id)

    def renew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Begin the leases of these holds anew; see `Ledger.renew`."""
        with self._lock:
            held = tuple(id_ for id_ in ids if id_ in self._holds)
            for id_ in held:
                self._holds[id_] = replace(self._holds[id_], expires=self._expiry())
            return held

    async def arenew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The same on an event loop."""
        return self.renew(ids)

    def sweep(self) -> tuple[Charge, ...]:
        """Charge the holds whose leases have ended; without a lease, nothing: they end with the process."""
        with self._lock:
            swept = self._sweep()
        self._waiters.stir(tuple({scope for charge in swept for scope in charge.scopes}))
        return swept

    async def asweep(self) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return self.sweep()

    def _sweep(self) -> tuple[Charge, ...]:
        now = self._clock()
        swept = []
        for hold in [hold for hold in self._holds.values() if hold.expires is not None and hold.expires <= now]:
            charge = assumed(hold.call, now=now, waited=hold.waited)
            self._take_back(hold.id, self._holds.pop(hold.id), None)
            self._charge(hold.id, hold.call, charge)
            swept.append(charge)
        left = [hold.expires for hold in self._holds.values() if hold.expires is not None]
        self._first_to_expire = min(left, default=math.inf)
        return tuple(swept)

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        which = Which.of(where, since, until)
        with self._lock:
            if which.everything:
                return self._total
            if which.account is not None:
                return self._spent.get(which.account, _ZERO)
            if not which.timed and set(where) == {"thread"} and where["thread"] is not None:
                return self._threads.get(where["thread"], _ZERO)
        return Spend.total(self._chosen(which))

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges; see `Ledger.totals`."""
        check_group(by)
        which = Which.of(where, since, until)
        sums: defaultdict[str | None, Spend] = defaultdict(Spend)
        if by == "scope" and which.everything:
            with self._lock:
                sums.update((name, spent) for name, spent in self._spent.items() if not name.startswith(STEP))
        else:
            for charge in self._chosen(which):
                for name in groups_of(by, charge):
                    sums[name] += charge.spend
        return ordered(by, sums.items())

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        chosen = sorted(self._chosen(Which.of(where, since, until)), key=lambda charge: charge.time)
        return tuple(chosen if last is None else chosen[max(len(chosen) - last, 0) :])

    def _chosen(self, which: Which) -> list[Charge]:
        with self._lock:
            kept = tuple(self._charges)
        return [charge for charge in kept if which.has(charge)]

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released."""
        with self._lock:
            return tuple(self._holds.values())

    async def atotal(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The same on an event loop."""
        return self.total(since=since, until=until, **where)

    async def atotals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """The same on an event loop."""
        return self.totals(by, since=since, until=until, **where)

    async def acharges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return self.charges(since=since, until=until, last=last, **where)

    async def aopen_holds(self) -> tuple[Hold, ...]:
        """The same on an event loop."""
        return self.open_holds()

    def _take_back(self, id: str, hold: Hold | None, charge: Charge | None) -> tuple[str, ...]:  # noqa: A002
        """Undo a hold or an assumed charge; the accounts where that may make room."""
        if charge is not None:
            self._count(charge.scopes, charge.thread, -charge.spend)
            self._charges = deque((c for c in self._charges if c.id != id), maxlen=self._keep)
        if hold is None:
            return charge.scopes if charge else ()
        scopes = scopes_of(hold.call)
        for scope in scopes:
            held = self._held[scope]
            left = _ZERO if held is hold.call.worst else held + -hold.call.worst
            if left == _ZERO:
                del self._held[scope]
            else:
                self._held[scope] = left
        return scopes

    def _charge(self, id: str, call: Call | None, charge: Charge) -> None:  # noqa: A002
        self._count(charge.scopes, charge.thread, charge.spend)
        self._charges.append(charge)
        self._finish(id, call, charge)

    def _count(self, scopes: tuple[str, ...], thread: str | None, spend: Spend) -> None:
        self._total += spend
        if thread is not None:
            self._threads[thread] += spend
        for scope in scopes:
            self._spent[scope] = self._spent.get(scope, _ZERO) + spend
            if scope.startswith(STEP):
                self._steps[scope] = None
                self._steps.move_to_end(scope)
        # Accounts of single supersteps are never asked for again once their successor runs; all others are.
        while len(self._steps) > self._keep:
            del self._spent[self._steps.popitem(last=False)[0]]

    def _finish(self, id: str, call: Call | None, charge: Charge | None) -> None:  # noqa: A002
        self._done[id] = (call, charge)
        while len(self._done) > self._keep:
            self._done.popitem(last=False)
