"""`graphguard ledger`: what it prints, for people and for programs, and what it says when it can't."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from graphguard import Budget, guard
from graphguard.cli import graphguard
from graphguard.ledger import SqliteLedger
from graphguard.ledger_command.words import duration_text, moment
from graphguard.spend import Charge, Spend, usd_text
from graphguard.testing import CENT, Clock, call, charge, claim
from tests.conformance.conftest import postgres, postgres_opening  # noqa: F401 - fixtures
from tests.conftest import thread
from tests.needs import cli_runner
from tests.scripted import NANOUSD_PER_CALL, Scripted

COMMANDS = ("totals", "charges", "holds", "sweep")
DAY = 86_400


def ask(*words, width=80, code=0, env=None):
    """Run one command and give what it printed; on stderr if it failed."""
    settings = {"COLUMNS": str(width), "TZ": "UTC", **(env or {})}
    result = cli_runner().invoke(graphguard, ["ledger", *map(str, words)], env=settings)
    assert result.exit_code == code, (result.output, result.exception)
    assert code == 0 or result.stdout == ""
    return result.stdout if code == 0 else result.stderr


def ask_json(*words):
    """Run one command with --json and give the document."""
    return json.loads(ask(*words, "--json"))


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """Give the address of an empty ledger of each kind, and what opens it."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite"
        SqliteLedger(path).close()
        return (path,), lambda **options: SqliteLedger(path, **options)
    pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
    address, opening = request.getfixturevalue("postgres"), request.getfixturevalue("postgres_opening")
    with opening() as ledger:
        schema = ledger.schema
    return (address, "--schema", schema), opening


@pytest.fixture
def filled(place):
    """Give the words for a ledger with four charges of two users, on two days."""
    words, opening = place
    told = Charge(id="a", nanousd=CENT, input_tokens=10, output_tokens=2, model="gpt-5", node="plan", thread="t1")
    with opening() as ledger:
        for n, more in enumerate(
            (
                {"user": "ada", "scopes": ("thread:t1",)},
                {"user": "bob", "scopes": ("thread:t1", "step:1|"), "nanousd": 2 * CENT, "run": "r1"},
                {"user": "ada", "scopes": ("thread:t2",), "thread": "t2", "waited": 1.25},
                {"model": "tiny", "nanousd": 7, "estimated": True, "node": "act"},
            )
        ):
            time = 1_795_000_000.0 + n * DAY / 2
            ledger.settle(str(n), replace(told, id=str(n), time=time, **more))
    return words


def test_a_guarded_run_is_told_to_the_nanodollar(tmp_path):
    """What a guarded graph spent is what `totals` says, by model, node, thread and user."""
    path, model = tmp_path / "ledger.sqlite", Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    with SqliteLedger(path) as ledger:
        graph = guard(builder, Budget(usd=1, per="thread"), ledger=ledger).compile()
        for user in ("ada", "bob", "ada"):
            graph.invoke({"messages": "Hi"}, thread("t", user_id=user))

    for by, sums in {
        "model": {"gpt-4o-mini": 3},
        "node": {"agent": 3},
        "thread": {"t": 3},
        "user": {"ada": 2, "bob": 1},
        "scope": {"thread:t": 3},
    }.items():
        told = ask_json("totals", path, "--by", by)
        assert {group["name"]: group["usd"] for group in told["groups"]} == {
            name: usd_text(calls * NANOUSD_PER_CALL) for name, calls in sums.items()
        }
        assert told["total"] == {
            "usd": "0.00063",
            "calls": 3,
            "input_tokens": 3_000,
            "output_tokens": 300,
            "estimated": 0,
            "unpriced": 0,
        }
    assert len(ask_json("totals", path, "--by", "run")["groups"]) == 3


@pytest.mark.parametrize("auth", [{"identity": "ada", "role": "x"}, type("User", (), {"identity": "ada"})()])
def test_who_was_authenticated_is_the_user(tmp_path, auth):
    """The server's authenticated user counts, as a dict or an object, and not what a client calls itself."""
    path, model = tmp_path / "ledger.sqlite", Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    with SqliteLedger(path) as ledger:
        graph = guard(builder, ledger=ledger).compile()
        graph.invoke({"messages": "Hi"}, thread("t", user_id="mallory", langgraph_auth_user=auth))

    assert [one["user"] for one in ask_json("charges", path)["charges"]] == ["ada"]


