"""`FeedbackLoopGuard`: ceilings on loops that try again until a score is good enough."""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from langsmith import Client

from graphguard.budget import Breach, Budget
from graphguard.errors import BudgetExceeded
from graphguard.langsmith.iterations import Ceilings, IterationState, Verdict
from graphguard.langsmith.metered import Metered
from graphguard.langsmith.roots import LiveRoots
from graphguard.spend import to_usd
from graphguard.traced import mark
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from graphguard.budget import Call, Policy
    from graphguard.langsmith.metered import MeteredBlock
    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook
    from graphguard.spend import Spend

__all__ = ["FEEDBACK_KEY", "FeedbackLoopGuard", "LoopBlock"]

FEEDBACK_KEY: Final = "runguard_feedback_loop_trip"
"""Key of the feedback that a tripped loop leaves in LangSmith, where that is asked for."""

logger = logging.getLogger("graphguard.langsmith")
_PLACE: Final = "loop"


class FeedbackLoopGuard:
    """Ends a score-gated loop on success, without improvement, or at a ceiling, and begins no attempt too many.

    Model calls are counted by the meter, in the blocks of `attempt(state)`; a call beyond a ceiling is refused in the
    middle of an attempt, before it is billed.

    Args:
        client: The LangSmith client that feedback is sent with; None makes one when it is needed.
        max_iterations: Attempts.
        max_total_calls: Model calls, those of the evaluator included.
        max_elapsed_seconds: Seconds from the loop's beginning, restarts of the process included. No model call begins
            after them.
        plateau_threshold: How much better counts as better: at least the noise of the evaluator's scores.
        plateau_window: Over how many attempts, at least 2, the best score must rise by that.
        regression_threshold: How far two scores in a row may lie below the best one; None doesn't look.
        max_usd: What the model calls may cost; None doesn't count.
        ledger: Where money is held; None is the `MemoryLedger` that all guards of the process share.
        prices: A price book; None is the bundled one.
        feedback: Whether a trip is also left as feedback on the root run. Metadata is always there; feedback costs a
            request, which is made once, in a thread that nobody waits for, without a longer retention of the trace.
        clock: What tells the seconds since the epoch.

    ```python
    from graphguard.langsmith import FeedbackLoopGuard

    loop = FeedbackLoopGuard(max_iterations=5)
    state = loop.begin()
    for score in (0.3, 0.5, 0.9):
        with loop.attempt(state):
            ...  # the agent runs, and is evaluated
        retry, reason = loop.should_retry(state, score, 0.75)
    assert reason == "score 0.90 >= threshold 0.75"
    ```
    """

    def __init__(
        self,
        client: Client | None = None,
        max_iterations: int = 5,
        max_total_calls: int = 30,
        max_elapsed_seconds: float = 120.0,
        plateau_threshold: float = 0.02,
        *,
        plateau_window: int = 3,
        regression_threshold: float | None = 0.1,
        max_usd: str | float | Decimal | None = None,
        ledger: Ledger | None = None,
        prices: PriceBook | None = None,
        feedback: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Check the ceilings."""
        self.ceilings = Ceilings(
            iterations=max_iterations,
            calls=max_total_calls,
            seconds=max_elapsed_seconds,
            nanousd=None if max_usd is None else Budget(usd=max_usd).limits["usd"],
            improvement=plateau_threshold,
            window=plateau_window,
            regression=regression_threshold,
        )
        self.feedback_failures = 0
        self._client = client
        self._ledger = ledger
        self._prices = prices
        self._feedback = feedback
        self._clock = clock
        self._roots = LiveRoots()
        self._lock = threading.Lock()

    def begin(self) -> IterationState:
        """The state of a new loop, in the LangSmith trace that this code runs in."""
        run = self._roots.note()
        return IterationState(root_run_id=None if run is None else str(run.trace_id), started=self._clock())

    def attempt(self, state: IterationState) -> LoopBlock:
        """One more attempt, with its evaluation: a block, for `with` or `async with`, in which models are metered.

        Raises:
            BudgetExceeded: The loop has ended. Inside the block, a model call beyond a ceiling raises the same.
        """
        with self._lock:
            reached = self.ceilings.reached(state, state.begun, self._clock())
            if reached is None and state.stopped is None:
                state.begun += 1
                return self.metered(state)
        kind, used, limit = reached or (str(state.stopped), state.iteration, state.iteration)
        raise BudgetExceeded(_trip(kind, used, limit))

    def metered(self, state: IterationState) -> LoopBlock:
        """One more block of the latest attempt, such as an evaluation in a graph node of its own."""
        return LoopBlock(state, self._meter(state))

    def should_retry(self, state: IterationState, score: float | None, score_threshold: float) -> Verdict:
        """Count an attempt by its score, and say whether another one may begin.

        Args:
            state: How far the loop has come; it is changed.
            score: The attempt's score, higher is better; None or NaN where there is none, which is never good enough
                and never an improvement.
            score_threshold: From which score on the loop has succeeded.

        Warns when no block of `attempt(state)` was entered: nobody has counted the model calls then.
        """
        if not state.blocks:
            text = "model calls are counted in blocks of attempt(state) only; without one, their ceilings can't hold"
            warnings.warn(text, stacklevel=2)
        with self._lock:
            state.scores.append(None if score is None or not math.isfinite(score) else float(score))
            state.iteration += 1
            state.begun = max(state.begun, state.iteration)
            verdict = self.ceilings.judge(state, score_threshold, self._clock())
        return self._ended(state, verdict)

    def stopped(self, state: IterationState, refused: BudgetExceeded) -> Verdict:
        """End a loop because a model call in its attempt was refused."""
        return self._ended(state, Verdict(retry=False, reason=refused.trip.reason, kind=refused.trip.metric))

    def _ended(self, state: IterationState, verdict: Verdict) -> Verdict:
        state.stopped = None if verdict.retry else verdict.kind
        if not verdict.retry and verdict.kind != "success":
            self._tell(state, verdict)
        return verdict

    def _meter(self, state: IterationState) -> Metered:
        """Budgets of what the ceilings leave, on an account of this block alone.

        Run again after a crash, the block has the same account, and so finds what was spent in it.
        """
        state.blocks += 1
        ceilings = self.ceilings
        left = ceilings.calls - state.total_llm_calls
        budgets: list[Budget | Policy] = [self._policy(state)]
        if left > 0:
            budgets.append(Budget(calls=left, per=_PLACE, warn_at=()))
        if ceilings.nanousd is not None and state.nanousd < ceilings.nanousd:
            budgets.append(Budget(usd=to_usd(ceilings.nanousd - state.nanousd), per=_PLACE, warn_at=()))
        keys = {_PLACE: f"{state.id}-{state.blocks}"}
        return Metered(budgets, ledger=self._ledger, prices=self._prices, keys=keys)

    def _policy(self, state: IterationState) -> Policy:
        """A policy that lets no model call begin at a ceiling: one that a budget can't express."""
        used_before = replace(state, scores=[])

        def feedback_loop(spend: Spend, call: Call) -> Breach | None:  # noqa: ARG001 - a policy's signature
            reached = self.ceilings.reached(used_before, 0, self._clock())
            if reached is None:
                return None
            kind, used, limit = reached
            note = f"{limit:g} {kind} are used up"
            return Breach(budget="feedback_loop", metric=kind, limit=int(limit), spent=int(used), note=note)

        return feedback_loop

    def _tell(self, state: IterationState, verdict: Verdict) -> None:
        """Say on the live runs of the trace, and where asked for as feedback, why the loop was ended."""
        logger.warning("feedback loop ended: %s", verdict.reason)
        self._roots.note()
        told = {
            "runguard_trip": f"feedback_loop: {verdict.reason}",
            "runguard_kind": verdict.kind,
            "runguard_iterations": state.iteration,
            "runguard_calls": state.total_llm_calls,
            "runguard_spent": str(state.usd),
            "runguard_scores": list(state.scores),
        }
        runs = self._roots.around()
        mark(runs, told)
        if self._feedback and state.root_run_id is not None:
            project = next((str(run.session_name) for run in runs), "default")
            arguments = (state.root_run_id, project, told)
            threading.Thread(target=self._send, args=arguments, name="graphguard-feedback", daemon=True).start()

    def _send(self, root: str, project: str, told: dict[str, object]) -> None:
        try:
            client = self._client or Client()
            client.flush()  # a new project is known to the server with its first run
            client.create_feedback(
                run_id=root,
                trace_id=root,
                session_id=client.read_project(project_name=project).id,
                key=FEEDBACK_KEY,
                value=str(told["runguard_kind"]),
                comment=str(told["runguard_trip"]),
                stop_after_attempt=1,
                extend_trace_retention=False,
            )
        except Exception:  # noqa: BLE001 - the SDK's own and requests' errors; feedback is worth no failure
            self.feedback_failures += 1
            logger.warning("feedback of a tripped loop could not be sent")


class LoopBlock:
    """A block of an attempt, in which model calls are held, settled and counted in the loop's state."""

    __slots__ = ("_block", "_metered", "_state")

    def __init__(self, state: IterationState, metered: Metered) -> None:
        """Prepare the block."""
        self._state = state
        self._metered = metered
        self._block: MeteredBlock = metered.block("attempt")

    @property
    def refusal(self) -> Trip | None:
        """The trip of the latest model call that was refused in the block."""
        return self._block.refusal

    def __enter__(self) -> Self:
        """Meter from here on."""
        self._block.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Meter no more, and count."""
        self._block.__exit__()
        self._count(self._metered.spend)

    async def __aenter__(self) -> Self:
        """The same on an event loop."""
        await self._block.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """The same on an event loop."""
        await self._block.__aexit__()
        self._count(await self._metered.aspend())

    def _count(self, spend: Spend) -> None:
        self._state.total_llm_calls += spend.calls
        self._state.nanousd += spend.nanousd


def _trip(kind: str, used: float, limit: float) -> Trip:
    metric = kind if kind in {"calls", "usd", "seconds", "iterations"} else "iterations"
    note = "" if metric == kind else f"the loop ended by {kind}"
    budget = f"feedback loop {kind}"
    return Trip(budget=budget, metric=metric, limit=int(limit), spent=int(used), mode="raise", note=note)
