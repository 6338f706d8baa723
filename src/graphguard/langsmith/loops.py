"""The score-gated loop, ready-made: as a function, sync and async, and as an evaluator-optimizer graph."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from graphguard.errors import BudgetExceeded
from graphguard.langsmith.iterations import IterationState, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from graphguard.langsmith.feedback import FeedbackLoopGuard, LoopBlock

__all__ = ["LoopResult", "LoopState", "ascore_loop", "score_graph", "score_loop"]

_T = TypeVar("_T")
Score: TypeAlias = "float | tuple[float | None, str] | None"
"""What an evaluator gives: a score, or a score with the critique that the next attempt gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult(Generic[_T]):
    """How a loop ended.

    Attributes:
        output: The output with the best score; None when no attempt ended.
        score: Its score; None when it couldn't be scored.
        reason: Why the loop ended.
        kind: The same as one word, see `Verdict`.
        iterations: Attempts that were scored.
        state: How far the loop came.
    """

    output: _T | None
    score: float | None
    reason: str
    kind: str
    iterations: int
    state: IterationState


class LoopState(TypedDict, total=False):
    """The state of `score_graph`.

    `task` goes in; `output`, `score`, `reason` and `kind` come out, and mean what `LoopResult` says. `candidate`,
    `critique` and `loop` are the loop's own, `loop` being `IterationState.to_json()`.
    """

    task: str
    output: object
    score: float | None
    reason: str
    kind: str
    candidate: object
    critique: str
    loop: dict[str, object]


def score_loop(
    guard: FeedbackLoopGuard,
    attempt: Callable[[str, str], _T],
    evaluate: Callable[[_T, str], Score],
    task: str,
    *,
    score_threshold: float,
) -> LoopResult[_T]:
    """Attempt a task until its score is good enough or the guard ends the loop; the best output, never the latest.

    Args:
        guard: The ceilings.
        attempt: `(task, critique)` to an output; the critique is empty at first.
        evaluate: `(output, task)` to a score, or to `(score, critique)`.
        task: The task.
        score_threshold: From which score on it is good enough.

    >>> from graphguard.langsmith import FeedbackLoopGuard
    >>> scores = iter([0.6, 0.5, 0.4])
    >>> score_loop(FeedbackLoopGuard(), lambda task, critique: task, lambda output, task: next(scores), "t",
    ...            score_threshold=0.9).kind
    'plateau'
    """
    state, best, critique = guard.begin(), None, ""
    while True:
        block: LoopBlock | None = None
        try:
            block = guard.attempt(state)
            with block:
                output = attempt(task, critique)
                score, critique = _read(evaluate(output, task))
        except BudgetExceeded as error:
            return _result(state, best, _refused(guard, state, block, error))
        verdict = guard.should_retry(state, score, score_threshold)
        best = output if state.best in (state.iteration - 1, None) else best
        if not verdict.retry:
            return _result(state, best, verdict)


async def ascore_loop(
    guard: FeedbackLoopGuard,
    attempt: Callable[[str, str], Awaitable[_T]],
    evaluate: Callable[[_T, str], Awaitable[Score]],
    task: str,
    *,
    score_threshold: float,
) -> LoopResult[_T]:
    """The same as `score_loop`, on an event loop."""
    state, best, critique = guard.begin(), None, ""
    while True:
        block: LoopBlock | None = None
        try:
            block = guard.attempt(state)
            async with block:
                output = await attempt(task, critique)
                score, critique = _read(await evaluate(output, task))
        except BudgetExceeded as error:
            return _result(state, best, _refused(guard, state, block, error))
        verdict = guard.should_retry(state, score, score_threshold)
        best = output if state.best in (state.iteration - 1, None) else best
        if not verdict.retry:
            return _result(state, best, verdict)


def _read(given: Score) -> tuple[float | None, str]:
    score, critique = given if isinstance(given, tuple) else (given, "")
    shown = "could not be scored" if score is None else f"scored {score:.2f}"
    return score, critique or f"The previous attempt {shown}. Improve on it."


def _refused(
    guard: FeedbackLoopGuard, state: IterationState, block: LoopBlock | None, error: BudgetExceeded
) -> Verdict:
    """The verdict on a loop whose attempt, or a model call in it, was refused by its own guard."""
    if block is not None and error.trip is not block.refusal:  # somebody else's budget
        raise error
    return guard.stopped(state, error)


def _result(state: IterationState, best: _T | None, verdict: Verdict) -> LoopResult[_T]:
    score = None if state.best is None else state.scores[state.best]
    return LoopResult(
        output=best,
        score=score,
        reason=verdict.reason,
        kind=verdict.kind,
        iterations=state.iteration,
        state=state,
    )


