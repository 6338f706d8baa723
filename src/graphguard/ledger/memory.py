"""`MemoryLedger`: accounts in this process's memory, behind one lock."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from graphguard.budget import Breach
from graphguard.errors import HoldMismatch
from graphguard.ledger.protocol import Hold, Refusal
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphguard.budget import Call, Claim

__all__ = ["MemoryLedger"]

_ZERO = Spend()
_SUMMED = ("thread", "run", "node", "model", "task")


class MemoryLedger:
    """A ledger that lives as long as its process.

    Args:
        wait: Seconds a call waits for others' holds to settle when that may make room.
        keep: Single charges and finished ids kept for `charges()` and repeats. Sums by account are
            exact without them; sums by node, model, run or task reach as far back as they do.

    >>> from graphguard.budget import Call
    >>> ledger = MemoryLedger()
    >>> hold = ledger.hold(Call.of("r1", node="plan", usd="0.02"))
    >>> hold.usd
    Decimal('0.02')
    >>> ledger.settle("r1", Charge(id="r1", nanousd=15_000_000)).usd, ledger.open_holds()
    (Decimal('0.015'), ())
    """

    def __init__(self, *, wait: float = 10.0, keep: int = 100_000) -> None:
        """Open an empty ledger."""
        self.wait = wait
        self._keep = keep
        self._lock = threading.Lock()
        self._spent: OrderedDict[str, Spend] = OrderedDict()
        self._held: dict[str, Spend] = {}
        self._holds: dict[str, Hold] = {}
        self._done: OrderedDict[str, tuple[Call | None, Charge | None]] = OrderedDict()
        self._charges: deque[Charge] = deque(maxlen=keep)
        self._threads: defaultdict[str, Spend] = defaultdict(Spend)
        self._total = _ZERO
        self._waiters: list[Callable[[], object]] = []

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""
        begun = time.monotonic()
        until = begun + (self.wait if wait is None else wait)
        while True:
            woken = threading.Event()
            left = until - time.monotonic()
            answer = self._try(call, woken.set if left > 0 else None)
            if isinstance(answer, Hold) or answer.breach.kind != "held" or left <= 0:
                return replace(answer, waited=time.monotonic() - begun) if self._waited(begun) else answer
            try:
                woken.wait(left)
            finally:
                self._forget(woken.set)

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, without blocking the event loop; see `Ledger.hold`."""
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        until = begun + (self.wait if wait is None else wait)
        while True:
            woken = asyncio.Event()
            wake = functools.partial(_wake, loop, woken)
            left = until - time.monotonic()
            answer = self._try(call, wake if left > 0 else None)
            if isinstance(answer, Hold) or answer.breach.kind != "held" or left <= 0:
                return replace(answer, waited=time.monotonic() - begun) if self._waited(begun) else answer
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), left)
            finally:
                self._forget(wake)

    @staticmethod
    def _waited(begun: float) -> bool:
        return time.monotonic() - begun > 0.001  # noqa: PLR2004 - a millisecond is no waiting

    def _try(self, call: Call, wake: Callable[[], object] | None) -> Hold | Refusal:
        with self._lock:
            known = self._holds.get(call.id)
            before = known.call if known else self._done.get(call.id, (None, None))[0]
            if before is not None:
                if (before.worst, before.claims) != (call.worst, call.claims):
                    raise HoldMismatch(call.id)
                return known or Hold(before)
            for claim in call.claims:
                self._seed(claim)
            refusals = [refusal for claim in call.claims if (refusal := self._no_room(call, claim))]
            if refusals:
                # Money that is gone says more than money that is held; waiting can't bring it back.
                refusal = min(refusals, key=lambda r: r.breach.kind == "held")
                if refusal.breach.kind == "held" and wake is not None:
                    self._waiters.append(wake)
                return refusal
            for scope in {claim.scope for claim in call.claims}:
                self._held[scope] = self._held.get(scope, _ZERO) + call.worst
            hold = self._holds[call.id] = Hold(call)
            return hold

    def _seed(self, claim: Claim) -> None:
        if claim.floor != _ZERO:
            self._spent[claim.scope] = self._spent.get(claim.scope, _ZERO).at_least(claim.floor)

    def _no_room(self, call: Call, claim: Claim, *, holds: bool = True) -> Refusal | None:
        spent = claim.base + self._spent.get(claim.scope, _ZERO)
        held = self._held.get(claim.scope, _ZERO) if holds else _ZERO
        if spent.unpriced and "usd" in claim.limits:
            return self._refusal(call, claim, "usd", spent, held, kind="unpriced")
        for metric, limit in claim.limits.items():
            # An uncapped call's worst case is not known, but it may only start while something is left.
            needed = max(call.worst.amount(metric), 0 if call.capped else 1)
            if spent.amount(metric) + held.amount(metric) + needed > limit:
                kind = "held" if spent.amount(metric) + needed <= limit else "spent"
                return self._refusal(call, claim, metric, spent, held, kind=kind)
        return None

    @staticmethod
    def _refusal(call: Call, claim: Claim, metric: str, spent: Spend, held: Spend, *, kind: str) -> Refusal:
        breach = Breach(
            budget=claim.budget,
            metric=metric,
            limit=claim.limits[metric],
            spent=spent.amount(metric),
            held=held.amount(metric),
            needed=call.worst.amount(metric),
            kind=kind,
        )
        return Refusal(call, claim, breach)

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call even when all holds are given back; see `Ledger.room`."""
        with self._lock:
            for claim in call.claims:
                self._seed(claim)
                if refusal := self._no_room(call, claim, holds=False):
                    return refusal
        return None

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        with self._lock:
            self._seed(claim)
            return claim.base + self._spent.get(claim.scope, _ZERO), self._held.get(claim.scope, _ZERO)

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; see `Ledger.settle`."""
        with self._lock:
            hold = self._holds.pop(id, None)
            call, first = (hold.call, None) if hold else self._done.get(id, (None, None))
            if first is not None and not first.assumed:
                return first
            if hold:
                self._unhold(hold)
            if first is not None:
                self._count(first.scopes, first.thread, -first.spend)
                self._charges = deque((c for c in self._charges if c.id != id), maxlen=self._keep)
            self._count(charge.scopes, charge.thread, charge.spend)
            self._charges.append(charge)
            self._finish(id, call, charge)
            waiters = self._take_waiters()
        for wake in waiters:
            wake()
        return charge

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back; see `Ledger.release`."""
        with self._lock:
            hold = self._holds.pop(id, None)
            if hold is None:
                return
            self._unhold(hold)
            self._finish(id, hold.call, None)
            waiters = self._take_waiters()
        for wake in waiters:
            wake()

    def sweep(self) -> tuple[Charge, ...]:
        """Nothing: holds of this process end with it."""
        return ()

    def total(self, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        with self._lock:
            if not where:
                return self._total
            if set(where) == {"thread"}:
                return self._threads.get(str(where["thread"]), _ZERO)
            if set(where) == {"scope"}:
                return self._spent.get(str(where["scope"]), _ZERO)
        return Spend.total(self.charges(**where))

    def charges(self, **where: str | None) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        if unknown := set(where) - {*_SUMMED, "scope"}:
            msg = f"charges can be narrowed by {[*_SUMMED, 'scope']!r}, not by {sorted(unknown)!r}"
            raise TypeError(msg)
        scope = where.pop("scope", None)
        with self._lock:
            kept = tuple(self._charges)
        return tuple(
            charge
            for charge in kept
            if all(getattr(charge, name) == value for name, value in where.items())
            and (scope is None or scope in charge.scopes)
        )

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released."""
        with self._lock:
            return tuple(self._holds.values())

    def _unhold(self, hold: Hold) -> None:
        for scope in {claim.scope for claim in hold.call.claims}:
            left = self._held[scope] + -hold.call.worst
            if left == _ZERO:
                del self._held[scope]
            else:
                self._held[scope] = left

    def _count(self, scopes: tuple[str, ...], thread: str | None, spend: Spend) -> None:
        self._total += spend
        if thread is not None:
            self._threads[thread] += spend
        for scope in scopes:
            self._spent[scope] = self._spent.get(scope, _ZERO) + spend
            self._spent.move_to_end(scope)
        # Accounts of single supersteps are never asked for again once their successor runs.
        while len(self._spent) > self._keep:
            self._spent.popitem(last=False)

    def _finish(self, id: str, call: Call | None, charge: Charge | None) -> None:  # noqa: A002
        self._done[id] = (call, charge)
        while len(self._done) > self._keep:
            self._done.popitem(last=False)

    def _forget(self, wake: Callable[[], object]) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._waiters.remove(wake)

    def _take_waiters(self) -> list[Callable[[], object]]:
        waiters, self._waiters = self._waiters, []
        return waiters


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # that loop has ended, and whoever waited on it
        loop.call_soon_threadsafe(woken.set)
