"""`graphguard ledger totals|charges|holds|sweep`: their options, and what they print."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from graphguard.budget import amount_text
from graphguard.demo.mistakes import WrongUse
from graphguard.errors import LedgerUnavailable
from graphguard.ledger_command.documents import charge_document, hold_document, spend_document, totals_document
from graphguard.ledger_command.opening import name_of, to_read, to_sweep
from graphguard.ledger_command.tables import show_charges, show_holds, show_totals
from graphguard.ledger_command.words import iso_utc, moment
from graphguard.spend import Spend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["ledger"]

F = TypeVar("F", bound="Callable[..., object]")
_Which: TypeAlias = "Mapping[str, str | float | None]"

_BY: Final = ("scope", "thread", "user", "model", "node", "run", "day")
_EXIT_CODES: Final = """\b
Exit codes:
  0  done, whether or not there was anything to show
  2  wrong use: an option, or a ledger that can't be used"""


@click.group()
def ledger() -> None:
    """See what was charged and what is held.

    LEDGER is a SqliteLedger's file, or a PostgreSQL address such as postgresql://user@host/database. Without
    it, the environment variable GRAPHGUARD_LEDGER says it, which is also the place for a password.
    """


def _moment(_ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Give the point in time that was typed.

    Raises:
        WrongUse: it isn't one.
    """
    try:
        return None if value is None else moment(value, time.time())
    except ValueError as error:
        raise WrongUse(f"--{param.name}: {error}") from None


def _named(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Give the ledger that was named.

    Raises:
        WrongUse: none was.
    """
    if not value:
        raise WrongUse("name a ledger: a file or a PostgreSQL address, here or in GRAPHGUARD_LEDGER")
    return value


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_place = _options(
    click.argument("place", metavar="[LEDGER]", envvar="GRAPHGUARD_LEDGER", default="", callback=_named),
    click.option("--schema", default="graphguard", show_default=True, help="PostgreSQL's schema with the tables."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document. USD are decimal strings."),
)
_filters = _options(
    click.option(
        "--since", callback=_moment, metavar="TIME", help="From then on: 24h, 7d, 2026-11-20, 2026-11-20T12:00."
    ),
    click.option("--until", callback=_moment, metavar="TIME", help="Before then."),
    click.option("--thread", metavar="ID", help="Only this thread."),
    click.option("--user", metavar="ID", help="Only this user."),
    click.option("--model", metavar="NAME", help="Only this model."),
    click.option("--node", metavar="NAME", help="Only calls made in this node."),
    click.option("--run", metavar="ID", help="Only this run: one input to its end."),
    click.option("--scope", metavar="ACCOUNT", help="Only what counts in this account, such as thread:t1."),
)


def _limit(default: int) -> Callable[[F], F]:
    return click.option(
        "--limit",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        metavar="N",
        help="Show at most so many; 0 for all.",
    )


@ledger.command(epilog=_EXIT_CODES)
@_place
@click.option(
    "--by",
    type=click.Choice(_BY),
    metavar="WHAT",
    default="model",
    show_default=True,
    help=f"{', '.join(_BY[:-1])} or {_BY[-1]}; days are those of UTC.",
)
@_filters
@_limit(20)
def totals(*, place: str, schema: str, as_json: bool, by: str, limit: int, **which: str | float | None) -> None:
    """Sum up what was charged.

    The most expensive come first; days one after the other. A charge counts in each account (scope) that it
    names; accounts of single supersteps are left out.
    """
    chosen = _chosen(which)
    with _errors(), to_read(place, schema) as book:
        total = book.total(**chosen)
        sums = book.totals(by, **chosen)
    names = list(sums)[-limit if by == "day" else 0 :]
    shown = {name: sums[name] for name in names[: limit or None]}
    left_out = len(sums) - len(shown)
    if as_json:
        _print_json(place, which, totals_document(by, shown, total), more=left_out > 0)
        return
    if not sums:
        click.echo(_nothing(which))
        return
    show_totals(by, shown, total)
    if left_out:
        click.echo(f"{left_out:,} more; --limit shows more of them.")


@ledger.command(epilog=_EXIT_CODES)
@_place
@_filters
@_limit(50)
def charges(*, place: str, schema: str, as_json: bool, limit: int, **which: str | float | None) -> None:
    """List the latest charges, the oldest of them first.

    Charges are estimated where a provider did not say what was used, and assumed where a call never reported
    back and was charged at its worst case. Waited is how long the call waited for room.
    """
    chosen = _chosen(which)
    with _errors(), to_read(place, schema) as book:
        total = book.total(**chosen)
        found = book.charges(last=limit + 1 if limit else None, **chosen)
    shown = found[-limit:] if limit else found
    if as_json:
        told = {"total": spend_document(total), "charges": [charge_document(charge) for charge in shown]}
        _print_json(place, which, told, more=len(found) > len(shown))
        return
    if not shown:
        click.echo(_nothing(which))
        return
    show_charges(shown)
    if len(found) > len(shown):
        click.echo(f"The latest {limit:,}; --limit shows more, or --since and other filters less.")


@ledger.command(epilog=_EXIT_CODES)
@_place
@_limit(50)
def holds(*, place: str, schema: str, as_json: bool, limit: int) -> None:
    """List what is held now, the oldest first.

    A hold whose lease has ended belongs to a process that is gone; sweep charges it at its worst case.
    Without a cap on its output, the worst case of a call is only its least.
    """
    now = time.time()
    with _errors(), to_read(place, schema) as book:
        found = book.open_holds()
    shown = found[: limit or None]
    if as_json:
        told = {
            "now": iso_utc(now),
            "total": spend_document(sum((hold.call.worst for hold in found), Spend())),
            "holds": [hold_document(hold, now) for hold in shown],
        }
        _print_json(place, {}, told, more=len(found) > len(shown))
        return
    if not shown:
        click.echo("Nothing is held.")
        return
    show_holds(shown, now)
    if len(found) > len(shown):
        click.echo(f"{len(found) - len(shown):,} more; --limit shows more of them.")


@ledger.command(epilog=_EXIT_CODES)
@_place
def sweep(*, place: str, schema: str, as_json: bool) -> None:
    """Charge the holds whose leases have ended, at their worst case.

    Ledgers do that by themselves while they are used; a call that reports back later corrects its charge.
    It also forgets attempts that were over more than 30 days ago, but no charge.
    """
    with _errors(), to_sweep(place, schema) as book:
        swept = book.sweep()
        left = book.open_holds()
    total = Spend.total(swept)
    if as_json:
        told = {"total": spend_document(total), "swept": [charge_document(charge) for charge in swept]}
        _print_json(place, {}, told, holds_left=len(left))
        return
    if swept:
        show_charges(swept)
        click.echo(f"\n{_count(len(swept), 'hold')} charged, {amount_text('usd', total.nanousd)} in all.")
    else:
        click.echo("Nothing to sweep: no lease has ended.")
    if left:
        click.echo(f"{_count(len(left), 'hold')} still open.")


def _chosen(which: _Which) -> dict[str, Any]:
    return {name: value for name, value in which.items() if value is not None}


@contextmanager
def _errors() -> Iterator[None]:
    """What a person must put right, in one line and without a traceback."""
    try:
        yield
    except (LedgerUnavailable, ModuleNotFoundError) as error:
        raise WrongUse(str(error)) from error


def _print_json(place: str, which: _Which, told: Mapping[str, object], **more: object) -> None:
    asked = {name: iso_utc(value) if isinstance(value, float) else value for name, value in _chosen(which).items()}
    click.echo(json.dumps({"ledger": name_of(place), "where": asked, **told, **more}, indent=2, ensure_ascii=False))


def _nothing(which: _Which) -> str:
    return "No charge matches." if _chosen(which) else "No charges yet."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