def test_totals_for_people(filled):
    """A table with the most expensive first and the sum at the foot."""
    lines = [line.split() for line in ask("totals", *filled, "--by", "user").splitlines()]

    assert lines[0] == ["user", "calls", "input", "output", "USD"]
    assert [line[:2] for line in lines[2:5]] == [["ada", "2"], ["bob", "1"], ["(none)", "1"]]
    assert lines[-1] == ["all", "4", "40", "8", "$0.0401", "1", "estimated"]


def test_totals_by_day(filled):
    """Days are in their order, and a limit keeps the latest."""
    days = [group["name"] for group in ask_json("totals", *filled, "--by", "day")["groups"]]
    latest = ask_json("totals", *filled, "--by", "day", "--limit", 1)

    assert days == sorted(days)
    assert len(days) == 2
    assert ([group["name"] for group in latest["groups"]], latest["more"]) == (days[1:], True)


def test_limit_of_totals(filled):
    """A limit keeps the most expensive, says how many more there are, and leaves the sum of all."""
    told = ask_json("totals", *filled, "--limit", 1)

    assert [group["name"] for group in told["groups"]] == ["gpt-5"]
    assert (told["more"], told["total"]["usd"]) == (True, "0.040000007")
    assert ask("totals", *filled, "--limit", 1).endswith("1 more; --limit shows more of them.\n")
    assert len(ask_json("totals", *filled, "--limit", 0)["groups"]) == 2


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (("--thread", "t1"), "013"),
        (("--user", "ada"), "023"),
        (("--model", "tiny"), "3"),
        (("--node", "plan"), "012"),
        (("--run", "r1"), "1"),
        (("--scope", "thread:t2"), "2"),
        (("--scope", "step:1|"), "1"),
        (("--since", "2026-11-18T11:06:40Z", "--until", "2026-11-18T23:06:40Z"), "0"),
        (("--since", "2026-11-19T11:00Z", "--user", "ada"), "2"),
        (("--until", "1w"), None),
        (("--limit", "2"), "23"),
    ],
)
def test_filters_of_charges(filled, words, ids):
    """Each filter narrows the charges, and what they sum up to."""
    told = ask_json("charges", *filled, *words)
    if ids is None:  # depends on today
        assert told["where"]["until"].endswith("Z")
        return
    if "--user" in words and "3" in ids:
        ids = ids.replace("3", "")
    assert "".join(one["id"] for one in told["charges"]) == ids
    if "--limit" not in words:
        assert told["total"]["calls"] == len(ids)
        assert ask_json("totals", *filled, *words)["total"] == told["total"]


def test_charges_for_programs(filled):
    """Each field of a charge is there under its name, money as a text."""
    told = ask_json("charges", *filled, "--thread", "t2")

    assert told["charges"] == [
        {
            "id": "2",
            "time": "2026-11-19T11:06:40.000Z",
            "usd": "0.01",
            "calls": 1,
            "input_tokens": 10,
            "output_tokens": 2,
            "model": "gpt-5",
            "provider": None,
            "node": "plan",
            "thread": "t2",
            "run": None,
            "user": "ada",
            "task": None,
            "attempt": 1,
            "scopes": ["thread:t2"],
            "estimated": False,
            "assumed": False,
            "unpriced": False,
            "waited_seconds": 1.25,
        }
    ]
    assert (told["where"], told["more"]) == ({"thread": "t2"}, False)
    assert "hunter" not in told["ledger"]


def test_charges_for_people(filled):
    """A line a charge, the latest last; what is the same in all is said once; numbers are whole on 80 columns."""
    text = ask("charges", *filled, "--thread", "t1")
    lines = text.splitlines()

    assert lines[0].startswith("thread t1")
    assert "$0.000000007" in lines[-1]
    assert lines[-1].rstrip().endswith("estimated")
    assert "2026-11-18" in text
    assert max(map(len, lines)) <= 80

    lines = ask("charges", *filled).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[4].split()[:5] == ["2026-11-19", "11:06:40", "$0.01", "10", "2"]
    assert "1.2 s" in lines[4]
    assert lines[-1] == "Without node and user, for lack of room; a wider terminal or --json shows all."
    assert "Without" not in ask("charges", *filled, width=110)
    assert "The latest 1; " in ask("charges", *filled, "--limit", 1)


