"""Spend, charges, and the reducer of the state field `spend`."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphguard import Charge, Spend
from graphguard.spend import METRICS, NANO, add_spend, to_usd, usd_text

counts = st.integers(min_value=0, max_value=10**9)
spends = st.builds(Spend, nanousd=counts, input_tokens=counts, output_tokens=counts, calls=counts)
amounts = spends.map(Spend.to_state)
keys = st.sampled_from(["usd=0.5 per branch node=a", "calls=3 per run node=b"])


def fold(*updates: dict[str, object]) -> dict[str, object]:
    """Reduce updates into an empty field, as a superstep does."""
    return reduce(add_spend, updates, {})


@st.composite
def updates(draw: st.DrawFn) -> dict[str, object]:
    """Give what one task of a superstep may tell the state: amounts, in all and on narrowed budgets."""
    update = dict(draw(amounts))
    for name in draw(st.sets(st.sampled_from(["by", "run_by"]))):
        update[name] = draw(st.dictionaries(keys, amounts, min_size=1))
    if draw(st.booleans()):
        update["parallel"] = True
    return update


def test_empty_field_reads_as_nothing_spent():
    """A state without the field has spent nothing."""
    assert Spend.of({}) == Spend.of({"spend": {}}) == Spend.of(None) == Spend()


@given(spends)
def test_spend_comes_back_from_its_state_form(spend):
    """What `to_state` writes, `Spend.of` reads."""
    assert Spend.of({"spend": spend.to_state()}) == spend
    assert Spend.of(spend.to_state()) == spend


@given(spends)
def test_state_form_is_plain_json(spend):
    """The state form survives JSON unchanged."""
    data = spend.to_state()

    assert json.loads(json.dumps(data)) == data


@given(spends, spends, spends)
def test_sums_are_commutative_and_associative(one, two, three):
    """Spends add up to the same in any order and grouping, and the empty spend changes nothing."""
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + Spend() == one
    assert one + -one == Spend()


@given(st.lists(updates(), max_size=6), st.randoms(use_true_random=False))
def test_updates_of_one_superstep_reduce_in_any_order(told, random):
    """The reducer is commutative: siblings may finish in any order."""
    shuffled = list(told)
    random.shuffle(shuffled)

    assert fold({"run_id": "r"}, *told) == fold({"run_id": "r"}, *shuffled)


@given(amounts, amounts, amounts)
def test_amounts_reduce_in_any_grouping(one, two, three):
    """The reducer is associative: a sum told at once counts like its parts told one after another."""
    grouped = Spend.of(fold(fold(one, two), three))
    at_once = Spend.of(fold(one, (Spend.of(two) + Spend.of(three)).to_state()))

    assert grouped == at_once


@given(st.lists(spends, min_size=1, max_size=6))
def test_nothing_is_lost_in_the_field(told):
    """The field holds the sum of all updates, of the thread and of the run, to the nano-USD."""
    field = fold({"run_id": "r"}, *(spend.to_state() for spend in told))

    assert Spend.of(field) == Spend.of_run({"spend": field}) == sum(told, Spend())


def test_new_run_counts_from_zero():
    """A new run begins its own account at zero, and the thread's goes on."""
    one = Spend(nanousd=5, calls=1).to_state()

    field = fold({"run_id": "r1"}, one, {"run_id": "r2"}, one)

    assert Spend.of({"spend": field}).calls == 2
    assert Spend.of_run({"spend": field}).calls == 1


def test_field_stays_small():
    """After 1,000 charges in 50 runs, some of them out of cached nodes, the field has less than 500 bytes."""
    one = Spend(nanousd=123_456_789, input_tokens=12_345, output_tokens=678, calls=1, estimated=1).to_state()
    field: dict[str, object] = {}
    for n in range(1_000):
        run = f"{n // 20:012x}"
        if n % 20 == 0:
            field = add_spend(field, {"run_id": run})
        field = add_spend(field, {**one, "once": {"run": run, "task": f"{n:08x}"}} if n % 10 == 0 else one)

    assert Spend.of(field).calls == 1_000
    assert len(json.dumps(field)) < 500


def test_field_does_not_grow_with_cached_nodes():
    """However many cached tasks one run has, only the latest dozen are remembered."""
    field = fold({"run_id": "r"})
    for n in range(100):
        field = add_spend(field, {"calls": 1, "once": {"run": "r", "task": f"{n:08x}"}})

    assert field["run"]["seen"] == [f"{n:08x}" for n in range(88, 100)]


def test_update_out_of_a_cache_counts_once():
    """A write that a node cache replays, in the same run or in a later one, adds nothing."""
    told = {**Spend(nanousd=5, calls=1).to_state(), "once": {"run": "r1", "task": "t1"}}

    field = fold({"run_id": "r1"}, told, told, {"run_id": "r2"}, told)

    assert Spend.of(field).calls == 1
    assert Spend.of_run({"spend": field}).calls == 0