def score_graph(
    guard: FeedbackLoopGuard,
    attempt: Callable[[str, str], object],
    evaluate: Callable[[object, str], object],
    *,
    score_threshold: float,
) -> StateGraph[LoopState]:
    """The same loop as a graph with the nodes `attempt` and `evaluate`, to be compiled with any checkpointer.

    How far it has come is in the state, so a run that was interrupted or killed goes on where it was.

    Args:
        guard: The ceilings.
        attempt: As in `score_loop`; an async function makes an async node.
        evaluate: As in `score_loop`; likewise.
        score_threshold: From which score on it is good enough.

    ```python
    from graphguard.langsmith import FeedbackLoopGuard, score_graph

    loop = score_graph(
        FeedbackLoopGuard(), lambda task, critique: f"{task}!", lambda output, task: 0.9, score_threshold=0.8
    )
    assert loop.compile().invoke({"task": "greet"})["output"] == "greet!"
    ```
    """
    loop = _Loop(guard, score_threshold)

    def attempt_node(state: LoopState) -> LoopState:
        run, block = loop.begun(state), None
        try:
            block = guard.attempt(run)
            with block:
                output = attempt(state["task"], loop.critique(state))
        except BudgetExceeded as error:
            return loop.refused(run, block, error)
        return loop.attempted(state, run, output)

    async def aattempt_node(state: LoopState) -> LoopState:
        run, block = loop.begun(state), None
        try:
            block = guard.attempt(run)
            async with block:
                output = await cast("Awaitable[object]", attempt(state["task"], loop.critique(state)))
        except BudgetExceeded as error:
            return loop.refused(run, block, error)
        return loop.attempted(state, run, output)

    def evaluate_node(state: LoopState) -> LoopState:
        run = IterationState.of(state["loop"])
        block = guard.metered(run)
        try:
            with block:
                given = evaluate(state["candidate"], state["task"])
        except BudgetExceeded as error:
            return loop.refused(run, block, error)
        return loop.evaluated(state, run, given)

    async def aevaluate_node(state: LoopState) -> LoopState:
        run = IterationState.of(state["loop"])
        block = guard.metered(run)
        try:
            async with block:
                given = await cast("Awaitable[object]", evaluate(state["candidate"], state["task"]))
        except BudgetExceeded as error:
            return loop.refused(run, block, error)
        return loop.evaluated(state, run, given)

    graph = StateGraph(LoopState)
    graph.add_node("attempt", aattempt_node if inspect.iscoroutinefunction(attempt) else attempt_node)
    graph.add_node("evaluate", aevaluate_node if inspect.iscoroutinefunction(evaluate) else evaluate_node)
    graph.add_edge(START, "attempt")
    graph.add_conditional_edges("attempt", lambda state: END if state.get("kind") else "evaluate", ["evaluate", END])
    graph.add_conditional_edges("evaluate", lambda state: END if state.get("kind") else "attempt", ["attempt", END])
    return graph


@dataclass(frozen=True, slots=True)
class _Loop:
    """What the nodes of one graph say about the states of their loops."""

    guard: FeedbackLoopGuard
    score_threshold: float

    @staticmethod
    def _is_new(state: LoopState) -> bool:
        # With a kind, an earlier task of the thread is over, and this is another one.
        return "loop" not in state or bool(state.get("kind"))

    def begun(self, state: LoopState) -> IterationState:
        return self.guard.begin() if self._is_new(state) else IterationState.of(state["loop"])

    def critique(self, state: LoopState) -> str:
        return "" if self._is_new(state) else state.get("critique", "")

    def attempted(self, state: LoopState, run: IterationState, output: object) -> LoopState:
        update: LoopState = {"candidate": output, "loop": run.to_json()}
        if self._is_new(state):
            update |= {"kind": "", "reason": "", "output": None, "score": None}
        return update

    def refused(self, run: IterationState, block: LoopBlock | None, error: BudgetExceeded) -> LoopState:
        verdict = _refused(self.guard, run, block, error)
        return {"reason": verdict.reason, "kind": verdict.kind, "loop": run.to_json()}

    def evaluated(self, state: LoopState, run: IterationState, given: object) -> LoopState:
        score, critique = _read(cast("Score", given))
        verdict = self.guard.should_retry(run, score, self.score_threshold)
        update: LoopState = {"critique": critique, "loop": run.to_json()}
        if not verdict.retry:
            update |= {"kind": verdict.kind, "reason": verdict.reason}
        if run.best in (run.iteration - 1, None):
            update |= {"output": state["candidate"], "score": score}
        return update
