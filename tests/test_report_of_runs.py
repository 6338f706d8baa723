"""The large example: sixty recorded agent runs in one database, reported as a whole and one by one."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

from graphguard import Budget, guard
from graphguard.cli import graphguard
from graphguard.history_command.graphs import with_saver
from graphguard.ledger import SqliteLedger
from tests.needs import SOAK, cli_runner
from tests.recorded.agent_bench import Bench
from tests.recorded.agent_runs import load
from tests.recorded.server import RecordedServer

pytestmark = [pytest.mark.timeout(300), SOAK]


def test_sixty_recorded_runs_in_one_database(shared_data, tmp_path):
    """The page of all runs sums up, thread by thread, to exactly what the ledger charged, and names each run."""
    db, book = str(tmp_path / "checkpoints.sqlite"), str(tmp_path / "ledger.sqlite")
    runs = load(shared_data / "agent_trajectories.jsonl")
    with RecordedServer() as server, SqliteSaver.from_conn_string(db) as saver, SqliteLedger(book) as ledger:
        bench = Bench(server)
        for run in runs:
            agent = guard(bench.agent(run, server.lane(run.answers)), Budget(usd=1), ledger=ledger)
            graph = with_saver(agent, saver)
            for text in run.inputs:
                graph.invoke({"messages": text}, {"configurable": {"thread_id": run.id}})
        sums = ledger.totals("thread")

    html = cli_runner().invoke(graphguard, ["report", "--db", db, "--ledger", book, "-o", str(tmp_path / "all.html")])
    text = cli_runner().invoke(graphguard, ["report", "--db", db, "--ledger", book]).output

    assert html.exit_code == 0, html.output
    assert len(sums) == len(runs) == 60
    page = (tmp_path / "all.html").read_text()
    assert all(run.id in page for run in runs)
    assert sum(spend.nanousd for spend in sums.values()) == sum(sum(run.costs) for run in runs)
    total = Decimal(sum(sum(run.costs) for run in runs)).scaleb(-9)
    told = re.search(r"60 threads, \$([\d.]+), ([\d,]+) calls", text)
    assert abs(Decimal(told[1]) - total) < Decimal("0.0001")
    assert int(told[2].replace(",", "")) == sum(len(run.calls) for run in runs)
