"""The settings of a guard, made once and shared, and their running object: what runs share in this process."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphguard.accounts import limit_key
from graphguard.ledger.memory import MemoryLedger
from graphguard.left import Left
from graphguard.unfolded import Unfolded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langgraph.types import Interrupt

    from graphguard.answers import Known
    from graphguard.budget import Budget, Policy
    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook
    from graphguard.scope import Scope
    from graphguard.task import Task

__all__ = ["DEFAULT_LEDGER", "Meter", "Settings"]

_KEPT: Final = 10_000

DEFAULT_LEDGER: Final = MemoryLedger()
"""What all guards of the process share that were given none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `guard()` was told. Frozen and shared by all runs.

    Attributes:
        budgets: The budgets.
        policies: The user's own rules.
        on_trip: `"end"`, `"interrupt"` or `"raise"`.
        to: The node to go to instead of END, for `on_trip=to("node")`.
        gate: `"auto"`, `"node"` or `"inline"`.
        nodes: The model nodes named by the user; None finds them.
        ledger: Where real money is held.
        prices: The price book.
    """

    budgets: tuple[Budget, ...]
    policies: tuple[Policy, ...]
    on_trip: str
    to: str | None
    gate: str
    nodes: tuple[str, ...] | None
    ledger: Ledger
    prices: PriceBook

    def __deepcopy__(self, _: object) -> Settings:
        """The same: a copy of a graph spends from the same ledger."""
        return self


class Meter:
    """The running object of one `guard()`: its settings and what its runs share in this process."""

    def __init__(self, settings: Settings, caps: Mapping[str, int]) -> None:
        """Run these settings; `caps` are output caps of models that only their profile tells."""
        self.settings = settings
        self.caps = dict(caps)
        self.unfolded = Unfolded()
        self.prompts: OrderedDict[tuple[object, ...], Known] = OrderedDict()
        self.lock = threading.Lock()
        self.asked: OrderedDict[tuple[str, str], tuple[Interrupt, weakref.ref[object] | None]] = OrderedDict()
        self.warned: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self.finished: OrderedDict[str, Scope] = OrderedDict()
        self.loops: weakref.WeakKeyDictionary[object, Left | None] = weakref.WeakKeyDictionary()
        self.told: weakref.WeakKeyDictionary[object, set[tuple[object, ...]]] = weakref.WeakKeyDictionary()
        self.narrowed = tuple(budget for budget in settings.budgets if budget.narrowed and budget.in_state)
        self.budgets = {budget.key: budget for budget in settings.budgets}
        self.keys = frozenset(self.budgets)

    def has_limit(self, key: str) -> bool:
        """Whether a raised limit is one of this guard's; `key` as `Trip.limit_key`."""
        return key in self.budgets or any(key.startswith(limit_key(budget, "")) for budget in self.budgets)

    def first_warning(self, what: tuple[object, ...]) -> bool:
        """Whether nobody warned of this before: two calls that settle together both see the share crossed."""
        with self.lock:
            first = what not in self.warned
            self.warned[what] = None
            while len(self.warned) > _KEPT:
                self.warned.popitem(last=False)
        return first

    def first_trip(self, loop: object, what: tuple[object, ...]) -> bool:
        """Whether a run of the graph has not told of this before: many lines may trip on one budget."""
        if loop is None:
            return True
        with self.lock:
            told = self.told.setdefault(loop, set())
            first = what not in told
            told.add(what)
        return first

    def finish(self, scope: Scope) -> None:
        """Keep what a task has to tell the state until its last writer runs."""
        if not (scope.trip or scope.new_limits or scope.users_config or self.unfolded.has(scope.task)):
            return
        before = self.finished.get(scope.task.key)
        if before is None:
            self.finished[scope.task.key] = scope
            while len(self.finished) > _KEPT:  # tasks whose last writer never ran, because an edge raised
                self.finished.popitem(last=False)
        else:  # the node's own code came before, this is one of its edges
            before.trip = scope.trip or before.trip
            before.new_limits |= scope.new_limits

    def left_for(self, task: Task) -> Left | None:
        """What earlier processes may have left for a task; None where its run began in this one."""
        loop = task.loop
        if loop is None or task.thread is None:
            return None
        with self.lock:
            if loop not in self.loops:  # nobody saw it begin, so it went on from a checkpoint
                self.loops[loop] = None if task.travels else Left(task.loaded)
                if task.travels:
                    self.unfolded.leave(task)
            left = self.loops[loop]
        return left if left is not None and left.is_for(task) else None

    def begins(self, task: Task) -> None:
        """Note that a graph's run begins with this task, or, if the task ran before, begins again."""
        if (loop := task.loop) is not None:
            with self.lock:
                again = task.went_on and not task.travels
                self.loops[loop] = Left(task.checkpoint, from_input=True) if again else None

    def asked_first(self, task: Task, question: Interrupt) -> Interrupt:
        """The one question of all that tasks of one superstep want to ask, in this attempt to run it."""
        place, attempt = (task.checkpoint, task.graph_ns), task.superstep
        with self.lock:
            first, asked_in = self.asked.get(place, (question, None))
            if asked_in is None or asked_in() is not attempt:
                first = question
                self.asked[place] = (question, None if attempt is None else weakref.ref(attempt))
            while len(self.asked) > _KEPT:
                self.asked.popitem(last=False)
        return first
