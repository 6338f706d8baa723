"""`graphguard trips|show|backtest`: their options, and what they print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from graphguard.budget import Budget
from graphguard.demo.mistakes import WrongUse
from graphguard.history_command.options import (
    EXIT_CODES,
    any_thread,
    config_of,
    one_thread,
    opened_db,
    place,
    print_json,
    show_table,
)
from graphguard.history_command.replaying import replay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphguard.history import PastTrip
    from graphguard.history.checkpoints import AnySaver

__all__ = ["COMMANDS"]


@click.command(epilog=EXIT_CODES)
@place
@any_thread
def trips(*, db: str, as_json: bool, thread: str | None) -> None:
    """List where budgets stopped threads, newest first.

    The number is what `graphguard replay --trip` takes, together with the thread.
    """
    from graphguard.history_command.words import trip_document, trip_rows  # noqa: PLC0415 - see opened_db

    with opened_db(db) as saver:
        names = _threads(saver, thread)
        found = [each for name in _progress(names, as_json=as_json) for each in _numbered(saver, name)]
    if as_json:
        print_json(db, thread, trips=[trip_document(number, trip) for number, trip in found])
    elif found:
        rows = trip_rows(found)
        show_table([{k: v for k, v in row.items() if k != "thread"} for row in rows] if thread else rows)
    else:
        click.echo(f"No budget ever stopped thread {thread!r}." if thread else "No budget ever stopped any thread.")


@click.command(epilog=EXIT_CODES)
@place
@one_thread
def show(*, db: str, as_json: bool, thread: str) -> None:
    """Show a thread step by step, with what it cost.

    Who ran, what each step added, what the branch had spent then; forks, trips and raised limits.
    """
    from graphguard.history import steps  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.tables import show_story  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.words import step_document, step_rows  # noqa: PLC0415 - see opened_db

    with opened_db(db) as saver:
        found = list(steps(saver, config_of(thread)))
    if as_json:
        print_json(db, thread, steps=[step_document(step) for step in found])
        return
    show_story(step_rows(found))
    if not any(step.run for step in found):
        click.echo("Nothing was metered: no guard ran in this thread.")


@click.command(epilog=EXIT_CODES)
@place
@any_thread
@click.option("--usd", multiple=True, metavar="USD", help="A budget in USD; may be repeated.")
@click.option("--calls", multiple=True, type=int, metavar="N", help="A budget in model calls; may be repeated.")
@click.option("--tokens", multiple=True, type=int, metavar="N", help="A budget in tokens; may be repeated.")
@click.option(
    "--per",
    type=click.Choice(["branch", "run", "thread"]),
    default="branch",
    show_default=True,
    help="What the budgets count.",
)
@click.option("--node", metavar="NAME", help="Count only what this node uses.")
def backtest(
    *,
    db: str,
    as_json: bool,
    thread: str | None,
    usd: Sequence[str],
    calls: Sequence[int],
    tokens: Sequence[int],
    per: str,
    node: str | None,
) -> None:
    """Say what other budgets would have done.

    Each is tried by itself; no model is called, no node runs. Amounts are those that the recorded calls really
    used. A live budget in USD or tokens may stop one call earlier, as it asks for the most that a call may use.
    """
    from graphguard.history.backtesting import Trial, recorded  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.words import backtest_document, backtest_rows  # noqa: PLC0415 - see opened_db

    given = {"usd": usd, "calls": calls, "tokens": tokens}
    wanted: list[dict[str, object]] = [{name: each} for name, values in given.items() for each in values]
    if not wanted:
        raise WrongUse("no budget to try; pass --usd, --calls or --tokens, each as often as you like")
    with opened_db(db) as saver:
        trial = Trial([Budget(**each, per=per, node=node) for each in wanted])  # type: ignore[arg-type] # checked by Budget
        for name in _progress(_threads(saver, thread), as_json=as_json):
            trial.add(name, recorded(saver, name))
    result = trial.result()
    if as_json:
        print_json(db, thread, **backtest_document(result))
        return
    show_table(backtest_rows(result))
    click.echo(f"\n{result}")


COMMANDS: Final = (trips, show, replay, backtest)


def _numbered(saver: AnySaver, thread: str) -> Iterator[tuple[int, PastTrip]]:
    from graphguard.history import trips as every_trip  # noqa: PLC0415 - see opened_db

    return enumerate(every_trip(saver, config_of(thread)), 1)


def _threads(saver: AnySaver, thread: str | None) -> list[str]:
    from graphguard.history.checkpoints import threads  # noqa: PLC0415 - see opened_db

    return [thread] if thread is not None else threads(saver)


def _progress(names: Sequence[str], *, as_json: bool) -> Iterator[str]:
    """Each thread, with a bar on the terminal when there are many."""
    if as_json or len(names) < _MANY or not sys.stderr.isatty():
        yield from names
        return
    with click.progressbar(names, label="threads", file=sys.stderr) as bar:
        yield from bar


_MANY: Final = 20
