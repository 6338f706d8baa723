"""The ledger in memory: holds, settles, waiting, and never over the limit."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal

import pytest

from graphguard import Call, Charge, Hold, HoldMismatch, Ledger, MemoryLedger, Refusal, Spend
from graphguard.budget import Claim

CENT = 10_000_000


def claim(limit: int = 10, scope: str = "s", *, base: int = 0, floor: int = 0) -> Claim:
    """Give a claim on one account; amounts in cents."""
    return Claim(
        budget=f"b-{scope}",
        scope=scope,
        limits={"usd": limit * CENT},
        base=Spend(nanousd=base * CENT),
        floor=Spend(nanousd=floor * CENT),
    )


def call(id: str, cents: int, *claims: Claim, capped: bool = True) -> Call:  # noqa: A002 - a call's id
    """Give a call with this worst case."""
    return Call(id=id, worst=Spend(nanousd=cents * CENT, calls=1), capped=capped, claims=claims or (claim(),))


def charge(id: str, cents: int, scope: str = "s", **more: object) -> Charge:  # noqa: A002 - a charge's id
    """Give what a call really cost."""
    return Charge(id=id, nanousd=cents * CENT, scopes=(scope,), **more)


@contextmanager
def waiting(ledger: MemoryLedger, *calls: Call):
    """Give a list that fills with the answers of calls which wait for room in threads of their own."""
    answers: list[Hold | Refusal] = []
    threads = [threading.Thread(target=lambda c=c: answers.append(ledger.hold(c))) for c in calls]
    for thread in threads:
        thread.start()
    while len(ledger._waiters) < len(calls):  # noqa: SLF001 - how a test knows that they wait
        threading.Event().wait(0.001)
    yield answers
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def waits(ledger: MemoryLedger) -> None:
    """Return when a task waits for room."""
    while not ledger._waiters:  # noqa: SLF001, ASYNC110 - nothing public tells, and nothing wakes us when it begins
        await asyncio.sleep(0)


def test_is_a_ledger():
    """It keeps the protocol that users implement."""
    assert isinstance(MemoryLedger(), Ledger)


def test_hold_counts_as_spent(ledger):
    """What is held is not there for anybody else."""
    assert isinstance(ledger.hold(call("a", 6)), Hold)

    refused = ledger.hold(call("b", 5), wait=0)

    assert isinstance(refused, Refusal)
    assert (refused.breach.kind, refused.breach.held, refused.breach.spent) == ("held", 6 * CENT, 0)
    assert (refused.breach.limit, refused.breach.needed) == (10 * CENT, 5 * CENT)
    assert refused.breach.budget == "b-s"


def test_the_last_cent_may_be_spent(ledger):
    """`spent + held + worst case <= limit`: exactly the limit fits."""
    assert isinstance(ledger.hold(call("a", 4)), Hold)
    assert isinstance(ledger.hold(call("b", 6)), Hold)


def test_settle_gives_back_what_was_not_used(ledger):
    """The real usage replaces the hold."""
    ledger.hold(call("a", 9))
    ledger.settle("a", charge("a", 2))

    assert ledger.open_holds() == ()
    assert ledger.balance(claim()) == (Spend(nanousd=2 * CENT, calls=1), Spend())
    assert isinstance(ledger.hold(call("b", 8), wait=0), Hold)


def test_release_gives_all_back(ledger):
    """A call that was not billed leaves nothing behind; releasing it again, or something unknown, is nothing."""
    ledger.hold(call("a", 9))
    ledger.release("a")
    ledger.release("a")
    ledger.release("never held")

    assert ledger.balance(claim()) == (Spend(), Spend())
    assert ledger.total() == Spend()
    assert isinstance(ledger.hold(call("b", 10), wait=0), Hold)


def test_repeated_hold_is_one_hold(ledger):
    """Holding the same call twice returns the first hold, and holds once."""
    first = ledger.hold(call("a", 6))

    assert ledger.hold(call("a", 6)) is first
    assert ledger.balance(claim())[1].nanousd == 6 * CENT


def test_repeated_hold_after_the_settle_holds_nothing(ledger):
    """A repeat that comes late is answered, and holds nothing more."""
    ledger.hold(call("a", 6))
    ledger.settle("a", charge("a", 6))

    assert isinstance(ledger.hold(call("a", 6)), Hold)
    assert ledger.open_holds() == ()


@pytest.mark.parametrize("other", [call("a", 7), call("a", 6, claim(scope="t"))], ids=["amount", "account"])
def test_same_id_for_another_call(ledger, other):
    """One id with another amount or account is a mistake, before and after the settle."""
    ledger.hold(call("a", 6))
    with pytest.raises(HoldMismatch, match=r"'a'.*mint a new id for each attempt"):
        ledger.hold(other)
    ledger.settle("a", charge("a", 6))
    with pytest.raises(HoldMismatch):
        ledger.hold(other)


def test_repeated_settle_charges_once(ledger):
    """The first charge stays, and a repeat is answered with it."""
    ledger.hold(call("a", 6))
    first = ledger.settle("a", charge("a", 2))

    assert ledger.settle("a", charge("a", 5)) is first
    assert ledger.total().nanousd == 2 * CENT
    assert len(ledger.charges()) == 1


def test_late_settle_replaces_an_assumed_charge(ledger):
    """A call that was charged at its worst case, and then reports back, costs what it says."""
    ledger.hold(call("a", 6))
    ledger.settle("a", charge("a", 6, assumed=True, thread="t"))
    ledger.settle("a", charge("a", 2, thread="t"))

    assert ledger.balance(claim())[0] == Spend(nanousd=2 * CENT, calls=1)
    assert ledger.total() == ledger.total(thread="t") == Spend(nanousd=2 * CENT, calls=1)
    assert [c.nanousd for c in ledger.charges()] == [2 * CENT]


def test_settle_without_a_hold_is_charged(ledger):
    """What was spent without asking counts all the same."""
    ledger.settle("a", charge("a", 12))

    refused = ledger.hold(call("b", 1), wait=0)

    assert isinstance(refused, Refusal)
    assert refused.breach.kind == "spent"


def test_all_accounts_or_none(ledger):
    """A call that has room in one account and none in another is held in neither."""
    big, small = claim(100, "big"), claim(1, "small")

    refused = ledger.hold(call("a", 5, big, small), wait=0)

    assert isinstance(refused, Refusal)
    assert refused.claim == small
    assert ledger.balance(big) == ledger.balance(small) == (Spend(), Spend())


def test_two_budgets_on_one_account_hold_once(ledger):
    """Two claims on one account count a call once; the tighter limit holds."""
    loose, tight = claim(10), claim(6)

    assert isinstance(ledger.hold(call("a", 5, loose, tight)), Hold)
    assert ledger.balance(loose)[1].nanousd == 5 * CENT
    assert ledger.hold(call("b", 2, loose, tight), wait=0).claim == tight


def test_base_is_added_and_floor_is_a_minimum(ledger):
    """`base` was spent before the account began; `floor` is what the account has spent at the very least."""
    assert isinstance(ledger.hold(call("a", 4, claim(base=7)), wait=0), Refusal)
    assert ledger.balance(claim(floor=7))[0].nanousd == 7 * CENT
    ledger.settle("x", charge("x", 2))
    assert ledger.balance(claim(floor=7))[0].nanousd == 9 * CENT


def test_each_metric_has_its_limit(ledger):
    """A budget of calls refuses the fourth, whatever it costs."""
    three = Claim(budget="b", scope="s", limits={"calls": 3, "usd": 100 * CENT})
    for n in range(3):
        ledger.hold(call(str(n), 0, three))
        ledger.settle(str(n), charge(str(n), 0))

    refused = ledger.hold(call("4", 0, three))

    assert (refused.breach.metric, refused.breach.spent, refused.breach.limit) == ("calls", 3, 3)


def test_uncapped_call_starts_while_anything_is_left(ledger):
    """A call without a known worst case may start as long as one nano-USD is left, and not after."""
    assert isinstance(ledger.hold(call("a", 0, capped=False)), Hold)
    ledger.settle("a", charge("a", 10))
    assert isinstance(ledger.hold(call("b", 0, capped=False)), Refusal)


def test_unpriced_charge_closes_the_account_for_usd(ledger):
    """After a call nobody knows the price of, a USD budget is breached, and a budget of calls is not."""
    ledger.settle("a", charge("a", 0, unpriced=True))

    assert ledger.hold(call("b", 0)).breach.kind == "unpriced"
    assert isinstance(ledger.hold(call("c", 0, Claim(budget="b", scope="s", limits={"calls": 9}))), Hold)


def test_money_that_is_gone_is_refused_at_once(ledger):
    """Waiting can't bring back what is spent, so nobody waits for it, however long the limit."""
    ledger.settle("a", charge("a", 9))
    ledger.hold(call("b", 1))

    refused = ledger.hold(call("c", 5), wait=3_600)

    assert refused.breach.kind == "spent"
    assert refused.waited == 0


