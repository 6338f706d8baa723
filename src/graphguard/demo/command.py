"""`graphguard demo`: its options, and what it checks before anything runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from graphguard.demo.checkpoints import DEFAULT_FILE, clear
from graphguard.demo.mistakes import WrongUse
from graphguard.demo.question import ask_nobody, ask_person, say_no, say_yes_once, usd_amount

if TYPE_CHECKING:
    from decimal import Decimal

    from graphguard.demo.question import Asker
    from graphguard.demo.story import OnTrip

__all__ = ["demo"]

WIDEST = 100
"""Columns used at most; on a wider terminal a bar would be far from its call."""


def _usd(_ctx: click.Context, _param: click.Parameter, value: str) -> Decimal:
    """Give the amount of USD that was typed.

    Raises:
        WrongUse: it isn't a positive number.
    """
    usd = usd_amount(value)
    if usd is None:
        raise WrongUse(f"--budget takes a positive amount of USD such as 0.05, got {value!r}")
    return usd


@click.command(
    epilog="""\b
Exit codes:
  0    done, whether or not the budget stopped the run
  1    a live model's provider failed
  2    wrong use: an option or a file that can't be used, or nobody to ask
  130  stopped by Ctrl-C"""
)
@click.option("--budget", metavar="USD", callback=_usd, default="0.05", show_default=True, help="The budget, in USD.")
@click.option(
    "--on-trip",
    type=click.Choice(["end", "interrupt", "raise"]),
    help="What the graph does when the budget is reached: end, ask you, or raise BudgetExceeded."
    "  [default: interrupt; for a file of several runs, end]",
)
@click.option(
    "--yes/--no",
    "answer",
    default=None,
    help="Answer the question instead of asking: raise the budget once and stop the next time, or stop at once.",
)
@click.option(
    "--model",
    metavar="PROVIDER:NAME",
    help="Run the agent with a real model, such as openai:gpt-4o-mini. Only the run with a budget, as it costs money. "
    "Needs langchain, the provider's package and its key.",
)
@click.option(
    "--trajectory",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Replay recorded agent runs instead: one JSON object a line, with messages in OpenAI's format. "
    "Their tokens are counted from the text.",
)
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The checkpoint file. An older one of the demo is replaced.",
)
def demo(
    *,
    budget: Decimal,
    on_trip: OnTrip | None,
    answer: bool | None,
    model: str | None,
    trajectory: Path | None,
    db: Path,
) -> None:
    """Watch a runaway agent, without a budget and then with one.

    A real LangGraph agent with real tools over a bundled SQLite database is driven by a scripted model that
    loops as runaway agents do: no network, no key, nothing is billed. It runs unguarded, then guarded; the
    budget trips, you are asked, and the run goes on from where it stopped. Both runs stay in a checkpoint file.
    """
    if model is not None and trajectory is not None:
        raise WrongUse("--model and --trajectory can't be combined: a recorded run brings its own answers")
    # Loaded here, so that `graphguard --help` does not wait for them.
    from graphguard.demo.acts import Stage, live_act, recorded_act, scripted_act  # noqa: PLC0415
    from graphguard.demo.models import live_model  # noqa: PLC0415
    from graphguard.demo.recordings import read_runs  # noqa: PLC0415
    from graphguard.demo.screen import Screen  # noqa: PLC0415

    # Warnings of the budget are shown between the calls, not on stderr as well.
    if not logging.getLogger("graphguard").handlers:
        logging.getLogger("graphguard").addHandler(logging.NullHandler())
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    chat_model = None if model is None else live_model(model)
    runs = () if trajectory is None else read_runs(trajectory)
    stage = Stage(
        screen=Screen(console, scripted=model is None),
        db=db,
        replaced=clear(db),
        budget_usd=budget,
        on_trip=on_trip or ("end" if len(runs) > 1 else "interrupt"),
        ask=_asker(console, answer=answer),
    )
    try:
        if chat_model is not None and model is not None:
            live_act(stage, chat_model, model)
        elif trajectory is not None:
            recorded_act(stage, runs, trajectory)
        else:
            scripted_act(stage)
    except KeyboardInterrupt:
        console.print(f"\nStopped by you. The checkpoints so far are in {db}.", soft_wrap=True)
        sys.exit(130)


def _asker(console: Console, *, answer: bool | None) -> Asker:
    """Give who answers when the budget trips."""
    if answer is not None:
        return say_yes_once(console) if answer else say_no(console)
    return ask_person(console) if sys.stdin.isatty() and sys.stdout.isatty() else ask_nobody
