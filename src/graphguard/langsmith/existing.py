"""Evaluators over experiments that have run already, and comparisons of two: only the judges are paid."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import langsmith
from langsmith.schemas import TracerSession

from graphguard.errors import BudgetExceeded
from graphguard.langsmith.experiments import named
from graphguard.langsmith.results import EvalResults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langsmith import Client

    from graphguard.langsmith.asked import Asked
    from graphguard.langsmith.spec import Need
    from graphguard.langsmith.tally import Tally

__all__ = ["ajudge", "judge"]


def judge(target: object, asked: Asked) -> EvalResults:
    """Judge one experiment, or compare two.

    Raises:
        EvalBudgetError: More than the ceilings; what ran already can't be sampled.
    """
    rows, need = _estimate(target, asked)
    with asked.tally(judges_only=True) as tally:
        ran = _run(target, asked)
        return _results(asked, tally, ran, _rows_of(ran), (rows, need))


async def ajudge(target: object, asked: Asked) -> EvalResults:
    """The same on an event loop; comparisons run in a thread beside it."""
    rows, need = await asyncio.to_thread(_estimate, target, asked)
    async with asked.tally(judges_only=True) as tally:
        if isinstance(target, (list, tuple)):
            ran: Any = await asyncio.to_thread(_run, target, asked)
            return _results(asked, tally, ran, _rows_of(ran), (rows, need))
        ran = await langsmith.aevaluate(
            cast("Any", target),
            evaluators=asked.evaluators,
            max_concurrency=asked.concurrency,
            client=asked.client,
            **asked.options,
        )
        return _results(asked, tally, ran, [row async for row in ran], (rows, need))


def _estimate(target: object, asked: Asked) -> tuple[int, Need]:
    pair = target if isinstance(target, (list, tuple)) else (target,)
    rows = min(_rows(asked.client, one) for one in pair)
    spec = replace(asked.spec, target_calls_per_example=0.0, num_repetitions=1)
    need = spec.for_examples(rows, len(asked.evaluators)).per_example().times(rows)
    asked.tell(f"rows={rows}, evaluators only: estimated calls={need.calls:.0f} estimated cost=${need.usd:.4f}")
    if need.fits_into(asked.ceilings) == 0:
        raise asked.too_much("judging exceeds the ceilings; raise them, or judge with a cheaper model", need)
    return rows, need


def _run(target: object, asked: Asked) -> object:
    """Let the evaluators run; None when the ceiling ended a comparison, which keeps only what it wrote to LangSmith."""
    try:
        return langsmith.evaluate(
            cast("Any", target),
            evaluators=asked.evaluators,
            max_concurrency=asked.concurrency,
            client=asked.client,
            **asked.options,
        )
    except BudgetExceeded:
        return None


def _rows_of(ran: object) -> list[Any]:
    return [] if ran is None else list(cast("Any", ran))


def _rows(client: Client, experiment: object) -> int:
    name = experiment.id if isinstance(experiment, TracerSession) else cast("str", experiment)
    return cast("Any", client.read_project(**named(name), include_stats=True)).run_count or 0


def _results(asked: Asked, tally: Tally, ran: Any, found: Sequence[Any], planned: tuple[int, Need]) -> EvalResults:  # noqa: ANN401 - one of three of the SDK's classes
    rows, need = planned
    results = EvalResults(
        rows=tuple(found),
        estimate=need,
        spent=tally.spend,
        spent_by_targets=tally.spend_of("target"),
        spent_by_evaluators=tally.spend_of("evaluator"),
        examples=rows,
        sampled=rows,
        available=rows,
        stopped=tally.stopped,
        experiment_name=getattr(ran, "experiment_name", None),
        experiment_id=getattr(ran, "experiment_id", None),
        url=getattr(ran, "url", None),
        target_model=tally.model_of("target"),
        judge_model=tally.model_of("evaluator"),
        parts=(ran,),
    )
    asked.tell(results.report())
    return results
