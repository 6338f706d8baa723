"""`graphguard trips|show|replay|backtest`: what people and programs read, and how mistakes are said."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from graphguard import Budget, trips
from graphguard.cli import graphguard
from tests.history.graphs import HI, chain, guarded, nested, thread
from tests.needs import cli_runner
from tests.scripted import Scripted

GRAPHS = """
import sys
sys.path.insert(0, {root!r})
from graphguard import Budget, guard
from tests.history.graphs import chain, guarded
from tests.scripted import Scripted
builder = guard(chain(Scripted(), *"abcd"), Budget(calls=2))
graph = builder.compile()
raising = guard(chain(Scripted(), *"abcd"), Budget(calls=2), on_trip="raise").compile()
def factory(config):
    return graph
async def afactory():
    return graph
other = guard(chain(Scripted(), "a", "x"), Budget(calls=2)).compile()
number = 7
"""


@pytest.fixture
def db(tmp_path):
    """Give a checkpoint file with a thread that ended at a trip, one that was asked twice, and one without a guard."""
    path = tmp_path / "checkpoints.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        guarded(chain(Scripted(), *"abcd"), saver, Budget(calls=2)).invoke(HI, thread("ended"))
        asking = guarded(chain(Scripted(), *"abcd"), saver, Budget(usd="0.0003"), gate="inline", on_trip="interrupt")
        asking.invoke(HI, thread("asked"))
        asking.invoke(Command(resume="0.0005"), thread("asked"))
        chain(Scripted(), "a").compile(checkpointer=saver).invoke(HI, thread("bare"))
    return str(path)


@pytest.fixture
def graphs(tmp_path):
    """Give a langgraph.json with graphs in every form."""
    (tmp_path / "graphs.py").write_text(GRAPHS.format(root=str(Path(__file__).resolve().parents[2])))
    names = ("graph", "builder", "factory", "afactory", "raising", "other", "number", "missing")
    listed = {"dependencies": ["."], "graphs": {name: f"./graphs.py:{name}" for name in names}}
    (tmp_path / "langgraph.json").write_text(json.dumps(listed))
    return str(tmp_path / "langgraph.json")


def run(*args: str) -> object:
    """Run the command line."""
    return cli_runner().invoke(graphguard, args)


def document(*args: str) -> dict[str, object]:
    """Run a command with --json, and give what it printed."""
    result = run(*args, "--json")
    assert result.exit_code in (0, 3), result.output
    return json.loads(result.stdout)


def test_trips_lists_every_thread(db):
    """One row a trip, with its number in the thread, amounts, outcome and checkpoint."""
    result = run("trips", "--db", db)

    assert result.exit_code == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.output.splitlines()[2:]]
    assert [[row[0], *row[2:5]] for row in rows if row[0]] == [
        ["1", "asked", "c", "$0.00042 of $0.0005"],
        ["2", "asked", "b", "$0.00021 of $0.0003"],
        ["1", "ended", "c", "2 of 2 calls"],
    ]
    assert [row[-2] for row in rows if row[0]] == ["waits for an answer", "raised to $0.0005", "not answered"]


def test_trips_in_json_are_what_the_library_tells(db):
    """A document with every field of each trip; USD are strings."""
    told = document("trips", "--db", db, "--thread", "asked")["trips"]

    with SqliteSaver.from_conn_string(db) as saver:
        found = list(trips(saver, thread("asked")))
    assert [each["at"] for each in told] == [trip.at for trip in found]
    assert (told[1]["limit"], told[1]["new_limit"], told[1]["outcome"]) == ("0.0003", "0.0005", "raised to $0.0005")


def test_a_thread_without_trips_is_said(db):
    """No trip is no mistake."""
    result = run("trips", "--db", db, "--thread", "bare")

    assert (result.exit_code, result.output) == (0, "No budget ever stopped thread 'bare'.\n")


def test_show_tells_the_steps(db):
    """Steps with nodes, calls, USD, raised limits and trips; gates only where something happened."""
    result = run("show", "--db", db, "--thread", "asked")

    assert result.exit_code == 0
    assert "limit raised to $0.0005" in result.output
    assert "asked a person" in result.output
    assert ".budget" not in result.output


def test_show_names_subgraphs_and_forks(tmp_path):
    """Steps of subgraphs name their node; a fork says from which step it went."""
    path = str(tmp_path / "c.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        graph = guarded(nested(Scripted()), saver, gate="inline")
        graph.invoke(HI, thread())
        middle = next(s for s in graph.get_state_history(thread()) if s.next == ("s",))
        graph.invoke(None, middle.config)

    output = run("show", "--db", path, "--thread", "t").output

    assert re.search(r"\n +\d+ .* s +x ", output)
    assert f"fork from step {middle.metadata['step']}" in output


def test_show_in_json_adds_up(db):
    """The steps' amounts add up to what the branch has spent."""
    steps = document("show", "--db", db, "--thread", "ended")["steps"]

    assert sum(step["added"]["calls"] for step in steps) == steps[0]["spend"]["calls"] == 2