def test_raised_limits_are_kept_beside_the_amounts():
    """A raised limit stays when amounts are added and when a new run begins; a run's own ends with it."""
    raised = {"limits": {"b": {"usd": "1.5"}}, "run_limits": {"r": {"calls": 4}}}

    field = fold({"run_id": "r1"}, raised, Spend(calls=1).to_state())
    later = add_spend(field, {"run_id": "r2"})

    assert field["limits"] == later["limits"] == {"b": {"usd": "1.5"}}
    assert field["run"]["limits"] == {"r": {"calls": 4}}
    assert "limits" not in later["run"]


def test_a_second_raise_of_one_budget_keeps_its_other_limits():
    """Limits are raised metric by metric."""
    field = fold({"limits": {"b": {"usd": "1"}}}, {"limits": {"b": {"calls": 4}}}, {"limits": {"b": {"usd": "2"}}})

    assert field["limits"] == {"b": {"usd": "2", "calls": 4}}


def test_parallel_lines_are_forgotten_with_their_run():
    """Whether several lines run side by side is a matter of one run."""
    field = fold({"run_id": "r1", "parallel": True})

    assert field["parallel"] is True
    assert "parallel" not in add_spend(field, {"run_id": "r2"})


def test_reducer_leaves_its_arguments_alone():
    """The old field and the update are not changed: checkpoints hold on to them."""
    old = fold({"run_id": "r"}, Spend(calls=1).to_state(), {"limits": {"b": {"calls": 1}}})
    new = {**Spend(calls=1).to_state(), "limits": {"b": {"calls": 2}}, "by": {"k": Spend(calls=1).to_state()}}
    before = json.dumps([old, new])

    add_spend(old, new)

    assert json.dumps([old, new]) == before


@pytest.mark.parametrize(
    ("update", "told"),
    [
        (0.5, "must be a dict of amounts to add"),
        ({"usd": "much"}, "must be a decimal number of USD"),
        ({"usd": "NaN"}, "must be a decimal number of USD"),
        ({"calls": 1.5}, "must be a whole number"),
        ({"calls": True}, "must be a whole number"),
        ({"by": [1]}, "must be a dict"),
        ({"limits": 3}, "must be a dict"),
    ],
)
def test_unreadable_update_is_refused(update, told):
    """An update that graphguard never writes is a ValueError which says what the field takes."""
    with pytest.raises(ValueError, match=told):
        add_spend({}, update)


def test_bare_number_as_update_is_told_of_overwrite():
    """Who tries to set the field to a number is told how."""
    with pytest.raises(ValueError, match="Overwrite"):
        add_spend({}, 0)


def test_usd_is_readable_and_exact():
    """USD is a plain decimal string, without exponent, rounding or trailing zeros."""
    assert usd_text(1) == "0.000000001"
    assert usd_text(NANO * 10) == "10"
    assert usd_text(123_456_789_012_345_678_901) == "123456789012.345678901"
    assert to_usd(500_000_000) == Decimal("0.5")


@given(st.integers(min_value=-(10**24), max_value=10**24))
def test_usd_text_comes_back(nanousd):
    """No amount changes on its way through the state, however large."""
    assert Spend.of({"usd": usd_text(nanousd)}).nanousd == nanousd


def test_amounts_by_metric():
    """Each metric of a budget is one of the spend's amounts, `tokens` being both kinds together."""
    spend = Spend(nanousd=1, input_tokens=2, output_tokens=3, calls=4)

    assert [spend.amount(metric) for metric in METRICS] == [1, 5, 2, 3, 4]


def test_charge_is_a_spend_of_one():
    """A charge counts as one call, and as estimated or unpriced where it is."""
    charge = Charge(id="c", nanousd=20_000_000, input_tokens=10, output_tokens=5, estimated=True, unpriced=True)

    assert charge.usd == Decimal("0.02")
    assert charge.spend == Spend(nanousd=20_000_000, input_tokens=10, output_tokens=5, calls=1, estimated=1, unpriced=1)
    assert Spend.total([charge, charge]).calls == 2


def test_at_least_takes_the_larger_of_each():
    """The larger of both, amount by amount."""
    assert Spend(nanousd=1, calls=5).at_least(Spend(nanousd=3, calls=2)) == Spend(nanousd=3, calls=5)


class Snapshot:
    """Stands for LangGraph's StateSnapshot, of which only `.values` is read."""

    values = {"spend": {"usd": "0.25", "calls": 2}}  # noqa: RUF012 - what a snapshot looks like


def test_spend_of_a_snapshot():
    """`Spend.of` reads a snapshot, its values and the bare field alike."""
    snapshot = Snapshot()

    assert Spend.of(snapshot) == Spend.of(snapshot.values) == Spend.of(snapshot.values["spend"])
    assert Spend.of(snapshot).usd == Decimal("0.25")
