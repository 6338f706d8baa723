"""Each ledger against a plain oracle: any order of events gives the same amounts."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from graphguard.accounts import account_name, window_of
from graphguard.budget import Call, Claim
from graphguard.errors import HoldMismatch
from graphguard.ledger import Hold, MemoryLedger, Refusal, SqliteLedger
from graphguard.spend import Charge, Spend
from graphguard.testing import Clock

LEASE = 60
SCOPES = ("run", "thread", "tenant")
WINDOW = timedelta(seconds=100)  # of the tenant's budget
AMOUNTS = st.integers(0, 9)
IDS = st.integers(0, 11).map(str)


@dataclass
class Oracle:
    """What a ledger should say, in the plainest way."""

    limits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SCOPES, 20))
    calls: dict[str, Call] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)  # id to expiry
    charged: dict[str, Charge] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def sums(self, scope: str) -> tuple[int, int]:
        held = [self.calls[id_] for id_ in self.held]
        return (
            sum(charge.nanousd for charge in self.charged.values() if scope in charge.scopes),
            sum(call.worst.nanousd for call in held if scope in {claim.scope for claim in call.claims}),
        )

    def refuses(self, call: Call) -> set[str]:
        """Give the kinds of refusal, one for each account without room."""
        kinds = set()
        for claim in call.claims:
            spent, held = self.sums(claim.scope)
            if spent + held + call.worst.nanousd > claim.limits["usd"]:
                kinds.add("held" if spent + call.worst.nanousd <= claim.limits["usd"] else "spent")
        return kinds

    def expire(self, id_: str, now: float) -> Charge:
        assert self.held.pop(id_) <= now
        call = self.calls[id_]
        scopes = tuple(sorted({claim.scope for claim in call.claims}))
        self.charged[id_] = Charge(
            id=id_, nanousd=call.worst.nanousd, estimated=True, assumed=True, scopes=scopes, time=now
        )
        return self.charged[id_]


class Machine(RuleBasedStateMachine):
    """Random calls on three budgets, one of which has windows; some in several, some past their lease."""

    opening: ClassVar[object]

    @initialize()
    def begin(self):
        self.clock = Clock()
        self.oracle = Oracle()
        self.place = contextlib.ExitStack()
        folder = Path(self.place.enter_context(tempfile.TemporaryDirectory()))
        self.open = lambda: type(self).opening(folder, lease=LEASE, clock=self.clock)
        self.ledger = self.open()
        self.accounts = {scope: {self.account(scope)} for scope in SCOPES}

    def account(self, scope):
        """Name the account in which a budget counts now."""
        return account_name(scope, "x", window=window_of(WINDOW, self.ledger.now()) if scope == "tenant" else "")

    def teardown(self):
        if hasattr(self, "ledger"):
            for id_ in tuple(self.oracle.held):
                self.settle(id_, 1)
            self.agrees()
            assert self.ledger.open_holds() == ()
            assert self.ledger.total() == Spend.total(self.oracle.charged.values())
            self.close()
            self.place.close()

    def close(self):
        getattr(self.ledger, "close", lambda: None)()

    def learn(self):
        """Take note of holds that the ledger swept by itself, which it may do to expired ones at any time."""
        open_ = {hold.id for hold in self.ledger.open_holds()}
        for id_ in [id_ for id_ in self.oracle.held if id_ not in open_]:
            self.oracle.expire(id_, self.clock())

    @rule(id_=IDS, worst=AMOUNTS, scopes=st.sets(st.sampled_from(SCOPES), min_size=1))
    def hold(self, id_, worst, scopes):
        claims = tuple(
            Claim(budget=s, scope=self.account(s), limits={"usd": self.oracle.limits[s]}) for s in sorted(scopes)
        )
        for claim in claims:
            self.accounts[claim.budget].add(claim.scope)
        call = Call(id=id_, worst=Spend(nanousd=worst, calls=1), claims=claims)
        known = self.oracle.calls.get(id_)
        if known is not None and (known.worst, known.claims) != (call.worst, call.claims):
            with pytest.raises(HoldMismatch):
                self.ledger.hold(call, wait=0)
            return
        answer = self.ledger.hold(call, wait=0)
        self.learn()
        if known is not None or id_ in self.oracle.ended:
            assert isinstance(answer, Hold)
        elif kinds := self.oracle.refuses(call):
            assert isinstance(answer, Refusal)
            assert answer.breach.kind == ("spent" if "spent" in kinds else "held")
            spent, held = self.oracle.sums(answer.claim.scope)
            assert (answer.breach.spent, answer.breach.held) == (spent, held)
        else:
            assert answer == Hold(call, expires=self.clock() + LEASE)
            self.oracle.calls[id_] = call
            self.oracle.held[id_] = self.clock() + LEASE

    @rule(id_=IDS)
    def repeat(self, id_):
        if id_ in self.oracle.calls:
            assert isinstance(self.ledger.hold(self.oracle.calls[id_], wait=0), Hold)
            self.learn()

    @rule(id_=IDS, used=AMOUNTS, assumed=st.booleans())
    def settle(self, id_, used, assumed=False):
        call = self.oracle.calls.get(id_)
        # No more than was held, so that the limits must hold; what was never held goes where no limit is.
        scopes = tuple(claim.scope for claim in call.claims) if call else ("elsewhere",)
        if call and id_ not in self.oracle.held and id_ not in self.oracle.charged:
            scopes = ("elsewhere",)  # released: its room may be taken
        charge = Charge(
            id=id_, nanousd=min(used, call.worst.nanousd) if call else used, assumed=assumed, scopes=scopes,
            time=self.clock(),
        )  # fmt: skip
        first = self.oracle.charged.get(id_)
        answer = self.ledger.settle(id_, charge)
        if first is not None and not first.assumed:
            assert answer == first
            return
        assert answer is charge
        self.oracle.held.pop(id_, None)
        self.oracle.charged[id_] = charge
        self.oracle.ended.add(id_)

    @rule(id_=IDS)
    def release(self, id_):
        self.ledger.release(id_)
        self.oracle.held.pop(id_, None)
        if id_ in self.oracle.charged and self.oracle.charged[id_].assumed:
            del self.oracle.charged[id_]

    @rule(seconds=st.sampled_from([1, 20, LEASE - 1, LEASE, 200, -30]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule(ids=st.sets(IDS, max_size=5))
    def renew(self, ids):
        renewed = self.ledger.renew(sorted(ids))
        assert set(renewed) == ids & set(self.oracle.held)
        self.oracle.held |= dict.fromkeys(renewed, self.clock() + LEASE)

    @rule()
    def sweep(self):
        due = {id_ for id_, expires in self.oracle.held.items() if expires <= self.clock()}
        swept = self.ledger.sweep()
        assert {charge.id: charge for charge in swept} == {id_: self.oracle.expire(id_, self.clock()) for id_ in due}

    @rule(scope=st.sampled_from(SCOPES), change=st.integers(-10, 10))
    def limit_changes(self, scope, change):
        used = max(sum(self.oracle.sums(account)) for account in self.accounts[scope])
        self.oracle.limits[scope] = max(self.oracle.limits[scope] + change, used, 1)

    @rule()
    def reopen(self):
        if not isinstance(self.ledger, MemoryLedger):
            self.close()
            self.ledger = self.open()

    @invariant()
    def agrees(self):
        if not hasattr(self, "ledger"):
            return
        for scope in SCOPES:
            limit = self.oracle.limits[scope]
            for account in self.accounts[scope]:
                spent, held = self.ledger.balance(Claim(budget=scope, scope=account, limits={"usd": limit}))
                assert (spent.nanousd, held.nanousd) == self.oracle.sums(account)
                assert spent.nanousd + held.nanousd <= limit


def in_memory(_folder, **options):
    """Open a ledger of its own."""
    return MemoryLedger(**options)


def in_file(folder, **options):
    """Open the folder's ledger."""
    return SqliteLedger(folder / "ledger.sqlite", **options)


def agrees(opening, *, examples):
    """Let random events happen to a ledger, and compare it with the oracle after each."""
    machine = type("OneMachine", (Machine,), {"opening": staticmethod(opening)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("opening", [in_memory, in_file])
def test_agrees_with_the_oracle(opening):
    """Whatever happens in whatever order, a ledger says what a plain list of events says."""
    agrees(opening, examples=60)


def test_postgres_agrees_with_the_oracle(postgres):
    """The same for PostgreSQL."""
    from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra

    pool_of = pytest.importorskip("psycopg_pool").ConnectionPool
    # One pool for all: opening connections is most of the time otherwise.
    with pool_of(postgres, min_size=1, kwargs={"autocommit": True}) as pool:

        def in_postgres(folder, **options):
            ledger = PostgresLedger(pool, schema=folder.name, **options)
            ledger.setup()
            return ledger

        agrees(in_postgres, examples=30)
