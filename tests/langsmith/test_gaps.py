"""The four gaps: trace volume, structured-output retries, noisy neighbours, and experiments that pile up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langsmith import evaluate, traceable, tracing_context
from pydantic import BaseModel

from graphguard import Budget, BudgetExceeded, InvalidBudget, MemoryLedger, guard
from graphguard.langsmith import AgentBudgetError, CappedClient, RecursiveTraceGuard, guarded_traceable
from graphguard.langsmith.housekeeping import clean_up, experiments, warn_of_many
from graphguard.langsmith.retries import StructuredRetryLimit
from tests.langsmith.server import unreachable
from tests.scripted import Scripted, tool_call


@traceable
def step(n: int) -> int:
    """Do nothing, traced."""
    return n


def agent(name: str, steps: int):
    """Give a traced agent that makes some steps."""

    def run() -> int:
        return sum(step(n) for n in range(steps))

    return traceable(name=name)(run)


def capped(langsmith, **options: object) -> CappedClient:
    """Give a capped client of the server."""
    client = CappedClient(api_url=langsmith.url, api_key="key-of-the-tests", **options)
    langsmith.closing(client)
    return client


def test_a_trace_is_recorded_up_to_its_cap(langsmith):
    """Of a thousand steps, the first runs are recorded; the root says how many are missing."""
    client = capped(langsmith, max_runs_per_trace=10)

    with tracing_context(enabled=True, client=client, project_name="tests"):
        assert agent("runaway", 1_000)() == sum(range(1_000))
        agent("calm", 3)()
    client.flush()

    (root,) = langsmith.store.named("runaway")
    assert len(langsmith.store.runs) == 10 + 4
    assert root["extra"]["metadata"]["runguard_dropped_runs"] == 991
    assert all(run["end_time"] for run in langsmith.store.runs.values())
    assert "runguard_dropped_runs" not in langsmith.store.named("calm")[0]["extra"]["metadata"]


def test_volume_is_counted_by_agent(langsmith):
    """Each agent's traces, runs, events and what was left out can be asked for."""
    client = capped(langsmith, max_runs_per_trace=10)

    with tracing_context(enabled=True, client=client):
        agent("runaway", 20)()
        agent("calm", 3)()
        agent("calm", 3)()
        traceable(name="named otherwise", metadata={"agent": "calm"})(lambda: step(1))()

    told = {one.agent: (one.traces, one.runs, one.dropped, one.events) for one in client.volume()}
    assert told == {"runaway": (1, 10, 11, 20), "calm": (3, 10, 0, 20)}


def test_a_noisy_agent_costs_others_no_traces(langsmith):
    """The noisy one's further traces are left out this minute; the calm one's are whole, also with a server's quota."""
    now = [0.0]
    langsmith.quota = 60
    client = capped(langsmith, max_runs_per_minute=20, clock=lambda: now[0])

    with tracing_context(enabled=True, client=client, project_name="tests"):
        for _ in range(30):
            agent("noisy", 9)()
            agent("calm", 0)()
        now[0] += 60
        agent("noisy", 9)()
    client.flush()

    assert len(langsmith.store.named("calm")) == 20
    assert len(langsmith.store.named("noisy")) == 3
    assert {one.agent: one.dropped for one in client.volume()}["calm"] == 10


def test_a_share_of_the_noisy_agents_traces_is_kept(langsmith):
    """Beyond its limit, an agent's traces are sampled, whole."""
    client = capped(langsmith, max_runs_per_minute=10, sample=0.5, clock=lambda: 0.0)

    with tracing_context(enabled=True, client=client):
        for _ in range(100):
            agent("noisy", 4)()
    client.flush()

    kept = langsmith.store.named("noisy")
    assert 20 < len(kept) < 90
    assert len(langsmith.store.named("step")) == 4 * len(kept)


def test_ceilings_hold_where_nothing_is_recorded(langsmith):
    """What isn't recorded is enforced all the same, and the root that is recorded has the trip."""
    client = capped(langsmith, max_runs_per_trace=1)
    traces = RecursiveTraceGuard(max_calls=5)
    guarded = guarded_traceable(traces, name="guarded")(lambda: None)

    @traceable
    def request() -> int:
        with suppress(AgentBudgetError):
            for _ in range(100):
                guarded()
        return traces.trips[0].trip.spent

    with tracing_context(enabled=True, client=client, project_name="tests"):
        assert request() == 5
    client.flush()

    (root,) = langsmith.store.runs.values()
    assert root["tags"] == ["runguard_trip"]


def test_langchain_runs_are_capped_too(langsmith):
    """A graph's runs count as its agent's, and those of a guarded graph still stop where its budget says."""
    client, model, ledger = capped(langsmith, max_runs_per_trace=2), Scripted(), MemoryLedger()
    graph = guard(create_agent(model, []), Budget(calls=3), ledger=ledger)

    with tracing_context(enabled=True, client=client, project_name="tests"):
        graph.invoke({"messages": [("user", "q")]})
    client.flush()

    assert len(langsmith.store.runs) == 2
    assert (model.billed, ledger.total().calls) == (1, 1)


@pytest.mark.parametrize("options", [{"max_runs_per_trace": 0}, {"max_runs_per_minute": 1.5}, {"sample": 2}])
def test_a_cap_that_can_t_be_kept_is_found_at_once(options):
    """Misuse is an InvalidBudget."""
    with pytest.raises(InvalidBudget):
        CappedClient(api_url=unreachable(), api_key="k", auto_batch_tracing=False, **options)


