"""The fixture that caps what a test session spends."""

from __future__ import annotations

import pytest

from graphguard import SqliteLedger
from graphguard.errors import InvalidBudget
from graphguard.langsmith import session_budget

pytest_plugins = ("pytester",)

OPTIONS = ("-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
CONFTEST = """
from graphguard.langsmith import session_budget

spending = session_budget({options})
"""
CALLS = """
import asyncio, pytest
from tests.scripted import Scripted

model = Scripted()

@pytest.mark.parametrize("n", range(4))
def test_sync(n):
    model.invoke("hi")

@pytest.mark.parametrize("n", range(4))
async def test_async(n):
    await model.ainvoke("hi")

def test_free():
    pass

def test_sum(spending):
    assert spending.spend.calls == model.billed
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Give a function that runs the tests of a session with a cap."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    monkeypatch.delenv(
        "PYTEST_XDIST_TESTRUNUID", raising=False
    )  # or these sessions would share the outer one's account

    def run(options, tests=CALLS, *arguments):
        pytester.makeconftest(CONFTEST.format(options=options))
        pytester.makepyfile(tests)
        return pytester.runpytest_inprocess(*OPTIONS, *arguments)

    return run


def test_the_session_ends_at_its_cap(session):
    """Sync and async tests share six calls: those that need a seventh fail, those that call nothing pass."""
    result = session("calls=6")
    result.assert_outcomes(passed=8, failed=2)
    result.stdout.fnmatch_lines(["*BudgetExceeded: *6 of 6 calls*"])


def test_a_roomy_cap_changes_nothing(session):
    """With room for all, all pass."""
    session("usd='1.00'").assert_outcomes(passed=10)


def test_charges_name_their_tests(session, tmp_path):
    """On a ledger in a file, what each test cost can be read after the session."""
    path = tmp_path / "ledger.sqlite"
    session(f"calls=20, ledger=__import__('graphguard').SqliteLedger({str(path)!r})").assert_outcomes(passed=10)
    with SqliteLedger(path) as ledger:
        nodes = [charge.node.rpartition("::")[2] for charge in ledger.charges()]
    assert nodes == [f"test_{kind}[{n}]" for kind in ("sync", "async") for n in range(4)]


def test_tests_of_the_langsmith_plugin_are_capped(session, monkeypatch):
    """Tests marked for LangSmith's own pytest plugin spend from the same account."""
    monkeypatch.setenv("LANGSMITH_TEST_TRACKING", "false")
    marked = CALLS.replace("@pytest.mark.parametrize", "@pytest.mark.langsmith\n@pytest.mark.parametrize")
    session("calls=6", marked).assert_outcomes(passed=8, failed=2)


def test_workers_of_one_run_share_the_cap(session, monkeypatch, tmp_path):
    """What pytest-xdist calls one run is one account, wherever its workers keep the same ledger."""
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "run-1")
    path = tmp_path / "ledger.sqlite"
    options = f"calls=12, ledger=__import__('graphguard').SqliteLedger({str(path)!r})"
    session(options, CALLS.partition("def test_sum")[0]).assert_outcomes(passed=9)
    session(options, CALLS.partition("def test_sum")[0]).assert_outcomes(passed=5, failed=4)


def test_a_cap_needs_a_limit():
    """Without a limit it says so when it is made."""
    with pytest.raises(InvalidBudget):
        session_budget()
