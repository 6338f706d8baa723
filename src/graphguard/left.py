"""What processes that have ended left in the ledger, and no state tells of."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypedDict

from graphguard.ledger.admission import assumed
from graphguard.spend import Charge, Spend

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from graphguard.budget import Budget
    from graphguard.ledger.protocol import Hold
    from graphguard.task import Task
    from graphguard.unfolded import Unfolded

__all__ = ["Left"]

_SKEW: Final = 3600.0  # seconds by which the clocks of machines, and of the ledger, may differ
_EPOCH_OF_UUIDS: Final = 0x01B21DD213814000  # 1970, in 100 ns since 1582
_UUID6: Final = 6


class _Where(TypedDict, total=False):
    thread: str | None
    run: str | None
    since: float | None


@dataclass(slots=True)
class Left:
    """What may be left for the run of a graph that went on from a checkpoint.

    The attempts of a task that runs anew, and whatever ran after that checkpoint without its own being saved: that
    is done over under other ids, and the state that would have told of it is gone.

    Attributes:
        began: Id of the checkpoint.
        from_input: Whether the input is given to START once more, which begins another run.
        charges: What the ledger has of the thread since then; None while nobody asked it.
    """

    began: str
    from_input: bool = False
    charges: tuple[Charge, ...] | None = None
    _superstep: str = ""
    _ahead: list[Charge] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def where(self, task: Task, run: str) -> _Where:
        """Which charges of a ledger it may be about; `run` is that of the outermost guarded graph."""
        since = _time_of(self.began)
        return {"thread": task.thread, "since": since} if self.from_input else {"run": run, "since": since}

    def is_for(self, task: Task) -> bool:
        """Whether the task is of the first superstep that asks; tasks of later ones never ran before."""
        with self._lock:
            self._superstep = self._superstep or task.checkpoint
            return self._superstep == task.checkpoint

    def read(self, charges: Sequence[Charge], holds: Iterable[Hold], **where: str | float | None) -> None:
        """Take the ledger's answer; `where` as it was asked."""
        # Whoever holds for what is done over is gone, and most of such calls were billed.
        held = [
            assumed(hold.call)
            for hold in holds
            if all(getattr(hold.call, name) == value for name, value in where.items() if name != "since")
        ]
        with self._lock:
            if self.charges is None:
                self.charges = (*charges, *held)
                self._ahead = list(self.charges)

    def fold_into(self, unfolded: Unfolded, task: Task, run: str, narrowed: Sequence[Budget]) -> None:
        """Have a task tell the state what is left for it, and what is left for nobody."""
        again = [charge for charge in self.charges or () if task.place in charge.path]
        known = unfolded.adopted_from(task)
        with self._lock:
            ahead = [charge for charge in self._ahead if self._is_ahead(charge, task, known)]
            self._ahead = []
        if again:
            unfolded.restore(task, run, Spend.total(again), _by(again, narrowed))
        for charge in ahead:
            unfolded.give(task, run, charge.spend, _by([charge], narrowed))

    def _is_ahead(self, charge: Charge, task: Task, known: Collection[str]) -> bool:
        # Ids of checkpoints tell their order. What was saved after this one lies on other lines.
        mine = [(began, id_) for began, ns, id_ in map(task.parts_of, charge.path) if ns == task.graph_ns]
        return any(
            began > self.began and began != task.checkpoint and f"{task.thread or ''}|{id_}" not in known
            for began, id_ in mine
        )


def _time_of(checkpoint: str) -> float | None:
    """When a checkpoint was made, in seconds since the epoch, or somewhat earlier; None if its id doesn't tell."""
    try:
        id_ = uuid.UUID(checkpoint)
    except ValueError:
        return None
    if id_.version != _UUID6:
        return None
    ticks = (id_.int >> 96) << 28 | (id_.int >> 80 & 0xFFFF) << 12 | (id_.int >> 64 & 0x0FFF)
    return (ticks - _EPOCH_OF_UUIDS) / 1e7 - _SKEW


def _by(charges: Sequence[Charge], narrowed: Sequence[Budget]) -> dict[str, Spend]:
    found = {}
    for budget in narrowed:
        own = [charge for charge in charges if any(scope.endswith(f"|{budget.key}") for scope in charge.scopes)]
        if own:
            found[budget.key] = Spend.total(own)
    return found
