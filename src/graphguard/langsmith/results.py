"""What a guarded evaluation gave, and what it took."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from graphguard.budget import amount_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from uuid import UUID

    from langsmith.evaluation import EvaluationResult

    from graphguard.langsmith.spec import Need
    from graphguard.spend import Spend

__all__ = ["EvalResults"]


@dataclass(frozen=True)
class EvalResults:
    """What a guarded evaluation gave, and what it took.

    Attributes:
        rows: A dict for each example and repetition, as `langsmith.evaluate` gives them: `run`, `example`,
            `evaluation_results`.
        estimate: What it was going to take, for the examples that were chosen.
        spent: What it took.
        spent_by_targets: The targets' part of it.
        spent_by_evaluators: The evaluators' part of it.
        examples: How many examples ran.
        sampled: How many were chosen.
        available: How many there are.
        seed: What drew the sample; None if nothing was drawn.
        stopped: Why it ended before all that were chosen ran; None if it did not.
        summary: What the summary evaluators gave.
        experiment_name: The experiment's name; None if nothing was uploaded.
        experiment_id: The experiment's id, likewise.
        url: Where to look at it, likewise.
        target_model: The model that targets called most.
        judge_model: The model that evaluators called most.
        parts: What `langsmith.evaluate` returned for each chunk.
    """

    rows: tuple[Mapping[str, Any], ...]
    estimate: Need
    spent: Spend
    spent_by_targets: Spend
    spent_by_evaluators: Spend
    examples: int
    sampled: int
    available: int
    seed: int | None = None
    stopped: str | None = None
    summary: tuple[EvaluationResult, ...] = ()
    experiment_name: str | None = None
    experiment_id: UUID | None = None
    url: str | None = None
    target_model: str | None = None
    judge_model: str | None = None
    parts: tuple[object, ...] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def to_pandas(self) -> object:
        """All rows as one pandas `DataFrame`; pandas must be installed."""
        pandas = importlib.import_module("pandas")
        return pandas.concat([cast("Any", part).to_pandas() for part in self.parts], ignore_index=True)

    def report(self) -> str:
        """Estimate against actual, in words."""
        spent, estimate = self.spent, self.estimate
        ran = f"ran {self.examples} of {self.sampled} examples, {len(self.rows)} rows"
        calls = f"{spent.calls} calls (estimated {estimate.calls:.0f})"
        usd = f"{amount_text('usd', spent.nanousd)} (estimated {amount_text('usd', round(estimate.nanousd))})"
        lines = [f"{ran}: {calls}, {usd}"]
        for name, part in (("target", self.spent_by_targets), ("evaluators", self.spent_by_evaluators)):
            lines.append(f"  {name}: {part.calls} calls, {amount_text('usd', part.nanousd)}")
        if self.stopped is not None:
            lines.append(f"  stopped: {self.stopped}")
        if spent.unpriced:
            lines.append(f"  {spent.unpriced} calls have no known price; add it to the spec's prices")
        return "\n".join(lines)
