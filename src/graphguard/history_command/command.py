"""The commands' options, and what they print."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from graphguard.budget import Budget
from graphguard.demo.mistakes import WrongUse
from graphguard.errors import BudgetExceeded, GraphguardError
from graphguard.spend import Spend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from graphguard.history import PastTrip
    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph
    from graphguard.trip import Trip

__all__ = ["COMMANDS"]

F = TypeVar("F", bound="Callable[..., object]")

_EXIT_CODES: Final = """\b
Exit codes:
  0    done, whether or not there was anything to show
  2    wrong use: an option, or a database that can't be used
  130  stopped by Ctrl-C"""
_REPLAY_EXIT_CODES: Final = """\b
Exit codes:
  0    the replay ran to its end
  2    wrong use: an option, a database or a graph that can't be used
  3    a budget tripped in the replay
  130  stopped by Ctrl-C"""
_TRIPPED: Final = 3
_STOPPED_BY_HAND: Final = 130


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_place = _options(
    click.option(
        "--db",
        required=True,
        envvar="GRAPHGUARD_DB",
        metavar="FILE",
        help="The checkpointer's SQLite file, or postgresql://… [env: GRAPHGUARD_DB]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document. USD are decimal strings."),
)
_one_thread = click.option("--thread", required=True, metavar="ID", help="The thread.")
_any_thread = click.option("--thread", metavar="ID", help="Only this thread; without it, all of them.")


@click.command(epilog=_EXIT_CODES)
@_place
@_any_thread
def trips(*, db: str, as_json: bool, thread: str | None) -> None:
    """List where budgets stopped threads, newest first.

    The number is what `graphguard replay --trip` takes, together with the thread.
    """
    from graphguard.history_command.words import trip_document, trip_rows  # noqa: PLC0415 - see _opened

    with _opened(db) as saver:
        names = _threads(saver, thread)
        found = [each for name in _progress(names, as_json=as_json) for each in _numbered(saver, name)]
    if as_json:
        _print_json(db, thread, trips=[trip_document(number, trip) for number, trip in found])
    elif found:
        rows = trip_rows(found)
        _show([{k: v for k, v in row.items() if k != "thread"} for row in rows] if thread else rows)
    else:
        click.echo(f"No budget ever stopped thread {thread!r}." if thread else "No budget ever stopped any thread.")


@click.command(epilog=_EXIT_CODES)
@_place
@_one_thread
def show(*, db: str, as_json: bool, thread: str) -> None:
    """Show a thread step by step, with what it cost.

    Who ran, what each step added, what the branch had spent then; forks, trips and raised limits.
    """
    from graphguard.history import steps  # noqa: PLC0415 - see _opened
    from graphguard.history_command.words import step_document, step_rows  # noqa: PLC0415 - see _opened

    with _opened(db) as saver:
        found = list(steps(saver, _config(thread)))
    if as_json:
        _print_json(db, thread, steps=[step_document(step) for step in found])
        return
    _show(step_rows(found))
    if not any(step.run for step in found):
        click.echo("Nothing was metered: no guard ran in this thread.")


@click.command(epilog=_REPLAY_EXIT_CODES)
@_place
@_one_thread
@click.option("--graph", "graph_id", required=True, metavar="ID", help="The graph's id in langgraph.json.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="langgraph.json",
    show_default=True,
    metavar="FILE",
    help="The langgraph.json.",
)
@click.option("--trip", "number", type=click.IntRange(min=1), metavar="N", help="Its number in `trips`.  [default: 1]")
@click.option("--checkpoint", metavar="ID", help="Instead of --trip: the trip's checkpoint, or its last letters.")
@click.option("--usd", metavar="USD", help="A budget in USD instead of the graph's own.")
@click.option("--calls", type=int, metavar="N", help="A budget in model calls instead of the graph's own.")
@click.option("--tokens", type=int, metavar="N", help="A budget in tokens instead of the graph's own.")
def replay(
    *,
    db: str,
    as_json: bool,
    thread: str,
    graph_id: str,
    config: Path,
    number: int | None,
    checkpoint: str | None,
    **limits: str | int | None,
) -> None:
    """Run a thread again from right before a trip.

    It goes on in a fork; the thread's other steps stay. The graph's nodes run and its models are called. Without
    a budget of your own, the graph's budgets count, and it trips there again.
    """
    if number is not None and checkpoint is not None:
        raise WrongUse("--trip and --checkpoint both choose the trip; pass one of them")
    given = {name: value for name, value in limits.items() if value is not None}
    from graphguard.history_command.graphs import graph_of  # noqa: PLC0415 - see _opened

    with _mistakes():
        budgets = [Budget(**given)] if given else []  # type: ignore[arg-type] # checked by Budget
        graph = graph_of(graph_id, config)
        again = asyncio.run(_replayed(db, thread, graph, (number or 1, checkpoint), budgets, quiet=as_json))
    if as_json:
        _print_json(db, thread, **again)
    elif again["trip"] is None:
        click.echo("It ran to its end.")
    else:
        click.echo(f"It tripped: {again['trip']['reason']}.")
    if again["trip"] is not None:
        sys.exit(_TRIPPED)


async def _replayed(
    db: str,
    thread: str,
    graph: object,
    which: tuple[int, str | None],
    budgets: Sequence[Budget],
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Replay a trip, and tell what came out."""
    from graphguard.history import areplay, atrips  # noqa: PLC0415 - see _opened
    from graphguard.history_command.graphs import with_saver  # noqa: PLC0415 - see _opened
    from graphguard.history_command.opening import opened_async  # noqa: PLC0415 - see _opened
    from graphguard.history_command.words import trip_document  # noqa: PLC0415 - see _opened

    async with opened_async(db) as saver:
        found = [trip async for trip in atrips(saver, _config(thread))]
        chosen = _chosen(found, thread, *which)
        number = found.index(chosen) + 1
        runnable: AnyGraph = with_saver(graph, saver)
        if not quiet:
            click.echo(f"Again from before: {chosen.reason}")
        tripped: Trip | None = None
        try:
            async for chunk in await areplay(runnable, chosen, *budgets, stream_mode="updates"):
                names = [name for name in chunk if not name.startswith("__")] if isinstance(chunk, dict) else []
                if names and not quiet:
                    click.echo(f"  {', '.join(names)}")
        except BudgetExceeded as error:  # a graph with on_trip="raise"
            tripped = error.trip
        snapshot = await runnable.aget_state(_config(thread))
        known = {trip.at for trip in found}
        async for trip in atrips(saver, _config(thread)):
            if trip.at not in known:
                tripped = trip
                break
    return {
        "from": trip_document(number, chosen),
        "next": list(snapshot.next),
        "spend": Spend.of(snapshot).to_state(),
        "trip": None if tripped is None else tripped.to_state(),
    }


