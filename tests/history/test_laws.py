"""Laws of time travel, over random graphs: backtests and replays agree with live runs."""

from __future__ import annotations

import os
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from graphguard import Budget, PastTrip, Spend, backtest, guard, replay, trips
from tests.laws.random_graphs import Drawing, Log, build, drawings
from tests.needs import TASK_IDS_OF_REPLAYS, needs
from tests.scripted import NANOUSD_PER_CALL, Scripted

GIVEN = {"visits": {}, "trail": [], "last": ""}
THREAD = {"recursion_limit": 300, "configurable": {"thread_id": "t"}}
RICH = Budget(calls=100_000, warn_at=())
SOME = settings(
    max_examples=60,
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
GATES = st.sampled_from(["auto", "inline"])


def ran(drawing: Drawing, *budgets: Budget, gate: str) -> tuple[CompiledStateGraph, Scripted]:
    """Run a drawing with some budgets, or only metered."""
    model = Scripted()
    builder = build(drawing, model, Log(bare=not budgets))
    graph = guard(builder, *budgets, gate=gate).compile(checkpointer=InMemorySaver())
    for given_now in [GIVEN, Command(goto=list(drawing.jump))] if drawing.jump else [GIVEN]:
        graph.invoke(given_now, THREAD)
    return graph, model


def first(found: list[PastTrip]) -> tuple[PastTrip, set[str | None]]:
    """Give the first trip, and the nodes that tripped in its superstep, whose order is left to chance."""
    oldest = found[-1]
    return oldest, {trip.node for trip in found if trip.at == oldest.at}


def candidates(trip: PastTrip) -> set[str | None]:
    """Give the nodes of which a backtest can't tell which one would have been refused."""
    return {trip.node, *re.findall(r"'([^']+)'", trip.note)}


@SOME
@given(drawings(overwrites=False), st.integers(1, 6), GATES)
def test_backtest_names_the_trip_of_a_live_run(drawing, calls, gate):
    """A recording without budgets tells of the very trip that a live run with the budget has, or that it has none."""
    budget = Budget(calls=calls, warn_at=())
    recorded, model = ran(drawing, gate=gate)
    live, _ = ran(drawing, budget, gate=gate)
    billed = model.billed

    would = backtest(recorded, THREAD, budget).outcomes[0].trips
    had = list(trips(live, THREAD))

    assert model.billed == billed
    assert bool(would) == bool(had)
    if had:
        trip, nodes = first(had)
        assert (would[0].metric, would[0].limit, would[0].spent) == (trip.metric, trip.limit, trip.spent)
        assert nodes & candidates(would[0])


@SOME
@given(drawings(overwrites=False), st.integers(1, 6), GATES)
def test_backtest_finds_a_trip_that_was_recorded(drawing, calls, gate):
    """A recording with a budget tells of the trip that this budget had."""
    budget = Budget(calls=calls, warn_at=())
    live, _ = ran(drawing, budget, gate=gate)

    would = backtest(live, THREAD, budget).outcomes[0].trips
    had = list(trips(live, THREAD))

    assert bool(would) == bool(had)
    if had:
        trip, nodes = first(had)
        assert (would[0].metric, would[0].limit, would[0].spent) == (trip.metric, trip.limit, trip.spent)
        assert would[0].node in nodes


@SOME
@given(drawings(overwrites=False), st.integers(1, 6))
def test_backtest_in_usd_counts_what_was_spent(drawing, calls):
    """A budget of exactly k calls' price lets a live run make k calls, and a recording says so."""
    budget = Budget(usd=f"{calls * NANOUSD_PER_CALL / 10**9:.9f}", warn_at=())
    recorded, model = ran(drawing, gate="inline")
    outcome = backtest(recorded, THREAD, budget).outcomes[0]

    assert bool(outcome.trips) == (model.billed > calls)
    assert outcome.spent.calls == model.billed
    assert outcome.saved.calls <= max(model.billed - calls, 0)


@needs(*TASK_IDS_OF_REPLAYS)
@SOME
@given(drawings(overwrites=False), st.integers(1, 6), GATES)
def test_the_same_budgets_trip_there_again(drawing, calls, gate):
    """A replay from before the first trip trips over the same budget, with as much spent."""
    live, _ = ran(drawing, Budget(calls=calls, warn_at=()), gate=gate)
    had = list(trips(live, THREAD))
    if not had:
        return
    trip, _ = first(had)
    before = {each.at for each in had}

    replay(live, trip)
    again, _ = first([each for each in trips(live, THREAD) if each.at not in before])

    assert (again.budget, again.metric, again.limit, again.spent) == (trip.budget, trip.metric, trip.limit, trip.spent)


@needs(*TASK_IDS_OF_REPLAYS)
@SOME
@given(drawings(overwrites=False), st.integers(1, 6), GATES)
def test_with_enough_budget_a_replay_ends_as_the_unbudgeted_run(drawing, calls, gate):
    """Replayed from its first trip with enough budget, a run ends with the visits and the spend of one without any."""
    drawing = Drawing(drawing.nodes, drawing.entries, drawing.entry_branch, drawing.joins)  # a single run
    bare, _ = ran(drawing, gate=gate)
    live, _ = ran(drawing, Budget(calls=calls, warn_at=()), gate=gate)
    had = list(trips(live, THREAD))
    if not had:
        return

    replay(live, first(had)[0], RICH)

    ended, expected = live.get_state(THREAD).values, bare.get_state(THREAD).values
    assert ended["visits"] == expected["visits"]
    assert Spend.of(ended) == Spend.of(expected)
