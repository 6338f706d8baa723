"""The dashboard and the report on PostgreSQL, for checkpoints and ledger alike."""

from __future__ import annotations

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra graphguard[dashboard] is not installed")
pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
from langgraph.checkpoint.postgres import PostgresSaver

from graphguard import Budget
from graphguard.cli import graphguard
from graphguard.ledger.postgres import PostgresLedger
from tests.conformance.postgres_server import NoServer
from tests.conformance.postgres_server import running as postgres_running
from tests.dashboard.conftest import running
from tests.history.graphs import HI, chain, guarded, thread
from tests.needs import cli_runner
from tests.scripted import Scripted


@pytest.fixture(scope="module")
def address():
    """Give the address of a server with one thread that asks."""
    server = postgres_running()
    try:
        address = server.__enter__()
    except NoServer as error:
        pytest.skip(str(error))
    with PostgresSaver.from_conn_string(address) as saver, PostgresLedger(address) as ledger:
        saver.setup()
        ledger.setup()
        graph = guarded(chain(Scripted(), *"abcd"), saver, Budget(calls=2), on_trip="interrupt", ledger=ledger)
        graph.invoke(HI, thread("on a server"))
    told = dict(word.split("=", 1) for word in address.split())
    yield f"postgresql://{told['user']}@/{told['dbname']}?host={told['host']}"
    server.__exit__(None, None, None)


def test_the_dashboard_shows_what_is_in_postgres(address, tmp_path):
    """Question and spend come from the server; its address is not on the page."""
    with running(tmp_path, "--db", address, "--ledger", address) as board:
        with httpx.stream("GET", f"{board.url}live", timeout=60) as live:
            lines = []
            for line in live.iter_lines():
                lines.append(line)
                if line == "event: threads":
                    break
        page = "\n".join(lines)

    assert "2 of 2 calls spent" in page
    assert "$0.00042" in page
    assert address not in page


def test_a_report_of_postgres_names_no_address(address):
    """The report tells the thread, and its commands take the address from the environment."""
    text = cli_runner().invoke(graphguard, ["report", "--db", address, "--ledger", address, "--thread", "on a server"])

    assert text.exit_code == 0, text.output
    assert "$0.00042, 2 calls" in text.output
    assert '--db "$GRAPHGUARD_DB" --thread' in text.output
    assert address not in text.output
