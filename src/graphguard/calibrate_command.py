"""`graphguard calibrate`: ceilings from what requests really took."""

from __future__ import annotations

import json
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from graphguard.budget import amount_text
from graphguard.demo.mistakes import WrongUse
from graphguard.errors import LedgerUnavailable
from graphguard.ledger_command.opening import name_of, to_read
from graphguard.ledger_command.words import duration_text, moment
from graphguard.spend import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphguard.langsmith.ceilings import Calibration, Request

__all__ = ["calibrate"]

_LEAST: Final = 10
_METRICS: Final = ("calls", "tokens", "nanousd", "seconds", "depth")


@click.command(
    epilog="""\b
Exit codes:
  0  done
  2  wrong use: an option, a ledger or a project that can't be used, or nothing to calibrate from"""
)
@click.option(
    "--ledger",
    "place",
    envvar="GRAPHGUARD_LEDGER",
    metavar="LEDGER",
    help="A SqliteLedger's file, or a PostgreSQL address. [env: GRAPHGUARD_LEDGER]",
)
@click.option("--schema", default="graphguard", show_default=True, help="PostgreSQL's schema with the tables.")
@click.option("--project", metavar="NAME", help="A LangSmith project instead; LANGSMITH_API_KEY opens it.")
@click.option("--scores", "key", metavar="KEY", help="With --project: feedback that scored the same runs repeatedly.")
@click.option("--since", default="7d", show_default=True, metavar="TIME", help="From then on: 24h, or 2026-11-20.")
@click.option("--quantile", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--margin", type=click.FloatRange(1), default=1.5, show_default=True, help="How much more is allowed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document. USD are decimal strings.")
def calibrate(  # noqa: PLR0917 - click passes them by name
    place: str | None,
    schema: str,
    project: str | None,
    key: str | None,
    since: str,
    quantile: float,
    margin: float,
    as_json: bool,  # noqa: FBT001 - likewise
) -> None:
    """Find ceilings that usual requests stay below.

    They are the 90th percentile of what requests took, and half as much again. Requests are runs of guarded
    graphs in a ledger, or traces in a LangSmith project. Ten at least are wanted; the last lines are what to paste.
    """
    from graphguard.langsmith.ceilings import calibrate as ceilings  # noqa: PLC0415 - loads LangSmith's SDK

    start = _moment(since)
    if project is not None:
        requests, scores = _in_langsmith(project, key, start)
        source = f"project {project!r}"
    elif place is not None:
        if key is not None:
            raise WrongUse("--scores needs --project: a ledger has no scores")
        requests, scores = _in_ledger(place, schema, start), []
        source = f"ledger {name_of(place)!r}"
    else:
        raise WrongUse("say what to calibrate from: --ledger FILE-or-address, or --project NAME")
    if not requests:
        raise WrongUse(f"no requests in {source} since {since}; run the agent on 10 to 20 representative ones first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below, as a line of its own
        found = ceilings(requests, scores=scores, quantile=quantile, margin=margin)
    if as_json:
        click.echo(json.dumps(_document(found, source), indent=2, ensure_ascii=False))
    else:
        _show(found, source)
    if found.count < _LEAST:
        requests_text = "1 request" if found.count == 1 else f"{found.count} requests"
        click.echo(f"Only {requests_text}: with fewer than {_LEAST} the ceilings are a guess.", err=True)


def _moment(since: str) -> float:
    try:
        return moment(since, time.time())
    except ValueError as error:
        raise WrongUse(f"--since: {error}") from None


@contextmanager
def _errors(source: str) -> Iterator[None]:
    """What a person must put right, in one line and without a traceback."""
    from langsmith.utils import LangSmithError  # noqa: PLC0415 - loads LangSmith's SDK

    try:
        yield
    except (LedgerUnavailable, ModuleNotFoundError) as error:
        raise WrongUse(str(error)) from error
    except LangSmithError as error:
        raise WrongUse(f"{source} can't be read: {error}") from error


def _in_ledger(place: str, schema: str, since: float) -> list[Request]:
    from graphguard.langsmith.ceilings import requests_of  # noqa: PLC0415 - loads LangSmith's SDK

    with _errors(place), to_read(place, schema) as book:
        return requests_of(book.charges(since=since))


def _in_langsmith(project: str, key: str | None, since: float) -> tuple[list[Request], list[list[float]]]:
    from graphguard.langsmith.observed import repeated_scores, requests_in_langsmith  # noqa: PLC0415 - likewise

    with _errors(f"project {project!r}"):
        requests = requests_in_langsmith(project, since=datetime.fromtimestamp(since, UTC))
        return requests, repeated_scores(project, key) if key is not None else []


def _text(metric: str, value: float) -> str:
    if metric == "nanousd":
        return amount_text("usd", round(value))
    return duration_text(value) if metric == "seconds" else f"{value:,.0f}"


def _show(found: Calibration, source: str) -> None:
    click.echo(f"{found.count} requests in {source}\n")
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column(f"p{100 * found.quantile:g}", justify="right")
    table.add_column(f"ceiling, × {found.margin:g}", justify="right")
    for metric in _METRICS:
        if metric in found.usual:
            name = "usd" if metric == "nanousd" else metric
            table.add_row(name, _text(metric, found.usual[metric]), _text(metric, found.ceilings[metric]))
    if found.plateau is not None:
        table.add_row("score noise", f"{found.plateau:g}", "")
    Console(highlight=False).print(table)
    click.echo(f"\n{found.to_paste()}")


def _document(found: Calibration, source: str) -> dict[str, Any]:
    def plain(metrics: Sequence[str], values: dict[str, float]) -> dict[str, object]:
        named = {"usd" if metric == "nanousd" else metric: values[metric] for metric in metrics if metric in values}
        return {**named, "usd": usd_text(round(values["nanousd"]))} if "nanousd" in values else dict(named)

    return {
        "source": source,
        "requests": found.count,
        "quantile": found.quantile,
        "margin": found.margin,
        "usual": plain(_METRICS, dict(found.usual)),
        "ceilings": plain(_METRICS, dict(found.ceilings)),
        "score_noise": found.plateau,
        "paste": found.to_paste(),
    }
