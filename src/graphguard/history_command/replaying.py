"""`graphguard replay`: its options, and what it prints."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from graphguard.budget import Budget
from graphguard.demo.mistakes import WrongUse
from graphguard.errors import BudgetExceeded
from graphguard.history_command.options import config_of, mistakes, one_thread, place, print_json
from graphguard.spend import Spend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphguard.history import PastTrip
    from graphguard.placement import AnyGraph
    from graphguard.trip import Trip

__all__ = ["replay"]

_REPLAY_EXIT_CODES: Final = """\b
Exit codes:
  0    the replay ran to its end
  2    wrong use: an option, a database or a graph that can't be used
  3    a budget tripped in the replay
  130  stopped by Ctrl-C"""
_TRIPPED: Final = 3


@click.command(epilog=_REPLAY_EXIT_CODES)
@place
@one_thread
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
    from graphguard.history_command.graphs import graph_of  # noqa: PLC0415 - see opened_db

    with mistakes():
        budgets = [Budget(**given)] if given else []  # type: ignore[arg-type] # checked by Budget
        graph = graph_of(graph_id, config)
        again = asyncio.run(_replayed(db, thread, graph, (number or 1, checkpoint), budgets, quiet=as_json))
    if as_json:
        print_json(db, thread, **again)
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
    from graphguard.history import areplay, atrips  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.graphs import with_saver  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.opening import opened_async  # noqa: PLC0415 - see opened_db
    from graphguard.history_command.words import trip_document  # noqa: PLC0415 - see opened_db

    async with opened_async(db) as saver:
        found = [trip async for trip in atrips(saver, config_of(thread))]
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
        snapshot = await runnable.aget_state(config_of(thread))
        known = {trip.at for trip in found}
        async for trip in atrips(saver, config_of(thread)):
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
