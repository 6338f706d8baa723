"""What charts show, in the coordinates of their drawings: pure numbers, drawn by the templates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphguard.budget import amount_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphguard.report.branches import Branch, Point
    from graphguard.report.story import Story
    from graphguard.spend import Spend

__all__ = ["Bar", "Curve", "Line", "Mark", "Tick", "bars", "curve", "ticks"]

WIDTH: Final = 720
HEIGHT: Final = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 26
_MOST: Final = 400
"""Points of one line that a screen can tell apart."""
_LABELS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line across or below the chart, with its number."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A branch's line of spend."""

    number: int
    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place in the chart that has something to say; `kind` is `"trip"` or `"raise"`."""

    kind: str
    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Spend over the steps of a thread.

    Attributes:
        lines: One for each branch.
        marks: Trips and raises.
        limits: The limits that tripped or were raised to, as far as they are in the chart's unit.
        across: The amounts at the left.
        below: The steps at the foot.
    """

    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    limits: tuple[Tick, ...]
    across: tuple[Tick, ...]
    below: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One amount among others; `share` is of the largest, from 0 to 1, and 0 for the rest of many."""

    name: str
    text: str
    calls: int
    share: float


def curve(story: Story) -> Curve:
    """Spend over steps, with trips and raises marked."""
    metric, found = story.metric, story.points
    limits = _limits(story)
    top = max([*(point.spend.amount(metric) for point in found), *limits, 1])
    amounts = ticks(metric, top)
    height = max(top, amounts[-1])
    last = max(found[-1].at, 1)

    def x(point: Point) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * point.at / last, 1)

    def y(amount: int) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * amount / height, 1)

    lines = [
        Line(
            number=branch.number,
            path=" ".join(f"{x(point)},{y(point.spend.amount(metric))}" for point in _thinned(branch)),
            text=f"branch {branch.number}: {amount_text(metric, branch.spend.amount(metric))}",
        )
        for branch in story.branches
    ]
    marks: list[Mark] = []
    for point in found:
        for trip in point.trips:
            at = y(point.spend.amount(metric))
            marks.append(Mark(kind="trip", x=x(point), y=at, text=f"{trip.reason}; {trip.outcome}"))
            if trip.new_limit is not None:
                marks.append(Mark(kind="raise", x=x(point), y=at, text=trip.outcome))
    every = max(1, math.ceil(len(found) / _LABELS))
    return Curve(
        lines=tuple(lines),
        marks=tuple(marks),
        limits=tuple(Tick(at=y(limit), text=amount_text(metric, limit)) for limit in sorted(limits)),
        across=tuple(Tick(at=y(amount), text=amount_text(metric, amount)) for amount in amounts),
        below=tuple(Tick(at=x(point), text=str(point.at + 1)) for point in found[::every]),
    )


def bars(sums: Mapping[str | None, Spend], metric: str, *, most: int = 12) -> tuple[Bar, ...]:
    """Sums as bars, the rest of many in one."""
    ordered = list(sums.items())
    shown = ordered[:most]
    largest = max((spend.amount(metric) for _, spend in shown), default=0) or 1
    if rest := ordered[most:]:
        others = rest[0][1]
        for _, spend in rest[1:]:
            others += spend
        shown = [*shown, (f"{len(rest):,} more", others)]
    return tuple(
        Bar(
            name="(not known)" if name is None else name,
            text=amount_text(metric, spend.amount(metric)),
            calls=spend.calls,
            share=round(spend.amount(metric) / largest, 4) if at < most else 0.0,
        )
        for at, (name, spend) in enumerate(shown)
    )


def ticks(metric: str, top: int, *, most: int = 4) -> tuple[int, ...]:
    """Round amounts from 0 up to, or just beyond, the largest.

    >>> ticks("calls", 9), ticks("calls", 1), ticks("usd", 470_000_000)
    ((0, 3, 6, 9), (0, 1), (0, 200000000, 400000000, 600000000))
    """
    least = max(top / most, 1)
    power = 10 ** math.floor(math.log10(least))
    steps = (1, 2, 2.5, 5, 10) if metric == "usd" and power >= 10 else (1, 2, 3, 5, 10)  # noqa: PLR2004 - halves of ten
    step = next(int(power * factor) for factor in steps if power * factor >= least)
    return tuple(range(0, top + step, step)) if top % step else tuple(range(0, top + 1, step))


def _limits(story: Story) -> set[int]:
    """The limits of trips in the chart's unit, and what they were raised to."""
    ours = [trip for trip in story.trips if trip.metric == story.metric and trip.kind != "policy"]
    return {trip.limit for trip in ours} | {trip.new_limit for trip in ours if trip.new_limit is not None}


def _thinned(branch: Branch) -> Sequence[Point]:
    """The branch's points, from where it forked, few enough to draw."""
    found = [*([branch.forked] if branch.forked is not None else []), *branch.points]
    every = math.ceil(len(found) / _MOST)
    return found if every <= 1 else [*found[::every], found[-1]]
