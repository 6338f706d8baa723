"""`SqliteLedger`: accounts in a file, for all threads and processes of one machine."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from graphguard.errors import HoldMismatch
from graphguard.ledger import sqlite_queries
from graphguard.ledger.admission import assumed, scopes_of, why_not
from graphguard.ledger.leases import Leases
from graphguard.ledger.protocol import Hold, Refusal
from graphguard.ledger.queries import Which
from graphguard.ledger.records import (
    AMOUNTS,
    NARROWING,
    amounts,
    call_from_text,
    call_to_text,
    charge_from_text,
    charge_to_text,
    narrowing,
    same_call,
)
from graphguard.ledger.sharing import leave, writer_of
from graphguard.ledger.sqlite_file import connect
from graphguard.ledger.sqlite_pruning import prune
from graphguard.ledger.waiting import ain_turn, in_turn
from graphguard.spend import ZERO, Charge, Spend

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Iterable

    from graphguard.budget import Call, Claim
    from graphguard.ledger.writer import Writer

__all__ = ["SqliteLedger"]

T = TypeVar("T")

_POLL: Final = 0.1  # seconds; other processes don't tell when they make room
_SWEEP_EVERY: Final = 5.0
_SWEPT_AT_ONCE: Final = 200
_PRUNED_AT_ONCE: Final = 200
_DAY: Final = 86_400
_UNKNOWN: Final[tuple[str | None, str | None, float | None, str | None]] = (None, None, None, None)

_FIND: Final = "SELECT state, call, expires, charge FROM attempts WHERE id = ?"
_EXPIRED: Final = "SELECT id, call, waited FROM attempts WHERE state = 'held' AND expires <= ? ORDER BY expires LIMIT ?"
_HOLD: Final = (
    "INSERT INTO attempts (id, state, call, expires, time) VALUES (?, 'held', ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_WAITED: Final = "UPDATE attempts SET waited = ? WHERE id = ?"
_RENEW: Final = "UPDATE attempts SET expires = ? WHERE id = ? AND state = 'held'"
_RELEASE: Final = "UPDATE attempts SET state = 'released', expires = NULL, charge = NULL, time = ? WHERE id = ?"
_COLUMNS: Final = ("state", "expires", "charge", *AMOUNTS, *NARROWING, "time")
_SETTLE: Final = f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in _COLUMNS)} WHERE id = ? AND state = 'held'"  # noqa: S608 - made of constants, as below
_CHARGE: Final = (
    f"INSERT INTO attempts ({', '.join(_COLUMNS)}, id) VALUES ({', '.join('?' * len(_COLUMNS))}, ?) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


class SqliteLedger:
    """A ledger in a SQLite file: for one machine, all its threads and processes, and across crashes.

    What it answered survives kill -9. It is as durable as the disk against power failures, but for the
    last moments. Not for network file systems, whose locks SQLite can't rely on.

    Args:
        path: The file, made if there is none.
        wait: Seconds a call waits for others' holds to settle when that may make room.
        lease: Seconds after which a hold is charged whose process is gone; living ones renew theirs.
        keep_days: Days after which an attempt that is over can't be repeated or corrected any more, and what it
            counted in the account of its superstep is forgotten. Charges and all other sums stay for ever.
        patience: Seconds to wait for other processes' transactions before `LedgerUnavailable`.
        clock: Seconds since the epoch.

    Raises:
        LedgerUnavailable: The file can't be used, is another program's, or a newer version's.

    >>> import tempfile
    >>> from graphguard.budget import Call
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with SqliteLedger(Path(folder, "calls.sqlite")) as ledger:
    ...         hold = ledger.hold(Call.of("r1", node="plan", usd="0.02"))
    ...         ledger.settle("r1", Charge(id="r1", nanousd=15_000_000)).usd
    Decimal('0.015')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        wait: float = 10.0,
        lease: float = 60.0,
        keep_days: float = 30.0,
        patience: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, or make it."""
        self.path = Path(path).resolve()
        self.wait = wait
        self.lease = lease
        self.keep_days = keep_days
        self._clock = clock
        self._swept = time.monotonic()
        self._leases = Leases(self.renew, every=lease / 3)
        self._calls: dict[str, Call] = {}  # held here, so that their settles needn't read them back
        self._writer = writer_of(self.path, connect, patience=patience)
        self._balances = self._writer.file.balances
        # Runs when the ledger is forgotten, and at the latest when the process ends.
        self._closing = weakref.finalize(self, _close, self._writer, self._leases)
        try:
            self._writer.run(lambda _: None)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Finish what is under way and close the file; what is held here stays held until its lease ends."""
        self._closing()

    def __enter__(self) -> Self:
        """Itself, to be closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"SqliteLedger({str(self.path)!r})"

    def now(self) -> float:
        """The time; see `Ledger.now`."""
        return self._clock()

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""

        def attempt(only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `in_turn`'s form
            work = functools.partial(self._hold, call, only_known, waited)
            return self._writer.run(work, self._unhold, sums=True)[0]

        seconds = self.wait if wait is None else wait
        return self._kept(in_turn(self._writer.line, call, seconds, attempt, poll=_POLL))

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, without blocking the event loop; see `Ledger.hold`."""

        async def attempt(only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `ain_turn`'s form
            work = functools.partial(self._hold, call, only_known, waited)
            return (await self._writer.arun(work, self._unhold, sums=True))[0]

        seconds = self.wait if wait is None else wait
        return self._kept(await ain_turn(self._writer.line, call, seconds, attempt, poll=_POLL))

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call even when all holds are given back; see `Ledger.room`."""
        return self._writer.run(functools.partial(self._room, call), sums=True)

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(self._room, call), sums=True)

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        return self._writer.run(functools.partial(self._balance, claim), sums=True)

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(self._balance, claim), sums=True)

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; see `Ledger.settle`."""
        settled = self._writer.run(functools.partial(self._settle, id, charge), sums=True)
        self._ended(id)
        return settled

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """The same on an event loop."""
        settled = await self._writer.arun(functools.partial(self._settle, id, charge), sums=True)
        self._ended(id)
        return settled

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back; see `Ledger.release`."""
        self._writer.run(functools.partial(self._release, id), sums=True)
        self._ended(id)

    async def arelease(self, id: str) -> None:  # noqa: A002
        """The same on an event loop."""
        await self._writer.arun(functools.partial(self._release, id), sums=True)
        self._ended(id)

    def renew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Begin the leases of these holds anew; see `Ledger.renew`."""
        return self._writer.run(functools.partial(self._renew, tuple(ids)))

    async def arenew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(self._renew, tuple(ids)))

    def sweep(self) -> tuple[Charge, ...]:
        """Charge the holds whose leases have ended, see `Ledger.sweep`; and forget what was over long ago."""
        swept: list[Charge] = []
        while some := self._writer.run(self._sweep, sums=True):
            swept += some
        while self._writer.run(self._prune):
            pass
        return tuple(swept)

    async def asweep(self) -> tuple[Charge, ...]:
        """The same on an event loop."""
        swept: list[Charge] = []
        while some := await self._writer.arun(self._sweep, sums=True):
            swept += some
        while await self._writer.arun(self._prune):
            pass
        return tuple(swept)

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        return self._writer.read(functools.partial(sqlite_queries.total, Which.of(where, since, until)))

    async def atotal(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The same on an event loop."""
        return await asyncio.to_thread(self.total, since=since, until=until, **where)

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges; see `Ledger.totals`."""
        return self._writer.read(functools.partial(sqlite_queries.totals, by, Which.of(where, since, until)))

    async def atotals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.totals, by, since=since, until=until, **where)

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        return self._writer.read(functools.partial(sqlite_queries.charges, Which.of(where, since, until), last))

    async def acharges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.charges, since=since, until=until, last=last, **where)

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released, of all processes."""
        return self._writer.read(sqlite_queries.open_holds)

    async def aopen_holds(self) -> tuple[Hold, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.open_holds)

    def _kept(self, answer: Hold | Refusal) -> Hold | Refusal:
        if isinstance(answer, Hold) and answer.expires is not None:
            self._calls[answer.id] = answer.call
            self._leases.add(answer.id)
        return answer

    def _ended(self, id: str) -> None:  # noqa: A002
        self._calls.pop(id, None)
        self._leases.drop(id)

    # What follows runs in the thread that writes, inside a transaction.

    def _hold(
        self,
        call: Call,
        only_known: bool,  # noqa: FBT001 - `in_turn`'s form
        waited: float,
        db: sqlite3.Cursor,
    ) -> tuple[Hold | Refusal | None, bool]:
        """The answer, and whether it is a new hold."""
        refusal = None
        if not only_known:
            if time.monotonic() - self._swept > _SWEEP_EVERY:
                self._swept = time.monotonic()
                self._sweep(db)
                if self._prune(db) == _PRUNED_AT_ONCE:  # there is more, and soon another hold
                    self._swept -= _SWEEP_EVERY * 0.98
            refusal = why_not(call, lambda claim: self._balance(claim, db))
            if refusal is None:
                now = self._clock()
                expires = now + self.lease
                if db.execute(_HOLD, (call.id, call_to_text(call), expires, now)).rowcount:
                    if waited:
                        db.execute(_WAITED, (waited, call.id))
                    for scope in scopes_of(call):
                        self._balances.change(scope, ZERO, call.worst)
                    return Hold(call, waited, expires, now), True
        if (row := db.execute(_FIND, (call.id,)).fetchone()) is None:
            return refusal, False
        state, text, expires, _ = row
        if text is not None and not same_call(text, call):
            raise HoldMismatch(call.id)
        return Hold(call, expires=expires if state == "held" else None), False

    def _unhold(self, result: tuple[Hold | Refusal | None, bool]) -> Callable[[sqlite3.Cursor], object]:
        """The work that takes a hold back, for a caller who is gone before the answer."""
        answer, is_new = result
        return functools.partial(self._release, answer.call.id) if answer and is_new else lambda _: None

    def _settle(self, id: str, charge: Charge, db: sqlite3.Cursor) -> Charge:  # noqa: A002
        state, spend = "assumed" if charge.assumed else "charged", charge.spend
        row = (state, None, charge_to_text(charge), *amounts(spend), *narrowing(charge), charge.time, id)
        call = self._calls.get(id)
        if call is not None and db.execute(_SETTLE, row).rowcount:  # nearly always: it was held here
            self._move(charge, call)
            return charge
        before, text, _, first = db.execute(_FIND, (id,)).fetchone() or _UNKNOWN
        if before in {"charged", "final"} and first is not None:
            return charge_from_text(first)
        db.execute(_CHARGE, row)
        self._move(charge, *_before(before, text, first))
        return charge

    def _release(self, id: str, db: sqlite3.Cursor) -> None:  # noqa: A002
        state, text, _, first = db.execute(_FIND, (id,)).fetchone() or _UNKNOWN
        if state in {"held", "assumed"}:
            db.execute(_RELEASE, (self._clock(), id))
            self._move(None, *_before(state, text, first))

    def _move(self, new: Charge | None, held: Call | None = None, old: Charge | None = None) -> None:
        """Change the accounts from a hold or an assumed charge to a new charge."""
        change = self._balances.change
        scopes = scopes_of(held) if held is not None else ()
        if held is not None:
            self._writer.freed(scopes)
            if new is not None and new.scopes == scopes:  # nearly always
                spend, given_back = new.spend, -held.worst
                for scope in scopes:
                    change(scope, spend, given_back)
                return
            for scope in scopes:
                change(scope, ZERO, -held.worst)
        if old is not None:
            self._writer.freed(old.scopes)
        for charge, spend in ((old, -old.spend if old else ZERO), (new, new.spend if new else ZERO)):
            for scope in charge.scopes if charge else ():
                change(scope, spend, ZERO)

    def _room(self, call: Call, db: sqlite3.Cursor) -> Refusal | None:
        return why_not(call, lambda claim: (self._balance(claim, db)[0], ZERO))

    def _balance(self, claim: Claim, db: sqlite3.Cursor) -> tuple[Spend, Spend]:
        spent, held = self._balances.of(claim.scope, db)
        if claim.floor is not ZERO and (least := spent.at_least(claim.floor)) != spent:
            self._balances.change(claim.scope, least + -spent, ZERO)
            spent = least
        return claim.base + spent, held

    def _renew(self, ids: tuple[str, ...], db: sqlite3.Cursor) -> tuple[str, ...]:
        expires = self._clock() + self.lease
        return tuple(id_ for id_ in ids if db.execute(_RENEW, (expires, id_)).rowcount)

    def _sweep(self, db: sqlite3.Cursor) -> list[Charge]:
        now = self._clock()
        swept = []
        for id_, text, waited in db.execute(_EXPIRED, (now, _SWEPT_AT_ONCE)).fetchall():
            charge = assumed(call_from_text(text), now=now, waited=waited)
            self._settle(id_, charge, db)
            swept.append(charge)
        return swept

    def _prune(self, db: sqlite3.Cursor) -> int:
        self._balances.write(db)
        return prune(self._clock() - self.keep_days * _DAY, _PRUNED_AT_ONCE, db)


def _before(state: str | None, call: str | None, charge: str | None) -> tuple[Call | None, Charge | None]:
    """What counts of an attempt until now: its hold, or its assumed charge."""
    return (
        call_from_text(call) if state == "held" and call is not None else None,
        charge_from_text(charge) if state == "assumed" and charge is not None else None,
    )


def _close(writer: Writer, leases: Leases) -> None:
    leases.close()
    leave(writer)
