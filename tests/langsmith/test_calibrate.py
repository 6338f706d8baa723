"""Calibration: ceilings from what requests took, from ledgers, LangSmith and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from langgraph.graph import END, START, MessagesState, StateGraph
from langsmith import traceable
from langsmith.utils import LangSmithNotFoundError

from graphguard import Budget, Charge, SqliteLedger, guard
from graphguard.cli import graphguard
from graphguard.langsmith import (
    Request,
    calibrate,
    plateau_noise,
    repeated_scores,
    requests_in_langsmith,
    requests_of,
)
from tests.needs import cli_runner
from tests.scripted import NANOUSD_PER_CALL, Scripted

USAGE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


def looping(model, ledger):
    """Give a guarded graph that calls the model as often as its first message says."""

    def call(state):
        return {"messages": [model.invoke(state["messages"])]}

    def again(state):
        return "model" if len(state["messages"]) <= int(state["messages"][0].content) else END

    builder = StateGraph(MessagesState).add_node("model", call).add_edge(START, "model")
    return guard(builder.add_conditional_edges("model", again), Budget(calls=99), ledger=ledger, nodes=["model"])


@traceable(run_type="llm", metadata={"ls_model_name": "tiny"})
def model(cost):
    """Answer, and say what it used."""
    return {"text": "ok", "usage_metadata": USAGE | {"total_cost": cost}}


@traceable
def reflect(depth):
    """Call itself so deep, with one model call each time."""
    model(0.001)
    return reflect(depth - 1) if depth > 1 else "done"


@traceable
def handle(depth):
    """Take one request."""
    return reflect(depth)


@pytest.fixture
def ledger_file(tmp_path):
    """Give a ledger with twelve runs of one to twelve calls."""
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path) as ledger:
        graph = looping(Scripted(), ledger).compile()
        for n in range(1, 13):
            graph.invoke({"messages": [("user", str(n))]})
    return path


@pytest.fixture
def run():
    """Give a function that runs `graphguard calibrate`."""
    return lambda *arguments: cli_runner().invoke(graphguard, ["calibrate", *map(str, arguments)])


def test_ceilings_are_the_90th_percentile_and_half_more():
    """Of ten requests the ninth counts, times 1.5, rounded up."""
    found = calibrate(
        Request(depth=n, calls=n, tokens=100 * n, nanousd=n * 1_000_000, seconds=n / 10) for n in range(10, 0, -1)
    )
    assert dict(found.usual) == {"depth": 9, "calls": 9, "tokens": 900, "nanousd": 9_000_000, "seconds": 0.9}
    assert dict(found.ceilings) == {"depth": 14, "calls": 14, "tokens": 1350, "nanousd": 13_500_000, "seconds": 2}
    assert found.usd == Decimal("0.0135")


def test_the_budget_is_there_to_paste():
    """It holds money, calls and tokens of one run; the line that is printed makes it."""
    found = calibrate([Request(calls=4, tokens=2_000, nanousd=20_000_000, depth=3)] * 10, scores=[[0.5, 0.53]])
    assert found.budget == Budget(usd="0.03", calls=6, tokens=3_000, per="run")
    lines = found.to_paste().splitlines()
    assert eval(lines[0], {"Budget": Budget}) == found.budget  # noqa: S307 - the project's own line
    assert lines[1:] == [
        "RecursiveTraceGuard(max_depth=5, max_calls=6)",
        "FeedbackLoopGuard(max_total_calls=6, plateau_threshold=0.03)",
    ]


def test_fewer_than_ten_requests_warn():
    """Nine are a guess, and none is an error."""
    with pytest.warns(UserWarning, match="only 9 requests"):
        assert calibrate([Request(calls=2)] * 9).ceilings == {"calls": 3}
    with pytest.raises(ValueError, match="10 to 20 representative"):
        calibrate([])


def test_what_nobody_knows_is_left_out():
    """A metric that no request has gets no ceiling; one that some have is made of those."""
    found = calibrate([*[Request(calls=2)] * 9, Request(calls=2, seconds=4)])
    assert dict(found.ceilings) == {"calls": 3, "seconds": 6}
    assert found.budget == Budget(calls=3, per="run")


def test_noise_is_how_far_apart_scores_of_one_answer_are():
    """Nine of ten pairs lie no further apart."""
    assert plateau_noise([[0.50, 0.54], [0.60, 0.60], [0.7, 0.71, 0.72]]) == pytest.approx(0.04)
    with pytest.raises(ValueError, match="scored twice"):
        plateau_noise([[0.5], []])


def test_noise_needs_no_more_than_repeated_scores():
    """A perfectly steady evaluator has none."""
    assert plateau_noise([[0.5, 0.5], [0.7, 0.7]]) == 0


def test_runs_of_a_ledger_are_requests(ledger_file):
    """Each run is one request with its calls, tokens and money."""
    with SqliteLedger(ledger_file) as ledger:
        found = requests_of(ledger.charges())
    assert [one.calls for one in found] == list(range(1, 13))
    assert [one.nanousd for one in found] == [n * NANOUSD_PER_CALL for n in range(1, 13)]
    assert [one.tokens for one in found] == [n * 1_100 for n in range(1, 13)]
    assert found[0].seconds is None
    assert found[-1].seconds > 0
    assert {one.depth for one in found} == {1}


def test_a_run_with_an_unknown_price_has_no_known_cost():
    """It counts as a request, but not for the money."""
    charges = [Charge(id="1", run="r", nanousd=5), Charge(id="2", run="r", unpriced=True)]
    assert [(one.calls, one.nanousd) for one in requests_of(charges)] == [(2, None)]


def test_paid_tools_are_money_and_no_call():
    """What was charged by hand doesn't count as a model call; what belongs to nobody is left out."""
    charges = [Charge(id="1", thread="t", nanousd=5, calls=0), Charge(id="2", nanousd=7)]
    assert [(one.id, one.calls, one.nanousd) for one in requests_of(charges)] == [("t", 0, 5)]


