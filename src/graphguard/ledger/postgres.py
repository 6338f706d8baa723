"""`PostgresLedger`: accounts in PostgreSQL, for all processes of all machines."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

from graphguard.errors import HoldMismatch, LedgerUnavailable
from graphguard.ledger.admission import assumed, scopes_of, why_not
from graphguard.ledger.leases import Leases
from graphguard.ledger.postgres_schema import VERSION, functions, tables, upgrade
from graphguard.ledger.protocol import Hold, Refusal
from graphguard.ledger.queries import Which
from graphguard.ledger.records import (
    AMOUNTS,
    amounts,
    call_from_text,
    call_to_text,
    charge_from_text,
    charge_to_text,
    narrowing,
    same_call,
    spend_from,
)
from graphguard.ledger.waiting import Line, ain_turn, in_turn
from graphguard.spend import ZERO, Charge, Spend

try:
    from graphguard.ledger.connections import Connections
    from graphguard.ledger.postgres_queries import Queries
    from graphguard.ledger.postgres_words import Statements, array, checks
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"PostgresLedger needs {missing.name!r}: pip install 'graphguard[postgres]'", name=missing.name
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from graphguard.budget import Call, Claim
    from graphguard.ledger.connections import Ask, Pool

__all__ = ["PostgresLedger"]

_POLL: Final = 0.1  # seconds; other processes don't tell when they make room
_SWEEP_EVERY: Final = 5.0
_SWEPT_AT_ONCE: Final = 200
_PRUNED_AT_ONCE: Final = 1_000


class PostgresLedger:
    """A ledger in PostgreSQL: for fleets, beside LangGraph's own checkpointer.

    Every step is one round trip to a function in the database. A step whose answer got lost is asked again:
    its id says whether it was done. Call `setup()` once before the first use, as for the checkpointer.

    Args:
        dsn_or_pool: A connection string; or a psycopg pool, which stays its owner's to close. Of an
            `AsyncConnectionPool` only the address is used, because a ledger also works without an event loop.
        schema: The database schema that holds the tables.
        wait: Seconds a call waits for others' holds to settle when that may make room.
        lease: Seconds after which a hold is charged whose process is gone; living ones renew theirs.
        keep_days: Days after which an attempt that is over can't be repeated or corrected any more, and what it
            counted in the account of its superstep is forgotten. Charges and all other sums stay for ever.
        patience: Seconds to ask again while the server can't be reached, before `LedgerUnavailable`.
        clock: Seconds since the epoch; None is the server's clock, the same for all machines.
    """

    def __init__(
        self,
        dsn_or_pool: str | Pool,
        *,
        schema: str = "graphguard",
        wait: float = 10.0,
        lease: float = 60.0,
        keep_days: float = 30.0,
        patience: float = 30.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open connections in the background; nothing is asked yet."""
        self.schema = schema
        self.wait = wait
        self.lease = lease
        self.keep_days = keep_days
        self._clock = clock
        self._statements = Statements(schema)
        self._queries = Queries(schema)
        self._line = Line()
        self._swept = time.monotonic()
        self._leases = Leases(self.renew, every=lease / 3)
        self._connections = Connections(dsn_or_pool, patience=patience)
        # Runs when the ledger is forgotten, and at the latest when the process ends.
        self._closing = weakref.finalize(self, _close, self._connections, self._leases)

    def setup(self) -> None:
        """Make the schema and its tables, or bring those of an older version up to date; safe to repeat.

        Raises:
            LedgerUnavailable: They are a newer version's.
        """
        self._connections.run(self._setup, whole=True)

    async def asetup(self) -> None:
        """The same on an event loop."""
        await self._connections.arun(self._setup, whole=True)

    def close(self) -> None:
        """Close the connections made here; what is held here stays held until its lease ends."""
        self._closing()

    def __enter__(self) -> Self:
        """Itself, to be closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def now(self) -> float:
        """The time; see `Ledger.now`. Without `clock=`, this machine's, as asking the server would wait."""
        return time.time() if self._clock is None else self._clock()

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use; see `Ledger.hold`."""

        def attempt(only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `in_turn`'s form
            return self._connections.run(functools.partial(self._hold, call, only_known, waited))[0]

        self._sweep_now_and_then()
        seconds = self.wait if wait is None else wait
        return self._kept(in_turn(self._line, call, seconds, attempt, poll=_POLL))

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        """Set aside the most a call can use, without blocking the event loop; see `Ledger.hold`."""

        async def attempt(only_known: bool, waited: float) -> Hold | Refusal | None:  # noqa: FBT001 - `ain_turn`'s form
            hold = functools.partial(self._hold, call, only_known, waited)
            return (await self._connections.arun(hold, self._unhold))[0]

        if time.monotonic() - self._swept > _SWEEP_EVERY:
            await asyncio.to_thread(self._sweep_now_and_then)
        seconds = self.wait if wait is None else wait
        return self._kept(await ain_turn(self._line, call, seconds, attempt, poll=_POLL))

    def room(self, call: Call) -> Refusal | None:
        """Why there is no room for a call even when all holds are given back; see `Ledger.room`."""
        return why_not(call, lambda claim: (self.balance(claim)[0], ZERO))

    async def aroom(self, call: Call) -> Refusal | None:
        """The same on an event loop."""
        balances = {id(claim): (await self.abalance(claim))[0] for claim in call.claims}
        return why_not(call, lambda claim: (balances[id(claim)], ZERO))

    def balance(self, claim: Claim) -> tuple[Spend, Spend]:
        """What counts against a claim now; see `Ledger.balance`."""
        return self._connections.run(functools.partial(self._balance, claim))

    async def abalance(self, claim: Claim) -> tuple[Spend, Spend]:
        """The same on an event loop."""
        return await self._connections.arun(functools.partial(self._balance, claim))

    def settle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """Replace a hold by what was really used; see `Ledger.settle`."""
        return self._settled(id, *self._connections.run(_Settle(self._statements, id, charge)))

    async def asettle(self, id: str, charge: Charge) -> Charge:  # noqa: A002
        """The same on an event loop."""
        return self._settled(id, *await self._connections.arun(_Settle(self._statements, id, charge)))

    def _settled(self, id: str, charge: Charge, freed: Sequence[str]) -> Charge:  # noqa: A002
        self._leases.drop(id)
        self._line.stir(tuple(freed))
        return charge

    def release(self, id: str) -> None:  # noqa: A002
        """Give a hold back; see `Ledger.release`."""
        freed = self._connections.run(functools.partial(self._release, id))
        self._leases.drop(id)
        self._line.stir(freed)

    async def arelease(self, id: str) -> None:  # noqa: A002
        """The same on an event loop."""
        freed = await self._connections.arun(functools.partial(self._release, id))
        self._leases.drop(id)
        self._line.stir(freed)

    def renew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Begin the leases of these holds anew; see `Ledger.renew`."""
        return self._connections.run(functools.partial(self._renew, tuple(ids)))

    async def arenew(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The same on an event loop."""
        return await self._connections.arun(functools.partial(self._renew, tuple(ids)))

    def sweep(self) -> tuple[Charge, ...]:
        """Charge the holds whose leases have ended, see `Ledger.sweep`; and forget what was over long ago."""
        swept: list[Charge] = []
        while True:
            now, expired = self._connections.run(self._expired)
            for id_, text, waited in expired:
                charge = assumed(call_from_text(text), now=now, waited=waited)
                settled, _ = self._connections.run(_Settle(self._statements, id_, charge, expired=now))
                if settled is charge:
                    swept.append(charge)
                    self._line.stir(charge.scopes)
            if len(expired) < _SWEPT_AT_ONCE:
                break
        while self._connections.run(self._prune, whole=True):
            pass
        return tuple(swept)

    async def asweep(self) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.sweep)

    def total(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The sum of charges; see `Ledger.total`."""
        return self._connections.run(functools.partial(self._queries.total, Which.of(where, since, until)))

    async def atotal(self, *, since: float | None = None, until: float | None = None, **where: str | None) -> Spend:
        """The same on an event loop."""
        return await asyncio.to_thread(self.total, since=since, until=until, **where)

    def totals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """Sums of charges; see `Ledger.totals`."""
        return self._connections.run(functools.partial(self._queries.totals, by, Which.of(where, since, until)))

    async def atotals(
        self, by: str, *, since: float | None = None, until: float | None = None, **where: str | None
    ) -> dict[str | None, Spend]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.totals, by, since=since, until=until, **where)

    def charges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The charges, oldest first; see `Ledger.charges`."""
        return self._connections.run(functools.partial(self._queries.charges, Which.of(where, since, until), last))

    async def acharges(
        self, *, since: float | None = None, until: float | None = None, last: int | None = None, **where: str | None
    ) -> tuple[Charge, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.charges, since=since, until=until, last=last, **where)

    def open_holds(self) -> tuple[Hold, ...]:
        """Holds neither settled nor released, of all processes."""
        return self._connections.run(self._queries.open_holds)

    async def aopen_holds(self) -> tuple[Hold, ...]:
        """The same on an event loop."""
        return await asyncio.to_thread(self.open_holds)

    def _kept(self, answer: Hold | Refusal) -> Hold | Refusal:
        if isinstance(answer, Hold) and answer.expires is not None:
            self._leases.add(answer.id)
        return answer

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() - self._swept > _SWEEP_EVERY:
            self._swept = time.monotonic()
            self.sweep()

    # What follows runs with a connection, and again with another one if that was lost meanwhile.

    def _setup(self, ask: Ask) -> None:
        schema = self._statements.quoted
        ask("SELECT pg_advisory_xact_lock(hashtext('graphguard.setup'))")  # until the transaction ends
        ask(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        if ask("SELECT to_regclass(%s)", (f"{schema}.version",))[0][0] is None:
            ask(tables(schema))
            ask(f"INSERT INTO {schema}.version VALUES ({VERSION})")  # noqa: S608 - quoted
        version = ask(f"SELECT version FROM {schema}.version")[0][0]  # noqa: S608 - quoted
        if version > VERSION:
            problem = f"its tables are version {version}, and this graphguard knows {VERSION}; upgrade graphguard"
            raise LedgerUnavailable(self.schema, problem)
        if version < VERSION:
            ask(upgrade(schema, version))
            ask(f"UPDATE {schema}.version SET version = {VERSION}")  # noqa: S608 - quoted
        ask(functions(schema))

    def _hold(
        self,
        call: Call,
        only_known: bool,  # noqa: FBT001 - `in_turn`'s form
        waited: float,
        ask: Ask,
    ) -> tuple[Hold | Refusal | None, bool]:
        """The answer, and whether it is a new hold."""
        scopes = scopes_of(call)
        now = None if self._clock is None else self._clock()
        limits = list(checks(call))
        floored = [claim for claim in call.claims if claim.floor != ZERO]
        words = (
            call.id,
            call_to_text(call),
            array(scopes),
            array(amounts(call.worst)),
            self.lease,
            now,
            only_known,
            array(scope for scope, _, _ in limits),
            array(metric for _, metric, _ in limits),
            array(room for _, _, room in limits),
            array(claim.scope for claim in floored),
            array(amount for claim in floored for amount in amounts(claim.floor)),
        )
        answer, text, expires, balances = ask(self._statements.hold, words)[0]
        if answer == "unknown":
            return None, False
        if answer == "refused":
            return _refusal(call, scopes, balances), False
        if answer != "new":
            if text is not None and not same_call(text, call):
                raise HoldMismatch(call.id)
            return Hold(call, expires=expires if answer == "held" else None), False
        if waited:
            ask(self._statements.waited, (waited, call.id))
        return Hold(call, waited, expires), True

    def _unhold(self, result: tuple[Hold | Refusal | None, bool]) -> None:
        """Take a hold back, for a caller who is gone before the answer."""
        answer, is_new = result
        if answer is not None and is_new:
            self.release(answer.call.id)

    def _balance(self, claim: Claim, ask: Ask) -> tuple[Spend, Spend]:
        rows = ask(self._statements.balance, (claim.scope,))
        spent, held = (spend_from(rows[0]), spend_from(rows[0][len(AMOUNTS) :])) if rows else (ZERO, ZERO)
        if claim.floor != ZERO and (least := spent.at_least(claim.floor)) != spent:
            ask(self._statements.raise_to, (claim.scope, *amounts(least)))
            spent = least
        return claim.base + spent, held

    def _release(self, id: str, ask: Ask) -> tuple[str, ...]:  # noqa: A002
        now = None if self._clock is None else self._clock()
        return tuple(ask(self._statements.release, (id, now))[0][0] or ())

    def _renew(self, ids: tuple[str, ...], ask: Ask) -> tuple[str, ...]:
        now = None if self._clock is None else self._clock()
        renewed = {id_ for (id_,) in ask(self._statements.renew, (now, self.lease, list(ids)))}
        return tuple(id_ for id_ in ids if id_ in renewed)

    def _prune(self, ask: Ask) -> int:
        now = None if self._clock is None else self._clock()
        return int(ask(self._statements.prune, (now, self.keep_days * 86_400, _PRUNED_AT_ONCE))[0][0])

    def _expired(self, ask: Ask) -> tuple[float, list[tuple[str, str, float | None]]]:
        now = (
            ask("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0] if self._clock is None else self._clock()
        )
        return now, [(id_, text, waited) for id_, text, waited in ask(self._statements.expired, (now, _SWEPT_AT_ONCE))]


class _Settle:
    """One settle, however often it has to be asked; gives the charge that counts, and the accounts it freed."""

    def __init__(
        self,
        statements: Statements,
        id: str,  # noqa: A002
        charge: Charge,
        *,
        expired: float | None = None,
    ) -> None:
        self._statements = statements
        self._id = id
        self._charge = charge
        self._expired = expired
        self._asked = 0

    def __call__(self, ask: Ask) -> tuple[Charge, Sequence[str]]:
        charge = self._charge
        self._asked += 1
        words = (
            self._id,
            "assumed" if charge.assumed else "charged",
            charge_to_text(charge),
            array(charge.scopes),
            array(amounts(charge.spend)),
            array(narrowing(charge)),
            charge.time,
            self._expired,
        )
        answer, text, freed = ask(self._statements.settle, words)[0]
        if answer == "new":
            return charge, freed or ()
        first = charge_from_text(text) if text else None
        # An answer that got lost: what counts already is what was sent before.
        if self._asked > 1 and first == charge:
            return charge, charge.scopes
        return first if first is not None else _SKIPPED, ()


_SKIPPED: Final = Charge(id="")


def _refusal(call: Call, scopes: Sequence[str], balances: Sequence[int]) -> Refusal:
    """Why the database said no, from the balances it told."""
    width = 2 * len(AMOUNTS)
    rows = {scope: balances[at * width : (at + 1) * width] for at, scope in enumerate(scopes)}

    def balance(claim: Claim) -> tuple[Spend, Spend]:
        row = rows[claim.scope]
        return claim.base + spend_from(row), spend_from(row[len(AMOUNTS) :])

    refusal = why_not(call, balance)
    assert refusal is not None, "the database and Python compare the same numbers"  # noqa: S101
    return refusal


def _close(connections: Connections, leases: Leases) -> None:
    leases.close()
    connections.close()
