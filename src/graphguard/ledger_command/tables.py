"""What the commands show to people: tables that say once what is the same in every row."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphguard.budget import amount_text
from graphguard.ledger_command.words import duration_text, local_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphguard.ledger.protocol import Hold
    from graphguard.spend import Charge, Spend

__all__ = ["show_charges", "show_holds", "show_totals"]

_UNBOUND: Final = 200  # columns for a file or a pipe, where nothing needs to fit
_GAP: Final = 2
_LEAST: Final = 5  # letters of an id that are shown however narrow the terminal is
_IDS: Final = ("thread", "model", "user", "node")  # the most telling first


def show_totals(by: str, sums: Mapping[str | None, Spend], total: Spend) -> None:
    """Print sums, with the sum of all at the foot."""
    head = f"{by} (UTC)" if by == "day" else by
    rows = [_sum_row(head, "(none)" if name is None else name, spend) for name, spend in sums.items()]
    _show([*rows, _sum_row(head, "all", total)], ids=(head,), footed=True)


def show_charges(charges: Sequence[Charge]) -> None:
    """Print charges, one a line."""
    rows = [
        {
            "date": (time := local_text(charge.time))[:10],
            "time": time[11:],
            "USD": amount_text("usd", charge.nanousd),
            "in": f"{charge.input_tokens:,}",
            "out": f"{charge.output_tokens:,}",
            "model": charge.model or "",
            "node": charge.node or "",
            "thread": charge.thread or "",
            "user": charge.user or "",
            "waited": duration_text(charge.waited) if charge.waited else "",
            "": _remark(charge),
        }
        for charge in charges
    ]
    _show(rows, ids=_IDS, said_once=("date", *_IDS))


def show_holds(holds: Sequence[Hold], now: float) -> None:
    """Print holds, one a line."""
    rows = [
        {
            "age": "?" if hold.time is None else duration_text(max(now - hold.time, 0)),
            "lease left": _lease_left(hold.expires, now),
            "worst case": _worst_case(hold),
            "model": hold.call.model or "",
            "node": hold.call.node or "",
            "thread": hold.call.thread or "",
            "user": hold.call.user or "",
            "waited": duration_text(hold.waited) if hold.waited else "",
            "": "" if hold.call.capped else "no cap",
        }
        for hold in holds
    ]
    _show(rows, ids=_IDS, said_once=_IDS)


def _sum_row(head: str, name: str, spend: Spend) -> dict[str, str]:
    remarks = [f"{spend.estimated:,} estimated"] if spend.estimated else []
    remarks += [f"{spend.unpriced:,} without a price"] if spend.unpriced else []
    return {
        head: name,
        "calls": f"{spend.calls:,}",
        "input": f"{spend.input_tokens:,}",
        "output": f"{spend.output_tokens:,}",
        "USD": amount_text("usd", spend.nanousd),
        "": ", ".join(remarks),
    }


def _lease_left(expires: float | None, now: float) -> str:
    if expires is None:
        return ""
    return duration_text(expires - now) if expires > now else "ended"


def _worst_case(hold: Hold) -> str:
    worst = hold.call.worst
    # Without a budget in USD nobody worked out what the call costs.
    return amount_text("usd", worst.nanousd) if worst.nanousd else amount_text("tokens", worst.tokens)


def _remark(charge: Charge) -> str:
    if charge.unpriced:
        return "no price"
    return "assumed" if charge.assumed else "estimated" if charge.estimated else ""


def _show(
    rows: Sequence[Mapping[str, str]], *, ids: Sequence[str], said_once: Sequence[str] = (), footed: bool = False
) -> None:
    """Print what is the same in all rows as a line, and a table of the rest, without its empty columns."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    shared = [name for name in names if name in said_once and len({row[name] for row in rows}) == 1]
    if len(rows) == 1:
        shared = [name for name in shared if name == "date"]
    names = [name for name in names if name not in shared]
    console = _console()
    if shared:
        said = [rows[0][name] if name == "date" else f"{name} {rows[0][name]}" for name in shared]
        console.print(Text(", ".join(said)), soft_wrap=True)
    widths = {name: max(len(text) for text in (name, *(row[name] for row in rows))) for name in names}
    widths = _fitting(widths, [name for name in ids if name in names], console.width)
    left_out = [name for name in names if name not in widths]
    names = [name for name in names if name in widths]
    table = Table(box=box.SIMPLE, show_edge=False, show_footer=footed, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(
            name,
            Text(rows[-1][name]) if footed else "",
            justify="left" if name in ids or name in ("date", "time", "") else "right",
            width=widths[name],
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows[:-1] if footed else rows:
        table.add_row(*(Text(_short(row[name], widths[name])) for name in names))
    console.print(table)
    if left_out:
        console.print(f"Without {' and '.join(left_out)}, for lack of room; a wider terminal or --json shows all.")


def _fitting(wanted: Mapping[str, int], ids: Sequence[str], width: int) -> dict[str, int]:
    """The widths of the columns that fit: ids are shortened, the widest first; then the last of them are left out."""
    widths = dict(wanted)
    over = sum(widths.values()) + _GAP * len(widths) - width
    while over > 0 and ids:
        widest = max(ids, key=widths.__getitem__)
        if widths[widest] > _LEAST:
            widths[widest] -= 1
            over -= 1
        elif len(ids) > 1:
            kept = {name: size for name, size in wanted.items() if name != ids[-1]}
            return _fitting(kept, ids[:-1], width)
        else:
            break
    return widths


def _short(text: str, width: int) -> str:
    """A long id by its beginning and its end, which tell it from others."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUND
    return console
