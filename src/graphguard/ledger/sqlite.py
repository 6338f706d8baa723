"""`SqliteLedger`: accounts in a file, for all threads and processes of one machine."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from graphguard.errors import HoldMismatch
from graphguard.ledger.admission import assumed, scopes_of, why_not
from graphguard.ledger.leases import Leases
from graphguard.ledger.protocol import Hold, Refusal
from graphguard.ledger.records import (
    AMOUNTS,
    NARROWING,
    amounts,
    call_from_text,
    call_to_text,
    charge_from_text,
    charge_to_text,
    check_narrowing,
    narrowing,
    same_call,
    spend_from,
)
from graphguard.ledger.sqlite_file import COUNTED, connect
from graphguard.ledger.waiting import ain_turn, in_turn
from graphguard.ledger.writer import Writer
from graphguard.spend import ZERO, Charge, Spend

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Iterable

    from graphguard.budget import Call, Claim

__all__ = ["SqliteLedger"]

T = TypeVar("T")

_POLL: Final = 0.1  # seconds; other processes don't tell when they make room
_SWEEP_EVERY: Final = 5.0
_SWEPT_AT_ONCE: Final = 200
_UNKNOWN: Final[tuple[str | None, str | None, float | None, str | None]] = (None, None, None, None)
_IN_SCOPE: Final = "EXISTS (SELECT 1 FROM json_each(charge, '$.scopes') WHERE value = ?)"

_FIND: Final = "SELECT state, call, expires, charge FROM attempts WHERE id = ?"
_EXPIRED: Final = "SELECT id, call FROM attempts WHERE state = 'held' AND expires <= ? ORDER BY expires LIMIT ?"
_HOLD: Final = "INSERT INTO attempts (id, state, call, expires) VALUES (?, 'held', ?, ?)"
_RENEW: Final = "UPDATE attempts SET expires = ? WHERE id = ? AND state = 'held'"
_RELEASE: Final = "UPDATE attempts SET state = 'released', expires = NULL, charge = NULL WHERE id = ?"
_BALANCE: Final = f"SELECT {', '.join(COUNTED)} FROM accounts WHERE scope = ?"  # noqa: S608 - made of constants, as below
_ADD: Final = f"UPDATE accounts SET {', '.join(f'{name} = {name} + ?' for name in COUNTED)} WHERE scope = ?"  # noqa: S608
_OPEN: Final = f"INSERT INTO accounts ({', '.join(COUNTED)}, scope) VALUES ({', '.join('?' * len(COUNTED))}, ?)"  # noqa: S608
_COLUMNS: Final = ("state", "expires", "charge", *AMOUNTS, *NARROWING, "time")
_SETTLE: Final = f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in _COLUMNS)} WHERE id = ? AND state = 'held'"  # noqa: S608
_CHARGE: Final = (
    f"INSERT INTO attempts ({', '.join(_COLUMNS)}, id) VALUES ({', '.join('?' * len(_COLUMNS))}, ?) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)
_NOTHING: Final = (ZERO, ZERO)


class SqliteLedger:
    """A ledger in a SQLite file: for one machine, all its threads and processes, and across crashes.

    What it answered survives kill -9. It is as durable as the disk against power failures, but for the
    last moments. Not for network file systems, whose locks SQLite can't rely on.

    Args:
        path: The file, made if there is none.
        wait: Seconds a call waits for others' holds to settle when that may make room.
        lease: Seconds after which a hold is charged whose process is gone; living ones renew theirs.
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
        patience: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, or make it."""
        self.path = Path(path).resolve()
        self.wait = wait
        self.lease = lease
        self._clock = clock
        self._swept = time.monotonic()
        self._leases = Leases(self.renew, every=lease / 3)
        self._calls: dict[str, Call] = {}  # held here, so that their settles needn't read them back
        self._writer = Writer.of(self.path, connect, patience=patience)
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

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""

        def attempt(only_known: bool) -> Hold | Refusal | None:  # noqa: FBT001 - `in_turn`'s form
            return self._writer.run(functools.partial(self._hold, call, only_known), self._unhold)[0]

        seconds = self.wait if wait is None else wait
        return self._kept(in_turn(self._writer.line, call, seconds, attempt, poll=_POLL))

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, without blocking the event loop; see `Ledger.hold`."""

        async def attempt(only_known: bool) -> Hold | Refusal | None:  # noqa: FBT001 - `ain_turn`'s form
            return (await self._writer.arun(functools.partial(self._hold, call, only_known), self._unhold))[0]

        seconds = self.wait if wait is None else wait
        return self._kept(await ain_turn(self._writer.line, call, seconds, attempt, poll=_POLL))

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call even when all holds are given back; see `Ledger.room`."""
        return self._writer.run(functools.partial(_room, call))

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(_room, call))

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        return self._writer.run(functools.partial(_balance, claim))

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(_balance, claim))

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; see `Ledger.settle`."""
        settled = self._writer.run(functools.partial(self._settle, id, charge))
        self._ended(id)
        return settled

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """The same on an event loop."""
        settled = await self._writer.arun(functools.partial(self._settle, id, charge))
        self._ended(id)
        return settled

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back; see `Ledger.release`."""
        self._writer.run(functools.partial(self._release, id))
        self._ended(id)

    async def arelease(self, id: str) -> None:  # noqa: A002
        """The same on an event loop."""
        await self._writer.arun(functools.partial(self._release, id))
        self._ended(id)

    def renew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Begin the leases of these holds anew; see `Ledger.renew`."""
        return self._writer.run(functools.partial(self._renew, tuple(ids)))

    async def arenew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The same on an event loop."""
        return await self._writer.arun(functools.partial(self._renew, tuple(ids)))

    def sweep(self) -> tuple[Charge, ...]:
        """Charge the holds whose leases have ended; see `Ledger.sweep`."""
        swept: list[Charge] = []
        while some := self._writer.run(self._sweep):
            swept += some
        return tuple(swept)

    async def asweep(self) -> tuple[Charge, ...]:
        """The same on an event loop."""
        swept: list[Charge] = []
        while some := await self._writer.arun(self._sweep):
            swept += some
        return tuple(swept)

    def total(self, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        check_narrowing(where)
        return self._writer.read(functools.partial(_total, where))

    async def atotal(self, **where: str | None) -> Spend:
        """The same on an event loop."""
        return await asyncio.to_thread(self.total, **where)

    def charges(self, **where: str | None) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        check_narrowing(where)
        return self._writer.read(functools.partial(_charges, where))

    async def acharges(self, **where: str | None) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.charges, **where)

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released, of all processes."""
        return self._writer.read(_open_holds)

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

    # What follows runs in the writer's thread, inside a transaction.

    def _hold(self, call: Call, only_known: bool, db: sqlite3.Cursor) -> tuple[Hold | Refusal | None, bool]:  # noqa: FBT001
        """The answer, and whether it is a new hold."""
        if (row := db.execute(_FIND, (call.id,)).fetchone()) is not None:
            state, text, expires, _ = row
            if text is not None and not same_call(text, call):
                raise HoldMismatch(call.id)
            return Hold(call, expires=expires if state == "held" else None), False
        if only_known:
            return None, False
        if time.monotonic() - self._swept > _SWEEP_EVERY:
            self._swept = time.monotonic()
            self._sweep(db)
        if refusal := why_not(call, lambda claim: _balance(claim, db)):
            return refusal, False
        expires = self._clock() + self.lease
        db.execute(_HOLD, (call.id, call_to_text(call), expires))
        for scope in scopes_of(call):
            _add(db, scope, ZERO, call.worst)
        return Hold(call, expires=expires), True

    def _unhold(self, result: tuple[Hold | Refusal | None, bool]) -> Callable[[sqlite3.Cursor], object]:
        """The work that takes a hold back, for a caller who is gone before the answer."""
        answer, is_new = result
        return functools.partial(self._release, answer.call.id) if answer and is_new else lambda _: None

    def _settle(self, id: str, charge: Charge, db: sqlite3.Cursor) -> Charge:  # noqa: A002
        state = "assumed" if charge.assumed else "charged"
        row = (state, None, charge_to_text(charge), *amounts(charge.spend), *narrowing(charge), charge.time)
        call = self._calls.get(id)
        if call is not None and db.execute(_SETTLE, (*row, id)).rowcount:  # nearly always: it was held here
            self._move(db, charge, call)
            return charge
        before, text, _, first = db.execute(_FIND, (id,)).fetchone() or _UNKNOWN
        if before == "charged" and first is not None:
            return charge_from_text(first)
        db.execute(_CHARGE, (*row, id))
        self._move(db, charge, *_before(before, text, first))
        return charge

    def _release(self, id: str, db: sqlite3.Cursor) -> None:  # noqa: A002
        state, text, _, first = db.execute(_FIND, (id,)).fetchone() or _UNKNOWN
        if state in {"held", "assumed"}:
            db.execute(_RELEASE, (id,))
            self._move(db, None, *_before(state, text, first))

    def _move(
        self, db: sqlite3.Cursor, new: Charge | None, held: Call | None = None, old: Charge | None = None
    ) -> None:
        """Change the accounts from a hold or an assumed charge to a new charge, each account once."""
        moves: dict[str, tuple[Spend, Spend]] = {}
        if held is not None:
            scopes = scopes_of(held)
            moves = dict.fromkeys(scopes, (ZERO, -held.worst))
            self._writer.freed(scopes)
        changes = [(old.scopes, -old.spend)] if old is not None else []
        changes += [(new.scopes, new.spend)] if new is not None else []
        for scopes, spend in changes:
            for scope in scopes:
                before = moves.get(scope, _NOTHING)
                moves[scope] = (before[0] + spend, before[1])
        if old is not None:
            self._writer.freed(old.scopes)
        for scope, (spent, given_back) in moves.items():
            _add(db, scope, spent, given_back)

    def _renew(self, ids: tuple[str, ...], db: sqlite3.Cursor) -> tuple[str, ...]:
        expires = self._clock() + self.lease
        return tuple(id_ for id_ in ids if db.execute(_RENEW, (expires, id_)).rowcount)

    def _sweep(self, db: sqlite3.Cursor) -> list[Charge]:
        now = self._clock()
        swept = []
        for id_, text in db.execute(_EXPIRED, (now, _SWEPT_AT_ONCE)).fetchall():
            charge = assumed(call_from_text(text), now=now)
            self._settle(id_, charge, db)
            swept.append(charge)
        return swept


