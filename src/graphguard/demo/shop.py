"""The demo's shop: an SQLite database made by a bundled script, and the tools that ask it questions."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from importlib.resources import files

from langchain_core.tools import BaseTool, tool

__all__ = ["Shop", "shop_tools"]

MOST_ROWS = 8
"""The most rows a tool shows, so that one answer stays short."""


class Shop:
    """A small shop's database in memory, filled by `shop.sql`, read-only afterwards.

    >>> Shop().rows("SELECT name FROM customers WHERE id = ?", 1)
    [('Mira Okafor',)]
    """

    def __init__(self) -> None:
        """Make the tables and fill them."""
        # Tool nodes call tools from a pool of threads: one connection for all, one question at a time.
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        # Closed when nobody uses the shop any more; Python 3.13 warns of connections that nobody closed.
        weakref.finalize(self, self._connection.close)
        self._lock = threading.Lock()
        self._connection.executescript(files("graphguard.demo").joinpath("shop.sql").read_text(encoding="utf-8"))
        self._connection.execute("PRAGMA query_only = ON")

    def rows(self, sql: str, *values: str | int) -> list[tuple[str | int | None, ...]]:
        """Give the rows that one SELECT finds.

        Args:
            sql: A statement with `?` for each value.
            values: What to put in.
        """
        with self._lock:
            return self._connection.execute(sql, values).fetchall()


def shop_tools(shop: Shop) -> list[BaseTool]:
    """Give the agent's three tools, each a real query on the shop's database."""

    @tool
    def look_up_order(order_id: int) -> str:
        """Show one order: who placed it, when, what was bought, its price and its status."""
        return _lines(
            shop.rows(
                "SELECT orders.id, customers.name, orders.quantity || ' x ' || products.title, "
                "printf('%.2f EUR', orders.quantity * products.price_cents / 100.0), orders.placed_on, orders.status "
                "FROM orders JOIN customers ON customers.id = customer_id JOIN products ON products.id = product_id "
                "WHERE orders.id = ?",
                str(order_id),  # as text, since a model may make up a number too large for SQLite
            ),
            f"order {order_id}",
        )

    @tool
    def look_up_customer(name: str) -> str:
        """Show a customer's city and orders. Part of the name is enough."""
        return _lines(
            shop.rows(
                "SELECT customers.name, customers.city, 'order ' || orders.id, orders.placed_on, orders.status "
                "FROM customers JOIN orders ON orders.customer_id = customers.id "
                "WHERE customers.name LIKE '%' || ? || '%' ORDER BY orders.id DESC",
                name,
            ),
            f"customer {name!r}",
        )

    @tool
    def search_refunds(words: str) -> str:
        """Search the refunds by words or order numbers. Refunds that match the most words come first."""
        found = words.split()[:8] or [""]
        # One "does it contain this word" per word; their sum ranks the rows. Only placeholders are put in.
        contains = "(instr(lower(refunds.note || ' ' || products.title || ' ' || order_id), lower(?)) > 0)"
        score = " + ".join([contains] * len(found))
        return _lines(
            shop.rows(
                "SELECT 'refund ' || refunds.id, 'order ' || order_id, "  # noqa: S608 - only placeholders, see above
                "printf('%.2f EUR', amount_cents / 100.0), coalesce('paid ' || paid_on, 'not paid yet'), note "
                "FROM refunds JOIN orders ON orders.id = order_id JOIN products ON products.id = product_id "
                f"WHERE {score} > 0 ORDER BY {score} DESC, refunds.id",
                *found,
                *found,
            ),
            f"refund with {words!r}",
        )

    return [look_up_order, look_up_customer, search_refunds]


def _lines(rows: list[tuple[str | int | None, ...]], what: str) -> str:
    """Give rows as lines a model can read, the first few of them."""
    if not rows:
        return f"Nothing found: {what}."
    shown = [", ".join(str(value) for value in row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        shown.append(f"... and {len(rows) - MOST_ROWS} more")
    return "\n".join(shown)
