"""Rows as tables: as wide as the terminal; for a pipe or a file, as wide as needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["show_rows", "show_story"]

_UNBOUND: Final = 400
_RIGHT: Final = frozenset({"#", "step", "calls", "USD", "branch", "saved", "of", "calls saved", "trips"})
_WHOLE: Final = frozenset({"#", "checkpoint"})


def show_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows of the same columns; columns without any content are left out."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNBOUND
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    for name in columns:
        justify = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=name in _WHOLE, overflow="fold")  # type: ignore[arg-type] # words of rich
    for row in rows:
        table.add_row(*(Text(row[name]) for name in columns))
    console.print(table)


def show_story(rows: Sequence[Mapping[str, str]]) -> None:
    """Print steps, one a line; what is to be said of one stands below it, and a date where it changes."""
    console = Console(highlight=False)
    columns = [name for name in (rows[0] if rows else ()) if name not in ("", "time") and any(r[name] for r in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    date = ""

    def line(row: Mapping[str, str], time: str) -> str:
        cells = [row[n].rjust(widths[n]) if n in _RIGHT else row[n].ljust(widths[n]) for n in columns]
        return "  ".join([cells[0], time.ljust(8), *cells[1:]]).rstrip()

    for row in rows:
        if row["time"][:10] != date:
            date = row["time"][:10]
            console.print(Text(date), soft_wrap=True)
            console.print(Text(line({name: name for name in columns}, "time")), soft_wrap=True)
        console.print(Text(line(row, row["time"][11:])), soft_wrap=True)
        if row[""]:
            console.print(Padding(Text(row[""]), (0, 0, 0, widths[columns[0]] + 2)))
