"""The fork tree of a thread: which steps follow each other, and what each line of them spent."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphguard.history.attempts import is_gate
from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphguard.history import PastTrip, Step

__all__ = ["Branch", "Point", "branches", "points"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step of the top graph, as a chart shows it.

    Attributes:
        at: Its place among all steps of the thread, from 0; later steps have larger ones.
        checkpoint: Id of the checkpoint that it made.
        parent: Id of the checkpoint that it ran from.
        number: LangGraph's count of supersteps.
        time: When, in ISO format.
        nodes: The nodes that ran, gates left out.
        source: `"input"`, `"loop"`, `"update"` or `"fork"`.
        added: What it added to the branch.
        spend: The branch's spend after it.
        unsettled: What tasks that ran from there told of a superstep that never ended.
        trips: The trips right after it: of calls that would have come next.
    """

    at: int
    checkpoint: str
    parent: str | None
    number: int
    time: str
    nodes: tuple[str, ...]
    source: str
    added: Spend
    spend: Spend
    unsettled: Spend = ZERO
    trips: tuple[PastTrip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One line of steps, from the thread's beginning or a fork to where nothing follows.

    Attributes:
        number: From 1, in the order of their beginnings.
        parent: The branch that it forked from; None for a beginning.
        forked: The step that it forked from; None for a beginning.
        points: Its own steps, oldest first.
    """

    number: int
    parent: int | None
    forked: Point | None
    points: tuple[Point, ...]

    @property
    def added(self) -> Spend:
        """What its own steps spent."""
        return sum((point.added for point in self.points), self.points[-1].unsettled)

    @property
    def spend(self) -> Spend:
        """What the line had spent at its end, its part before the fork included."""
        return self.points[-1].spend + self.points[-1].unsettled


def points(steps: Iterable[Step], trips: Sequence[PastTrip]) -> tuple[Point, ...]:
    """The steps of the top graph, oldest first, each with the trips that followed it."""
    stopped: defaultdict[str | None, list[PastTrip]] = defaultdict(list)
    for trip in reversed(trips):
        stopped[trip.root or trip.at].append(trip)
    ordered = sorted((step for step in steps if not step.ns), key=lambda step: step.checkpoint)
    return tuple(
        Point(
            at=at,
            checkpoint=step.checkpoint,
            parent=step.parent,
            number=step.number,
            time=step.time,
            nodes=tuple(node for node in step.nodes if not is_gate(node)),
            source=step.source,
            added=step.added,
            spend=step.spend,
            unsettled=step.unsettled,
            trips=tuple(stopped.get(step.checkpoint, ())),
        )
        for at, step in enumerate(ordered)
    )


def branches(points: Iterable[Point]) -> tuple[Branch, ...]:
    """The fork tree. The first step after another goes on in its branch; each further one begins a branch.

    Args:
        points: Of one thread, oldest first.
    """
    made: dict[str, Point] = {}
    within: dict[str, int] = {}  # by checkpoint, the branch that it lies in
    followed: set[str] = set()
    lines: list[tuple[int | None, Point | None, list[Point]]] = []
    for point in points:
        before = made.get(point.parent or "")
        if before is not None and before.checkpoint not in followed:
            number = within[before.checkpoint]
            followed.add(before.checkpoint)
        else:
            lines.append((None if before is None else within[before.checkpoint], before, []))
            number = len(lines)
        lines[number - 1][2].append(point)
        within[point.checkpoint] = number
        made[point.checkpoint] = point
    return tuple(
        Branch(number=number, parent=parent, forked=forked, points=tuple(own))
        for number, (parent, forked, own) in enumerate(lines, 1)
    )
