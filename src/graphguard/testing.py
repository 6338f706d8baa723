"""Tests that every ledger passes, one of your own too.

```python
import pytest
from graphguard.testing import DurableLedgerConformance

class TestMyLedger(DurableLedgerConformance):
    @pytest.fixture
    def opening(self, tmp_path):
        return lambda **options: MyLedger(tmp_path / "accounts", **options)
```

`opening` gives a function that opens the same accounts each time it is called within one test. It takes
`wait=`, `lease=` (both in seconds) and `clock=` (a function that gives seconds since the epoch), and what it
gives may have a `close()`.
"""

# ruff: noqa: S101, PLR2004, PT017 - a test module that must not need pytest itself
from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from graphguard.budget import Call, Claim
from graphguard.errors import HoldMismatch
from graphguard.ledger.protocol import Hold, Ledger, Refusal
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Clock", "DurableLedgerConformance", "LedgerConformance", "Opening"]

CENT: Final = 10_000_000
_PATIENT: Final = 60.0  # seconds; a call that waits as long has been forgotten


class Opening(Protocol):
    """Opens the accounts of one test, each time anew."""

    def __call__(self, *, wait: float = ..., lease: float = ..., clock: Callable[[], float] = ...) -> Ledger:
        """Open them."""
        ...


class Clock:
    """A clock that goes only when told.

    >>> clock = Clock(); clock.now += 60; clock() - Clock()()
    60.0
    """

    def __init__(self) -> None:
        """Begin at some time."""
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        """The time, in seconds since the epoch."""
        return self.now


def claim(limit: int = 10, scope: str = "s", *, base: int = 0, floor: int = 0) -> Claim:
    """A claim on one account; amounts in cents."""
    return Claim(
        budget=f"b-{scope}",
        scope=scope,
        limits={"usd": limit * CENT},
        base=Spend(nanousd=base * CENT),
        floor=Spend(nanousd=floor * CENT),
    )


def call(id: str, cents: int, *claims: Claim, capped: bool = True) -> Call:  # noqa: A002 - a call's id
    """A call with this worst case, on the account `s` with a limit of 10 cents if nothing else is said."""
    return Call(id=id, worst=Spend(nanousd=cents * CENT, calls=1), capped=capped, claims=claims or (claim(),))


def charge(id: str, cents: int, *scopes: str, assumed: bool = False, thread: str | None = None) -> Charge:  # noqa: A002
    """What a call really cost."""
    return Charge(id=id, nanousd=cents * CENT, scopes=scopes or ("s",), assumed=assumed, thread=thread)


@contextmanager
def opened(
    opening: Opening, *, wait: float = _PATIENT, lease: float = 60.0, clock: Callable[[], float] | None = None
) -> Iterator[Ledger]:
    """An open ledger, closed at the end."""
    ledger = opening(wait=wait, lease=lease, clock=clock or Clock())
    try:
        yield ledger
    finally:
        getattr(ledger, "close", lambda: None)()


def cents(spend: Spend) -> int:
    """A sum in cents."""
    assert spend.nanousd % CENT == 0
    return spend.nanousd // CENT


def breach_of(answer: Hold | Refusal) -> tuple[str, int, int]:
    """Why a call was refused: the kind, and the cents spent and held."""
    assert isinstance(answer, Refusal)
    return answer.breach.kind, answer.breach.spent // CENT, answer.breach.held // CENT


def is_mismatch(ledger: Ledger, other: Call) -> bool:
    """Whether the ledger knows the call's id as another call."""
    try:
        ledger.hold(other, wait=0)
    except HoldMismatch:
        return True
    return False


