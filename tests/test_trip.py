"""Trips: their way through the state, and what they say."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.types import Interrupt

from graphguard import Breach, Budget, BudgetExceeded, Trip, guard
from graphguard.trip import merge_trip
from tests.scripted import Scripted

amounts = st.integers(min_value=0, max_value=10**15)
names = st.text(max_size=8)
trips = st.builds(
    Trip,
    budget=names,
    metric=st.sampled_from(["usd", "calls", "tokens"]),
    limit=amounts,
    spent=amounts,
    held=amounts,
    needed=amounts,
    kind=st.sampled_from(["spent", "held", "unpriced", "policy"]),
    note=names,
    node=st.none() | names,
    model=st.none() | names,
    mode=st.sampled_from(["end", "interrupt", "raise", "to:x"]),
    capped=st.booleans(),
    run=st.none() | names,
    at=st.none() | names,
    answer=st.sampled_from([None, "raised", "stopped"]),
    waiting=st.lists(names, max_size=3).map(tuple),
)


def trip(**more: object) -> Trip:
    """Give a trip at $0.49 of $0.50."""
    return Trip(**{"budget": "b", "limit": 500_000_000, "spent": 490_000_000, "mode": "interrupt", **more})


@given(trips)
def test_trip_comes_back_from_the_state(tripped):
    """What `to_state` writes is plain JSON, and `Trip.of` reads it back, however often."""
    data = tripped.to_state()

    assert json.loads(json.dumps(data)) == data
    assert Trip.of({"trip": data}) == Trip.of(data) == tripped


def test_no_trip():
    """A state that holds none has none."""
    assert Trip.of({}) is None
    assert Trip.of({"trip": {}}) is None
    assert Trip.of({"messages": []}) is None


def test_trip_of_a_finished_graph():
    """`Trip.of` reads the trip from a snapshot and from its values."""
    from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415 - this test only
    from langgraph.graph import MessagesState, StateGraph  # noqa: PLC0415 - this test only

    model = Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge("__start__", "model")
    graph = guard(builder, Budget(usd="0.0000001")).compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    graph.invoke({"messages": [("user", "hi")]}, config)

    snapshot = graph.get_state(config)

    assert Trip.of(snapshot) == Trip.of(snapshot.values)
    assert Trip.of(snapshot).node == "model"
    assert Trip.of(snapshot).limit == 100


def test_waiting_question_comes_first():
    """Of a snapshot, the trip that is being asked about comes before the one in the values."""
    asked, old = trip(node="asked"), trip(node="old", answer="raised")
    question = Interrupt(value={"kind": "graphguard.budget", "trip": asked.to_state()})
    snapshot = SimpleNamespace(values={"trip": old.to_state()}, interrupts=(question,))

    assert Trip.of(snapshot).node == "asked"


def test_question_of_somebody_else_is_not_a_trip():
    """The user's own interrupts are passed over."""
    mine = Interrupt(value={"kind": "other", "trip": "to Rome"})
    snapshot = SimpleNamespace(values={"trip": trip(node="n").to_state()}, interrupts=(mine, Interrupt(value="?")))

    assert Trip.of(snapshot).node == "n"


def test_trip_of_a_breach():
    """A trip carries all amounts of its breach."""
    breach = Breach(budget="b", metric="calls", limit=3, spent=3, held=1, needed=1, kind="held", note="n")

    found = Trip.from_breach(breach, node="plan", model="m", mode="raise")

    assert (found.metric, found.limit, found.spent, found.held, found.needed) == ("calls", 3, 3, 1, 1)
    assert (found.kind, found.note, found.node, found.model, found.mode) == ("held", "n", "plan", "m", "raise")


def test_usd_only_where_usd_ran_out():
    """The USD view of a trip is None for a budget of calls."""
    calls = Trip(budget="b", metric="calls", limit=3, spent=3)

    assert trip().limit_usd == Decimal("0.5")
    assert trip(held=1, needed=20_000_000).needed_usd == Decimal("0.02")
    assert calls.limit_usd is calls.spent_usd is calls.held_usd is calls.needed_usd is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"node": "plan"}, "budget exhausted at 'plan': $0.49 of $0.50 spent"),
        ({"needed": 20_000_000}, "the next call may cost up to $0.02"),
        ({"needed": 20_000_000, "capped": False}, "and its output has no cap"),
        ({"kind": "held", "held": 10_000_000}, "$0.01 held by running calls"),
        ({"kind": "unpriced", "model": "m", "note": "add one"}, "no price for model 'm'; add one"),
        ({"kind": "policy"}, "budget policy 'b' refused a call"),
    ],
)
def test_reason_says_both_numbers_and_what_would_help(more, told):
    """The reason names the place, what was spent of what, and what is special about it."""
    assert told in trip(**more).reason


def test_first_trip_of_a_superstep_stays():
    """Several gates that trip at once make one question, and all of them wait for its answer."""
    first = trip(run="r", waiting=("a.budget",)).to_state()
    second = trip(run="r", waiting=("b.budget",), node="b").to_state()

    merged = merge_trip(merge_trip({}, first), second)

    assert Trip.of(merged).node is None
    assert Trip.of(merged).waiting == ("a.budget", "b.budget")


def test_trips_of_a_superstep_wait_in_any_order():
    """Which of two gates was first does not change who waits."""
    one, two = trip(run="r", waiting=("a",)).to_state(), trip(run="r", waiting=("b",)).to_state()

    assert merge_trip(merge_trip({}, one), two)["waiting"] == merge_trip(merge_trip({}, two), one)["waiting"]


def test_answered_trip_makes_room_for_the_next():
    """After an answer, and in a new run, the next trip replaces the old one."""
    answered = merge_trip(trip(run="r", node="old").to_state(), {"answer": "raised"})
    other_run = trip(run="r0", node="old").to_state()
    new = trip(run="r", node="new").to_state()

    assert Trip.of(answered).answer == "raised"
    assert Trip.of(merge_trip(answered, new)).node == "new"
    assert Trip.of(merge_trip(other_run, new)).node == "new"


def test_empty_update_clears_the_field():
    """A new run begins without the last one's trip."""
    assert merge_trip(trip().to_state(), {}) == {}
    assert merge_trip({}, {"answer": "raised"}) == {}


def test_update_that_is_no_dict():
    """An update of another kind says how to clear the field."""
    with pytest.raises(ValueError, match=r"must be a dict.*\{\} clears the field"):
        merge_trip({}, "stop")


def test_exception_carries_the_trip_through_pickle():
    """`BudgetExceeded` says the trip's reason and keeps the trip across processes."""
    error = BudgetExceeded(trip(node="plan"))

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled on the same line

    assert str(again) == str(error) == trip(node="plan").reason
    assert again.trip == error.trip


@pytest.mark.parametrize("order", [("stopped", "raised"), ("raised", "stopped")])
def test_a_stop_outweighs_a_raise_beside_it(order: tuple[str, str]) -> None:
    """People answered two tasks of one superstep: whichever writes first, the run was stopped."""
    first, second = (Trip(budget="b", limit=1, spent=1, run="r", at="c1", answer=answer).to_state() for answer in order)

    assert merge_trip(merge_trip({}, first), second)["answer"] == "stopped"


def test_a_later_raise_outweighs_a_stop() -> None:
    """A run that was stopped and then topped up goes on: the next superstep's answer counts."""
    stopped = Trip(budget="b", limit=1, spent=1, run="r", at="c1", answer="stopped").to_state()
    raised = Trip(budget="b", limit=2, spent=2, run="r", at="c2", answer="raised").to_state()

    assert merge_trip(stopped, raised)["answer"] == "raised"
