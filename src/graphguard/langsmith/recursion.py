"""`RecursiveTraceGuard`: ceilings on depth, calls and USD for everything under one root trace.

One locked object per root trace counts; the context carries only a reference to it. A count kept in the context
itself never trips, because LangSmith's `@traceable` runs each body in a copy of the context.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self

from langsmith import get_current_run_tree

from graphguard.budget import Budget
from graphguard.errors import BudgetExceeded, InvalidBudget
from graphguard.ids import new_id
from graphguard.langsmith.counts import GuardedTrace
from graphguard.langsmith.errors import AgentBudgetError
from graphguard.langsmith.metered import Metered
from graphguard.langsmith.roots import LiveRoots
from graphguard.langsmith.untraced import untraced_root, watch
from graphguard.traced import mark, trip_metadata
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from langsmith import Client

    from graphguard.budget import Breach
    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook

__all__ = ["GuardedBody", "RecursiveTraceGuard"]

logger = logging.getLogger("graphguard.langsmith")
_TRIPS: Final = 1_000
_PLACE: Final = "trace"


@dataclass(slots=True, frozen=True)
class _Place:
    """Where a context stands: in which trace of which guard, and how deep."""

    guard: RecursiveTraceGuard
    trace: GuardedTrace
    depth: int
    outer: _Place | None


_here: ContextVar[_Place | None] = ContextVar("graphguard_trace", default=None)


class RecursiveTraceGuard:
    """Stops an agent that calls itself too deeply, too often, or for too much money, under one root trace.

    A root trace is LangSmith's: the outermost run, or the outermost `@traceable` with tracing off. Where there is none,
    it is the outermost guarded function, or the block of `guard.trace()`. Traces don't count together, and what runs on
    another machine counts there.

    Args:
        client: The LangSmith client that `guarded_traceable` traces with; None is the SDK's own. Nothing is ever
            sent by the guard itself.
        max_depth: How many guarded bodies may run inside each other.
        max_calls: How many guarded bodies may begin.
        max_usd: What the models called in them may cost; None doesn't count. LangChain's models are held and settled
            by themselves; tell others with `graphguard.charge(response)`.
        ledger: Where money is held; None is the `MemoryLedger` that all guards of the process share.
        prices: A price book; None is the bundled one.

    Raises:
        InvalidBudget: A ceiling that is not a whole number of at least 1, or not a positive amount of USD.

    >>> guard = RecursiveTraceGuard(max_calls=2)
    >>> with guard.trace() as trace:
    ...     guard.check("plan")
    ...     guard.check("write")
    >>> trace.calls
    2
    """

    kept: ClassVar[int] = 10_000
    """How many traces are remembered of which nothing runs."""

    def __init__(
        self,
        client: Client | None = None,
        max_depth: int = 6,
        max_calls: int = 25,
        max_usd: str | float | Decimal | None = None,
        *,
        ledger: Ledger | None = None,
        prices: PriceBook | None = None,
    ) -> None:
        """Check the ceilings."""
        for name, value in (("max_depth", max_depth), ("max_calls", max_calls)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                msg = f"{name} must be a whole number of at least 1, got {value!r}"
                raise InvalidBudget(msg)
        self.client = client
        self.max_depth = max_depth
        self.max_calls = max_calls
        self._budgets = [] if max_usd is None else [Budget(usd=max_usd, per=_PLACE)]
        self._ledger = ledger
        self._prices = prices
        self._traces: OrderedDict[str, GuardedTrace] = OrderedDict()
        self.roots = LiveRoots()
        self._trips: deque[AgentBudgetError] = deque(maxlen=_TRIPS)
        self._lock = threading.Lock()
        watch()

    @property
    def trips(self) -> tuple[AgentBudgetError, ...]:
        """The latest trips, oldest first; LangSmith doesn't know those of traces that it didn't sample."""
        return tuple(self._trips)

    @contextmanager
    def trace(self) -> Iterator[GuardedTrace]:
        """Count everything in a block as one root trace; inside of one already, as part of that."""
        place = self.place()
        run = self.roots.note()
        if place is not None:
            yield place.trace
            return
        trace = self._new_trace(str(run.trace_id) if run is not None else new_id())
        token = _here.set(_Place(self, trace, 0, _here.get()))
        try:
            yield trace
        finally:
            _here.reset(token)

    def check(self, label: str = "") -> None:
        """Count one call that is about to be made, in the trace that this code runs in.

        Raises:
            AgentBudgetError: The trace has no room for it.
        """
        place = self.place()
        trace = self.trace_here() if place is None else place.trace
        self.count(trace, 0 if place is None else place.depth, label)

    def body(self, label: str) -> GuardedBody:
        """One guarded body, to be entered with `with` or `async with`; `guarded_traceable` does that."""
        return GuardedBody(self, label)

    def place(self) -> _Place | None:
        """Where this context stands under this guard."""
        place = _here.get()
        while place is not None and place.guard is not self:
            place = place.outer
        return place

    def trace_here(self) -> GuardedTrace:
        """The counts of the trace that this code runs in; new ones outside of any."""
        run = get_current_run_tree()
        if run is None:
            root = untraced_root()
            if root is None:
                return self._new_trace(new_id())
            return root.trace(self, lambda: self._new_trace(new_id()))
        key = str(run.trace_id)
        with self._lock:
            trace = self._traces.get(key)
            if trace is None:
                trace = self._traces[key] = self._new_trace(key)
                self._forget()
            self._traces.move_to_end(key)
        return trace

    def _forget(self) -> None:
        for _ in range(2):  # of the oldest, so that a few at work don't keep the others
            if len(self._traces) > self.kept:
                key, trace = self._traces.popitem(last=False)
                if trace.running or key in self.roots:
                    self._traces[key] = trace

    def _new_trace(self, id: str) -> GuardedTrace:  # noqa: A002 - LangSmith's trace id
        if not self._budgets:
            return GuardedTrace(id, None)
        return GuardedTrace(id, Metered(self._budgets, ledger=self._ledger, prices=self._prices, keys={_PLACE: id}))

    def count(self, trace: GuardedTrace, depth: int, label: str) -> None:
        """Count one call, or raise `AgentBudgetError`."""
        refused = trace.take(depth, self.max_depth, self.max_calls)
        if refused is not None:
            metric, limit, spent = refused
            budget = f"max_{metric}={limit} per trace"
            trip = Trip(budget=budget, metric=metric, limit=limit, spent=spent, node=label or None, mode="raise")
            raise self.tripped(trip, trace)

    def tripped(self, trip: Trip, trace: GuardedTrace) -> AgentBudgetError:
        """Note a trip, on the live runs of the trace too; the error to raise."""
        leaf = get_current_run_tree()
        error = AgentBudgetError(trip, str(leaf.id) if leaf is not None else None, trace.id)
        if leaf is not None:
            leaf.error = str(error)  # the guarded runs around it handle the error, and end without one
            mark(self.roots.around(), {**trip_metadata(trip), "runguard_trip": error.reason})
        self._trips.append(error)
        logger.warning("%s at %r in trace %s", error.reason, error.label, trace.id)
        return error


class GuardedBody:
    """One guarded body: counted when it is entered, refused when there is no room."""

    __slots__ = ("_block", "_guard", "_label", "_outer", "_trace")

    def __init__(self, guard: RecursiveTraceGuard, label: str) -> None:
        """Find the trace that the body belongs to; nothing is counted yet."""
        place = guard.place()
        self._guard = guard
        self._label = label
        self._trace = guard.trace_here() if place is None else place.trace
        self._outer = _here.get()
        self._block = self._trace.block(label)
        guard.roots.note()

    def __enter__(self) -> Self:
        """Count the body, or raise `AgentBudgetError`."""
        self._enter(self._block.scope.breach() if self._block is not None else None)
        return self

    async def __aenter__(self) -> Self:
        """The same on an event loop."""
        self._enter(await self._block.scope.abreach() if self._block is not None else None)
        return self

    def _enter(self, breach: Breach | None) -> None:
        guard, trace = self._guard, self._trace
        if self._block is not None and breach is not None:
            raise guard.tripped(self._block.tripped(breach), trace)
        place = guard.place()
        depth = 1 if place is None else place.depth + 1
        guard.count(trace, depth, self._label)
        trace.run(+1)
        _here.set(_Place(guard, trace, depth, self._outer))
        if self._block is not None:
            self._block.begin()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Count the body no more; a call that was refused in it raises `AgentBudgetError` from here on."""
        if self._block is not None:
            self._block.__exit__()
        self._exit(error)

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """The same on an event loop."""
        if self._block is not None:
            await self._block.__aexit__()
        self._exit(error)

    def _exit(self, error: BaseException | None) -> None:
        # Not by a token: the garbage collector closes a forgotten generator in somebody else's context.
        _here.set(self._outer)
        self._trace.run(-1)
        refusal = self._block.refusal if self._block is not None else None
        if isinstance(error, BudgetExceeded) and refusal is not None and error.trip is refusal:
            raise self._guard.tripped(refusal, self._trace) from error
