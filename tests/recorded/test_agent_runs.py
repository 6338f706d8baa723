"""Recorded agent runs go through guarded agents over the local server, each at ten budgets.

What must happen is known beforehand by brute force: the requests of an unguarded run give each call's worst case, the
recording gives what each call cost, and the run has to stop before the first call for which what was spent and its
worst case together are more than the budget.

The project's own runs are taken in any clone, the sixty beside it, five at a time, where they are present.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from tests.recorded.agent_bench import BUDGETS, Bench, Outcome, Walk, spread
from tests.recorded.agent_runs import OUTPUT_CAP, AgentRun, load, said
from tests.recorded.conftest import OWN

if TYPE_CHECKING:
    from tests.recorded.oracle import Json
    from tests.recorded.server import RecordedServer

BATCH = 5
MODES = ("sync", "async")
SOURCES = ["own", *(f"shared-{first}" for first in range(0, 60, BATCH))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One recorded run at one budget: what brute force says, and what happened."""

    run: AgentRun
    walk: Walk
    limit: int
    outcome: Outcome

    @property
    def name(self) -> str:
        """What the case is called in messages."""
        return f"{self.run.id} at {self.limit} of {self.walk.total} nano-USD"

    @property
    def stop(self) -> int | None:
        """The call that brute force stops at, or None."""
        return self.walk.stops_at(self.limit)


def runs_of(source: str, request: pytest.FixtureRequest) -> tuple[AgentRun, ...]:
    """Give the runs of a source; the test is skipped where they are absent."""
    if source == "own":
        return load(OWN / "agent_runs.jsonl")
    first = int(source.rpartition("-")[2])
    return load(request.getfixturevalue("shared_data") / "agent_trajectories.jsonl")[first : first + BATCH]


@pytest.fixture(scope="session")
def bench(server: RecordedServer) -> Bench:
    """Give the bench of this process."""
    return Bench(server)


@pytest.fixture(scope="module", params=SOURCES)
def runs(request: pytest.FixtureRequest) -> tuple[AgentRun, ...]:
    """Give some recorded runs."""
    return runs_of(request.param, request)


@pytest.fixture(scope="module", params=[(source, mode) for source in SOURCES for mode in MODES], ids="-".join)
def cases(request: pytest.FixtureRequest, bench: Bench) -> tuple[Case, ...]:
    """Give some recorded runs, each taken at ten budgets."""
    source, mode = request.param
    found: list[Case] = []
    for run in runs_of(source, request):
        walk = bench.walk(run)
        limits = spread(walk)
        if mode == "sync":
            outcomes = [bench.outcome(run, limit) for limit in limits]
        else:
            outcomes = asyncio.run(bench.aoutcomes(run, limits))
        found += [
            Case(run=run, walk=walk, limit=limit, outcome=outcome)
            for limit, outcome in zip(limits, outcomes, strict=True)
        ]
    return tuple(found)


def test_a_run_trips_exactly_where_the_brute_force_sum_says(cases):
    """Every call before the one that no longer fits is made, and none from there on; at ten budgets for each run."""
    assert len(cases) == BUDGETS * len({case.run.id for case in cases})
    made = {case.name: case.outcome.made for case in cases}
    assert made == {case.name: len(case.run.calls) if case.stop is None else case.stop for case in cases}


def test_no_billed_cost_passes_the_budget(cases):
    """With an output cap on the model, the raw bodies that the server gave cost at most the budget."""
    assert {case.name: case.outcome.billed for case in cases if case.outcome.billed > case.limit} == {}


def test_a_trip_says_what_brute_force_says(cases):
    """The trip names the limit, what was spent and what the refused call could have cost; without a stop, none is."""
    trips = {case.name: case.outcome.trip for case in cases}
    named = {name: trip and (trip.limit, trip.spent, trip.needed) for name, trip in trips.items()}
    expected = {
        case.name: (case.limit, case.walk.spent_before(case.stop), case.walk.worst[case.stop])
        for case in cases
        if case.stop is not None
    }
    assert named == dict.fromkeys(trips) | expected


def test_what_was_spent_is_what_was_billed(cases):
    """The state and the ledger agree with the server's bodies to the nano-USD, and no hold stays open."""
    seen = {case.name: (case.outcome.spent, case.outcome.charged, case.outcome.holds) for case in cases}
    assert seen == {case.name: (case.outcome.billed, case.outcome.billed, 0) for case in cases}


def test_the_last_nanousd_decides(cases):
    """Among the ten budgets are one that just has room for a call of the run, and one with one nano-USD less."""
    made = {(case.run.id, case.limit): case.outcome.made for case in cases}
    edges = {(case.run.id, case.limit) for case in cases if (case.run.id, case.limit - 1) in made}
    assert {run for run, _ in edges} == {case.run.id for case in cases}
    assert all(made[run, limit - 1] < made[run, limit] for run, limit in edges)


def test_an_agent_asks_what_was_recorded(runs, bench):
    """Unguarded, each agent takes the recorded way: its last request holds all messages before the last answer."""
    for run in runs:
        requests = bench.requests(run)
        assert len(requests) == len(run.calls)
        assert said(cast("list[Json]", requests[-1]["messages"])) == said(run.messages[:-1])


def test_no_recorded_answer_is_longer_than_the_cap(runs):
    """The cap that the agents are given is one that the recorded answers kept."""
    usages = [cast("dict[str, int]", body["usage"]) for run in runs for body in run.calls]
    assert max(usage["completion_tokens"] for usage in usages) <= OUTPUT_CAP


def test_all_sixty_runs_are_taken(shared_data):
    """The batches cover the whole file: 60 runs, and 802 calls with the twelve closing sentences."""
    recorded = load(shared_data / "agent_trajectories.jsonl")
    assert len(recorded) == BATCH * (len(SOURCES) - 1)
    assert sum(len(run.calls) for run in recorded) == 802
