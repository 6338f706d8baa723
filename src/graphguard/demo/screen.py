"""What the demo shows: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from graphguard.demo.question import budget_text, money
from graphguard.demo.story import Answered, Called, Ended, Tripped, Warned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from graphguard.demo.story import Happening

__all__ = ["Screen"]

BAR = 14
"""Letters in a bar."""

NARROW = 60
"""Columns below which bars are left out."""

WINDOW = 8
"""Calls seen at a time while a long run goes on."""

LATEST = 4
"""Calls that stay on the screen of a long run that is over."""

PACE_SECONDS = 0.05
"""A pause after each call of a script, so that a person can follow. Only on a terminal."""


class Screen:
    """The demo's output on one console.

    Attributes:
        console: Where everything is printed.
        live: Whether lines may be redrawn: on a real terminal only.
    """

    def __init__(self, console: Console, *, scripted: bool) -> None:
        """Print to a console.

        Args:
            console: Where to print.
            scripted: Whether the model answers at once, so that a short pause after each call helps the eye.
        """
        self.console = console
        self.live = console.file.isatty() and not console.is_dumb_terminal
        self._pace = PACE_SECONDS if scripted and self.live else 0.0
        self._calls: list[Called] = []
        self._painter: Live | None = None
        self._spinner = Spinner("dots")
        self._keep_all = True
        self._scale_usd: Decimal | None = None

    def say(self, *parts: RenderableType) -> None:
        """Print some paragraphs."""
        for part in parts:
            self.console.print(part)

    def say_whole(self, line: Text) -> None:
        """Print a line that may be copied, however wide the terminal is."""
        self.console.print(line, soft_wrap=True)

    def heading(self, title: str) -> None:
        """Print the name of what begins."""
        self.console.print()
        self.console.print(Rule(Text(title, style="bold"), align="left", style="dim"))

    def tell(self, happenings: Iterator[Happening], *, keep_all: bool, scale_usd: Decimal | None = None) -> Ended:
        """Show a run while it goes on, and give its end.

        Args:
            happenings: What happens, as from `play`.
            keep_all: Whether all calls stay on a terminal, or only the latest.
            scale_usd: What bars measure when the run has no budget.
        """
        self._scale_usd = scale_usd
        self._keep_all = keep_all
        ended = None
        try:
            for happening in happenings:
                match happening:
                    case Called():
                        self._called(happening)
                    case Warned(share=share):
                        self._line(Text(f"     {share:.0%} of the budget is spent", style="yellow"))
                    case Tripped():
                        self._rest()
                        self._tripped(happening)
                    case Answered(limit_usd=limit_usd):
                        self.console.print(Text(_consequence(limit_usd), style="dim"))
                    case Ended():
                        ended = happening
        finally:
            self._rest()
        return _the_end(ended)

    def tell_briefly(self, happenings: Iterator[Happening]) -> Ended:
        """Show nothing of a run but its questions, and give its end."""
        ended = None
        for happening in happenings:
            if isinstance(happening, Ended):
                ended = happening
            elif isinstance(happening, Tripped) and happening.question is not None:
                self._tripped(happening)
        return _the_end(ended)

    def columns(self, name: str, calls: str, bare: str, kept: str, how: str) -> None:
        """Print one of many runs: its name, its calls and spend without a budget, with it, how it ended."""
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=18, no_wrap=True, overflow="ellipsis")
        for width in (6, 10, 10):
            row.add_column(width=width, justify="right", no_wrap=True)
        row.add_column(ratio=1)
        row.add_row(*(Text(cell) for cell in (name, calls, bare, kept, how)))
        self.say(row)

    def table(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Print runs side by side: name, calls, spend, how it ended."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        for name, justify in (("run", "left"), ("calls", "right"), ("spent", "right"), ("how it ended", "left")):
            table.add_column(name, justify=justify, no_wrap=name != "how it ended")  # type: ignore[arg-type] # literals
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def _called(self, call: Called) -> None:
        """Show one more call."""
        self._calls.append(call)
        if not self.live:
            self._print_call(call)
            return
        if self._painter is None:
            self._painter = Live(console=self.console, transient=True, get_renderable=self._painting)
            self._painter.start()
        if self._keep_all:
            self._print_call(call)
        self._painter.refresh()
        time.sleep(self._pace)

    def _line(self, line: RenderableType) -> None:
        """Print a line between calls."""
        if self._keep_all or not self.live:
            self.console.print(line)

    def _print_call(self, call: Called) -> None:
        self.console.print(self._row(call))

    def _painting(self) -> RenderableType:
        """Give what is redrawn while a run goes on: its latest calls unless they are printed, and the sum."""
        if not self._calls:
            return Text()
        rows = [] if self._keep_all else [self._row(call) for call in self._calls[-WINDOW:]]
        latest = self._calls[-1]
        limit = "no budget" if latest.limit_usd is None else f"of {budget_text(latest.limit_usd)}"
        self._spinner.update(text=Text(f"{money(latest.spent_usd)} {limit}", style="dim"))
        return Group(*rows, Padding(self._spinner, (0, 0, 0, 2)))

    def _rest(self) -> None:
        """Stop redrawing, and leave the latest calls on the screen."""
        if self._painter is not None:
            self._painter.stop()
            self._painter = None
            if not self._keep_all:
                hidden = len(self._calls) - LATEST
                if hidden > 0:
                    self.console.print(Text(f"     {hidden} call{'s' if hidden > 1 else ''} before these", style="dim"))
                for call in self._calls[-LATEST:]:
                    self._print_call(call)
        self._calls = []

    def _row(self, call: Called) -> RenderableType:
        """Give a call's line: its number, what the model did, what is spent, and how much of the budget that is."""
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=3, justify="right", no_wrap=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(width=9, justify="right", no_wrap=True)
        cells: list[RenderableType] = [Text(str(call.number), style="dim"), Text(call.did), Text(money(call.spent_usd))]
        limit = call.limit_usd or self._scale_usd
        if limit is not None and self.console.width >= NARROW:
            row.add_column(width=BAR, no_wrap=True)
            row.add_column(width=5, justify="right", no_wrap=True)
            share = call.spent_usd / limit
            colour = "green" if share < Decimal("0.5") else "yellow" if share < Decimal("0.8") else "red"
            cells += [self._bar(share, colour), Text(f"{int(share * 100)}%", style=colour)]
        row.add_row(*cells)
        return row

    def _bar(self, share: Decimal, colour: str) -> Text:
        full, empty = ("#", ".") if self.console.options.ascii_only else ("█", "░")
        filled = min(BAR, int(share * BAR))
        return Text.assemble((full * filled, colour), (empty * (BAR - filled), "dim"))

    def _tripped(self, tripped: Tripped) -> None:
        """Show what was reached, and what it means."""
        meaning = "The call was not made."
        if tripped.question is not None:
            meaning += " The run waits at the checkpoint right before it."
        self.console.print(
            Panel(
                Group(Text(f"{tripped.reason[:1].upper()}{tripped.reason[1:]}."), Text(meaning, style="dim")),
                title=Text("budget reached", style="bold red"),
                title_align="left",
                border_style="red",
            )
        )


def _consequence(limit_usd: Decimal | None) -> str:
    """Say what an answer leads to."""
    if limit_usd is None:
        return "The run ends here."
    return f"The run goes on from that checkpoint, with a budget of {budget_text(limit_usd)}."


def _the_end(ended: Ended | None) -> Ended:
    """Give the end of a run, which `play` always gives."""
    if ended is None:
        problem = "the run was left before its end"
        raise RuntimeError(problem)
    return ended
