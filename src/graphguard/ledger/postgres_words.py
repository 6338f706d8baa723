"""What a `PostgresLedger` sends: its statements, and values as PostgreSQL reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg import sql

from graphguard.ledger.postgres_schema import COUNTED
from graphguard.ledger.records import AMOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graphguard.budget import Call

__all__ = ["Statements", "array", "checks"]

_MOST: Final = 2**62  # what bigint can hold, with room for sums


class Statements:
    """What is sent, with the schema's name in it."""

    def __init__(self, schema: str) -> None:
        """Quote the name."""
        self.quoted = quoted = sql.Identifier(schema).as_string(None)
        held = f"FROM {quoted}.attempts WHERE state = 'held'"
        self.hold = (
            f"SELECT * FROM {quoted}.hold(%s, %s, %s::text[], %s::bigint[], %s, %s, %s, "  # noqa: S608 - quoted, as below
            "%s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[])"
        )
        self.settle = f"SELECT * FROM {quoted}.settle(%s, %s, %s, %s::text[], %s::bigint[], %s::text[], %s, %s)"  # noqa: S608
        self.release = f"SELECT freed FROM {quoted}.release(%s, %s)"  # noqa: S608
        self.balance = f"SELECT {', '.join(COUNTED)} FROM {quoted}.accounts WHERE scope = %s"  # noqa: S608
        spent = COUNTED[: len(AMOUNTS)]
        self.raise_to = (
            f"INSERT INTO {quoted}.accounts AS known (scope, {', '.join(spent)}) "  # noqa: S608
            f"VALUES (%s, {', '.join('%s' for _ in spent)}) ON CONFLICT (scope) DO UPDATE SET "
            + ", ".join(f"{name} = greatest(known.{name}, excluded.{name})" for name in spent)
        )
        # Rows that somebody is settling are not waited for: nobody who renews may stand in a circle.
        self.renew = (
            f"UPDATE {quoted}.attempts SET expires = coalesce(%s, extract(epoch FROM clock_timestamp())) + %s "  # noqa: S608
            f"WHERE id IN (SELECT id {held} AND id = ANY(%s::text[]) FOR UPDATE SKIP LOCKED) RETURNING id"
        )
        self.expired = f"SELECT id, call, waited {held} AND expires <= %s ORDER BY expires LIMIT %s"
        self.waited = f"UPDATE {quoted}.attempts SET waited = %s WHERE id = %s"  # noqa: S608
        self.prune = f"SELECT {quoted}.prune(%s, %s, %s)"


def array(values: Iterable[str | int | None]) -> str:
    """An array as PostgreSQL writes it; psycopg looks at each element of a list, which takes longer than the rest."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: str | int | None) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return "NULL" if value is None else str(value)


def checks(call: Call) -> Iterator[tuple[str, str, int]]:
    """Account, metric and room of each limit: what may be spent and held there before this call, at most."""
    for claim in call.claims:
        for metric, limit in claim.limits.items():
            needed = max(call.worst.amount(metric), 0 if call.capped else 1)
            room = limit - claim.base.amount(metric) - needed
            yield claim.scope, metric, max(min(room, _MOST), -_MOST)
        if "usd" in claim.limits:
            yield claim.scope, "unpriced", -claim.base.unpriced