def test_gone_says_more_than_held(ledger):
    """Of several budgets without room, the one that no waiting helps is told."""
    held, gone = claim(10, "held"), claim(3, "gone")
    ledger.hold(call("a", 10, held))

    refused = ledger.hold(call("b", 4, held, gone), wait=3_600)

    assert (refused.breach.kind, refused.claim) == ("spent", gone)


def test_call_waits_in_a_thread_until_others_settle(ledger):
    """A call that finds too much held waits, and goes on when a settle makes room."""
    ledger.hold(call("a", 8))
    with waiting(ledger, call("b", 5)) as answers:
        ledger.settle("a", charge("a", 1))

    assert [type(answer) for answer in answers] == [Hold]
    assert ledger.balance(claim()) == (Spend(nanousd=CENT, calls=1), Spend(nanousd=5 * CENT, calls=1))


def test_call_waits_until_others_are_released(ledger):
    """A release wakes those who wait, too."""
    ledger.hold(call("a", 8))
    with waiting(ledger, call("b", 5)) as answers:
        ledger.release("a")

    assert [type(answer) for answer in answers] == [Hold]


def test_wait_ends_when_the_money_turns_out_to_be_gone(ledger):
    """A call that waits is refused at once when the settle leaves too little."""
    ledger.hold(call("a", 8))
    with waiting(ledger, call("b", 5)) as answers:
        ledger.settle("a", charge("a", 8))

    assert [answer.breach.kind for answer in answers] == ["spent"]