class LedgerConformance:
    """What `Ledger` promises, one test a promise."""

    def test_is_a_ledger(self, opening: Opening) -> None:
        """It has all methods of the protocol."""
        with opened(opening) as ledger:
            assert isinstance(ledger, Ledger)

    def test_tells_the_time_by_its_clock(self, opening: Opening) -> None:
        """Windows of budgets follow the ledger's clock, so it tells that one's time."""
        clock = Clock()
        with opened(opening, clock=clock) as ledger:
            clock.now += 86_400
            assert ledger.now() == clock()

    def test_hold_counts_as_spent(self, opening: Opening) -> None:
        """What is held is not there for anybody else, and the refusal tells all amounts."""
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(call("a", 6)), Hold)
            refused = ledger.hold(call("b", 5), wait=0)
            assert breach_of(refused) == ("held", 0, 6)
            assert isinstance(refused, Refusal)
            assert (refused.breach.limit, refused.breach.needed, refused.breach.budget) == (10 * CENT, 5 * CENT, "b-s")
            assert (refused.call.id, refused.claim) == ("b", claim())

    def test_the_last_cent_may_be_spent(self, opening: Opening) -> None:
        """`spent + held + worst case <= limit`: exactly the limit fits."""
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(call("a", 4)), Hold)
            assert isinstance(ledger.hold(call("b", 6), wait=0), Hold)

    def test_settle_gives_back_what_was_not_used(self, opening: Opening) -> None:
        """The real usage replaces the hold."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 9))
            ledger.settle("a", charge("a", 2))
            assert ledger.open_holds() == ()
            assert ledger.balance(claim()) == (Spend(nanousd=2 * CENT, calls=1), Spend())
            assert isinstance(ledger.hold(call("b", 8), wait=0), Hold)

    def test_charge_may_be_more_than_its_hold(self, opening: Opening) -> None:
        """What was billed counts, whatever was held and whatever the limit is."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 9))
            ledger.settle("a", charge("a", 14))
            assert ledger.balance(claim()) == (Spend(nanousd=14 * CENT, calls=1), Spend())
            assert breach_of(ledger.hold(call("b", 1))) == ("spent", 14, 0)

    def test_release_gives_all_back(self, opening: Opening) -> None:
        """A call that was not billed leaves nothing behind; releasing it again, or something unknown, is nothing."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 9))
            for id_ in ("a", "a", "never held"):
                ledger.release(id_)
            assert ledger.balance(claim()) == (Spend(), Spend())
            assert ledger.total() == Spend()
            assert isinstance(ledger.hold(call("b", 10), wait=0), Hold)

    def test_release_does_not_undo_a_charge(self, opening: Opening) -> None:
        """What was settled stays charged."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 9))
            ledger.settle("a", charge("a", 2))
            ledger.release("a")
            assert cents(ledger.total()) == 2

    def test_settle_after_a_release_is_charged(self, opening: Opening) -> None:
        """A call that was billed after all counts."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 9))
            ledger.release("a")
            ledger.settle("a", charge("a", 2))
            assert ledger.balance(claim()) == (Spend(nanousd=2 * CENT, calls=1), Spend())

    def test_repeated_hold_is_one_hold(self, opening: Opening) -> None:
        """Holding the same call twice gives the first hold, and holds once."""
        with opened(opening) as ledger:
            first = ledger.hold(call("a", 6))
            assert ledger.hold(call("a", 6)) == first
            assert cents(ledger.balance(claim())[1]) == 6

    def test_repeated_hold_after_the_end_holds_nothing(self, opening: Opening) -> None:
        """A repeat that comes after the settle or the release is answered, and holds nothing more."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 6))
            ledger.settle("a", charge("a", 6))
            ledger.hold(call("b", 4))
            ledger.release("b")
            assert isinstance(ledger.hold(call("a", 6), wait=0), Hold)
            assert isinstance(ledger.hold(call("b", 4), wait=0), Hold)
            assert ledger.open_holds() == ()

    def test_hold_that_comes_after_its_charge_holds_nothing(self, opening: Opening) -> None:
        """A message that was overtaken by its own settle is answered, and the call is charged once."""
        with opened(opening) as ledger:
            ledger.settle("a", charge("a", 2))
            assert isinstance(ledger.hold(call("a", 6)), Hold)
            ledger.settle("a", charge("a", 2))
            assert ledger.balance(claim()) == (Spend(nanousd=2 * CENT, calls=1), Spend())

    def test_refused_call_may_ask_again(self, opening: Opening) -> None:
        """A refusal is not remembered: the same call is held when there is room."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 6))
            assert isinstance(ledger.hold(call("b", 5), wait=0), Refusal)
            ledger.release("a")
            assert isinstance(ledger.hold(call("b", 5), wait=0), Hold)

    def test_same_id_for_another_call(self, opening: Opening) -> None:
        """One id with another amount or account is a mistake, while it is held, settled or released."""
        others = (call("a", 7), call("a", 6, claim(scope="t")), call("a", 6, claim(), claim(scope="t")))
        with opened(opening) as ledger:
            ledger.hold(call("a", 6))
            assert all(is_mismatch(ledger, other) for other in others)
            ledger.settle("a", charge("a", 1))
            assert all(is_mismatch(ledger, other) for other in others)
            ledger.hold(call("b", 6))
            ledger.release("b")
            assert is_mismatch(ledger, call("b", 7))
            assert ledger.balance(claim(scope="t")) == (Spend(), Spend())

    def test_repeated_settle_charges_once(self, opening: Opening) -> None:
        """The first charge stays, and a repeat is answered with it."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 6))
            mine, other = charge("a", 2), charge("a", 5)
            assert ledger.settle("a", mine) is mine
            assert ledger.settle("a", other) == mine
            assert cents(ledger.total()) == 2
            assert ledger.charges() == (mine,)

    def test_late_settle_replaces_an_assumed_charge(self, opening: Opening) -> None:
        """A call that was charged at its worst case, and then reports back, costs what it says."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 6))
            ledger.settle("a", charge("a", 6, assumed=True, thread="t"))
            late = charge("a", 2, thread="t")
            assert ledger.settle("a", late) is late
            assert ledger.balance(claim())[0] == Spend(nanousd=2 * CENT, calls=1)
            assert ledger.total() == ledger.total(thread="t") == Spend(nanousd=2 * CENT, calls=1)
            assert ledger.charges() == (late,)

    def test_settle_without_a_hold_is_charged(self, opening: Opening) -> None:
        """What was spent without asking counts all the same."""
        with opened(opening) as ledger:
            ledger.settle("a", charge("a", 12))
            assert breach_of(ledger.hold(call("b", 1))) == ("spent", 12, 0)

    def test_charge_counts_in_all_its_accounts(self, opening: Opening) -> None:
        """A charge counts once in each account it names, and once in the sum of all."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 5, claim(scope="s"), claim(scope="t")))
            ledger.settle("a", charge("a", 3, "s", "t"))
            assert [cents(ledger.total(scope=scope)) for scope in "stu"] == [3, 3, 0]
            assert cents(ledger.total()) == 3

    def test_all_accounts_or_none(self, opening: Opening) -> None:
        """A call that has room in one account and none in another is held in neither."""
        big, small = claim(100, "big"), claim(1, "small")
        with opened(opening) as ledger:
            refused = ledger.hold(call("a", 5, big, small), wait=0)
            assert isinstance(refused, Refusal)
            assert refused.claim == small
            assert ledger.balance(big) == ledger.balance(small) == (Spend(), Spend())

    def test_two_budgets_on_one_account_hold_once(self, opening: Opening) -> None:
        """Two claims on one account count a call once; the tighter limit holds."""
        loose, tight = claim(10), claim(6)
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(call("a", 5, loose, tight)), Hold)
            assert cents(ledger.balance(loose)[1]) == 5
            refused = ledger.hold(call("b", 2, loose, tight), wait=0)
            assert isinstance(refused, Refusal)
            assert refused.claim == tight

    def test_call_without_budgets_is_held_nowhere(self, opening: Opening) -> None:
        """A call that needs room in no budget always has it."""
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(Call(id="a")), Hold)
            assert len(ledger.open_holds()) == 1
            ledger.release("a")
            assert ledger.open_holds() == ()

    def test_base_is_added_and_floor_is_a_minimum(self, opening: Opening) -> None:
        """`base` was spent before the account began; `floor` is what the account has spent at the very least."""
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(call("a", 4, claim(base=7)), wait=0), Refusal)
            assert cents(ledger.balance(claim(floor=7))[0]) == 7
            ledger.settle("x", charge("x", 2))
            assert cents(ledger.balance(claim(floor=7))[0]) == 9
            assert cents(ledger.balance(claim(base=1))[0]) == 10

    def test_each_metric_has_its_limit(self, opening: Opening) -> None:
        """A budget of calls or tokens refuses what it can't pay for, whatever that costs."""
        three = Claim(budget="b", scope="s", limits={"calls": 3, "usd": 100 * CENT})
        few = Claim(budget="t", scope="t", limits={"tokens": 10})
        wordy = Call(id="w", worst=Spend(input_tokens=6, output_tokens=5, calls=1), claims=(few,))
        with opened(opening) as ledger:
            for n in range(3):
                assert isinstance(ledger.hold(call(str(n), 0, three)), Hold)
                ledger.settle(str(n), charge(str(n), 0))
            refused = [ledger.hold(call("4", 0, three)), ledger.hold(wordy)]
            found = [(r.breach.metric, r.breach.spent, r.breach.limit) for r in refused if isinstance(r, Refusal)]
            assert found == [("calls", 3, 3), ("tokens", 0, 10)]

    def test_limits_may_change(self, opening: Opening) -> None:
        """The limit in force is the one the call brings: raised by a person, or lowered."""
        with opened(opening) as ledger:
            ledger.settle("a", charge("a", 10))
            assert isinstance(ledger.hold(call("b", 2)), Refusal)
            assert isinstance(ledger.hold(call("b", 2, claim(12))), Hold)
            assert breach_of(ledger.hold(call("c", 1, claim(5)))) == ("spent", 10, 2)

    def test_uncapped_call_starts_while_anything_is_left(self, opening: Opening) -> None:
        """A call without a known worst case may start as long as one nano-USD is left, and not after."""
        with opened(opening) as ledger:
            assert isinstance(ledger.hold(call("a", 0, capped=False)), Hold)
            ledger.settle("a", charge("a", 10))
            assert isinstance(ledger.hold(call("b", 0, capped=False)), Refusal)

    def test_unpriced_charge_closes_the_account_for_usd(self, opening: Opening) -> None:
        """After a call nobody knows the price of, a USD budget is breached, and a budget of calls is not."""
        with opened(opening) as ledger:
            ledger.settle("a", Charge(id="a", unpriced=True, scopes=("s",)))
            assert breach_of(ledger.hold(call("b", 0))) == ("unpriced", 0, 0)
            assert isinstance(ledger.hold(call("c", 0, Claim(budget="b", scope="s", limits={"calls": 9}))), Hold)

    def test_large_amounts_are_exact(self, opening: Opening) -> None:
        """A million dollars and a nano-dollar are that, as sums and as limits."""
        much = 1_000_000 * 1_000_000_000 + 1
        mine = Claim(budget="b", scope="s", limits={"usd": much})
        with opened(opening) as ledger:
            ledger.settle("a", Charge(id="a", nanousd=much - 1, scopes=("s",)))
            assert isinstance(ledger.hold(Call(id="b", worst=Spend(nanousd=1), claims=(mine,))), Hold)
            assert isinstance(ledger.hold(Call(id="c", worst=Spend(nanousd=1), claims=(mine,)), wait=0), Refusal)
            assert ledger.balance(mine) == (Spend(nanousd=much - 1, calls=1), Spend(nanousd=1))

    def test_boundless_limit_is_a_limit(self, opening: Opening) -> None:
        """A limit beyond all money is kept like any other."""
        with opened(opening) as ledger:
            mine = Claim(budget="b", scope="s", limits={"usd": 10**30})
            assert isinstance(ledger.hold(call("a", 5, mine)), Hold)

    def test_money_that_is_gone_is_refused_at_once(self, opening: Opening) -> None:
        """Waiting can't bring back what is spent, so nobody waits for it, however long the limit."""
        with opened(opening) as ledger:
            ledger.settle("a", charge("a", 9))
            ledger.hold(call("b", 1))
            refused = ledger.hold(call("c", 5), wait=3_600)
            assert breach_of(refused)[0] == "spent"
            assert refused.waited == 0

    def test_gone_says_more_than_held(self, opening: Opening) -> None:
        """Of several budgets without room, the one that no waiting helps is told."""
        held, gone = claim(10, "held"), claim(3, "gone")
        with opened(opening) as ledger:
            ledger.hold(call("a", 10, held))
            refused = ledger.hold(call("b", 4, held, gone), wait=3_600)
            assert isinstance(refused, Refusal)
            assert (refused.breach.kind, refused.claim) == ("spent", gone)

    def test_room_asks_without_holding(self, opening: Opening) -> None:
        """`room` leaves others' holds out: it tells whether waiting could help at all."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 10))
            assert ledger.room(call("b", 1)) is None
            ledger.settle("a", charge("a", 10))
            refusal = ledger.room(call("b", 1))
            assert refusal is not None
            assert breach_of(refusal) == ("spent", 10, 0)
            assert ledger.open_holds() == ()

    def test_totals_by_what_a_charge_says(self, opening: Opening) -> None:
        """Charges can be narrowed by thread, run, node, model, task, user and account; None is for those without."""
        told = (
            Charge(id="a", nanousd=1, thread="t1", run="r1", node="plan", model="m", task="k1", scopes=("s",), time=1),
            Charge(id="b", nanousd=2, thread="t1", run="r2", node="act", model="m", task="k2", scopes=("s",), time=2),
            Charge(
                id="c", nanousd=4, thread="t2", run="r3", node="act", model="n", user="u", scopes=("o", "p"), time=3
            ),
        )
        with opened(opening) as ledger:
            for one in told:
                ledger.settle(one.id, one)

            def sum_of(**where: Any) -> int:  # noqa: ANN401 - or mypy takes `since` for a text
                assert Spend.total(ledger.charges(**where)) == ledger.total(**where)
                return ledger.total(**where).nanousd

            assert ledger.charges() == told
            assert sum_of() == 7
            assert [sum_of(thread="t1"), sum_of(run="r2"), sum_of(node="act"), sum_of(model="m")] == [3, 2, 6, 3]
            assert [sum_of(task="k2"), sum_of(scope="s"), sum_of(scope="p"), sum_of(scope="-")] == [2, 3, 4, 0]
            assert sum_of(node="act", thread="t1") == sum_of(scope="s", run="r2") == 2
            assert [sum_of(user="u"), sum_of(user=None), sum_of(task=None), sum_of(user="u", thread="t1")] == [
                4,
                3,
                4,
                0,
            ]

    def test_totals_by_time(self, opening: Opening) -> None:
        """`since` is the first moment that counts, `until` the first that does not; `last` are the latest."""
        with opened(opening) as ledger:
            for time in (3, 1, 2):  # settled in another order
                charged = Charge(
                    id=str(time), nanousd=time, scopes=("s",), time=time, thread="odd" if time % 2 else None
                )
                ledger.settle(str(time), charged)

            def found(**which: Any) -> str:  # noqa: ANN401 - several kinds of words
                return "".join(one.id for one in ledger.charges(**which))

            assert found() == "123"
            assert [found(since=2), found(until=2), found(since=1.5, until=2.5)] == ["23", "1", "2"]
            assert [found(last=2), found(last=9), found(last=0), found(last=1, until=3)] == ["23", "123", "", "2"]
            assert found(since=2, thread="odd") == "3"
            assert [ledger.total(since=2).nanousd, ledger.total(until=2, scope="s").nanousd] == [5, 1]
            assert ledger.total(since=2, thread="odd").nanousd == 3

    def test_sums_by_something(self, opening: Opening) -> None:
        """`totals` gives the same sums side by side, the most expensive first, and days in their order."""
        day = 86_400
        told = (
            Charge(id="a", nanousd=1, model="m", user="u", scopes=("s", "step:1|"), time=day - 1),
            Charge(id="b", nanousd=5, model="n", scopes=("s", "t"), time=day),
            Charge(id="c", nanousd=2, model="m", user="u", time=3 * day, estimated=True),
        )
        with opened(opening) as ledger:
            for one in told:
                ledger.settle(one.id, one)

            def sums(by: str, **which: Any) -> list[tuple[str | None, int]]:  # noqa: ANN401 - several kinds of words
                return [(name, spend.nanousd) for name, spend in ledger.totals(by, **which).items()]

            assert sums("model") == [("n", 5), ("m", 3)]
            assert ledger.totals("model")["m"] == ledger.total(model="m") == told[0].spend + told[2].spend
            assert sums("user") == [(None, 5), ("u", 3)]
            assert sums("day") == [("1970-01-01", 1), ("1970-01-02", 5), ("1970-01-04", 2)]
            assert sums("scope") == sums("scope", since=0) == [("s", 6), ("t", 5)]
            assert sums("scope", user="u") == [("s", 1)]
            assert sums("model", since=day, until=2 * day) == [("n", 5)]
            assert sums("thread", model="none") == []
            try:
                ledger.totals("colour")
            except ValueError as error:
                assert "'colour'" in str(error)
            else:
                raise AssertionError

    def test_open_hold_tells_its_age(self, opening: Opening) -> None:
        """An open hold says when it was made, and a renewed lease doesn't change that."""
        clock = Clock()
        with opened(opening, clock=clock) as ledger:
            made = clock()
            ledger.hold(call("a", 1))
            clock.now += 30
            ledger.renew(["a"])
            assert [(hold.time, hold.expires) for hold in ledger.open_holds()] == [(made, made + 90)]

    def test_unknown_question_about_charges(self, opening: Opening) -> None:
        """A word that charges can't be narrowed by is a TypeError, as any unknown keyword."""
        with opened(opening) as ledger:
            for question in (ledger.charges, ledger.total):
                try:
                    question(tenant="u")
                except TypeError as error:
                    assert "tenant" in str(error)
                else:
                    raise AssertionError

    def test_charges_and_calls_come_back_whole(self, opening: Opening) -> None:
        """What was charged and what is held is told as it was given, in all fields."""
        mine = Claim(
            budget="usd=1 per thread",
            scope="thread:Zoë’s 'first', \\\"x\" {NULL}\n\U0001f9ee",
            limits={"usd": 7 * CENT, "calls": 3},
            base=Spend(nanousd=1, estimated=1),
        )
        asked = Call(
            id="i 1",
            node="plan",
            model="m",
            provider="p",
            worst=Spend(nanousd=1, input_tokens=2, output_tokens=3, calls=1),
            capped=False,
            claims=(mine,),
            user="zoë@example.com",
        )
        told = Charge(
            id="ü",
            nanousd=1,
            input_tokens=2,
            output_tokens=3,
            calls=1,
            estimated=True,
            model="m",
            provider="p",
            node="plan",
            run="r",
            thread="Zoë’s",
            user="zoë@example.com",
            task="t",
            attempt=3,
            scopes=(mine.scope, "other"),
            time=1_750_000_000.123456,
            waited=0.25,
        )
        with opened(opening) as ledger:
            ledger.hold(asked)
            ledger.settle("ü", told)
            assert [hold.call for hold in ledger.open_holds()] == [asked]
            assert ledger.charges(scope=mine.scope, thread="Zoë’s") == (told,)

    def test_hold_has_a_lease(self, opening: Opening) -> None:
        """A hold says when it ends; nothing is charged before."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as ledger:
            hold = ledger.hold(call("a", 6))
            assert isinstance(hold, Hold)
            assert hold.expires == clock() + 60
            clock.now += 59
            assert ledger.sweep() == ()
            assert cents(ledger.balance(claim())[1]) == 6

    def test_expired_hold_is_charged_at_its_worst_case(self, opening: Opening) -> None:
        """A hold past its lease becomes a charge of the same amount, marked as assumed, once."""
        clock = Clock()
        asked = Call(id="a", node="plan", model="m", provider="p", worst=call("a", 6).worst, claims=(claim(),))
        with opened(opening, lease=60, clock=clock) as ledger:
            ledger.hold(asked)
            clock.now += 61
            (swept,) = ledger.sweep()
            assert (swept.id, cents(swept.spend), swept.assumed, swept.scopes) == ("a", 6, True, ("s",))
            assert (swept.node, swept.model, swept.provider, swept.time) == ("plan", "m", "p", clock())
            assert ledger.sweep() == ()
            assert ledger.charges() == (swept,)
            assert ledger.balance(claim()) == (swept.spend, Spend())
            assert ledger.open_holds() == ()

    def test_late_settle_replaces_an_expiry_charge(self, opening: Opening) -> None:
        """A call that reports back after its lease costs what it says."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as ledger:
            ledger.hold(call("a", 6))
            clock.now += 61
            ledger.sweep()
            late = charge("a", 1)
            assert ledger.settle("a", late) is late
            assert ledger.balance(claim()) == (Spend(nanousd=CENT, calls=1), Spend())
            assert ledger.charges() == (late,)

    def test_late_release_takes_an_expiry_charge_back(self, opening: Opening) -> None:
        """A call that turns out not to be billed costs nothing, even after its lease."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as ledger:
            ledger.hold(call("a", 6))
            clock.now += 61
            ledger.sweep()
            ledger.release("a")
            assert ledger.balance(claim()) == (Spend(), Spend())
            assert ledger.charges() == ()
            assert ledger.total() == Spend()

    def test_renewed_hold_lives_on(self, opening: Opening) -> None:
        """A renewed lease begins anew, and only open holds are renewed."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as ledger:
            for id_ in "abc":
                ledger.hold(call(id_, 1))
            ledger.settle("b", charge("b", 1))
            clock.now += 50
            assert ledger.renew(["a", "b", "never held"]) == ("a",)
            clock.now += 50
            assert [swept.id for swept in ledger.sweep()] == ["c"]
            assert [hold.expires for hold in ledger.open_holds()] == [clock() + 10]

    def test_clock_that_goes_backwards_charges_nothing(self, opening: Opening) -> None:
        """A clock set back only lengthens leases."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as ledger:
            ledger.hold(call("a", 6))
            clock.now -= 86_400
            ledger.hold(call("b", 1))
            assert ledger.sweep() == ()
            assert cents(ledger.balance(claim())[1]) == 7

    def test_wait_has_a_limit(self, opening: Opening) -> None:
        """Who waits in vain is refused after the ledger's own time limit, and told how long it was."""
        with opened(opening, wait=0.05) as ledger:
            ledger.hold(call("a", 8))
            refused = ledger.hold(call("b", 5))
            assert breach_of(refused) == ("held", 0, 8)
            assert 0.04 < refused.waited < _PATIENT
            assert [hold.id for hold in ledger.open_holds()] == ["a"]

    def test_wait_ends_when_the_money_turns_out_to_be_gone(self, opening: Opening) -> None:
        """A call that waits is refused when the settle leaves too little."""
        with opened(opening) as ledger, ThreadPoolExecutor(1) as pool:
            ledger.hold(call("a", 8))
            waiting = pool.submit(ledger.hold, call("b", 5))
            ledger.settle("a", charge("a", 8))
            assert breach_of(waiting.result(_PATIENT)) == ("spent", 8, 0)

    def test_threads_take_turns(self, opening: Opening) -> None:
        """32 calls in 16 threads, with room for two at a time: all run, and never more than the limit is held."""
        mine = claim(36)
        with opened(opening) as ledger, ThreadPoolExecutor(16) as pool:
            over: list[int] = []

            def spend(n: int) -> bool:
                if isinstance(ledger.hold(call(str(n), 2, mine)), Refusal):
                    return False
                spent, held = ledger.balance(mine)
                over.extend([cents(spent + held)] if cents(spent + held) > 36 else [])
                ledger.settle(str(n), charge(str(n), 1))
                return True

            assert sum(pool.map(spend, range(32))) == cents(ledger.total()) == 32
            assert over == []

    def test_threads_spend_everything_and_nothing_more(self, opening: Opening) -> None:
        """64 calls in 16 threads that start together: exactly as many run as the money pays for."""
        mine = claim(20)
        start = threading.Barrier(16)
        with opened(opening) as ledger, ThreadPoolExecutor(16) as pool:

            def spend(worker: int) -> int:
                start.wait(_PATIENT)
                ran = 0
                for n in range(4):
                    if isinstance(ledger.hold(call(f"{worker}-{n}", 7, mine)), Hold):
                        ledger.settle(f"{worker}-{n}", charge(f"{worker}-{n}", 1))
                        ran += 1
                return ran

            # The last to start had 7 left before it: 20 - 7 + 1.
            assert sum(pool.map(spend, range(16))) == cents(ledger.total()) == 14
            assert ledger.open_holds() == ()

    def test_tasks_spend_everything_and_nothing_more(self, opening: Opening) -> None:
        """The same for 64 tasks on one event loop."""
        mine = claim(20)

        async def spend(ledger: Ledger, n: int) -> int:
            if isinstance(await ledger.ahold(call(str(n), 7, mine)), Refusal):
                return 0
            await asyncio.sleep(0)
            await ledger.asettle(str(n), charge(str(n), 1))
            return 1

        async def main(ledger: Ledger) -> list[int]:
            return await asyncio.gather(*(spend(ledger, n) for n in range(64)))

        with opened(opening) as ledger:
            assert sum(asyncio.run(main(ledger))) == cents(ledger.total()) == 14
            assert ledger.open_holds() == ()

    def test_async_twins_say_the_same(self, opening: Opening) -> None:
        """Each method for event loops gives what its twin gives."""
        clock = Clock()

        async def main(ledger: Ledger) -> None:
            hold = await ledger.ahold(call("a", 6))
            assert await ledger.aopen_holds() == ledger.open_holds() == (hold,)
            assert breach_of(await ledger.ahold(call("b", 5), wait=0)) == ("held", 0, 6)
            assert breach_of(await ledger.ahold(call("b", 5), wait=0.01)) == ("held", 0, 6)
            assert await ledger.aroom(call("b", 5)) is None
            assert await ledger.abalance(claim()) == ledger.balance(claim())
            clock.now += 59
            assert await ledger.arenew(["a", "x"]) == ("a",)
            assert await ledger.asweep() == ()
            mine = charge("a", 2)
            assert await ledger.asettle("a", mine) is mine
            assert await ledger.acharges(scope="s") == ledger.charges() == (mine,)
            assert await ledger.atotal() == ledger.total(scope="s")
            assert await ledger.atotals("scope", since=0) == ledger.totals("scope")
            await ledger.ahold(call("c", 6))
            await ledger.arelease("c")
            await ledger.ahold(call("d", 6))
            clock.now += 61
            assert [swept.id for swept in await ledger.asweep()] == ["d"]

        with opened(opening, clock=clock) as ledger:
            asyncio.run(main(ledger))

    def test_cancelled_wait_holds_nothing(self, opening: Opening) -> None:
        """A task that is cancelled while it asks or waits for room leaves no hold, whenever that was."""

        async def main(ledger: Ledger) -> None:
            for n in range(20):
                task = asyncio.create_task(ledger.ahold(call(f"b{n}", 10 if n % 2 else 1)))
                for _ in range(n):
                    await asyncio.sleep(0)
                task.cancel()
                answers = await asyncio.gather(task, return_exceptions=True)
                if isinstance(answers[0], Hold):  # it was faster
                    await ledger.arelease(f"b{n}")
            for _ in range(500):
                if [hold.id for hold in await ledger.aopen_holds()] == ["a"]:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError

        with opened(opening) as ledger:
            ledger.hold(call("a", 8))
            asyncio.run(main(ledger))
            assert cents(ledger.balance(claim())[1]) == 8

    def test_cancelled_settle_is_charged(self, opening: Opening) -> None:
        """A settle that was begun is done, even if its task is cancelled meanwhile."""

        async def main(ledger: Ledger) -> None:
            tasks = [asyncio.create_task(ledger.asettle(str(n), charge(str(n), 1))) for n in range(30)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(500):
                if len(await ledger.acharges()) == 30:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError

        with opened(opening) as ledger:
            ledger.hold(call("0", 8))
            asyncio.run(main(ledger))
            assert ledger.balance(claim()) == (Spend(nanousd=30 * CENT, calls=30), Spend())


class DurableLedgerConformance(LedgerConformance):
    """What is promised besides by a ledger that outlives its process: all that `opening` opens is one."""

    def test_everything_is_there_after_reopening(self, opening: Opening) -> None:
        """Spent and held amounts, charges, holds and finished ids are what they were."""
        with opened(opening) as ledger:
            ledger.hold(call("a", 2))
            ledger.settle("a", charge("a", 1, thread="t"))
            ledger.hold(call("b", 3))
            ledger.hold(call("c", 3))
            ledger.release("c")
            before = (ledger.balance(claim()), ledger.charges(), ledger.open_holds(), ledger.total(thread="t"))
        with opened(opening) as ledger:
            assert (ledger.balance(claim()), ledger.charges(), ledger.open_holds(), ledger.total(thread="t")) == before
            assert all(is_mismatch(ledger, call(id_, 9)) for id_ in "abc")
            assert cents(ledger.settle("a", charge("a", 5)).spend) == 1
            ledger.settle("b", charge("b", 2))
            assert cents(ledger.total()) == 3

    def test_two_share_one_limit(self, opening: Opening) -> None:
        """What one holds is not there for the other, and either may settle it."""
        with opened(opening) as one, opened(opening) as two:
            assert isinstance(one.hold(call("a", 6)), Hold)
            assert breach_of(two.hold(call("b", 5), wait=0)) == ("held", 0, 6)
            two.settle("a", charge("a", 1))
            assert isinstance(one.hold(call("b", 9), wait=0), Hold)

    def test_one_waits_for_the_other(self, opening: Opening) -> None:
        """A call that waits for room goes on when another ledger on the same accounts makes it."""
        with opened(opening) as one, opened(opening) as two, ThreadPoolExecutor(1) as pool:
            one.hold(call("a", 8))
            waiting = pool.submit(two.hold, call("b", 5))
            one.settle("a", charge("a", 1))
            assert isinstance(waiting.result(_PATIENT), Hold)

    def test_holds_of_the_dead_are_charged_by_the_living(self, opening: Opening) -> None:
        """Who closes without settling counts as dead when the lease ends, and anybody's sweep charges it."""
        clock = Clock()
        with opened(opening, lease=60, clock=clock) as one:
            one.hold(call("a", 6))
        with opened(opening, lease=60, clock=clock) as two:
            assert two.sweep() == ()
            clock.now += 61
            assert [(swept.id, cents(swept.spend)) for swept in two.sweep()] == [("a", 6)]