def _chosen(found: Sequence[PastTrip], thread: str, number: int, checkpoint: str | None) -> PastTrip:
    if not found:
        raise WrongUse(f"no budget ever stopped thread {thread!r}, so there is nothing to replay")
    if checkpoint is not None:
        fitting = [trip for trip in found if trip.root and trip.root.endswith(checkpoint)]
        if len({trip.root for trip in fitting}) != 1:
            known = ", ".join(dict.fromkeys(trip.root or "" for trip in fitting or found))
            raise WrongUse(f"{len(fitting)} trips are at a checkpoint that ends in {checkpoint!r}; there are: {known}")
        return fitting[0]
    if number > len(found):
        raise WrongUse(f"thread {thread!r} has no trip {number}, only {len(found)}; `graphguard trips` numbers them")
    return found[number - 1]


@click.command(epilog=_EXIT_CODES)
@_place
@_any_thread
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
    from graphguard.history.backtesting import Trial, recorded  # noqa: PLC0415 - see _opened
    from graphguard.history_command.words import backtest_document, backtest_rows  # noqa: PLC0415 - see _opened

    given = {"usd": usd, "calls": calls, "tokens": tokens}
    wanted: list[dict[str, object]] = [{name: each} for name, values in given.items() for each in values]
    if not wanted:
        raise WrongUse("no budget to try; pass --usd, --calls or --tokens, each as often as you like")
    with _opened(db) as saver:
        trial = Trial([Budget(**each, per=per, node=node) for each in wanted])  # type: ignore[arg-type] # checked by Budget
        for name in _progress(_threads(saver, thread), as_json=as_json):
            trial.add(name, recorded(saver, name))
    result = trial.result()
    if as_json:
        _print_json(db, thread, **backtest_document(result))
        return
    _show(backtest_rows(result))
    click.echo(f"\n{result}")


COMMANDS: Final = (trips, show, replay, backtest)


def _numbered(saver: AnySaver, thread: str) -> Iterator[tuple[int, PastTrip]]:
    from graphguard.history import trips as every_trip  # noqa: PLC0415 - see _opened

    return enumerate(every_trip(saver, _config(thread)), 1)


def _threads(saver: AnySaver, thread: str | None) -> list[str]:
    from graphguard.history.checkpoints import threads  # noqa: PLC0415 - see _opened

    return [thread] if thread is not None else threads(saver)


def _config(thread: str) -> Any:  # noqa: ANN401 - LangChain's config, which is loaded later
    return {"configurable": {"thread_id": thread}}


@contextmanager
def _opened(db: str) -> Iterator[AnySaver]:
    # Loaded when needed, so that `graphguard --help` does not wait for it; so are all others of the history.
    from graphguard.history_command.opening import opened  # noqa: PLC0415

    with _mistakes(), opened(db) as saver:
        yield saver


@contextmanager
def _mistakes() -> Iterator[None]:
    """What a person must put right, in one line and without a traceback."""
    try:
        yield
    except GraphguardError as error:
        raise WrongUse(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nStopped by you.", err=True)
        sys.exit(_STOPPED_BY_HAND)


def _progress(names: Sequence[str], *, as_json: bool) -> Iterator[str]:
    """Each thread, with a bar on the terminal when there are many."""
    if as_json or len(names) < _MANY or not sys.stderr.isatty():
        yield from names
        return
    with click.progressbar(names, label="threads", file=sys.stderr) as bar:
        yield from bar


_MANY: Final = 20


def _print_json(db: str, thread: str | None, **told: object) -> None:
    place = db.partition("@")[2] or db if "://" in db else db  # never a password
    click.echo(json.dumps({"db": place, "thread": thread, **told}, indent=2, ensure_ascii=False))


def _show(rows: Sequence[Mapping[str, str]]) -> None:
    from graphguard.history_command.tables import show_rows  # noqa: PLC0415 - see _opened

    show_rows(rows)