def test_long_names_leave_numbers_whole(place):
    """However long ids are, amounts and times are shown whole on 80 columns, and everything on 200."""
    words, opening = place
    long = {name: f"{name}-{'x' * 40}" for name in ("model", "node", "thread", "user")}
    with opening() as ledger:
        for n in range(2):
            told = Charge(id=str(n), nanousd=123_456_789_000, input_tokens=123_456, output_tokens=99_999)
            values = {name: f"{n}{text}" for name, text in long.items()}
            ledger.settle(str(n), replace(told, time=1_795_000_000.0 + n, **values))

    narrow = ask("charges", *words, width=80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert "11:06:40  $123.4568  123,456  99,999  0mod" in narrow[3]
    assert long["user"] in ask("charges", *words, width=240)


def test_holds(place):
    """Open holds show their age, what is left of the lease, the worst case and what they waited."""
    words, opening = place
    clock = Clock()
    with opening(clock=clock, lease=3_600) as ledger:
        clock.now = Charge(id="now").time - 90
        ledger.hold(replace(call("a", 3, claim(10, "thread:t")), model="gpt-5", node="plan", thread="t"))
        ledger.hold(replace(call("b", 0), worst=Spend(output_tokens=500, calls=1), capped=False, model="gpt-5"))
        told = ask_json("holds", *words)
        text = ask("holds", *words)

    assert [(one["id"], one["usd"], one["capped"]) for one in told["holds"]] == [("a", "0.03", True), ("b", "0", False)]
    assert 90 <= told["holds"][0]["age_seconds"] < 120
    assert 3_400 < told["holds"][0]["lease_seconds_left"] <= 3_510
    assert told["holds"][0]["scopes"] == ["thread:t"]
    assert told["total"]["usd"] == "0.03"
    assert text.splitlines()[0] == "model gpt-5"
    assert "1 min 3" in text
    assert "58 min" in text
    assert "500 tokens" in text
    assert "no cap" in text


def test_sweep(place):
    """What it charges is listed with its sum, once; holds of the living stay."""
    words, opening = place
    clock = Clock()
    with opening(clock=clock) as ledger:
        ledger.hold(call("dead", 3))
        ledger.hold(call("gone", 2))
        clock.now = Charge(id="now").time
        ledger.hold(call("alive", 1))
        first = ask("sweep", *words)
        second = ask_json("sweep", *words)

        assert "assumed" in first
        assert "2 holds charged, $0.05 in all.\n1 hold still open.\n" in first
        assert (second["swept"], second["total"]["usd"], second["holds_left"]) == ([], "0", 1)
        assert [hold.id for hold in ledger.open_holds()] == ["alive"]
    assert ask("sweep", *words) == "Nothing to sweep: no lease has ended.\n1 hold still open.\n"


def test_nothing_there(place):
    """An empty ledger is no error."""
    words, _ = place

    assert ask("totals", *words) == ask("charges", *words) == "No charges yet.\n"
    assert ask("charges", *words, "--user", "ada") == "No charge matches.\n"
    assert ask("holds", *words) == "Nothing is held.\n"
    assert ask("sweep", *words) == "Nothing to sweep: no lease has ended.\n"
    assert ask_json("totals", *words)["groups"] == []


def test_the_environment_names_the_ledger(tmp_path):
    """Without an argument GRAPHGUARD_LEDGER counts, and without that the error says so."""
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path).close()

    assert ask("totals", env={"GRAPHGUARD_LEDGER": str(path)}) == "No charges yet.\n"
    assert "GRAPHGUARD_LEDGER" in ask("totals", env={"GRAPHGUARD_LEDGER": ""}, code=2)


