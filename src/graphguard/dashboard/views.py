"""The dashboard's pages, part by part: values in, HTML out."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

from jinja2 import ChoiceLoader, PackageLoader

from graphguard.dashboard.sums import WINDOWS
from graphguard.report.charts import bars, ticks
from graphguard.report.page import templates as report_templates
from graphguard.spend import ZERO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment

    from graphguard.dashboard.asking import Question, Standing
    from graphguard.dashboard.sums import Sums

__all__ = ["PARTS", "THREADS", "burn_part", "environment", "now_part", "spenders_part", "threads_part", "waiting_part"]

PARTS: Final = ("now", "waiting", "burn", "threads", "spenders")
"""The overview's parts, in their order."""
THREADS: Final = 25
"""Rows of the table of threads."""
_WIDTH, _HEIGHT, _LEFT, _FOOT = 960, 170, 64, 22
_CALLS: Final = 12
_LABELS: Final = 8


@cache
def environment() -> Environment:
    """The templates, those of the reports included."""
    made = report_templates().overlay(loader=ChoiceLoader([PackageLoader("graphguard.dashboard"), _reports()]))
    made.filters.update(ago=_ago)
    return made


def _reports() -> PackageLoader:
    return PackageLoader("graphguard.report")


def now_part(sums: Sums) -> str:
    """What is being spent now, and by whom."""
    held = sum((hold.call.worst for hold in sums.holds), ZERO)
    values = {
        "sums": sums,
        "held": held,
        "holds": sums.holds[:_CALLS],
        "more": len(sums.holds) - _CALLS,
    }
    return _render("now.html", **values)


def waiting_part(questions: Sequence[Question], *, answers: bool, base: str) -> str:
    """The trips that wait, with buttons where they can be answered."""
    return _render("waiting.html", questions=questions, answers=answers, base=base)


def burn_part(sums: Sums) -> str:
    """Burn over time, as bars."""
    metric = "usd" if sums.total.nanousd else "calls"
    top = max((bucket.spend.amount(metric) for bucket in sums.burn), default=0)
    amounts = ticks(metric, max(top, 1), most=3)
    wide = (_WIDTH - _LEFT) / max(len(sums.burn), 1)
    tall = _HEIGHT - _FOOT - 12

    def y(amount: int) -> float:
        return round(_HEIGHT - _FOOT - tall * amount / amounts[-1], 1)

    every = max(1, len(sums.burn) // _LABELS)
    values = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "bars": [
            {
                "x": round(_LEFT + at * wide + 1, 1),
                "y": y(bucket.spend.amount(metric)),
                "width": round(max(wide - 2, 1), 1),
                "height": round(_HEIGHT - _FOOT - y(bucket.spend.amount(metric)), 1),
                "bucket": bucket,
                "when": _when(bucket.since, sums.window.seconds),
                "label": at % every == 0,
            }
            for at, bucket in enumerate(sums.burn)
        ],
        "amounts": [(y(amount), amount) for amount in amounts],
        "metric": metric,
        "sums": sums,
    }
    return _render("burn.html", **values)


def threads_part(sums: Sums, standings: Mapping[str, Standing], *, base: str) -> str:
    """Threads that spent in the window, with what they ever spent and their budgets."""
    groups = sums.groups.get("thread", {})
    values = {
        "sums": sums,
        "rows": [(name, spend) for name, spend in list(groups.items())[:THREADS]],
        "more": len(groups) - THREADS,
        "standings": standings,
        "base": base,
    }
    return _render("threads.html", **values)


def spenders_part(sums: Sums) -> str:
    """Top spenders by user, model and node."""
    metric = "usd" if sums.total.nanousd else "calls"
    named = {by: bars(sums.groups[by], metric, most=10) for by in ("user", "model", "node") if sums.groups.get(by)}
    return _render("spenders.html", named=named, usd=metric == "usd")


def _render(name: str, **values: object) -> str:
    return environment().get_template(name).render(windows=WINDOWS, **values)


def _when(since: float, seconds: int) -> str:
    told = datetime.fromtimestamp(since, UTC)
    return f"{told:%b %d}" if seconds > 86_400 else f"{told:%H:%M}"  # noqa: PLR2004 - a day


def _ago(since: float | None) -> str:
    """How long ago, roughly, so that it does not change each second."""
    if since is None:
        return ""
    seconds = max(time.time() - since, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "less than a minute"
