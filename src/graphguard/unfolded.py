"""Charges that no write to a state has carried yet."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphguard.task import Task

__all__ = ["Unfolded"]

_KEPT: Final = 10_000


@dataclass(slots=True)
class _Entry:
    line: tuple[str, str]
    checkpoint: str
    spend: Spend = ZERO
    by: dict[str, Spend] = field(default_factory=dict)
    adopted_from: set[str] = field(default_factory=set)
    adopted: Spend = ZERO
    adopted_by: dict[str, Spend] = field(default_factory=dict)

    def add(self, spend: Spend, by: Mapping[str, Spend]) -> None:
        self.spend += spend
        for key, amount in by.items():
            self.by[key] = self.by.get(key, ZERO) + amount


class Unfolded:
    """Charges that no write to a state has carried yet, by the task that made them.

    A task's own writer takes what the task spent over all its attempts. What a task leaves behind for
    good (it failed, was cancelled, or was answered from elsewhere) is adopted by the next task of the same
    line that starts from a later checkpoint.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lines: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def add(self, task: Task, run: str, spend: Spend, by: Mapping[str, Spend]) -> None:
        """Note what a task spent, in all and on the narrowed budgets named by `by`."""
        with self._lock:
            entry = self._entries.get(task.key)
            if entry is None:
                entry = self._entries[task.key] = _Entry((task.thread or run, task.graph_ns), task.checkpoint)
                self._lines[entry.line].add(task.key)
                if len(self._entries) > _KEPT:
                    oldest, gone = self._entries.popitem(last=False)
                    self._drop(oldest, gone)
            entry.add(spend, by)

    def restore(self, task: Task, run: str, spend: Spend, by: Mapping[str, Spend]) -> None:
        """Note what a ledger says that the task has spent in all its attempts; this process may know a part of them."""
        self.add(task, run, ZERO, {})
        with self._lock:
            entry = self._entries[task.key]
            # What was adopted was spent by other tasks.
            entry.spend = (entry.spend + -entry.adopted).at_least(spend) + entry.adopted
            for key, amount in by.items():
                adopted = entry.adopted_by.get(key, ZERO)
                entry.by[key] = (entry.by.get(key, ZERO) + -adopted).at_least(amount) + adopted

    def give(self, task: Task, run: str, spend: Spend, by: Mapping[str, Spend]) -> None:
        """Make what others spent, and won't tell, the task's own."""
        self.add(task, run, spend, by)
        with self._lock:
            entry = self._entries[task.key]
            entry.adopted += spend
            for key, amount in by.items():
                entry.adopted_by[key] = entry.adopted_by.get(key, ZERO) + amount

    def leave(self, task: Task) -> None:
        """Forget what was left behind later on the line that this task's run goes back on: it is not of its own."""
        with self._lock:
            for id_ in list(self._lines.get((task.thread or "", task.graph_ns), ())):
                if self._entries[id_].checkpoint >= task.loaded:
                    self._drop(id_, self._entries.pop(id_))

    def adopt(self, task: Task, run: str) -> None:
        """Make what earlier checkpoints of this line left behind the task's own."""
        line = (task.thread or run, task.graph_ns)
        if line not in self._lines:
            return
        with self._lock:
            left = [id_ for id_ in self._lines.get(line, ()) if self._entries[id_].checkpoint != task.checkpoint]
            for id_ in left:
                old = self._entries.pop(id_)
                self._drop(id_, old)
                mine = self._entries.setdefault(task.key, _Entry(line, task.checkpoint))
                self._lines[line].add(task.key)
                mine.add(old.spend, old.by)
                mine.adopted_from |= {id_, *old.adopted_from}
                mine.adopted += old.spend
                for key, amount in old.by.items():
                    mine.adopted_by[key] = mine.adopted_by.get(key, ZERO) + amount

    def take(self, task: Task) -> _Entry | None:
        """What the task spent and nobody told the state yet; told once."""
        if task.key not in self._entries:
            return None
        with self._lock:
            entry = self._entries.pop(task.key, None)
            if entry is not None:
                self._drop(task.key, entry)
            return entry

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be told or adopted."""
        return not self._entries

    def has(self, task: Task) -> bool:
        """Whether the task spent or adopted anything that no state knows yet."""
        return task.key in self._entries

    def spent(self, task: Task) -> Spend:
        """What the task spent or adopted that no state knows yet."""
        entry = self._entries.get(task.key)
        return entry.spend if entry else ZERO

    def adopted(self, task: Task, key: str | None = None) -> Spend:
        """What the task adopted, in all or on one narrowed budget; its ledger account doesn't hold that."""
        entry = self._entries.get(task.key)
        if entry is None:
            return ZERO
        return entry.adopted if key is None else entry.adopted_by.get(key, ZERO)

    def adopted_from(self, task: Task) -> frozenset[str]:
        """Ids of the tasks from which the task adopted anything."""
        entry = self._entries.get(task.key)
        return frozenset(entry.adopted_from) if entry else frozenset()

    def _drop(self, task_id: str, entry: _Entry) -> None:
        self._lines[entry.line].discard(task_id)
        if not self._lines[entry.line]:
            del self._lines[entry.line]
