"""Budgets: what they accept, what they limit, and what they say when they can't be kept."""

from __future__ import annotations

import datetime as dt
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
    ],
)
def test_later_fields_are_refused_by_name(name, value):
    """A field that this version does not keep is a NotImplementedError with its name, never ignored."""
    with pytest.raises(NotImplementedError, match=rf"Budget\({name}=\.\.\.\).*leave it out"):
        Budget(usd=1, **{name: value})


@pytest.mark.parametrize("per", ["user_id", "tenant", "langgraph_auth_user", "x-organization-id", "thread_id"])
def test_any_key_is_a_place(per):
    """`per` takes the name of any key of the config or the context, and the budget's key tells it."""
    assert Budget(usd=1, per=per).key == f"usd=1 per {per}"


@pytest.mark.parametrize("per", ["", " ", "user id", "a\tb", None, 3], ids=repr)
def test_place_that_is_no_name(per):
    """`per` is a name without spaces; what is not, is refused with all that can be written."""
    with pytest.raises(InvalidBudget, match=r"'branch', 'run', 'thread', or a key .* such as 'user_id'; got"):
        Budget(usd=1, per=per)


@pytest.mark.parametrize("per", ["step", "__pregel_task_id"])
def test_place_that_is_taken(per):
    """Names that graphguard or LangGraph uses itself are not keys of the user's."""
    with pytest.raises(InvalidBudget, match=rf"per='{per}' is a name that graphguard or LangGraph uses itself"):
        Budget(usd=1, per=per)


@pytest.mark.parametrize(
    ("every", "shown"),
    [("day", "every day"), ("month", "every month"), (timedelta(hours=1), "every 3600 s")],
    ids=str,
)
@pytest.mark.parametrize("per", ["thread", "user_id"])
def test_windows_of_real_money(per, every, shown):
    """Budgets per thread and per key may have windows, and budgets with other windows have other keys."""
    assert Budget(usd=1, per=per, every=every).key == f"usd=1 per {per} {shown}"


@pytest.mark.parametrize(
    "every",
    ["week", "Day", "", 3600, timedelta(0), timedelta(days=-1), timedelta(milliseconds=1_500), timedelta(seconds=0.5)],
    ids=repr,
)
def test_window_that_is_none(every):
    """Anything else than day, month and whole seconds is refused with the list of what is not."""
    with pytest.raises(InvalidBudget, match=r"every must be 'day', 'month', or a timedelta of whole seconds.*; got"):
        Budget(usd=1, per="thread", every=every)


@pytest.mark.parametrize("per", ["branch", "run"])
def test_windows_need_the_ledger(per):
    """What the state counts goes back with time travel, so it has no windows; the error names what has."""
    with pytest.raises(InvalidBudget, match=rf"per='{per}' is counted in the graph's state; use per='thread', or"):
        Budget(usd=1, per=per, every="day")


@pytest.mark.parametrize("keep", ["0.05", 0.05, Decimal("0.05")], ids=repr)
def test_kept_usd_takes_text_and_numbers(keep):
    """Five cents are five cents, also beside another limit."""
    assert Budget(usd="0.50", calls=3, keep=keep).kept == {"usd": 50_000_000}


def test_kept_of_another_limit():
    """Of a budget with one limit that is not in USD, that limit's own unit is kept."""
    assert Budget(calls=20, keep=2).kept == {"calls": 2}
    assert Budget(calls=20).kept == {}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"usd": 1, "keep": 1}, r"keep must be less than the limit of \$1\.00, .*; got \$1\.00"),
        ({"usd": 1, "keep": "abc"}, r"keep must be a positive amount such as '0\.50', got 'abc'"),
        ({"usd": 1, "keep": 0}, "keep must be a positive amount"),
        ({"usd": 1, "keep": True}, "keep must be a positive amount"),
        ({"calls": 3, "keep": "0.05"}, "keep must be a whole number of at least 1, got '0.05'"),
        ({"calls": 3, "keep": 3}, "keep must be less than the limit of 3 calls"),
        ({"calls": 3, "tokens": 9, "keep": 1}, "goes with one limit, got tokens and calls; make it a budget for each"),
    ],
)
def test_kept_amount_that_does_not_fit(limits, message):
    """What can't be kept is refused when the budget is made."""
    with pytest.raises(InvalidBudget, match=message):
        Budget(**limits)


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
    more = (
        {},
        {"per": "run"},
        {"node": "a"},
        {"model": "a"},
        {"keep": "0.5"},
        {"per": "a"},
        {"per": "a", "every": "day"},
    )
    assert len({Budget(usd=1, **told).key for told in more}) == len(more)


def test_budget_is_a_frozen_value():
    """A budget can't be changed, and equal ones are equal."""
    budget = Budget(usd=1)

    with pytest.raises(AttributeError):
        budget.usd = 2
    assert budget == Budget(usd="1")
    assert hash(budget) == hash(Budget(usd="1"))
    assert pickle.loads(pickle.dumps(budget)) == budget  # noqa: S301 - pickled on the same line


@pytest.mark.parametrize(
    "budget",
    [
        Budget(usd="0.5", calls=3, per="thread", node="plan", model="gpt-5"),
        Budget(usd="0.5", per="user_id", every="day", keep="0.05"),
        Budget(calls=3, per="tenant", every=timedelta(hours=1), keep=1),
    ],
    ids=repr,
)
def test_repr_makes_the_budget(budget):
    """The repr of a budget is the call that makes it."""
    assert eval(repr(budget), {"Budget": Budget, "datetime": dt}) == budget  # noqa: S307 - our own repr


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