def test_all_who_wait_are_asked_again(ledger):
    """One settle that makes room for two lets two of three go on, and the third wait for them."""
    ledger.hold(call("a", 10))
    with waiting(ledger, *(call(n, 5) for n in "bcd")) as answers:
        ledger.settle("a", charge("a", 0))
        while len(answers) < 2:
            threading.Event().wait(0.001)
        assert len(ledger.open_holds()) == 2
        ledger.settle(answers[0].id, charge(answers[0].id, 0))

    assert [type(answer) for answer in answers] == [Hold, Hold, Hold]


async def test_call_waits_in_a_task_until_others_settle(ledger):
    """On an event loop the wait is for the task only: others run, and their settle wakes it."""
    await ledger.ahold(call("a", 8))
    task = asyncio.create_task(ledger.ahold(call("b", 5)))
    await waits(ledger)
    assert not task.done()

    ledger.settle("a", charge("a", 1))

    assert isinstance(await task, Hold)


async def test_task_is_woken_from_another_thread(ledger):
    """A settle in a thread wakes a task that waits on an event loop."""
    await ledger.ahold(call("a", 8))
    task = asyncio.create_task(ledger.ahold(call("b", 5)))
    await waits(ledger)

    await asyncio.to_thread(ledger.settle, "a", charge("a", 1))

    assert isinstance(await asyncio.wait_for(task, 5), Hold)


async def test_cancelled_wait_holds_nothing(ledger):
    """A task that is cancelled while it waits leaves no hold, and the next settle is not disturbed."""
    await ledger.ahold(call("a", 8))
    task = asyncio.create_task(ledger.ahold(call("b", 5)))
    await waits(ledger)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    ledger.settle("a", charge("a", 1))

    assert ledger.open_holds() == ()


def test_wait_has_a_limit():
    """Who waits in vain is refused after the ledger's own time limit, and told how long it was."""
    ledger = MemoryLedger(wait=0.05)
    ledger.hold(call("a", 8))

    refused = ledger.hold(call("b", 5))

    assert refused.breach.kind == "held"
    assert 0.04 < refused.waited < 5


async def test_wait_of_a_task_has_a_limit():
    """The same on an event loop."""
    ledger = MemoryLedger(wait=0.05)
    await ledger.ahold(call("a", 8))

    refused = await ledger.ahold(call("b", 5))

    assert refused.breach.kind == "held"
    assert 0.04 < refused.waited < 5


@pytest.mark.parametrize("wait", [0, 0.001])
def test_who_gave_up_is_forgotten(ledger, wait):
    """A ledger does not grow with those who were refused or gave up waiting."""
    ledger.hold(call("a", 8))
    for n in range(20):
        ledger.hold(call(str(n), 5), wait=wait)

    assert len(ledger._waiters) == 0  # noqa: SLF001 - nothing public tells


def test_event_loop_that_is_gone_does_not_disturb_a_settle(ledger):
    """Who was refused on an event loop that has ended since leaves nothing behind that a settle could trip over."""
    ledger.hold(call("a", 8))
    asyncio.run(ledger.ahold(call("b", 5), wait=0))
    asyncio.run(ledger.ahold(call("c", 5), wait=0.001))

    assert ledger.settle("a", charge("a", 1)).nanousd == CENT


