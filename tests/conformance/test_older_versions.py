"""Files and databases that older versions wrote: brought up to date with nothing lost, and read as they are."""

from __future__ import annotations

import itertools
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from graphguard.ledger import Hold, SqliteLedger
from graphguard.ledger.records import call_to_text, charge_to_text
from graphguard.ledger.sqlite_queries import SqliteReader
from graphguard.spend import Charge, Spend
from graphguard.testing import CENT, call, cents, charge, claim

COUNTED = [
    f"{kind}_{name}"
    for kind in ("spent", "held")
    for name in ("nanousd", "input_tokens", "output_tokens", "calls", "estimated", "unpriced")
]
HELD = call("held", 3)
TOLD = Charge(id="done", nanousd=2 * CENT, scopes=("s",), thread="t", model="m", node="n", time=1_750_000_000.0)

SQLITE_1 = f"""
CREATE TABLE accounts (
    scope TEXT PRIMARY KEY NOT NULL, {", ".join(f"{name} INTEGER NOT NULL" for name in COUNTED)}
) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, call TEXT, expires REAL, charge TEXT,
    nanousd INTEGER, input_tokens INTEGER, output_tokens INTEGER, calls INTEGER, estimated INTEGER, unpriced INTEGER,
    thread TEXT, run TEXT, node TEXT, model TEXT, task TEXT, time REAL
) STRICT;
CREATE INDEX attempts_held ON attempts (expires) WHERE state = 'held';
CREATE INDEX attempts_thread ON attempts (thread) WHERE thread IS NOT NULL;
PRAGMA user_version = 1;
PRAGMA application_id = {0x47524744};
PRAGMA journal_mode = WAL;
"""

POSTGRES_1 = f"""
CREATE SCHEMA {{schema}};
CREATE TABLE {{schema}}.version (version integer NOT NULL);
INSERT INTO {{schema}}.version VALUES (1);
CREATE TABLE {{schema}}.accounts (
    scope text PRIMARY KEY COLLATE "C", {", ".join(f"{name} bigint NOT NULL DEFAULT 0" for name in COUNTED)}
) WITH (fillfactor = 50);
CREATE TABLE {{schema}}.attempts (
    number bigint GENERATED ALWAYS AS IDENTITY, id text PRIMARY KEY, state text NOT NULL, call text, held_in text[],
    worst bigint[], expires double precision, charge text, scopes text[],
    nanousd bigint, input_tokens bigint, output_tokens bigint, calls bigint, estimated bigint, unpriced bigint,
    thread text, run text, node text, model text, task text, time double precision
) WITH (fillfactor = 70);
CREATE INDEX ON {{schema}}.attempts (expires) WHERE state = 'held';
CREATE INDEX ON {{schema}}.attempts (thread) WHERE thread IS NOT NULL;
CREATE FUNCTION {{schema}}.release(p_id text, OUT freed text[]) LANGUAGE plpgsql AS $$ BEGIN END $$;
"""  # noqa: S608 - made of constants


def without(text: str, *names: str) -> str:
    """Give the text of a call or charge as a version wrote it that did not know these fields."""
    return json.dumps({name: value for name, value in json.loads(text).items() if name not in names})


CALL = without(call_to_text(HELD), "user")
CHARGE = without(charge_to_text(TOLD), "user")
AMOUNTS = (2 * CENT, 0, 0, 1, 0, 0)


def write_sqlite_1(path):
    """Write a file as version 1 did: one charge of 2 cents, one open hold of 3, one released call."""
    with sqlite3.connect(path) as db:
        db.executescript(SQLITE_1)
        db.execute(
            f"INSERT INTO accounts VALUES ('s', {', '.join('?' * 12)})",  # noqa: S608 - placeholders
            (*AMOUNTS, 3 * CENT, 0, 0, 1, 0, 0),
        )
        db.execute(
            "INSERT INTO attempts (id, state, call, expires) "
            "VALUES ('held', 'held', ?, 2e9), ('r', 'released', ?, NULL)",
            (CALL, CALL),
        )
        db.execute(
            "INSERT INTO attempts (id, state, charge, nanousd, input_tokens, output_tokens, calls, estimated, "
            "unpriced, thread, node, model, time) VALUES ('done', 'charged', ?, ?, ?, ?, ?, ?, ?, 't', 'n', 'm', ?)",
            (CHARGE, *AMOUNTS, TOLD.time),
        )
    db.close()
    return path


