"""How far a score-gated loop has come, and whether another attempt is worth it. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from graphguard.errors import InvalidBudget
from graphguard.ids import new_id
from graphguard.spend import to_usd, usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from decimal import Decimal

__all__ = ["Ceilings", "IterationState", "Verdict"]

_TWO_IN_A_ROW: Final = 2


@dataclass(slots=True, kw_only=True)
class IterationState:
    """How far one loop has come. Its JSON form can be kept anywhere, a LangGraph state too, and be resumed.

    Attributes:
        root_run_id: LangSmith's id of the root run; None where nothing is traced.
        iteration: Attempts that were scored.
        begun: Attempts that were begun.
        total_llm_calls: Model calls, as the meter counted them.
        nanousd: What they cost, in nano-USD.
        scores: The scores, oldest first; None for an attempt that couldn't be scored.
        started: When the loop began, in seconds since the epoch.
        stopped: The kind of verdict that ended the loop; None while it may go on.
        id: The loop's id, which names its accounts in the ledger.
        blocks: Metered blocks begun.
    """

    root_run_id: str | None = None
    iteration: int = 0
    begun: int = 0
    total_llm_calls: int = 0
    nanousd: int = 0
    scores: list[float | None] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    stopped: str | None = None
    id: str = field(default_factory=new_id)
    blocks: int = 0

    @property
    def usd(self) -> Decimal:
        """What the loop's model calls have cost, in USD."""
        return to_usd(self.nanousd)

    @property
    def best(self) -> int | None:
        """Which attempt has the best score, from 0; the earliest of equals; None before there is one."""
        known = [(score, -at) for at, score in enumerate(self.scores) if score is not None]
        return -max(known)[1] if known else None

    def to_json(self) -> dict[str, object]:
        """The state as plain JSON types.

        >>> state = IterationState(scores=[0.5, None])
        >>> IterationState.of(state.to_json()) == state
        True
        """
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"scores": list(self.scores)}

    @classmethod
    def of(cls, data: object) -> IterationState:
        """The state that `to_json` wrote, or that of a new loop."""
        known = data if isinstance(data, Mapping) else {}
        state = cls(**{one.name: known[one.name] for one in fields(cls) if one.name in known})
        state.scores = list(state.scores)
        return state


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a loop may try again, and why; unpacks as `(retry, reason)`.

    Attributes:
        retry: Whether it may.
        reason: A sentence with both numbers.
        kind: `"retry"`, `"success"`, `"iterations"`, `"calls"`, `"usd"`, `"seconds"`, `"regression"` or `"plateau"`.
    """

    retry: bool
    reason: str
    kind: str

    def __iter__(self) -> Iterator[bool | str]:
        """Whether it may, then why."""
        return iter((self.retry, self.reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a loop may use, and what its scores must do. See `FeedbackLoopGuard` for each."""

    iterations: int
    calls: int
    seconds: float
    nanousd: int | None
    improvement: float
    window: int
    regression: float | None

    def __post_init__(self) -> None:
        """Raise `InvalidBudget` for what can't be kept."""
        counts = {"max_iterations": (self.iterations, 1), "max_total_calls": (self.calls, 1)}
        for name, (count, least) in {**counts, "plateau_window": (self.window, 2)}.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                msg = f"{name} must be a whole number of at least {least}, got {count!r}"
                raise InvalidBudget(msg)
        if not self.seconds > 0:
            msg = f"max_elapsed_seconds must be above 0, got {self.seconds!r}"
            raise InvalidBudget(msg)

    def judge(self, state: IterationState, threshold: float, now: float) -> Verdict:
        """The verdict on a loop whose latest score is in its state.

        Success comes first, then the ceilings, then what the scores do.
        """
        score = state.scores[-1]
        shown = "none" if score is None else f"{score:.2f}"
        if score is not None and score >= threshold:
            return Verdict(retry=False, reason=f"score {shown} >= threshold {threshold:.2f}", kind="success")
        if (reached := self.reached(state, state.iteration, now)) is not None:
            kind, used, limit = reached
            if kind == "usd":
                text = f"${usd_text(int(used))} of ${usd_text(int(limit))} used"
            else:
                text = f"{used:.4g} of {limit:g} {kind} used"
            return Verdict(retry=False, reason=f"{kind} limit: {text}", kind=kind)
        going_on = Verdict(retry=True, reason=f"retry (iteration={state.iteration}, score={shown})", kind="retry")
        return self._regression(state.scores) or self._plateau(state.scores) or going_on

    def reached(self, state: IterationState, attempts: int, now: float) -> tuple[str, float, float] | None:
        """The first ceiling that is reached: its kind, what is used, and the limit; None if there is none."""
        used: list[tuple[str, float, float | None]] = [
            ("iterations", attempts, self.iterations),
            ("calls", state.total_llm_calls, self.calls),
            ("usd", state.nanousd, self.nanousd),
            ("seconds", now - state.started, self.seconds),
        ]
        return next(((kind, had, limit) for kind, had, limit in used if limit is not None and had >= limit), None)

    def _regression(self, scores: Sequence[float | None]) -> Verdict | None:
        known = _known(scores)
        if self.regression is None or len(known) <= _TWO_IN_A_ROW:
            return None
        best = max(known)
        if max(known[-_TWO_IN_A_ROW:]) >= best - self.regression:
            return None
        text = f"regression: the last two scores lie more than {self.regression:g} below the best, {best:.2f}"
        return Verdict(retry=False, reason=text, kind="regression")

    def _plateau(self, scores: Sequence[float | None]) -> Verdict | None:
        known = _known(scores)
        if len(known) < self.window:
            return None
        before = max(known[: len(known) - self.window + 1])
        gain = max(known) - before if max(known) > before else 0.0
        if gain >= self.improvement:
            return None
        text = f"plateau: the best score rose by {gain:.3f} < {self.improvement:g} over the last {self.window} attempts"
        return Verdict(retry=False, reason=text, kind="plateau")


def _known(scores: Sequence[float | None]) -> list[float]:
    return [-math.inf if score is None else score for score in scores]
