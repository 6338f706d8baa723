"""Stories as pages: one HTML file each, without anything from elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from graphguard.budget import amount_text
from graphguard.report.charts import HEIGHT, WIDTH, bars, curve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphguard.report.database import Library
    from graphguard.report.drawing import Drawing
    from graphguard.report.story import Story, Tale
    from graphguard.spend import Spend

__all__ = ["library_page", "story_page", "story_values", "templates"]

_STEPS: Final = 500
"""Rows of a table that a person may look through."""


def story_page(story: Story, tale: Tale, drawn: Drawing | None = None, *, now: datetime | None = None) -> str:
    """The story of a thread as one HTML page."""
    return templates().get_template("report.html").render(**story_values(story, tale, drawn), made=_made(now))


def library_page(library: Library, tale: Tale, *, now: datetime | None = None) -> str:
    """The story of a whole database as one HTML page."""
    values = {
        "library": library,
        "tale": tale,
        "trips": sorted(
            (trip for chapter in library.chapters for trip in chapter.trips),
            key=lambda trip: trip.time or "",
            reverse=True,
        ),
        "sums": _sums(
            library.metric,
            {
                "day (UTC)": library.by_day,
                "model": library.by_model,
                "node": library.by_node,
                "user": library.by_user,
            },
        ),
        "most": _STEPS,
    }
    return templates().get_template("library.html").render(**values, made=_made(now))


def story_values(story: Story, tale: Tale, drawn: Drawing | None = None) -> dict[str, object]:
    """What the template of a story shows."""
    return {
        "story": story,
        "tale": tale,
        "curve": curve(story),
        "sums": _sums(story.metric, {"node": story.by_node, "model": story.by_model}),
        "drawn": drawn,
        "most": _STEPS,
    }


@cache
def templates() -> Environment:
    """The templates of reports."""
    made = Environment(
        loader=PackageLoader("graphguard.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(chart_width=WIDTH, chart_height=HEIGHT)
    made.filters.update(usd=lambda nanousd: amount_text("usd", nanousd), clock=_clock, amount=_amount, each=_each)
    return made


def _sums(metric: str, named: Mapping[str, Mapping[str | None, Spend]]) -> dict[str, object]:
    return {name: bars(sums, metric) for name, sums in named.items() if sums}


def _amount(spend: Spend, metric: str) -> str:
    return amount_text(metric, spend.amount(metric))


def _each(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "es" if word.endswith("ch") else "s")


def _clock(time: str | None) -> str:
    """A time in ISO format as people read it, in UTC: a page may be read elsewhere than it was made."""
    return "" if time is None else f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _made(now: datetime | None) -> str:
    return f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