def test_room_asks_without_holding(ledger):
    """`room` leaves others' holds out: it tells whether waiting could help at all."""
    ledger.hold(call("a", 10))

    assert ledger.room(call("b", 1)) is None
    ledger.settle("a", charge("a", 10))
    assert ledger.room(call("b", 1)).breach.kind == "spent"
    assert ledger.open_holds() == ()


def test_totals_by_what_a_charge_says(ledger):
    """Charges can be summed and listed by thread, run, node, model, task and account."""
    ledger.settle("a", charge("a", 1, thread="t1", run="r1", node="plan", model="m", task="k1"))
    ledger.settle("b", charge("b", 2, thread="t1", run="r2", node="act", model="m", task="k2"))
    ledger.settle("c", charge("c", 4, "other", thread="t2", run="r3", node="act", model="n", task="k3"))

    def cents(**where: str) -> int:
        assert Spend.total(ledger.charges(**where)) == ledger.total(**where)
        return ledger.total(**where).nanousd // CENT

    assert cents() == 7
    assert [cents(thread="t1"), cents(run="r2"), cents(node="act"), cents(model="m"), cents(task="k3")] == [
        3,
        2,
        6,
        3,
        4,
    ]
    assert [cents(scope="s"), cents(scope="other"), cents(scope="none"), cents(node="act", thread="t1")] == [3, 4, 0, 2]
    assert [c.id for c in ledger.charges()] == ["a", "b", "c"]


def test_unknown_question_about_charges(ledger):
    """A word that charges can't be narrowed by is told, with those that they can."""
    with pytest.raises(TypeError, match=r"'thread'.*not by \['tenant'\]"):
        ledger.charges(tenant="u")
    with pytest.raises(TypeError, match="tenant"):
        ledger.total(tenant="u")


def test_sums_outlive_single_charges():
    """A ledger keeps so many single charges and no more, and its sums by account stay exact."""
    ledger = MemoryLedger(keep=10)
    for n in range(100):
        ledger.hold(call(str(n), 1, claim(1_000)))
        ledger.settle(str(n), charge(str(n), 1, thread="t"))

    assert len(ledger.charges()) == 10
    assert ledger.total().calls == ledger.total(thread="t").calls == ledger.total(scope="s").calls == 100


def test_hold_in_usd(ledger):
    """A hold tells what it holds."""
    hold = ledger.hold(Call.of("r1", node="plan", usd="0.02"))

    assert (hold.id, hold.usd) == ("r1", Decimal("0.02"))
    assert ledger.open_holds() == (hold,)
    assert ledger.sweep() == ()


def test_sixteen_threads_never_exceed_the_limit():
    """16 threads, 200 calls each on one account: at no time is more than the limit spent and held together."""
    ledger = MemoryLedger()
    mine = claim(1_000)
    over: list[object] = []
    start = threading.Barrier(16)

    def spend(worker: int) -> int:
        start.wait()
        billed = 0
        for n in range(200):
            id_ = f"{worker}-{n}"
            answer = ledger.hold(call(id_, 7, mine), wait=0)
            spent, held = ledger.balance(mine)
            if spent.nanousd + held.nanousd > 1_000 * CENT:
                over.append((spent, held))
            if isinstance(answer, Refusal):
                continue
            if n % 5 == 0:
                ledger.release(id_)
            else:
                ledger.settle(id_, charge(id_, n % 8))
                billed += n % 8
        return billed

    with ThreadPoolExecutor(16) as pool:
        billed = sum(pool.map(spend, range(16)))

    assert over == []
    assert ledger.total().nanousd == billed * CENT <= 1_000 * CENT
    assert ledger.balance(mine)[0].nanousd == billed * CENT
    assert ledger.open_holds() == ()


def test_waiting_threads_spend_everything_and_nothing_more():
    """64 calls in 16 threads that all wait for their turn: exactly as many run as the money pays for."""
    ledger = MemoryLedger()
    mine = claim(40)

    def spend(n: int) -> bool:
        answer = ledger.hold(call(str(n), 7, mine))
        if isinstance(answer, Refusal):
            return False
        ledger.settle(str(n), charge(str(n), 1))
        return True

    with ThreadPoolExecutor(16) as pool:
        ran = sum(pool.map(spend, range(64)))

    # The last to start had 7 left before it: 40 - 7 + 1.
    assert ran == ledger.total().nanousd // CENT == 34