def test_a_process_ends_within_seconds_when_the_server_is_gone():
    """With 300 runs that can't be sent, the SDK alone waits about a minute; a capped client as long as it was told."""
    program = f"""
        from langsmith import traceable, tracing_context
        from graphguard.langsmith import CappedClient

        client = CappedClient(api_url={unreachable()!r}, api_key="k", exit_seconds=0.5)

        @traceable
        def step(n):
            return n

        with tracing_context(enabled=True, client=client):
            for n in range(300):
                step(n)
        print("done", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"done\n"
        began = time.perf_counter()
        process.wait(timeout=30)
        took = time.perf_counter() - began

    assert took < 8


class Report(BaseModel):
    """What the agent is asked for."""

    pages: int


def never_fits(limit: StructuredRetryLimit, ledger: MemoryLedger):
    """Give an agent whose model never gives what the schema wants, and the model."""
    model = Scripted(script=[tool_call("Report", pages="many")])
    bare = create_agent(model, [], response_format=ToolStrategy(Report), middleware=[limit])
    return guard(bare, Budget(calls=50), ledger=ledger), model


@pytest.mark.parametrize("asynchronous", [False, True])
def test_structured_output_is_asked_for_again_as_often_as_allowed(asynchronous):
    """With two retries there are three calls, each of them metered, and then an error that no retry handles."""
    limit, ledger = StructuredRetryLimit(max_retries=2), MemoryLedger()
    graph, model = never_fits(limit, ledger)
    given = {"messages": [("user", "q")]}

    with pytest.raises(BudgetExceeded, match="2 of 2 structured retries"):
        asyncio.run(graph.ainvoke(given)) if asynchronous else graph.invoke(given)

    assert (model.billed, ledger.total().calls, limit.retries) == (3, 3, 2)


def test_without_the_limit_only_the_budget_stops_the_retries():
    """The strategy itself asks for ever; a budget ends it, as any other loop."""
    model = Scripted(script=[tool_call("Report", pages="many")])
    graph = guard(
        create_agent(model, [], response_format=ToolStrategy(Report)), Budget(calls=12), ledger=MemoryLedger()
    )

    end = graph.invoke({"messages": [("user", "q")]})

    assert model.billed == 12
    assert end.get("structured_response") is None


def test_output_that_fits_at_last_is_no_failure():
    """One retry that succeeds gives the response; the next request begins anew."""
    limit = StructuredRetryLimit(max_retries=1)
    answers = [tool_call("Report", pages="many"), tool_call("Report", "c2", pages=3)] * 2
    graph = create_agent(Scripted(script=answers), [], response_format=ToolStrategy(Report), middleware=[limit])

    first = graph.invoke({"messages": [("user", "q")]})
    second = graph.invoke({"messages": [*first["messages"], ("user", "again")]})

    assert (first["structured_response"].pages, second["structured_response"].pages) == (3, 3)
    assert limit.retries == 2


def test_a_retry_limit_is_told_to_langsmith(langsmith, traced):
    """The runs of the agent that was stopped have the tag."""
    graph, _ = never_fits(StructuredRetryLimit(max_retries=0), MemoryLedger())

    with traced(), suppress(BudgetExceeded):
        graph.invoke({"messages": [("user", "q")]})

    tagged = [run for run in langsmith.store.runs.values() if "runguard_trip" in run["tags"]]
    assert {run["extra"]["metadata"]["runguard_metric"] for run in tagged} == {"structured_retries"}
    assert any(not run.get("parent_run_id") for run in tagged)


@pytest.fixture
def piled_up(client):
    """Give a dataset with seven experiments, four of them guarded."""
    dataset = client.create_dataset("questions")
    client.create_examples(inputs=[{"q": "?"}], dataset_id=dataset.id)
    for n in range(7):
        marked = {"metadata": {"graphguard": True}} if n % 2 == 0 else {}
        evaluate(lambda inputs: inputs, data="questions", client=client, experiment_prefix=f"run{n}", **marked)
    client.flush()
    return dataset


def test_experiments_are_counted_and_warned_about(client, piled_up):
    """All are counted, or those of a prefix; from a number on there is a warning."""
    assert len(experiments(client, "questions")) == 7
    assert [row.guarded for row in experiments(client, "questions")] == [True, False] * 3 + [True]
    assert warn_of_many(client, "questions", prefix="run3") == 1
    with pytest.warns(UserWarning, match="7 experiments"):
        assert warn_of_many(client, "questions", at=5) == 7


def test_old_experiments_are_deleted_only_on_request(client, langsmith, piled_up):
    """Nothing is deleted by looking; then all but the latest guarded ones are, and no others, at LangSmith's pace."""
    waits: list[float] = []
    would = clean_up(client, "questions", keep=1)
    before = len(experiments(client, "questions"))

    done = clean_up(client, "questions", keep=1, delete=True, sleep=waits.append)

    assert [row.name[:4] for row in would] == ["run4", "run2", "run0"]
    assert (before, done, waits) == (7, would, [2.0, 2.0])
    assert [row.name[:4] for row in experiments(client, "questions")] == ["run6", "run5", "run3", "run1"]
    assert clean_up(client, "questions", keep=0, older_than=timedelta(days=1), others_too=True) == ()


def test_an_experiment_can_be_used_again(client, piled_up):
    """The latest one of a prefix takes further rows, so that no new one is made."""
    latest = experiments(client, "questions", prefix="run6")[0]

    evaluate(lambda inputs: inputs, data="questions", client=client, experiment=latest.id)
    client.flush()

    assert len(experiments(client, "questions")) == 7
    assert client.read_project(project_id=latest.id, include_stats=True).run_count == 2