def other(path):
    """Make a database of another program."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()


def newer(path):
    """Make a ledger of a later version."""
    SqliteLedger(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.touch(), "it is an empty file"),
        (lambda path: path.write_text("words, many words, and no database at all\n" * 9), "it is no ledger"),
        (other, "it belongs to another program"),
        (newer, "its schema is 99, and this version of graphguard knows 2; upgrade graphguard"),
    ],
    ids=["missing", "folder", "empty", "text", "other", "newer"],
)
def test_a_file_that_is_no_ledger(tmp_path, command, make, told):
    """Each command says in one line what is wrong, ends with 2, and leaves the folder as it was."""
    path = tmp_path / "place" / "ledger"
    path.parent.mkdir()
    make(path)
    before = {one.name: one.is_file() and one.read_bytes() for one in path.parent.iterdir()}

    error = ask(command, path, code=2)

    assert told in error
    assert error.startswith("Error: ledger ")
    assert error.count("\n") == 1
    assert {one.name: one.is_file() and one.read_bytes() for one in path.parent.iterdir()} == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/d", "127.0.0.1"),
        ("host=127.0.0.1 port=1 password=hunter2 dbname=d", "onnection"),
        ("postgresql://me:hunter2@[", "its address can't be read"),
    ],
)
def test_a_server_that_cannot_be_reached(command, address, told):
    """One line says why, within seconds, and without the password."""
    pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")

    error = ask(command, address, code=2)

    assert told in error
    assert "hunter2" not in error
    assert error.count("\n") == 1


def test_a_database_without_a_ledger(request):
    """A server that has no ledger under that name says what is to be done."""
    address = request.getfixturevalue("postgres")
    assert "call setup() once" in ask("totals", address, "--schema", "nothing here", code=2)
    assert 'database "nowhere" does not exist' in ask(
        "totals", address.replace("dbname=postgres", "dbname=nowhere"), code=2
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("totals", "--by", "colour"), "'colour'"),
        (("totals", "--since", "yesterday"), "--since: 'yesterday' is no time; write a duration such as 24h"),
        (("charges", "--until", "2026-13-01"), "--until: '2026-13-01' is no time"),
        (("charges", "--limit", "-1"), "-1"),
        (("charges", "--limit", "many"), "'many'"),
        (("holds", "--user", "ada"), "--user"),
    ],
)
def test_wrong_use(tmp_path, words, told):
    """A word that can't be used ends with 2 and is named."""
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path).close()

    assert told in ask(*words, path, code=2)


def test_a_file_is_read_while_it_is_written(tmp_path):
    """A process in the middle of a transaction neither stops the reader nor is seen half done."""
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path) as ledger:
        ledger.settle("a", charge("a", 1))
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE attempts SET nanousd = 0")

        assert ask_json("totals", path)["total"]["usd"] == "0.01"

        db.execute("ROLLBACK")
        db.close()


@pytest.fixture
def public_folder():
    """Give a folder that whoever the command runs as may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_folder_that_cannot_be_written(public_folder):
    """Who may only read the file sees all of it, also while another process writes; a sweep says what it lacks."""
    path = public_folder / "ledger.sqlite"
    code = """
import os, pwd, sys
from click.testing import CliRunner
from graphguard.cli import graphguard
if os.getuid() == 0:  # who may do anything
    os.setgroups([])
    os.setgid(pwd.getpwnam("nobody").pw_gid)
    os.setuid(pwd.getpwnam("nobody").pw_uid)
for command in ("totals", "sweep"):
    result = CliRunner().invoke(graphguard, ["ledger", command, sys.argv[1], "--json"])
    print(result.exit_code, repr(result.exception), result.output.replace("\\n", " "))
"""

    def read():
        command = [sys.executable, "-c", code, path]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.splitlines()

    with SqliteLedger(path, clock=Clock()) as ledger:  # whose leases have long ended
        ledger.settle("a", charge("a", 1))
        ledger.hold(call("b", 1))
        during = read()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    after = read()
    path.parent.chmod(0o755)

    for totals, sweep in (during, after):
        assert totals.startswith("0 None"), totals
        assert '"usd": "0.01"' in totals
        assert sweep.startswith("2 ")
        assert "let this process write the file and its folder" in sweep


def test_looking_leaves_the_file_alone(tmp_path):
    """Nothing is written and nothing is left beside the file."""
    path = tmp_path / "place" / "ledger.sqlite"
    path.parent.mkdir()
    with SqliteLedger(path) as ledger:
        ledger.settle("a", charge("a", 1))
    before = path.read_bytes()

    for command in ("totals", "charges", "holds"):
        ask(command, path)

    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_damaged_file_is_told(tmp_path):
    """A file that is broken in its middle says so, and to keep it."""
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path) as ledger:
        for n in range(200):
            ledger.settle(str(n), charge(str(n), 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:8_192] + b"\xff" * (len(whole) - 8_192))

    for command in ("totals", "charges", "sweep"):
        error = ask(command, path, code=2)
        assert "the file is damaged; keep it for inspection" in error
        assert error.count("\n") == 1


def test_a_locked_file_is_not_swept_for_ever(tmp_path, monkeypatch):
    """A sweep that can't write says who is in the way."""
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path).close()
    monkeypatch.setattr("graphguard.ledger_command.opening._PATIENCE", 0.2)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")

    assert "another process has held a transaction on it for too long" in ask("sweep", path, code=2)

    db.close()


