"""`graphguard report`: figures that are the ledger's, commands that work, pages that are safe to open."""

from __future__ import annotations

import re
import shlex
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, RetryPolicy

from graphguard import Budget, guard, replay, trips
from graphguard.cli import graphguard
from graphguard.ledger import SqliteLedger
from graphguard.report import Tale, story, story_page
from graphguard.report.drawing import drawing
from tests.history.graphs import HI, chain, fan, guarded, nested, thread
from tests.needs import cli_runner
from tests.scripted import Scripted

NAME = "</title><script>alert(1)</script>"


@pytest.fixture
def files(tmp_path):
    """Give a database and a ledger: a thread with a fork, one with retries, one whose name is HTML."""
    db, book = str(tmp_path / "checkpoints.sqlite"), str(tmp_path / "ledger.sqlite")
    with SqliteSaver.from_conn_string(db) as saver, SqliteLedger(book) as ledger:
        asking = guarded(chain(Scripted(), *"abcd"), saver, Budget(usd="0.0005"), on_trip="interrupt", ledger=ledger)
        asking.invoke(HI, thread("forked"))
        asking.invoke(Command(resume="0.0007"), thread("forked"))
        asking.invoke(Command(resume=True), thread("forked"))
        replay(asking, list(trips(asking, thread("forked")))[-1], Budget(usd=1))
        asking.invoke(HI, thread(NAME))
        retried(saver, ledger).invoke(HI, thread("retried"))
    return db, book


def retried(saver, ledger):
    """Give a graph whose one node fails after its call, twice."""
    model, fails = Scripted(), iter([True, True, False])

    def call(state):
        answer = model.invoke(state["messages"])
        if next(fails):
            raise ConnectionError
        return {"messages": [answer]}

    builder = chain(model)
    builder.add_node("call", call, retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False))
    builder.set_entry_point("call")
    return guarded(builder, saver, Budget(usd=1), ledger=ledger)


def run(*args):
    """Run the command line."""
    return cli_runner().invoke(graphguard, ["report", *args])


def told(files, name):
    """Give a thread's story."""
    with SqliteSaver.from_conn_string(files[0]) as saver, SqliteLedger(files[1]) as ledger:
        return story(saver, name, ledger), ledger.totals("node", thread=name), ledger.total(thread=name)


def test_the_figures_are_the_ledgers(files):
    """Spend, by node and in all, is to the nano-USD what the ledger charged the thread."""
    found, by_node, total = told(files, "forked")

    assert (found.spend, dict(found.by_node)) == (total, by_node)
    assert total.calls == 6


def test_branches_share_the_money_before_their_fork(files):
    """The branches' own steps add up to the thread's spend, and each line's end counts the part before its fork."""
    found, _, total = told(files, "forked")

    assert [branch.added.calls for branch in found.branches] == [4, 2]
    assert [branch.spend.calls for branch in found.branches] == [4, 4]
    assert found.known == total


def test_trips_that_were_answered_one_after_the_other_tell_their_own_limits(files):
    """Of two trips of one line, each says what its own answer raised the limit to."""
    found, _, _ = told(files, "forked")

    assert [trip.outcome for trip in found.trips] == ["raised to $0.0014", "raised to $0.0007"]


def test_retries_are_told_with_what_they_cost(files):
    """A node that failed twice after its call: both calls are paid for nothing, attempt by attempt."""
    found, _, _ = told(files, "retried")

    assert [[spend.calls for spend in task.attempts] for task in found.loss.retried] == [[1, 1, 1]]
    assert (found.loss.retries.calls, found.loss.elsewhere.calls) == (2, 0)


def test_money_that_no_branch_counts_is_told(files):
    """What the ledger charged and no checkpoint has, as after a rollback, is told as such."""
    with sqlite3.connect(files[0]) as db:
        (last,) = db.execute("SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = 'retried'").fetchone()
        db.execute("DELETE FROM checkpoints WHERE checkpoint_id = ?", (last,))
        db.execute("DELETE FROM writes WHERE thread_id = 'retried'")

    found, _, total = told(files, "retried")

    assert (found.known.calls, found.loss.elsewhere) == (0, total)


def test_the_command_of_a_trip_replays_it(files, tmp_path):
    """The command that the report prints for a trip, run as it is, trips there again."""
    (tmp_path / "graphs.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        "from graphguard import Budget, guard\nfrom tests.history.graphs import chain\n"
        "from tests.scripted import Scripted\n"
        "graph = guard(chain(Scripted(), *'abcd'), Budget(usd='0.0005'), on_trip='interrupt').compile()\n"
    )
    config = tmp_path / "langgraph.json"
    config.write_text('{"graphs": {"line": "./graphs.py:graph"}}')

    text = run("--db", files[0], "--thread", NAME, "--graph", "line", "--config", str(config)).output
    command = shlex.split(next(line for line in text.splitlines() if "graphguard replay" in line))
    again = cli_runner().invoke(graphguard, command[1:])

    assert (again.exit_code, "It tripped: budget exhausted at 'c'" in again.output) == (3, True)


