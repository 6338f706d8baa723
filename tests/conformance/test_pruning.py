"""What durable ledgers forget, when, and what they never do."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from graphguard import Budget, guard
from graphguard.errors import HoldMismatch
from graphguard.ledger import Hold, Refusal, SqliteLedger
from graphguard.spend import Charge, Spend
from graphguard.testing import CENT, Clock, call, cents, charge, claim
from tests.conftest import thread
from tests.scripted import Scripted

DAY = 86_400
STEP = "step:c1|"


@pytest.fixture(params=["sqlite", "postgres"])
def opening(request, tmp_path):
    """Give what opens a ledger of each kind."""
    if request.param == "sqlite":
        return functools.partial(SqliteLedger, tmp_path / "ledger.sqlite")
    return request.getfixturevalue("postgres_opening")


@pytest.fixture
def clock():
    """Give a clock that goes when told."""
    return Clock()


@pytest.fixture
def ledger(opening, clock):
    """Give a ledger that keeps what is over for ten days."""
    with opening(clock=clock, keep_days=10) as opened:
        yield opened


def spend(ledger, clock, id_, amount, *scopes):
    """Hold and settle one call."""
    ledger.hold(call(id_, amount, *(claim(10**6, scope) for scope in scopes)))
    return ledger.settle(id_, replace(charge(id_, amount, *scopes), time=clock()))


def test_accounts_of_old_supersteps_are_forgotten(ledger, clock):
    """What an old superstep counted is gone, and every sum of real money is what it was."""
    told = spend(ledger, clock, "a", 3, STEP, "thread:t")
    before = (ledger.charges(), ledger.total(), ledger.total(scope="thread:t"), ledger.totals("scope"))
    clock.now += 10 * DAY
    ledger.sweep()
    assert cents(ledger.total(scope=STEP)) == 3

    clock.now += 1
    ledger.sweep()

    assert ledger.total(scope=STEP) == Spend()
    assert (ledger.charges(), ledger.total(), ledger.total(scope="thread:t"), ledger.totals("scope")) == before
    assert ledger.charges(scope=STEP) == (told,)


def test_a_superstep_in_use_keeps_what_is_new(ledger, clock):
    """A superstep that was resumed lately still counts its late calls, and what is held."""
    spend(ledger, clock, "old", 3, STEP)
    clock.now += 8 * DAY
    spend(ledger, clock, "new", 4, STEP)
    ledger.hold(call("held", 1, claim(100, STEP)))
    ledger.renew(["held"])
    clock.now += 3 * DAY
    ledger.renew(["held"])

    ledger.sweep()

    assert [cents(amount) for amount in ledger.balance(claim(100, STEP))] == [4, 1]
    ledger.settle("held", charge("held", 1, STEP))
    assert [cents(amount) for amount in ledger.balance(claim(100, STEP))] == [5, 0]


def test_a_repeat_is_answered_as_before(ledger, clock):
    """Within the keep time a repeat gets the first answer; a settled call even after it."""
    told = spend(ledger, clock, "a", 3, STEP)
    ledger.hold(call("b", 2))
    ledger.release("b")
    clock.now += 9 * DAY
    ledger.sweep()
    with pytest.raises(HoldMismatch):
        ledger.hold(call("b", 5))
    assert isinstance(ledger.hold(call("b", 2)), Hold)

    clock.now += 9 * DAY
    ledger.sweep()

    assert ledger.settle("a", charge("a", 9)) == told
    assert isinstance(ledger.hold(call("a", 3, claim(10**6, STEP))), Hold)
    assert ledger.open_holds() == ()
    assert isinstance(ledger.hold(call("b", 5)), Hold)  # it never cost anything, and is a new call now
    assert [hold.id for hold in ledger.open_holds()] == ["b"]


def test_an_assumed_charge_becomes_final(ledger, clock):
    """A late settle corrects an assumed charge within the keep time, and is answered with it afterwards."""
    for id_ in "ab":
        ledger.hold(call(id_, 5, claim(100, STEP), claim(100, "thread:t")))
    clock.now += 61
    first = {one.id: one for one in ledger.sweep()}
    ledger.settle("a", replace(charge("a", 1, STEP, "thread:t"), time=clock()))
    clock.now += 11 * DAY
    ledger.sweep()

    assert ledger.settle("b", charge("b", 1, STEP, "thread:t")) == first["b"]
    ledger.release("b")

    assert cents(ledger.total(scope="thread:t")) == 6
    assert ledger.balance(claim(100, STEP)) == (Spend(), Spend())


def test_it_is_done_in_parts(ledger, clock, monkeypatch):
    """However many are over, even in one moment, all are forgotten, and each is taken out once."""
    monkeypatch.setattr("graphguard.ledger.sqlite._PRUNED_AT_ONCE", 3)
    monkeypatch.setattr("graphguard.ledger.postgres._PRUNED_AT_ONCE", 3)
    for n in range(10):
        spend(ledger, clock, f"a{n}", 1, f"step:{n % 4}|", "thread:t")
        clock.now += n % 3 == 2
    ledger.hold(call("open", 1, claim(100, "step:1|")))
    clock.now += 10 * DAY
    ledger.renew(["open"])
    clock.now += 1

    ledger.sweep()
    ledger.sweep()

    assert [ledger.total(scope=f"step:{n}|") for n in range(4)] == [Spend()] * 4
    assert cents(ledger.balance(claim(100, "step:1|"))[1]) == 1
    assert cents(ledger.total(scope="thread:t")) == len(ledger.charges()) == 10


def test_nobody_needs_to_ask_for_it(opening, clock, monkeypatch):
    """Calls that hold forget what is over, now and then and a few at a time."""
    for place in ("sqlite", "postgres"):
        monkeypatch.setattr(f"graphguard.ledger.{place}._SWEEP_EVERY", 0.0)
    with opening(clock=clock, keep_days=10) as ledger:
        spend(ledger, clock, "a", 3, STEP)
        clock.now += 11 * DAY
        ledger.hold(call("b", 1))

        assert ledger.total(scope=STEP) == Spend()


def test_an_account_may_come_back(ledger, clock):
    """A superstep that is resumed after its account was closed is counted from there on, in one account or in two."""
    spend(ledger, clock, "a", 3, STEP)
    ledger.hold(replace(call("zero", 0, claim(100, STEP)), worst=Spend()))  # held, though the account counts nothing
    clock.now += 11 * DAY
    ledger.renew(["zero"])
    ledger.sweep()

    ledger.settle("zero", replace(charge("zero", 2, STEP), time=clock()))
    spend(ledger, clock, "b", 1, STEP, "thread:t")

    assert cents(ledger.total(scope=STEP)) == 3


def test_a_resumed_run_is_never_refilled(opening, clock):
    """A thread that stopped at its limit long ago is still there: branch money is in the state, real money stays."""
    model = Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "agent")
    saver = InMemorySaver()
    with opening(clock=clock, keep_days=0.0) as ledger:
        for budget, name in ((Budget(calls=3), "branch"), (Budget(calls=3, per="thread"), "real")):
            model._asked = 0  # noqa: SLF001 - a new count
            graph = guard(builder, budget, ledger=ledger, on_trip="interrupt").compile(checkpointer=saver)
            graph.invoke({"messages": "Hi"}, thread(name))
            clock.now = Charge(id="now").time + 100 * DAY
            ledger.sweep()

            graph.invoke(None, thread(name))

            assert model.billed == 3
        assert not [one for one in _accounts(ledger) if one.startswith("step:")]
        assert ledger.total().calls == 6


def _accounts(ledger):
    scopes = {scope for one in ledger.charges() for scope in one.scopes}
    return [scope for scope in scopes if ledger.total(scope=scope) != Spend()]


def test_refusals_stay_what_they_were(ledger, clock):
    """Real accounts refuse after any time what they refused before."""
    spend(ledger, clock, "a", 10, "thread:t")
    clock.now += 1_000 * DAY
    ledger.sweep()

    refused = ledger.hold(call("b", 1, claim(10, "thread:t")))

    assert isinstance(refused, Refusal)
    assert (refused.breach.kind, refused.breach.spent) == ("spent", 10 * CENT)


def test_while_others_hold(opening, clock):
    """Two ledgers on the same accounts, one of which forgets all the time: no hold and no charge gets lost."""
    with opening(clock=clock, keep_days=0) as one, opening(clock=clock, keep_days=0) as two:
        for n, ledger in zip(range(40), itertools.cycle((one, two))):
            spend(ledger, clock, f"a{n}", 1, STEP, "thread:t")
            clock.now += 1
            two.sweep()
        assert cents(one.total(scope="thread:t")) == 40
        assert one.total(scope=STEP).nanousd <= CENT
        assert one.open_holds() == ()
