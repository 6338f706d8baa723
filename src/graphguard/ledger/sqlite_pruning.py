"""What a `SqliteLedger` forgets of its file, some time after it is over. No charge, and no sum of real money."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from graphguard.ledger.queries import STEP, STEP_END
from graphguard.ledger.records import AMOUNTS
from graphguard.ledger.sqlite_file import COUNTED

if TYPE_CHECKING:
    import sqlite3

__all__ = ["prune"]

_THESE: Final = "number IN (SELECT value FROM json_each(?))"
_CHARGED_IN: Final = (
    f"attempts, json_each(charge, '$.scopes') AS place WHERE {_THESE} AND charge IS NOT NULL "
    f"AND place.value >= '{STEP}' AND place.value < '{STEP_END}'"
)
_HELD_IN: Final = (
    f"(SELECT json_extract(claim.value, '$[1]') AS name FROM attempts, json_each(call, '$.claims') AS claim "  # noqa: S608 - made of constants, as all below
    f"WHERE {_THESE} AND call IS NOT NULL) WHERE name >= '{STEP}' AND name < '{STEP_END}'"
)

_OVER: Final = (
    "SELECT number, time FROM attempts WHERE state <> 'held' AND state <> 'final' "
    "AND time >= (SELECT pruned FROM upkeep) AND time < ? ORDER BY time LIMIT ?"
)
_STEPS: Final = f"SELECT place.value FROM {_CHARGED_IN} UNION SELECT name FROM {_HELD_IN}"  # noqa: S608
_TAKE_OUT: Final = (
    f"UPDATE accounts SET {', '.join(f'spent_{name} = spent_{name} - gone.{name}' for name in AMOUNTS)} "  # noqa: S608
    f"FROM (SELECT place.value AS name, {', '.join(f'sum({name}) AS {name}' for name in AMOUNTS)} "
    f"FROM {_CHARGED_IN} GROUP BY place.value) AS gone WHERE accounts.scope = gone.name"
)
_CLOSE: Final = (
    "DELETE FROM accounts WHERE scope IN (SELECT value FROM json_each(?)) "  # noqa: S608
    f"AND {' AND '.join(f'{name} = 0' for name in COUNTED)}"
)


def prune(before: float, most: int, db: sqlite3.Cursor) -> int:
    """Forget attempts that were over before then, in a transaction; how many of at most `most`.

    A charge stays, with its sums, and answers repeats for ever; but it is final, so no late settle replaces
    an assumed one. What a charge counts in the account of its superstep is taken out of it, and an account
    that counts nothing is closed. A released attempt is forgotten whole.
    """
    rows = db.execute(_OVER, (before, most)).fetchall()
    if not rows:
        return 0
    these = json.dumps([number for number, _ in rows])
    steps = json.dumps([name for (name,) in db.execute(_STEPS, (these, these))])
    db.execute(_TAKE_OUT, (these,))
    db.execute(_CLOSE, (steps,))
    db.execute(f"DELETE FROM attempts WHERE {_THESE} AND state = 'released'", (these,))  # noqa: S608 - as above
    db.execute(f"UPDATE attempts SET state = 'final', call = NULL WHERE {_THESE}", (these,))  # noqa: S608
    db.execute("UPDATE upkeep SET pruned = ?", (rows[-1][1],))
    return len(rows)
