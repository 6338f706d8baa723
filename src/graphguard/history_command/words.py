"""How the commands say trips, steps and outcomes: as rows for people, as documents for programs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from graphguard.budget import amount_text
from graphguard.history.attempts import is_gate
from graphguard.spend import Spend, usd_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphguard.history import Backtest, Outcome, PastTrip, Step

__all__ = [
    "backtest_document",
    "backtest_rows",
    "local",
    "short",
    "spend_document",
    "step_document",
    "step_rows",
    "trip_document",
    "trip_rows",
]


def local(time: str | None) -> str:
    """A checkpoint's time as people read it, in their own zone."""
    return "" if time is None else f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M:%S}"


def short(checkpoint: str) -> str:
    """The part of a checkpoint's id that differs from that of others at a glance; `replay --checkpoint` takes it.

    >>> short("1f1e515a-f612-6657-bfff-cb93538ffd07")
    'cb93538ffd07'
    """
    return checkpoint.rpartition("-")[2]


def trip_rows(trips: Sequence[tuple[int, PastTrip]]) -> list[dict[str, str]]:
    """A row for each numbered trip."""
    return [
        {
            "#": str(number),
            "time": local(trip.time),
            "thread": trip.thread,
            "node": f"{trip.ns.partition(':')[0]}:{trip.node}" if trip.ns else trip.node or "",
            "spent": trip.progress.removesuffix(" spent"),
            "next call": amount_text(trip.metric, trip.needed) if trip.needed and trip.metric != "calls" else "",
            "outcome": trip.outcome,
            "checkpoint": short(trip.root) if trip.root else "not kept",
        }
        for number, trip in trips
    ]


def trip_document(number: int, trip: PastTrip) -> dict[str, object]:
    """A trip as JSON; USD as decimal strings."""
    data: dict[str, object] = {"number": number, **trip.to_state(), "outcome": trip.outcome}
    if trip.metric == "usd" and trip.new_limit is not None:
        data["new_limit"] = usd_text(trip.new_limit)
    return data


def step_rows(steps: Sequence[Step]) -> list[dict[str, str]]:
    """A row for each step, oldest first; those of gates alone are left out unless something tripped there."""
    ordered = sorted(steps, key=lambda step: step.checkpoint)
    made = {step.checkpoint: step for step in ordered}
    last: dict[str, str] = {}
    rows: list[dict[str, str]] = []
    for step in ordered:
        continues = last.get(step.ns) in (None, step.parent)
        last[step.ns] = step.checkpoint
        nodes = [node for node in step.nodes if not is_gate(node)]
        remarks = _remarks(step, made.get(step.parent or ""), forked=not continues)
        if not nodes and not remarks and step.source == "loop":
            continue
        rows.append(
            {
                "step": str(step.number),
                "time": local(step.time),
                "graph": step.ns.partition(":")[0],
                "nodes": ", ".join(nodes) or ("new input" if step.source == "input" else ""),
                "calls": f"{step.added.calls:,}" if step.added.calls else "",
                "USD": amount_text("usd", step.added.nanousd) if step.added.nanousd else "",
                "branch": amount_text("usd", step.spend.nanousd) if step.spend.nanousd else "",
                "": "; ".join(remarks),
                "checkpoint": short(step.checkpoint),
            }
        )
    return rows


def _remarks(step: Step, before: Step | None, *, forked: bool) -> list[str]:
    """What is worth saying of a step beside its numbers."""
    found: list[str] = []
    if step.source == "fork" or (forked and step.source != "input"):
        found.append("fork" if before is None else f"fork from step {before.number}")
    if step.source == "update":
        found.append("updated by hand")
    known = before.raised if before is not None else {}
    for budget, limits in step.raised.items():
        for metric, limit in limits.items():
            if known.get(budget, {}).get(metric) != limit:
                text = (
                    amount_text("usd", Spend.of({"usd": str(limit)}).nanousd)
                    if metric == "usd"
                    else f"{limit} {metric}"
                )
                found.append(f"limit raised to {text}")
    told = step.trip if step.trip is not None and step.trip.at == step.parent else None
    if told is not None:
        found.append(told.reason)
    if step.waiting and step.waiting[0].at == step.parent:
        found.append("asked a person")
    else:
        found += [f"asked a person: {trip.reason}" for trip in step.waiting]
    if step.unsettled != Spend():
        found.append(f"{amount_text('usd', step.unsettled.nanousd)} spent by tasks since")
    return found


def step_document(step: Step) -> dict[str, object]:
    """A step as JSON."""
    return {
        "checkpoint": step.checkpoint,
        "parent": step.parent,
        "ns": step.ns,
        "step": step.number,
        "source": step.source,
        "time": step.time,
        "nodes": list(step.nodes),
        "run": step.run,
        "added": spend_document(step.added),
        "spend": spend_document(step.spend),
        "tasks": [spend_document(share) for share in step.shares],
        "raised": {key: dict(limits) for key, limits in step.raised.items()},
        "trip": None if step.trip is None else step.trip.to_state(),
        "waiting": [trip.to_state() for trip in step.waiting],
    }


def spend_document(spend: Spend) -> dict[str, object]:
    """An amount as JSON; USD as a decimal string."""
    return spend.to_state()


def backtest_rows(result: Backtest) -> list[dict[str, str]]:
    """A row for each budget."""
    return [
        {
            "budget": repr(outcome.budget).removeprefix("Budget(").removesuffix(")"),
            "stopped": f"{len(outcome.stopped):,} of {outcome.threads:,}",
            "trips": f"{len(outcome.trips):,}",
            "saved": amount_text("usd", outcome.saved.nanousd),
            "of": amount_text("usd", outcome.spent.nanousd),
            "calls saved": f"{outcome.saved.calls:,}",
            "missed": _missed(outcome),
        }
        for outcome in result.outcomes
    ]


def _missed(outcome: Outcome) -> str:
    most = list(outcome.missed.items())
    text = ", ".join(f"{node} ×{count:,}" for node, count in most[:3])
    return f"{text}, …" if len(most) > len(most[:3]) else text


def backtest_document(result: Backtest) -> dict[str, object]:
    """What came out, as JSON."""
    return {
        "outcomes": [
            {
                "budget": outcome.budget.key,
                "sentence": outcome.sentence,
                "threads": outcome.threads,
                "stopped": list(outcome.stopped),
                "spent": spend_document(outcome.spent),
                "saved": spend_document(outcome.saved),
                "missed": dict(outcome.missed),
                "trips": [trip_document(number, trip) for number, trip in enumerate(outcome.trips, 1)],
            }
            for outcome in result.outcomes
        ],
        "unmetered": list(result.unmetered),
    }