def test_traces_of_langsmith_are_requests(traced, client):
    """Each root trace is one request: model calls, tokens, cost, seconds, and how deep a function lies in itself."""
    with traced():
        for depth in (1, 2, 5):
            handle(depth)
    found = sorted(requests_in_langsmith("tests", client=client), key=lambda one: one.calls)
    assert [(one.calls, one.depth) for one in found] == [(1, 1), (2, 2), (5, 5)]
    assert [one.tokens for one in found] == [150, 300, 750]
    assert [one.nanousd for one in found] == [1_000_000, 2_000_000, 5_000_000]
    assert all(one.seconds > 0 for one in found)


def test_traces_are_asked_for_in_few_queries(traced, client, langsmith):
    """Two queries read a project, however many traces it has: LangSmith allows few a second."""
    with traced():
        for _ in range(30):
            handle(2)
    langsmith.requests.clear()
    assert len(requests_in_langsmith("tests", client=client)) == 30
    assert sum("query" in request.path for request in langsmith.requests) == 2


def test_older_traces_are_left_out(traced, client):
    """Only what began after `since` counts."""
    with traced():
        handle(1)
    assert requests_in_langsmith("tests", client=client, since=datetime.now(UTC) + timedelta(minutes=1)) == []


def test_an_unknown_project_says_so(client):
    """LangSmith's own error names it."""
    with pytest.raises(LangSmithNotFoundError, match="nowhere"):
        requests_in_langsmith("nowhere", client=client)


def test_scores_of_one_run_are_a_group(traced, client):
    """Feedback of one key that was given to a run more than once tells the evaluator's noise."""
    with traced():
        handle(1)
    (request,) = requests_in_langsmith("tests", client=client)
    session = client.read_project(project_name="tests").id
    for key, score in (("quality", 0.5), ("quality", 0.54), ("other", 1)):
        client.create_feedback(request.id, key, score=score, session_id=session)
    assert [sorted(group) for group in repeated_scores("tests", "quality", client=client)] == [[0.5, 0.54]]


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_prints_a_budget(run, ledger_file):
    """A table of usual amounts and ceilings, and what to paste."""
    result = run("--ledger", ledger_file)
    assert result.exit_code == 0, result.stderr
    assert "12 requests in ledger" in result.stdout
    assert result.stdout.splitlines()[-1] == "Budget(usd='0.003465', tokens=18150, calls=17, per='run')"
    assert not result.stderr


def test_the_command_prints_json(run, ledger_file):
    """One document with stable names; USD are decimal strings."""
    document = json.loads(run("--ledger", ledger_file, "--json").stdout)
    assert (document["requests"], document["ceilings"]["calls"]) == (12, 17)
    assert (document["usual"]["usd"], document["ceilings"]["usd"]) == ("0.00231", "0.003465")


def test_the_environment_names_the_ledger(run, ledger_file, monkeypatch):
    """As for `graphguard ledger`."""
    monkeypatch.setenv("GRAPHGUARD_LEDGER", str(ledger_file))
    assert run().exit_code == 0


def test_few_requests_are_said_to_be_few(run, tmp_path):
    """Ceilings are printed, and that they are a guess."""
    with SqliteLedger(tmp_path / "few.sqlite") as ledger:
        looping(Scripted(), ledger).compile().invoke({"messages": [("user", "2")]})
    result = run("--ledger", tmp_path / "few.sqlite")
    assert result.exit_code == 0
    assert "Only 1 request:" in result.stderr


def test_the_command_reads_a_project(traced, langsmith):
    """With `--project` it asks LangSmith, whose address and key the environment says."""
    with traced():
        for n in range(1, 11):
            handle(n)
    result = subprocess.run(
        [sys.executable, "-m", "graphguard", "calibrate", "--project", "tests"],
        env={**os.environ, "LANGSMITH_ENDPOINT": langsmith.url, "LANGSMITH_API_KEY": "key", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "RecursiveTraceGuard(max_depth=14, max_calls=14)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--project NAME"),
        (("--ledger", "missing.sqlite"), "missing.sqlite"),
        (("--ledger", "x", "--scores", "quality"), "--project"),
        (("--ledger", "x", "--since", "soon"), "24h"),
        (("--ledger", "x", "--quantile", "2"), "quantile"),
    ],
)
def test_wrong_use_is_told_in_a_line(run, arguments, problem):
    """Exit code 2, what to do, and no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_window_says_so(run, ledger_file):
    """Nothing to calibrate from is wrong use too."""
    result = run("--ledger", ledger_file, "--since", datetime.fromtimestamp(time.time() + 3600, UTC).isoformat())
    assert result.exit_code == 2
    assert "no requests in ledger" in result.stderr
