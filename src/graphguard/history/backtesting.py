"""What another budget would have done to recorded threads: no model is called, no node runs."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from langgraph.graph.state import CompiledStateGraph

from graphguard.accounts import window_of
from graphguard.budget import Budget
from graphguard.errors import InvalidBudget
from graphguard.guard import model_nodes
from graphguard.history.attempts import Move, is_gate, moves
from graphguard.history.checkpoints import aeach_checkpoint, athreads, each_checkpoint, saver_of, thread_of, threads
from graphguard.history.found import PastTrip, Search
from graphguard.history.outcomes import Backtest, Outcome
from graphguard.history.steps import Reading, Step
from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.history.attempts import Attempt
    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph

__all__ = ["Recording", "Trial", "abacktest", "backtest", "recorded"]

_SMALLEST: Final = Spend(nanousd=1, input_tokens=1, output_tokens=1, calls=1)


def backtest(source: AnyGraph | AnySaver, config: RunnableConfig | None, *budgets: Budget) -> Backtest:
    """What each of some budgets would have done to recorded threads; calls no model, runs no node.

    Reads what a guard, with whatever budgets or none, noted in the threads' checkpoints. Amounts are those that
    the calls really used: a live budget in USD or tokens may stop one call earlier, as it asks for the most that
    a call may use.

    Args:
        source: The graph with its checkpointer, or the checkpointer. Only a graph tells which of the nodes that
            ran side by side call models.
        config: The thread's config; None looks at all threads that the checkpointer has.
        budgets: The candidates, each tried by itself.

    Raises:
        HistoryUnavailable: There is no checkpointer, or no such thread.
        InvalidBudget: No budget, or one whose account the checkpoints don't tell.

    ```python
    print(backtest(saver, None, Budget(usd="0.30"), Budget(usd=1), Budget(calls=20, per="run")))
    ```
    """
    saver, trial = saver_of(source), Trial(budgets, source)
    for thread in threads(saver) if config is None else [thread_of(config)]:
        trial.add(thread, recorded(saver, thread))
    return trial.result()


async def abacktest(source: AnyGraph | AnySaver, config: RunnableConfig | None, *budgets: Budget) -> Backtest:
    """The same as `backtest`, on an event loop."""
    saver, trial = saver_of(source), Trial(budgets, source)
    for thread in await athreads(saver) if config is None else [thread_of(config)]:
        recording = Recording()
        async for _ in aeach_checkpoint(saver, thread, recording.feed):
            pass  # the recording keeps what it needs
        trial.add(thread, recording)
    return trial.result()


def recorded(saver: AnySaver, thread: str) -> Recording:
    """A thread, read to try budgets on."""
    recording = Recording()
    deque(each_checkpoint(saver, thread, recording.feed), maxlen=0)
    return recording


class Recording:
    """What is kept of a thread's checkpoints, which come newest first, to try budgets on."""

    def __init__(self) -> None:
        """Begin before the newest checkpoint."""
        self._reading, self._search = Reading(), Search()
        self._steps: list[Step] = []
        self._trips: list[PastTrip] = []

    def feed(self, saved: CheckpointTuple) -> tuple[()]:
        """Take note of a checkpoint."""
        self._steps += self._reading.feed(saved)
        self._trips += self._search.feed(saved)
        return ()

    def moves(self) -> list[Move]:
        """The thread's supersteps, oldest first."""
        self._steps += self._reading.rest()
        self._trips += self._search.rest()
        return list(moves(self._steps, self._trips))

    @property
    def metered(self) -> bool:
        """Whether a guard counted in this thread."""
        return any(step.run is not None or step.spend != ZERO for step in self._steps)


class Trial:
    """Tries budgets on one thread after another."""

    def __init__(self, budgets: Sequence[Budget], source: object = None) -> None:
        """Try these budgets; a graph as the source tells which nodes call models."""
        if not budgets:
            msg = "no budget to try; pass one or more, such as Budget(usd='0.30')"
            raise InvalidBudget(msg)
        for budget in budgets:
            _check(budget)
        self._tests = [_Test(budget) for budget in budgets]
        self._unmetered: list[str] = []
        graph = source if isinstance(source, CompiledStateGraph) else None
        self._models = frozenset(part for name in (model_nodes(graph) if graph else ()) for part in name.split(":"))

    def add(self, thread: str, recording: Recording) -> None:
        """Try all budgets on one thread."""
        made = recording.moves()
        if not recording.metered:
            self._unmetered.append(thread)
            return
        for test in self._tests:
            test.add(thread, made, self._models)

    def result(self) -> Backtest:
        """What came out."""
        return Backtest(outcomes=tuple(test.outcome() for test in self._tests), unmetered=tuple(self._unmetered))


def _check(budget: Budget) -> None:
    if not isinstance(budget, Budget):
        msg = f"expected Budget(...), got {budget!r}; policies can't be tried on a history"
        raise InvalidBudget(msg)
    if budget.model is not None:
        msg = f"{budget!r} counts one model, and checkpoints don't tell which model was called; leave out model="
        raise InvalidBudget(msg)
    if budget.per not in {"branch", "run", "thread"}:
        msg = f"{budget!r} counts per {budget.per!r}, which checkpoints don't tell; use 'branch', 'run' or 'thread'"
        raise InvalidBudget(msg)