def test_without_the_extra_it_says_which(tmp_path):
    """Where psycopg is missing, an address of a server says what to install."""
    code = """
import sys
sys.modules["psycopg"] = None
from graphguard.cli import main
sys.argv[1:] = ["ledger", "totals", "postgresql://host/db"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.returncode == 2
    assert "pip install 'graphguard[postgres]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command):
    """Each help fits 80 columns, and those of commands say their exit codes."""
    text = ask(*([command] if command else []), "--help")

    assert max(map(len, text.splitlines())) <= 80
    assert not command or "Exit codes:" in text


def test_moments(monkeypatch):
    """Durations count back from now; dates without a zone are local."""
    monkeypatch.setenv("TZ", "UTC")
    now = 1_795_000_000.0

    assert [now - moment(text, now) for text in ("90s", "30m", "24h", "7d", "2w", "1.5 h")] == [
        90,
        1_800,
        DAY,
        7 * DAY,
        14 * DAY,
        5_400,
    ]
    assert moment("2026-11-20T12:00+02:00", now) == moment("2026-11-20T10:00Z", now)
    for text in ("", "soon", "24", "24x", "2026-02-30"):
        with pytest.raises(ValueError, match="is no time"):
            moment(text, now)


def test_durations():
    """Durations are short and never lie by rounding up a unit."""
    assert [duration_text(seconds) for seconds in (0, 9.96, 10, 59.4, 60, 119, 3_599, 3_600, 86_399, 86_400)] == [
        "0.00 s",
        "10.0 s",
        "10 s",
        "59 s",
        "1 min",
        "1 min 59 s",
        "59 min 59 s",
        "1 h",
        "23 h 59 min",
        "1 d",
    ]


def test_filters_use_an_index_of_the_server(request):
    """The same in PostgreSQL, where it only matters once a table is long."""
    psycopg = pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
    from graphguard.ledger.queries import Which  # noqa: PLC0415 - what is looked at

    with request.getfixturevalue("postgres_opening")() as ledger:
        schema = ledger.schema
    with psycopg.connect(request.getfixturevalue("postgres"), autocommit=True) as db:
        db.execute("SET enable_seqscan = off")
        for which in (Which({"thread": "t"}), Which({"user": "u"}), Which({}, since=1.0)):
            condition, values = which.condition(value="%s", in_scope="%s")
            plan = db.execute(f'EXPLAIN SELECT charge FROM "{schema}".attempts WHERE {condition}', values).fetchall()  # noqa: S608
            assert any("Index Cond" in row[0] for row in plan), plan


def test_filters_use_an_index(tmp_path):
    """Narrowed by thread, user or time, a long list is not read from end to end."""
    from graphguard.ledger.queries import Which  # noqa: PLC0415 - what is looked at

    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path).close()
    db = sqlite3.connect(path)
    for which in (Which({"thread": "t"}), Which({"user": "u"}), Which({}, since=1.0), Which({}, 1.0, 2.0)):
        condition, values = which.condition(value="?", in_scope="?")
        plan = db.execute(f"EXPLAIN QUERY PLAN SELECT charge FROM attempts WHERE {condition}", values).fetchall()  # noqa: S608
        assert all("USING INDEX" in row[-1] for row in plan), plan
    plan = db.execute(
        "EXPLAIN QUERY PLAN SELECT charge FROM attempts WHERE state <> 'held' AND charge IS NOT NULL "
        "ORDER BY time DESC, number DESC LIMIT 5"
    ).fetchall()
    assert [row[-1] for row in plan] == ["SCAN attempts USING INDEX attempts_time"]
    db.close()
