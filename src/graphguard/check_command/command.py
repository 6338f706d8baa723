"""`graphguard check`: its options, and what it prints."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from graphguard.demo.mistakes import WrongUse
from graphguard.demo.models import first_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphguard.check_command.findings import Report
    from graphguard.meter import Settings

__all__ = ["check"]

_FOUND: Final = 1


@click.command(
    epilog="""\b
Exit codes:
  0  nothing is wrong; warnings don't count, unless with --strict
  1  something is: an unguarded call, an endless loop, a graph that the server won't load
  2  wrong use: an option, or a langgraph.json that can't be used"""
)
@click.argument("config", type=click.Path(path_type=Path), default="langgraph.json")
@click.option("--graph", "ids", multiple=True, metavar="ID", help="Only this graph; may be repeated.")
@click.option("--strict", is_flag=True, help="Let warnings count as errors do.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document. USD are decimal strings.")
def check(*, config: Path, ids: Sequence[str], strict: bool, as_json: bool) -> None:
    """Find the model calls that nothing guards.

    Every graph of a langgraph.json is imported, as the server does, and looked at: which of its calls are guarded,
    what is wrong with its budgets, and what it can cost at most. Nothing is run and no model is called.
    """
    from graphguard.history_command.graphs import document_of  # noqa: PLC0415 - loads LangGraph

    document = document_of(config)
    listed = document.get("graphs")
    if not isinstance(listed, dict) or not listed:
        raise WrongUse(f'{str(config)!r} lists no graphs; add "graphs": {{"agent": "./agent.py:graph"}}')
    if unknown := [name for name in ids if name not in listed]:
        raise WrongUse(f"{str(config)!r} lists no graph {unknown[0]!r}; it lists: {', '.join(sorted(listed))}")
    _prepare(document, config.resolve().parent)
    with redirect_stdout(sys.stderr):  # what the user's modules print is not ours
        reports = [_report(name, config, listed[name]) for name in ids or listed]
    errors, warnings = (sum(f.level == level for r in reports for f in r.findings) for level in ("error", "warning"))
    if as_json:
        document = {"config": str(config), "errors": errors, "warnings": warnings}
        document["graphs"] = [_document(report) for report in reports]
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for report in reports:
            _show(report)
        click.echo(f"{_count(len(reports), 'graph')}, {_count(errors, 'error')}, {_count(warnings, 'warning')}")
    if errors or (strict and warnings):
        sys.exit(_FOUND)


def _prepare(document: dict[str, Any], folder: Path) -> None:
    """What the server does before it imports: local dependencies and the environment."""
    for place in cast("list[object]", document.get("dependencies") or []):
        local = folder / str(place)
        if str(place).startswith(".") and local.is_dir() and str(local) not in sys.path:
            sys.path.insert(0, str(local.resolve()))
    env = document.get("env")
    if isinstance(env, str) and (folder / env).is_file():
        env = _read_env(folder / env)
    if isinstance(env, dict):
        for name, value in env.items():
            os.environ.setdefault(str(name), str(value))


def _read_env(file: Path) -> dict[str, str]:
    try:
        from dotenv import dotenv_values  # noqa: PLC0415 - comes with langgraph-cli, which reads such files
    except ImportError as error:
        raise WrongUse(
            f"{str(file)!r} can't be read without python-dotenv: pip install 'graphguard[server]'"
        ) from error
    return {name: value for name, value in dotenv_values(file).items() if value is not None}


def _report(name: str, config: Path, listed: object) -> Report:
    """Import one graph, and look at it."""
    from graphguard.check_command.findings import Finding, Report  # noqa: PLC0415 - loads LangGraph
    from graphguard.history_command.graphs import made, target_of  # noqa: PLC0415 - likewise

    path = str(listed.get("path") if isinstance(listed, dict) else listed)
    try:
        target = target_of(name, config)
        graph = made(target)
    except Exception as error:  # noqa: BLE001 - the user's own module or factory may raise anything
        text = error.message if isinstance(error, WrongUse) else f"{type(error).__name__}: {first_sentence(error)}"
        return Report(name, path, findings=(Finding("error", "not-loaded", None, f"can't be loaded: {text}"),))
    return _of_graph(name, path, graph, from_factory=target is not graph)