def test_show_says_when_nothing_was_metered(db):
    """A thread that ran without a guard is shown, and that nothing was counted."""
    assert "Nothing was metered" in run("show", "--db", db, "--thread", "bare").output


def test_backtest_compares_budgets(db):
    """A table of budgets, and each in a sentence; unmetered threads are told apart."""
    result = run("backtest", "--db", db, "--calls", "1", "--usd", "5")

    assert result.exit_code == 0
    assert "with 1 call, 2 of 2 threads would have stopped, saving $0.00042" in result.output
    assert "with $5.00, none of 2 threads would have stopped" in result.output
    assert "1 thread was not metered" in result.output


def test_backtest_in_json_has_the_trips(db):
    """Each outcome lists where it would have tripped."""
    told = document("backtest", "--db", db, "--thread", "ended", "--calls", "1", "--per", "run")

    assert [(trip["node"], trip["spent"]) for trip in told["outcomes"][0]["trips"]] == [("b", 1)]
    assert told["outcomes"][0]["saved"]["calls"] == 1


@pytest.mark.parametrize("name", ["graph", "builder", "factory", "afactory"])
def test_replay_runs_a_graph_by_its_id(db, graphs, name):
    """A graph, a builder or a factory of langgraph.json runs on from before the trip, with the budget given."""
    result = run("replay", "--db", db, "--thread", "ended", "--graph", name, "--config", graphs, "--calls", "9")

    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "Again from before: budget exhausted at 'c': 2 of 2 calls spent"
    assert result.output.splitlines()[-1] == "It ran to its end."
    assert document("show", "--db", db, "--thread", "ended")["steps"][0]["spend"]["calls"] == 4


@pytest.mark.parametrize("name", ["graph", "raising"])
def test_replay_says_that_it_tripped_again(db, graphs, name):
    """With the graph's own budget it trips there again: exit code 3, and why."""
    result = run("replay", "--db", db, "--thread", "ended", "--graph", name, "--config", graphs)

    assert result.exit_code == 3
    assert result.output.splitlines()[-1] == "It tripped: budget exhausted at 'c': 2 of 2 calls spent."


def test_replay_in_json(db, graphs):
    """The document tells from which trip it went, and where it came to."""
    args = ("--db", db, "--thread", "ended", "--graph", "graph", "--config", graphs)
    told = document("replay", *args, "--calls", "3")

    assert (told["from"]["node"], told["trip"]["node"], told["spend"]["calls"]) == ("c", "d", 3)


