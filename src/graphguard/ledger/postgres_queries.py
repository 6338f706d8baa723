"""What a `PostgresLedger` is asked about its charges and holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from graphguard.ledger.postgres_schema import COUNTED
from graphguard.ledger.protocol import Hold
from graphguard.ledger.queries import STEP, check_group, ordered
from graphguard.ledger.records import AMOUNTS, call_from_text, charge_from_text, spend_from
from graphguard.spend import ZERO

if TYPE_CHECKING:
    from graphguard.ledger.connections import Ask
    from graphguard.ledger.queries import Which
    from graphguard.spend import Charge, Spend

__all__ = ["Queries"]

_SPENT = ", ".join(COUNTED[: len(AMOUNTS)])
_SUMS = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in AMOUNTS)
_DAY = "to_char(to_timestamp(time) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


class Queries:
    """The questions, with the schema's name in them."""

    def __init__(self, schema: str) -> None:
        """Quote the name."""
        quoted = sql.Identifier(schema).as_string(None)
        self._attempts = f"{quoted}.attempts"
        self._accounts = f"{quoted}.accounts"

    def total(self, which: Which, ask: Ask) -> Spend:
        """The sum of these charges."""
        if which.account is not None:  # which may know of more than its charges (`Claim.floor`)
            rows = ask(f"SELECT {_SPENT} FROM {self._accounts} WHERE scope = %s", (which.account,))  # noqa: S608 - quoted, as all below
            return spend_from(rows[0]) if rows else ZERO
        condition, values = which.condition(value="%s", in_scope="%s = ANY (scopes)")
        return spend_from(ask(f"SELECT {_SUMS} FROM {self._attempts} WHERE {condition}", values)[0])  # noqa: S608

    def totals(self, by: str, which: Which, ask: Ask) -> dict[str | None, Spend]:
        """Sums of these charges; see `Ledger.totals`."""
        check_group(by)
        condition, values = which.condition(value="%s", in_scope="%s = ANY (scopes)")
        if by == "scope" and which.everything:
            spent = " OR ".join(f"{name} <> 0" for name in COUNTED[: len(AMOUNTS)])
            asked = f"SELECT scope, {_SPENT} FROM {self._accounts} WHERE NOT starts_with(scope, %s) AND ({spent})"  # noqa: S608
            rows = ask(asked, (STEP,))
        elif by == "scope":
            rows = ask(
                f"SELECT place, {_SUMS} FROM {self._attempts}, unnest(scopes) AS place "  # noqa: S608
                f"WHERE {condition} AND NOT starts_with(place, %s) GROUP BY place",
                (*values, STEP),
            )
        else:
            group = _DAY if by == "day" else f'"{by}"'
            rows = ask(f"SELECT {group}, {_SUMS} FROM {self._attempts} WHERE {condition} GROUP BY 1", values)  # noqa: S608
        return ordered(by, ((row[0], spend_from(row[1:])) for row in rows))

    def charges(self, which: Which, last: int | None, ask: Ask) -> tuple[Charge, ...]:
        """These charges, oldest first; with `last`, so many of the latest."""
        condition, values = which.condition(value="%s", in_scope="%s = ANY (scopes)")
        wanted = f"SELECT charge FROM {self._attempts} WHERE {condition} ORDER BY time"  # noqa: S608
        if last is None:
            rows = ask(f"{wanted}, number", values)
        else:
            rows = ask(f"{wanted} DESC, number DESC LIMIT %s", (*values, max(last, 0)))[::-1]
        return tuple(charge_from_text(text) for (text,) in rows)

    def open_holds(self, ask: Ask) -> tuple[Hold, ...]:
        """Holds neither settled nor released, the oldest first."""
        rows = ask(f"SELECT call, expires, time, waited FROM {self._attempts} WHERE state = 'held' ORDER BY number")  # noqa: S608
        return tuple(
            Hold(call_from_text(text), expires=expires, time=time, waited=waited or 0.0)
            for text, expires, time, waited in rows
        )