def _room(call: Call, db: sqlite3.Cursor) -> Refusal | None:
    return why_not(call, lambda claim: (_balance(claim, db)[0], ZERO))


def _balance(claim: Claim, db: sqlite3.Cursor) -> tuple[Spend, Spend]:
    row = db.execute(_BALANCE, (claim.scope,)).fetchone()
    spent, held = (spend_from(row), spend_from(row[len(AMOUNTS) :])) if row else (ZERO, ZERO)
    if claim.floor is not ZERO and (least := spent.at_least(claim.floor)) != spent:
        _add(db, claim.scope, least + -spent, ZERO)
        spent = least
    return claim.base + spent, held


def _add(db: sqlite3.Cursor, scope: str, spent: Spend, held: Spend) -> None:
    if not db.execute(_ADD, (*amounts(spent), *amounts(held), scope)).rowcount:
        db.execute(_OPEN, (*amounts(spent), *amounts(held), scope))


def _before(state: str | None, call: str | None, charge: str | None) -> tuple[Call | None, Charge | None]:
    """What counts of an attempt until now: its hold, or its assumed charge."""
    return (
        call_from_text(call) if state == "held" and call is not None else None,
        charge_from_text(charge) if state == "assumed" and charge is not None else None,
    )


def _total(where: dict[str, str | None], db: sqlite3.Cursor) -> Spend:
    if set(where) == {"scope"}:  # the account, which may know of more than its charges (`Claim.floor`)
        row = db.execute(_BALANCE, (where["scope"],)).fetchone()
        return spend_from(row) if row else ZERO
    condition, values = _narrowed(where)
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in AMOUNTS)
    return spend_from(db.execute(f"SELECT {sums} FROM attempts WHERE {condition}", values).fetchone())  # noqa: S608


def _charges(where: dict[str, str | None], db: sqlite3.Cursor) -> tuple[Charge, ...]:
    condition, values = _narrowed(where)
    rows = db.execute(f"SELECT charge FROM attempts WHERE {condition} ORDER BY time, number", values)  # noqa: S608
    return tuple(charge_from_text(text) for (text,) in rows)


def _narrowed(where: dict[str, str | None]) -> tuple[str, tuple[str | None, ...]]:
    # The names were checked; the values are bound.
    conditions = ["charge IS NOT NULL", *(f"{name} IS ?" if name != "scope" else _IN_SCOPE for name in where)]
    return " AND ".join(conditions), tuple(where.values())


def _open_holds(db: sqlite3.Cursor) -> tuple[Hold, ...]:
    rows = db.execute("SELECT call, expires FROM attempts WHERE state = 'held' ORDER BY number")
    return tuple(Hold(call_from_text(text), expires=expires) for text, expires in rows)


def _close(writer: Writer, leases: Leases) -> None:
    leases.close()
    writer.detach()
