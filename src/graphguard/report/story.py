"""One thread's story, made of its checkpoints and, if there is one, its ledger."""

from __future__ import annotations

import shlex
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphguard.history.attempts import moves
from graphguard.history.checkpoints import each_checkpoint, saver_of
from graphguard.history.found import Search
from graphguard.history.steps import Reading
from graphguard.report.branches import Branch, Point, branches, points
from graphguard.report.lost import Loss, loss
from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.history import PastTrip, Step
    from graphguard.history.checkpoints import AnySaver
    from graphguard.ledger_command.opening import Readable
    from graphguard.placement import AnyGraph

__all__ = ["Branch", "Point", "Story", "Tale", "story"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tale:
    """How the report was asked for, so that it can say what to type next.

    Attributes:
        db: The database as it is typed after `--db`; never one with a password.
        graph: The graph's id in `langgraph.json`; None if it wasn't named.
        config: The `langgraph.json`; None is the one in the folder.
    """

    db: str
    graph: str | None = None
    config: str | None = None

    def replay(self, trip: PastTrip) -> str | None:
        """The command that replays a trip; None where its checkpoint was not kept."""
        if trip.root is None:
            return None
        words = ["graphguard", "replay", "--db", self.db, "--thread", trip.thread]
        words += ["--graph", self.graph or "GRAPH"]
        words += ["--config", self.config] if self.config else []
        words += ["--checkpoint", trip.root]
        return shlex.join(words).replace("'$GRAPHGUARD_DB'", '"$GRAPHGUARD_DB"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of one thread.

    Attributes:
        thread: The thread.
        branches: Its fork tree, in the order of the branches' beginnings.
        trips: Its trips, newest first.
        known: What the states of its branches count, each step once.
        real: What the ledger charged the thread; None without a ledger.
        by_node: Spend by node, the most expensive first: the ledger's, or what the steps tell.
        by_model: Spend by model, of the ledger; empty without one.
        loss: What was paid for nothing, as the ledger tells; None without a ledger.
        metered: Whether a guard counted in the thread.
    """

    thread: str
    branches: tuple[Branch, ...]
    trips: tuple[PastTrip, ...]
    known: Spend
    real: Spend | None = None
    by_node: Mapping[str | None, Spend] = field(default_factory=dict)
    by_model: Mapping[str | None, Spend] = field(default_factory=dict)
    loss: Loss | None = None
    metered: bool = True

    @property
    def spend(self) -> Spend:
        """What the thread cost: by the ledger, or what is known without one."""
        return self.known if self.real is None else self.real

    @property
    def points(self) -> tuple[Point, ...]:
        """All steps of the top graph, oldest first."""
        return tuple(sorted((p for branch in self.branches for p in branch.points), key=lambda point: point.at))

    @property
    def metric(self) -> str:
        """What its charts count: `"usd"`, or `"calls"` where nothing had a price."""
        return "usd" if self.spend.nanousd or self.known.nanousd else "calls"

    @property
    def span(self) -> tuple[str, str]:
        """When its first and its last step were made, in ISO format."""
        found = self.points
        return found[0].time, found[-1].time


def story(source: AnyGraph | AnySaver, thread: str, ledger: Readable | None = None) -> Story:
    """Read one thread, its checkpoints once.

    Args:
        source: The graph with its checkpointer, or the checkpointer.
        thread: The thread.
        ledger: Where the thread's real money is, if it is at hand.

    Raises:
        HistoryUnavailable: There is no checkpointer, or no such thread.
    """
    notes = _Notes()
    deque(each_checkpoint(saver_of(source), thread, notes.feed), maxlen=0)
    steps, trips = notes.closed()
    made = points(steps, trips)
    by_node: defaultdict[str | None, Spend] = defaultdict(Spend)
    known = ZERO
    for move in moves(steps, trips):
        for attempt in move.attempts:
            if attempt.spent != ZERO:
                by_node[", ".join(attempt.nodes) or None] += attempt.spent
                known += attempt.spent
    told = Story(
        thread=thread,
        branches=branches(made),
        trips=trips,
        known=known,
        by_node=dict(sorted(by_node.items(), key=lambda item: (-item[1].nanousd, -item[1].calls))),
        metered=any(step.run for step in steps),
    )
    return told if ledger is None else _with_ledger(told, ledger)


class _Notes:
    """What is kept of the checkpoints of one thread, which come newest first."""

    def __init__(self) -> None:
        self._reading, self._search = Reading(), Search()
        self._steps: list[Step] = []
        self._trips: list[PastTrip] = []

    def feed(self, saved: CheckpointTuple) -> tuple[()]:
        """Take note of a checkpoint."""
        self._steps += self._reading.feed(saved)
        self._trips += self._search.feed(saved)
        return ()

    def closed(self) -> tuple[list[Step], tuple[PastTrip, ...]]:
        """All steps and trips, now that every checkpoint was read."""
        self._steps += self._reading.rest()
        self._trips += self._search.rest()
        return self._steps, tuple(self._trips)


def _with_ledger(told: Story, ledger: Readable) -> Story:
    """The same story with its real money."""
    return Story(
        thread=told.thread,
        branches=told.branches,
        trips=told.trips,
        known=told.known,
        real=ledger.total(thread=told.thread),
        by_node=ledger.totals("node", thread=told.thread),
        by_model=ledger.totals("model", thread=told.thread),
        loss=loss(ledger.charges(thread=told.thread), told.known),
        metered=told.metered,
    )
