"""A few examples, run to learn what an evaluation takes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphguard.langsmith.evaluation import aguarded_evaluate, guarded_evaluate
from graphguard.langsmith.experiments import client_for, examples_of
from graphguard.langsmith.spec import Need, sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from graphguard.langsmith.results import EvalResults
    from graphguard.langsmith.spec import EvalSpec
    from graphguard.spend import Spend

__all__ = ["apilot", "pilot"]


def pilot(
    target: object,
    spec: EvalSpec,
    evaluators: Sequence[Any] = (),
    *,
    examples: int = 5,
    seed: int = 0,
    max_calls: int | None = 200,
    max_cost_usd: str | float | Decimal | None = 5,
    **kwargs: Any,  # noqa: ANN401 - what guarded_evaluate() takes
) -> EvalSpec:
    """The spec with what calls, tokens and money a few examples really took, subagents and retries included.

    Nothing of it is recorded in LangSmith. It has ceilings of its own, and is paid for: evaluate the rest
    with what is left.

    ```python no-run
    spec = pilot(agent, EvalSpec("rag-qa", judge_model="gpt-4.1"), [correct, faithful])
    print(spec.target_calls_per_example, spec.measured)
    ```

    Args:
        target: As for `guarded_evaluate`.
        spec: What is evaluated; its guesses size the pilot.
        evaluators: As for `guarded_evaluate`.
        examples: How many to draw.
        seed: What draws them.
        max_calls: Model calls that the pilot may make; None is no ceiling.
        max_cost_usd: USD that it may spend; None is no ceiling.
        **kwargs: What else `guarded_evaluate` takes.

    Raises:
        EvalBudgetError: Not even one example fits the pilot's ceilings.
        RuntimeError: No example was run to its end.
    """
    data = _drawn(spec, examples, seed, kwargs)
    once = replace(spec, num_repetitions=1, num_examples=None, measured=None)
    ceilings: dict[str, Any] = {"max_calls": max_calls, "max_cost_usd": max_cost_usd}
    fixed: dict[str, Any] = {"data": data, "seed": seed, "upload_results": False, "say": None}
    results = guarded_evaluate(target, once, evaluators, **ceilings, **{**kwargs, **fixed})
    return _measured(spec, results, len(evaluators))


async def apilot(
    target: object,
    spec: EvalSpec,
    evaluators: Sequence[Any] = (),
    *,
    examples: int = 5,
    seed: int = 0,
    max_calls: int | None = 200,
    max_cost_usd: str | float | Decimal | None = 5,
    **kwargs: Any,  # noqa: ANN401 - what aguarded_evaluate() takes
) -> EvalSpec:
    """The same as `pilot` for async targets and evaluators."""
    data = await asyncio.to_thread(_drawn, spec, examples, seed, kwargs)
    once = replace(spec, num_repetitions=1, num_examples=None, measured=None)
    ceilings: dict[str, Any] = {"max_calls": max_calls, "max_cost_usd": max_cost_usd}
    fixed: dict[str, Any] = {"data": data, "seed": seed, "upload_results": False, "say": None}
    results = await aguarded_evaluate(target, once, evaluators, **ceilings, **{**kwargs, **fixed})
    return _measured(spec, results, len(evaluators))


def _drawn(spec: EvalSpec, count: int, seed: int, kwargs: dict[str, Any]) -> list[Any]:
    data = kwargs.pop("data", None)
    client = client_for(kwargs.get("client"), data, uploads=False)
    found = list(examples_of(client, spec.dataset_name if data is None else data))
    return sample(found, count, seed=seed, key=lambda example: str(example.id))


def _measured(spec: EvalSpec, results: EvalResults, evaluators: int) -> EvalSpec:
    rows = sum(not row["run"].error for row in results)
    if not rows:
        raise RuntimeError(f"the pilot ran no example to its end, so it measured nothing: {results.stopped or results}")
    target, judge, whole = results.spent_by_targets, results.spent_by_evaluators, results.spent
    judges = spec.num_evaluators if spec.num_evaluators is not None else evaluators
    target_in, target_out = _tokens(target, spec.target_input_tokens, spec.target_output_tokens)
    judge_in, judge_out = _tokens(judge, spec.judge_input_tokens, spec.judge_output_tokens)
    return replace(
        spec,
        target_model=results.target_model or spec.target_model,
        judge_model=results.judge_model or spec.judge_model,
        target_calls_per_example=target.calls / rows,
        target_input_tokens=target_in,
        target_output_tokens=target_out,
        judge_calls_per_example=judge.calls / rows / judges if judges else 0.0,
        judge_input_tokens=judge_in,
        judge_output_tokens=judge_out,
        retries=0.0,
        measured=Need(whole.calls / rows, whole.nanousd / rows),
    )


def _tokens(spent: Spend, input_tokens: float, output_tokens: float) -> tuple[float, float]:
    """Tokens of a call in the mean; as guessed where there was none."""
    if not spent.calls:
        return input_tokens, output_tokens
    return spent.input_tokens / spent.calls, spent.output_tokens / spent.calls