@dataclass(frozen=True, slots=True)
class _Line:
    """How a line of checkpoints stands with one budget.

    Attributes:
        stopped: Whether it would have been stopped.
        counted: What a budget for one node has counted on it; per run, since the run began.
    """

    stopped: bool = False
    counted: Spend = ZERO


class _Test:
    """One budget, tried on one thread after another."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._limits = {m: limit - budget.kept.get(m, 0) for m, limit in budget.limits.items()}
        self._trips: list[PastTrip] = []
        self._threads = 0
        self._stopped: list[str] = []
        self._spent = self._saved = ZERO
        self._missed: Counter[str] = Counter()
        self._real: dict[str, _Line] = {}

    def outcome(self) -> Outcome:
        return Outcome(
            budget=self._budget,
            trips=tuple(self._trips),
            threads=self._threads,
            stopped=tuple(self._stopped),
            spent=self._spent,
            saved=self._saved,
            missed=dict(self._missed.most_common()),
        )

    def add(self, thread: str, made: Sequence[Move], models: frozenset[str]) -> None:
        """Go through a thread, oldest superstep first."""
        before = len(self._trips)
        self._threads += 1
        self._real = {}
        lines: dict[str, _Line] = {}
        for move in made:
            line = lines.get(move.origin.checkpoint, _Line()) if move.origin is not None else _Line()
            if self._budget.per == "run" and move.step.source == "input":
                line = _Line()
            line = self._after(line, move, models)
            if move.ended:
                lines[move.step.checkpoint] = line
        if len(self._trips) > before:
            self._stopped.append(thread)

    def _after(self, line: _Line, move: Move, models: frozenset[str]) -> _Line:
        """How the line stands after a superstep."""
        place = self._window(move.step)
        if place is not None:
            line = self._real.get(place, _Line())
        if line.stopped and move.ended:
            self._missed.update(node for node in move.step.nodes if not is_gate(node))
        for attempt in move.attempts:
            self._spent += attempt.spent
            if line.stopped:
                self._saved += attempt.spent
                continue
            nodes = [node for node in attempt.nodes if node in models] or list(attempt.nodes)
            if nodes and not any(self._budget.covers(node=node, model=None) for node in nodes):
                continue
            found = self._breach(self._before(line, move, attempt), attempt)
            if found is not None:
                metric, spent, needed, made = found
                self._trips.append(self._trip(move, attempt, nodes, metric, spent=spent, needed=needed))
                self._saved += attempt.spent + -made
                self._missed.update(nodes if made == ZERO else ())
            line = _Line(found is not None, line.counted + attempt.spent)
        if place is not None:
            self._real[place] = line
        return line

    def _window(self, step: Step) -> str | None:
        """The window of a budget that counts real money; None for others."""
        if self._budget.per != "thread":
            return None
        every = self._budget.every
        return "" if every is None else window_of(every, datetime.fromisoformat(step.time).timestamp())

    def _before(self, line: _Line, move: Move, attempt: Attempt) -> Spend:
        """What counted against the budget before an attempt."""
        if self._budget.narrowed or self._budget.per == "thread":
            return line.counted
        if move.origin is None:
            return attempt.before
        return (move.origin.run_spend if self._budget.per == "run" else move.origin.spend) + attempt.before

    def _breach(self, before: Spend, attempt: Attempt) -> tuple[str, int, int, Spend] | None:
        """What would have run out: the metric, spent and needed then, and what would still have been spent."""
        for metric, limit in self._limits.items():
            spent = before.amount(metric)
            if spent + _SMALLEST.amount(metric) > limit:
                return metric, spent, 0, ZERO
            if attempt.spent == ZERO and spent + attempt.needed.amount(metric) > limit:
                return metric, spent, attempt.needed.amount(metric), ZERO
        for metric, limit in self._limits.items():
            spent, used = before.amount(metric), attempt.spent.amount(metric)
            if spent + used > limit:
                if attempt.spent.calls <= 1:
                    return metric, spent, used, ZERO
                made = _share(attempt.spent, limit - spent, used)
                return metric, spent + made.amount(metric), used - made.amount(metric), made
        return None

    def _trip(
        self, move: Move, attempt: Attempt, nodes: Sequence[str], metric: str, *, spent: int, needed: int
    ) -> PastTrip:
        others = " or ".join(repr(node) for node in nodes[1:])
        return PastTrip(
            budget=self._budget.key,
            metric=metric,
            limit=self._limits[metric],
            spent=spent,
            needed=needed,
            node=nodes[0] if nodes else None,
            note=f"or at {others}, which ran beside it" if others else "",
            mode="backtest",
            run=move.step.run,
            at=attempt.at,
            thread=move.step.thread,
            ns=attempt.ns,
            root=move.origin.checkpoint if move.origin is not None else None,
            kept=move.origin is not None,
            step=attempt.step,
            time=attempt.time,
        )


def _share(spent: Spend, part: int, whole: int) -> Spend:
    """As much of an amount as fits, when `part` of `whole` does."""
    return Spend(
        nanousd=spent.nanousd * part // whole,
        input_tokens=spent.input_tokens * part // whole,
        output_tokens=spent.output_tokens * part // whole,
        calls=spent.calls * part // whole,
    )