def is_complete(ledger):
    """Tell whether a ledger knows all that the old one was told, and goes on from there."""
    assert ledger.charges() == ledger.charges(thread="t", user=None) == (TOLD,)
    assert [(hold.call, hold.expires, hold.time) for hold in ledger.open_holds()] == [(HELD, 2e9, None)]
    assert ledger.balance(claim()) == (TOLD.spend, HELD.worst)
    assert ledger.settle("done", charge("done", 9)) == TOLD
    ledger.settle("held", charge("held", 1))
    assert isinstance(ledger.hold(call("new", 7), wait=0), Hold)
    ledger.settle("new", Charge(id="new", nanousd=CENT, scopes=("s",), user="ada"))
    assert [one.id for one in ledger.charges(user="ada")] == ["new"]
    assert cents(ledger.total(scope="s")) == 4
    ledger.sweep()
    return True


def test_an_old_file_is_brought_up_to_date(tmp_path):
    """A file of version 1 opens, has everything, and takes what is new; opening it again changes nothing."""
    path = write_sqlite_1(tmp_path / "old.sqlite")

    with SqliteLedger(path) as ledger:
        assert is_complete(ledger)

    with SqliteLedger(path) as ledger:
        assert cents(ledger.total()) == 4
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()


def test_an_old_and_a_new_file_have_the_same_schema(tmp_path):
    """However old a file is, it ends with the same tables, columns and indices as a new one."""

    def schema(path):
        SqliteLedger(path).close()
        db = sqlite3.connect(path)
        found = {}
        for kind, name in db.execute("SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'").fetchall():
            columns = db.execute(f"SELECT name, type FROM pragma_table_info('{name}') ORDER BY name").fetchall()  # noqa: S608
            found[kind, name] = columns
        db.close()
        return found

    assert schema(write_sqlite_1(tmp_path / "old.sqlite")) == schema(tmp_path / "new.sqlite")


def test_many_open_an_old_file_at_once(tmp_path):
    """Several processes' worth of openings bring a file up to date once."""
    path = write_sqlite_1(tmp_path / "old.sqlite")

    def look(_):
        from graphguard.ledger.sqlite_file import connect  # noqa: PLC0415 - as every process does

        for _ in itertools.repeat(None, 500):
            try:
                db = connect(path)
            except sqlite3.OperationalError:  # busy: whoever opens a ledger tries again
                continue
            found = db.execute("SELECT count(user), count(*) FROM attempts").fetchone()
            db.close()
            return found
        return None

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(look, range(8))) == {(0, 3)}


def test_an_old_file_is_read_as_it_is(tmp_path):
    """Who only looks at a file of version 1 sees all of it, and leaves it at version 1."""
    path = write_sqlite_1(tmp_path / "old.sqlite")
    before = path.read_bytes()

    with SqliteReader(path) as reader:
        assert reader.charges() == reader.charges(user=None, since=0) == (TOLD,)
        assert reader.totals("user") == {None: TOLD.spend}
        assert reader.total(user="ada") == Spend()
        assert [hold.call for hold in reader.open_holds()] == [HELD]

    assert path.read_bytes() == before


def test_an_old_database_is_brought_up_to_date(postgres):
    """Tables of version 1 are brought up to date by `setup`, with nothing lost; until then a question says so."""
    psycopg = pytest.importorskip("psycopg")
    from graphguard.errors import LedgerUnavailable  # noqa: PLC0415 - beside the extra
    from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra

    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(POSTGRES_1.format(schema="old").encode())
        db.execute(
            b"INSERT INTO old.accounts VALUES ('s', 20000000, 0, 0, 1, 0, 0, 30000000, 0, 0, 1, 0, 0)",
        )
        db.execute(
            "INSERT INTO old.attempts (id, state, call, held_in, worst, expires) VALUES "
            "('held', 'held', %s, '{s}', '{30000000,0,0,1,0,0}', 2e9), ('r', 'released', %s, '{s}', NULL, NULL)",
            (CALL, CALL),
        )
        db.execute(
            "INSERT INTO old.attempts (id, state, charge, scopes, nanousd, input_tokens, output_tokens, calls, "
            "estimated, unpriced, thread, node, model, time) "
            "VALUES ('done', 'charged', %s, '{s}', %s, %s, %s, %s, %s, %s, 't', 'n', 'm', %s)",
            (CHARGE, *AMOUNTS, TOLD.time),
        )
    with PostgresLedger(postgres, schema="old") as ledger:
        with pytest.raises(LedgerUnavailable, match=r"call setup\(\) once"):
            ledger.charges(user="ada")
        ledger.setup()
        assert is_complete(ledger)
        ledger.setup()
        assert cents(ledger.total()) == 4