def _of_graph(name: str, path: str, graph: object, *, from_factory: bool) -> Report:
    from langgraph.graph.state import CompiledStateGraph, StateGraph  # noqa: PLC0415 - loads LangGraph

    from graphguard.check_command.findings import Finding, Report, ceilings, findings  # noqa: PLC0415 - likewise
    from graphguard.check_command.seen import calls_of, settings_around  # noqa: PLC0415 - likewise
    from graphguard.functional import is_entrypoint  # noqa: PLC0415 - likewise
    from graphguard.guard import model_nodes  # noqa: PLC0415 - likewise

    compiled = graph.compile() if isinstance(graph, StateGraph) else graph
    if not isinstance(compiled, CompiledStateGraph) and not is_entrypoint(compiled):
        text = f"is of type {type(graph).__name__}, which can't be looked into; name a StateGraph or its compile()"
        return Report(name, path, findings=(Finding("error", "no-graph", None, text),))
    runnable = cast("CompiledStateGraph[Any, Any, Any, Any]", compiled)
    calls = tuple(calls_of(runnable))
    gates = {node.name: node.gate for node in model_nodes(runnable).values()}
    found = sorted(findings(runnable, calls, from_factory=from_factory), key=lambda each: each.level != "error")
    most = sorted(ceilings(calls), key=lambda ceiling: ceiling.nanousd)
    own = settings_around(runnable)
    guards = dict.fromkeys([*([own] if own else []), *(settings for call in calls for settings in call.around)])
    return Report(name, path, tuple(guards), calls, gates, tuple(most), tuple(dict.fromkeys(found)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _budgets(settings: Settings) -> list[str]:
    rules = [getattr(rule, "__name__", repr(rule)) for rule in settings.policies]
    return [repr(budget) for budget in settings.budgets] + rules


def _on_trip(settings: Settings) -> str:
    return f"to({settings.to!r})" if settings.to else settings.on_trip


def _show(report: Report) -> None:
    click.secho(f"{report.id}  ", bold=True, nl=False)
    click.echo(report.target)
    for settings in report.guards:
        budgets = ", ".join(_budgets(settings)) or "no budget: only metered"
        click.echo(f"  guard    {budgets}; on_trip={_on_trip(settings)}")
    for call in report.calls:
        gate = report.gates.get(call.name)
        where = "NOT GUARDED" if not call.around else f"gate {gate}" if gate else "held"
        if call.unseen is None:  # of what is not seen, a finding tells
            click.echo(f"  call     {call.name}: {where}; {call.how}")
    for ceiling in report.ceilings:
        over = "" if ceiling.exact else ", and one call more on each branch"
        click.echo(f"  at most  {_usd(ceiling.nanousd)} per {ceiling.per}{over}, by {ceiling.why}")
    for finding in report.findings:
        click.secho(f"  {finding.level:<8}", fg="red" if finding.level == "error" else "yellow", nl=False)
        click.echo(f" {f'{finding.node}: ' if finding.node else ''}{finding.text} [{finding.code}]")
    click.echo()


def _usd(nanousd: int) -> str:
    from graphguard.budget import amount_text  # noqa: PLC0415 - see _report

    return amount_text("usd", nanousd)


def _document(report: Report) -> dict[str, Any]:
    from graphguard.spend import usd_text  # noqa: PLC0415 - see _report

    return {
        "id": report.id,
        "target": report.target,
        "guarded": bool(report.calls) and all(call.around and call.unseen is None for call in report.calls),
        "guards": [{"budgets": _budgets(settings), "on_trip": _on_trip(settings)} for settings in report.guards],
        "calls": [
            {
                "node": call.name,
                "how": call.how,
                "guarded": bool(call.around) and call.unseen is None,
                "gate": report.gates.get(call.name),
                "models": [model.name for model in call.models],
                "loops": call.loops,
            }
            for call in report.calls
        ],
        "ceilings": [
            {"usd": usd_text(each.nanousd), "per": each.per, "exact": each.exact, "by": each.why}
            for each in report.ceilings
        ],
        "findings": [
            {"level": each.level, "code": each.code, "node": each.node, "text": each.text} for each in report.findings
        ],
    }
