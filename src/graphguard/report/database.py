"""The story of a whole database: each thread in a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graphguard.history import PastTrip
    from graphguard.ledger_command.opening import Readable
    from graphguard.report.story import Story

__all__ = ["Chapter", "Library", "library"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One thread in a line.

    Attributes:
        thread: The thread.
        begun: When its first step was made, in ISO format.
        ended: When its last one was.
        steps: Its steps in the top graph.
        branches: Its branches.
        trips: Its trips, newest first.
        known: What the states of its branches count.
        real: What the ledger charged it; None without a ledger.
    """

    thread: str
    begun: str
    ended: str
    steps: int
    branches: int
    trips: tuple[PastTrip, ...]
    known: Spend
    real: Spend | None

    @property
    def spend(self) -> Spend:
        """What it cost: by the ledger, or what is known without one."""
        return self.known if self.real is None else self.real


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """All threads of a database.

    Attributes:
        chapters: A line for each, the most expensive first.
        by_day: The ledger's spend by day of UTC; of all threads, these and others. Empty without a ledger.
        by_node: Likewise, by node.
        by_model: Likewise, by model.
        by_user: Likewise, by user.
    """

    chapters: tuple[Chapter, ...]
    by_day: Mapping[str | None, Spend] = field(default_factory=dict)
    by_node: Mapping[str | None, Spend] = field(default_factory=dict)
    by_model: Mapping[str | None, Spend] = field(default_factory=dict)
    by_user: Mapping[str | None, Spend] = field(default_factory=dict)

    @property
    def spend(self) -> Spend:
        """What all its threads cost."""
        return sum((chapter.spend for chapter in self.chapters), ZERO)

    @property
    def metric(self) -> str:
        """What its charts count: `"usd"`, or `"calls"` where nothing had a price."""
        return "usd" if self.spend.nanousd else "calls"


def library(stories: Iterable[Story], ledger: Readable | None = None) -> Library:
    """Sum up stories, each of which is forgotten once its line is made."""
    chapters = [
        Chapter(
            thread=story.thread,
            begun=story.span[0],
            ended=story.span[1],
            steps=len(story.points),
            branches=len(story.branches),
            trips=story.trips,
            known=story.known,
            real=story.real,
        )
        for story in stories
    ]
    chapters.sort(key=lambda chapter: (-chapter.spend.nanousd, -chapter.spend.calls, chapter.thread))
    sums = {} if ledger is None else {f"by_{by}": ledger.totals(by) for by in ("day", "node", "model", "user")}
    return Library(chapters=tuple(chapters), **sums)
