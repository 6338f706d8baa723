"""Budgets: what they accept, what they limit, and what they say when they can't be kept."""

from __future__ import annotations

import pickle
from datetime import timedelta
from decimal import Decimal

import pytest

from graphguard import Breach, Budget, Call, GraphguardError, InvalidBudget
from graphguard.budget import amount_text, progress_text


@pytest.mark.parametrize("usd", ["0.50", 0.5, Decimal("0.50"), "5e-1"], ids=repr)
def test_usd_takes_text_and_numbers(usd):
    """Half a dollar is half a dollar, as str, float or Decimal."""
    assert Budget(usd=usd).limits == {"usd": 500_000_000}


def test_float_counts_as_what_it_prints():
    """0.1 is ten cents, and not the binary number behind it."""
    assert Budget(usd=0.1).usd == Decimal("0.1")


def test_whole_dollars():
    """An int is dollars."""
    assert Budget(usd=5).limits == {"usd": 5_000_000_000}


def test_usd_is_the_first_argument():
    """`Budget("0.50")` is a budget in USD."""
    assert Budget("0.50") == Budget(usd="0.50")


def test_every_limit_of_this_version():
    """One budget may limit all five metrics."""
    budget = Budget(usd=1, tokens=2, input_tokens=3, output_tokens=4, calls=5)

    assert budget.limits == {"usd": 10**9, "tokens": 2, "input_tokens": 3, "output_tokens": 4, "calls": 5}


@pytest.mark.parametrize("usd", [0, -1, "-0.01", "abc", "", "NaN", "inf", float("nan"), True, [], 1e-10], ids=repr)
def test_usd_that_is_no_positive_amount(usd):
    """An amount that is not positive and finite is refused when the budget is made, with an example."""
    with pytest.raises(InvalidBudget, match=r"such as '0\.50'"):
        Budget(usd=usd)


@pytest.mark.parametrize("metric", ["tokens", "input_tokens", "output_tokens", "calls"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True], ids=repr)
def test_count_that_is_no_positive_whole_number(metric, value):
    """A count that is not a whole number of at least 1 is refused by its name."""
    with pytest.raises(InvalidBudget, match=rf"^{metric} must be a whole number of at least 1, got"):
        Budget(**{metric: value})


def test_no_limit():
    """A budget without any limit says which ones there are."""
    with pytest.raises(InvalidBudget, match=r"at least one limit: Budget\(usd='0\.50'\), or tokens=.*calls="):
        Budget()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", 30.0),
        ("usd_per_minute", "1"),
        ("repeats", 3),
        ("depth", 2),
        ("every", "day"),
        ("every", timedelta(hours=1)),
        ("keep", "0.05"),
    ],
)
def test_later_fields_are_refused_by_name(name, value):
    """A field that this version does not keep is a NotImplementedError with its name, never ignored."""
    with pytest.raises(NotImplementedError, match=rf"Budget\({name}=\.\.\.\).*leave it out"):
        Budget(usd=1, **{name: value})


def test_later_places_are_refused_by_name():
    """Counting per user is for a later version, and says what can be written now."""
    with pytest.raises(NotImplementedError, match=r"per='user_id'.*'branch', 'run' or 'thread'"):
        Budget(usd=1, per="user_id")


@pytest.mark.parametrize("per", ["", None, 3])
def test_place_that_is_no_name(per):
    """`per` is a name."""
    with pytest.raises(InvalidBudget, match="per"):
        Budget(usd=1, per=per)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "half"])
def test_share_outside_the_limit(share):
    """A warning share lies above 0 and up to 1."""
    with pytest.raises(InvalidBudget, match=r"warn_at .* such as 0\.8, got"):
        Budget(usd=1, warn_at=(share,))


def test_warnings_are_in_order():
    """Shares may be given in any order, or not at all."""
    assert Budget(usd=1, warn_at=(0.9, 1, 0.5)).warn_at == (0.5, 0.9, 1.0)
    assert Budget(usd=1, warn_at=()).warn_at == ()


def test_invalid_budget_is_a_value_error_of_ours():
    """Both who catches ValueError and who catches GraphguardError gets it; it survives pickle."""
    with pytest.raises(InvalidBudget) as caught:
        Budget()

    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, GraphguardError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - pickled one line above


def test_equal_budgets_share_a_key():
    """The key names what is limited, where and for what, and not how it was written."""
    assert Budget(usd="0.50").key == Budget(usd=0.5, warn_at=()).key == "usd=0.5 per branch"
    assert len({Budget(usd=1, **more).key for more in ({}, {"per": "run"}, {"node": "a"}, {"model": "a"})}) == 4


def test_budget_is_a_frozen_value():
    """A budget can't be changed, and equal ones are equal."""
    budget = Budget(usd=1)

    with pytest.raises(AttributeError):
        budget.usd = 2
    assert budget == Budget(usd="1")
    assert hash(budget) == hash(Budget(usd="1"))
    assert pickle.loads(pickle.dumps(budget)) == budget  # noqa: S301 - pickled on the same line


def test_repr_makes_the_budget():
    """The repr of a budget is the call that makes it."""
    budget = Budget(usd="0.5", calls=3, per="thread", node="plan", model="gpt-5")

    assert eval(repr(budget)) == budget  # noqa: S307 - our own repr


def test_what_a_budget_covers():
    """A narrowed budget covers its node and its model; a name that is not known yet counts."""
    plan = Budget(calls=1, node="plan", model="gpt-5")

    assert plan.covers(node="plan", model="gpt-5")
    assert plan.covers(node="plan", model=None)
    assert not plan.covers(node="act", model="gpt-5")
    assert not plan.covers(node="plan", model="gpt-4o")
    assert Budget(calls=1).covers(node="act", model="gpt-4o")
    assert plan.narrowed
    assert not Budget(calls=1).narrowed


def test_worst_case_of_a_call():
    """A call's worst case is in nano-USD, and None when nothing limits it."""
    call = Call.of("r1", node="plan", usd="0.02")

    assert call.worst_case == 20_000_000
    assert Call(id="r2", capped=False).worst_case is None


def test_amounts_as_people_read_them():
    """USD has at least two decimals and never fewer than it needs; counts have their name."""
    assert amount_text("usd", 10**9) == "$1.00"
    assert amount_text("usd", 1) == "$0.000000001"
    assert amount_text("input_tokens", 12_345) == "12,345 input tokens"
    assert progress_text("usd", 490_000_000, 500_000_000) == "$0.49 of $0.50"


def test_breach_says_why_in_numbers():
    """A breach carries all amounts, and by default means that the money is gone."""
    assert Breach(budget="b", metric="calls", limit=3, spent=3).kind == "spent"
