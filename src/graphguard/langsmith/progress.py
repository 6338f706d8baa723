"""A bar on the terminal: examples done, calls made, money spent; and not one of the SDK's for each chunk."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from graphguard.budget import amount_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphguard.langsmith.chunks import Plan
    from graphguard.spend import Spend

__all__ = ["Progress", "quiet"]

_BAR: Final = f"{os.sep}tqdm{os.sep}"


class Progress:
    """The bar of one evaluation, on standard error if that is a terminal; gone when it ends."""

    def __init__(self, plan: Plan, *, shown: bool) -> None:
        """Prepare it."""
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not shown or not (console.is_terminal or console.is_jupyter),
        )
        self._repetitions = plan.repetitions
        self._task = self._bars.add_task("evaluating", total=len(plan.chosen), spent="")

    def spent(self, spend: Spend, rows: int) -> None:
        """Show the sum so far, and the rows that have begun as if they were done: that is soon."""
        spent = f"{spend.calls} calls, {amount_text('usd', spend.nanousd)}"
        self._bars.update(self._task, spent=spent, completed=rows / self._repetitions)

    def ran(self, examples: int) -> None:
        """Show how many examples have run."""
        self._bars.update(self._task, completed=examples)

    def __enter__(self) -> Self:
        """Show it."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._bars.stop()


class _Filtered:
    """A stream without what one function of the SDK prints, by itself or by a bar."""

    def __init__(self, stream: Any, function: str) -> None:  # noqa: ANN401 - whatever stands for the stream
        self._stream = stream
        self._function = function

    def write(self, text: str) -> int:
        writer = sys._getframe(1)  # noqa: SLF001 - CPython's documented way to the caller
        while _BAR in writer.f_code.co_filename and writer.f_back is not None:
            writer = writer.f_back
        if writer.f_code.co_name == self._function:
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - likewise
        return getattr(self._stream, name)


@contextmanager
def quiet(*, announced: bool) -> Iterator[None]:
    """Keep the SDK from showing a bar for each chunk, and from announcing one as if it were an experiment."""
    streams = sys.stdout, sys.stderr
    sys.stderr = cast("Any", _Filtered(sys.stderr, "_process_data"))
    if announced:
        sys.stdout = cast("Any", _Filtered(sys.stdout, "_print_experiment_start"))
    try:
        with warnings.catch_warnings():
            # Whoever says upload_results=False, or runs a pilot, needs no word on how new that parameter is.
            warnings.filterwarnings("ignore", message="'upload_results' parameter is in beta")
            yield
    finally:
        sys.stdout, sys.stderr = streams