def test_a_name_that_is_html_stays_text(files, tmp_path):
    """Nothing of a thread's name becomes markup, in its own page and in the table of all threads."""
    run("--db", files[0], "--thread", NAME, "-o", str(tmp_path / "one.html"))
    run("--db", files[0], "--ledger", files[1], "-o", str(tmp_path / "all.html"))

    for page in ("one.html", "all.html"):
        html = (tmp_path / page).read_text()
        assert "<script" not in html
        assert "&lt;/title&gt;&lt;script&gt;" in html


def test_a_page_needs_nothing_from_elsewhere(files, tmp_path):
    """The page names no address at all and forbids itself to load anything."""
    run("--db", files[0], "--thread", "forked", "--ledger", files[1], "-o", str(tmp_path / "page.html"))

    html = (tmp_path / "page.html").read_text()
    assert re.findall(r"https?://|url\((?!#)|@import| src=", html) == []
    assert "default-src 'none'" in html


def test_a_password_is_never_in_a_report():
    """Commands for PostgreSQL take the address from the environment, expanded by the shell."""
    trip = next(iter(trips(*tripped())))

    command = Tale(db="$GRAPHGUARD_DB", graph="line").replay(trip)

    assert command.startswith('graphguard replay --db "$GRAPHGUARD_DB" --thread t --graph line --checkpoint ')


def tripped():
    """Give a graph and a thread that stopped."""
    graph = guarded(nested(Scripted()), InMemorySaver(), Budget(calls=2))
    graph.invoke(HI, thread())
    return graph, thread()


def test_without_a_ledger_the_steps_tell(files):
    """A thread with a subgraph and no ledger: nodes and calls come from its checkpoints, inner nodes by name."""
    graph, _ = tripped()

    found = story(graph, "t")

    assert {name: spend.calls for name, spend in found.by_node.items()} == {"a": 1, "x": 1}
    assert found.loss is None
    assert "Paid for nothing" not in story_page(found, Tale(db="checkpoints.sqlite"))


def test_every_node_is_drawn_below_what_leads_to_it():
    """A graph with a fan-out is drawn in rows, with its gates told from its nodes, and nothing overlaps."""
    drawn = drawing(guard(fan(Scripted()), Budget(calls=4), on_trip="interrupt").compile())

    at = {box.name: box.y for box in drawn.boxes}
    assert at["start"] < at["plan.budget"] < at["plan"] < at["u.budget"] < at["u"]
    assert {box.name for box in drawn.boxes if box.kind == "gate"} >= {"plan.budget", "u.budget", "budget.review"}
    for row in set(at.values()):
        boxes = sorted((box for box in drawn.boxes if box.y == row), key=lambda box: box.x)
        for left, right in pairwise(boxes):
            assert left.x + left.width / 2 < right.x - right.width / 2
    assert all(box.x - box.width / 2 > 0 and box.x + box.width / 2 < drawn.width for box in drawn.boxes)


def test_all_threads_are_told_the_most_expensive_first(files):
    """Without a thread, the text has a line for each with its spend, and sums by model and user."""
    text = run("--db", files[0], "--ledger", files[1]).output

    assert text.index("forked") < text.index("retried") < text.index(NAME)
    assert re.search(r"3 threads, \$0\.00231, 11 calls", text)
    assert "By model" in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--thread", "nobody"), "no checkpoint of a thread 'nobody' is there"),
        (("--ledger", "nothing.sqlite"), "there is no such file"),
        (("--thread", "forked", "-o", "no/such/folder.html"), "can't write 'no/such/folder.html'"),
        (("--thread", "forked", "--graph", "line", "-o", "page.html"), "can't read 'langgraph.json'"),
    ],
)
def test_mistakes_are_said_in_one_line(files, args, said, tmp_path, monkeypatch):
    """What can't be read or written ends with exit code 2 and says which and what to do."""
    monkeypatch.chdir(tmp_path)

    result = run("--db", files[0], *args)

    assert (result.exit_code, said in result.output, "Traceback" in result.output) == (2, True, False)


def test_a_file_that_is_no_database_is_said(tmp_path):
    """A file without checkpoints is named, with what to pass."""
    (tmp_path / "notes.txt").write_text("nothing")

    result = run("--db", str(tmp_path / "notes.txt"))

    assert result.exit_code == 2
    assert "pass a checkpointer's file" in result.output