def test_replay_takes_a_trip_by_its_checkpoint(db, graphs):
    """The last letters that `trips` shows are enough."""
    (trip,) = document("trips", "--db", db, "--thread", "ended")["trips"]
    letters = trip["root"].rpartition("-")[2]
    args = ("--db", db, "--thread", "ended", "--graph", "graph", "--config", graphs, "--calls", "9")

    assert run("replay", *args, "--checkpoint", letters).exit_code == 0
    assert "are at a checkpoint that ends in 'zzz'" in run("replay", *args, "--checkpoint", "zzz").stderr


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("trips", "--db", "nowhere.sqlite"), "'nowhere.sqlite' is not there"),
        (("trips", "--db", "."), "'.' is a folder"),
        (("trips", "--db", "{text}"), "is no SQLite database that can be read"),
        (("trips", "--db", "{tables}"), "holds no LangGraph checkpoints: it has the tables orders"),
        (("trips",), "Missing option '--db'"),
        (("trips", "--db", "{db}", "--thread", "no"), "no checkpoint of a thread 'no' is there"),
        (("show", "--db", "{db}", "--thread", "no"), "no checkpoint of a thread 'no' is there"),
        (("backtest", "--db", "{db}"), "no budget to try"),
        (("backtest", "--db", "{db}", "--usd", "-1"), "usd must be a positive amount"),
        (("replay", "--db", "{db}", "--thread", "ended", "--graph", "no"), "lists no graph 'no'; it lists: "),
        (("replay", "--db", "{db}", "--thread", "ended", "--graph", "number"), "expected a graph, got a int"),
        (("replay", "--db", "{db}", "--thread", "ended", "--graph", "missing"), "has no 'missing'"),
        (("replay", "--db", "{db}", "--thread", "ended", "--graph", "other"), "the graph has no node 'c'"),
        (("replay", "--db", "{db}", "--thread", "bare", "--graph", "graph"), "nothing to replay"),
        (("replay", "--db", "{db}", "--thread", "ended", "--graph", "graph", "--trip", "7"), "has no trip 7, only 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(db, graphs, tmp_path, args, problem):
    """What was found and what to do, without a traceback; nothing is made where nothing was."""
    (tmp_path / "text").write_text("hello, this is no database at all, only some text that is long enough")
    with sqlite3.connect(tmp_path / "tables") as connection:
        connection.execute("CREATE TABLE orders (id)")
    connection.close()
    places = {"db": db, "text": str(tmp_path / "text"), "tables": str(tmp_path / "tables")}
    args = [arg.format(**places) for arg in args]
    if args[0] == "replay":
        args += ["--config", graphs]

    result = run(*args)

    assert result.exit_code == 2
    assert problem in result.stderr
    assert "Traceback" not in result.output
    assert not Path("nowhere.sqlite").exists()


def test_a_history_of_final_checkpoints_is_said(tmp_path, graphs):
    """With durability="exit" trips are listed as not kept, and a replay says so."""
    path = str(tmp_path / "c.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        guarded(chain(Scripted(), *"abcd"), saver, Budget(calls=2)).invoke(HI, thread(), durability="exit")

    result = run("replay", "--db", path, "--thread", "t", "--graph", "graph", "--config", graphs)

    assert "not kept" in run("trips", "--db", path).output
    assert result.exit_code == 2
    assert "was not kept, as with durability='exit'" in result.stderr


def test_postgresql_is_read_too(postgres):
    """The address of a PostgreSQL database does for --db; a password never shows."""
    from langgraph.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - an extra

    folder = re.search(r"host=(\S+)", postgres)[1]
    address = f"postgresql://tests:secret@/postgres?host={folder}"
    with PostgresSaver.from_conn_string(address) as saver:
        saver.setup()
        guarded(chain(Scripted(), *"abcd"), saver, Budget(calls=2)).invoke(HI, thread("of the commands"))

    told = document("trips", "--db", address, "--thread", "of the commands")

    assert [trip["node"] for trip in told["trips"]] == ["c"]
    assert "secret" not in json.dumps(told)
    assert "1 of 1 threads" in run("backtest", "--db", address, "--thread", "of the commands", "--calls", "1").output


def test_help_documents_exit_codes():
    """Each command's help explains its exit codes, within 80 columns."""
    for name in ("trips", "show", "replay", "backtest"):
        output = run(name, "--help").output
        codes = [line.split()[0] for line in output.split("Exit codes:")[1].splitlines() if line.strip()]
        assert codes == (["0", "2", "3", "130"] if name == "replay" else ["0", "2", "130"])
        assert max(map(len, output.splitlines())) <= 80


@pytest.fixture(autouse=True)
def _forget_graphs():
    """Let no test see the module of another."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("graphguard_loaded_graphs", None)
