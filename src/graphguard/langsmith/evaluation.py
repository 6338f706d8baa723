"""Evaluations that can't cost more than they may: `langsmith.evaluate` with a ceiling, before and during the run."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import langsmith
from langsmith.schemas import TracerSession

from graphguard.langsmith.asked import Asked
from graphguard.langsmith.chunks import Plan
from graphguard.langsmith.existing import ajudge, judge
from graphguard.langsmith.experiments import client_for
from graphguard.langsmith.progress import Progress, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from decimal import Decimal

    from langsmith.schemas import Example

    from graphguard.langsmith.results import EvalResults
    from graphguard.langsmith.spec import EvalSpec
    from graphguard.ledger.protocol import Ledger

__all__ = ["aguarded_evaluate", "guarded_evaluate"]


def guarded_evaluate(
    target: object,
    spec: EvalSpec,
    evaluators: Sequence[Any] = (),
    *,
    max_calls: int | None = 400,
    max_cost_usd: str | float | Decimal | None = 25,
    safe_concurrency: int = 4,
    sample_if_over: bool = True,
    data: object = None,
    seed: int = 0,
    stratify_by: str | Callable[[Example], Hashable] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    ledger: Ledger | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = print,
    **kwargs: Any,  # noqa: ANN401 - what evaluate() takes, whichever release it is
) -> EvalResults:
    """Evaluate a target on as much of a dataset as the ceilings allow, and never spend more than they say.

    What it will take is worked out from the real examples, evaluators and prices, and said before anything
    is spent. If that is too much, a sample is drawn that fits. Targets and evaluators then share one
    account on a ledger: a model call that it has no room for is not sent. So that rows don't fail for that,
    they run in chunks of one experiment, and no row begins that what rows took so far leaves no room for.

    ```python no-run
    spec = EvalSpec("rag-qa", num_repetitions=3, judge_model="gpt-4.1", target_calls_per_example=2.3)
    results = guarded_evaluate(agent, spec, [correct, faithful], max_calls=400, max_cost_usd=20)
    ```

    Args:
        target: A function or runnable, as `langsmith.evaluate` takes it; or an experiment, or a pair of
            them to compare: then only evaluators run.
        spec: What is evaluated, and what a call of it takes.
        evaluators: As `langsmith.evaluate` takes them.
        max_calls: Model calls that may be made, by targets and evaluators together; None is no ceiling.
        max_cost_usd: USD that may be spent; None is no ceiling.
        safe_concurrency: Rows that run at once; 0 is one after the other, in this thread.
        sample_if_over: Draw a sample that fits, rather than refuse what doesn't.
        data: Examples, or what names them, instead of the dataset of `spec`: such as
            `client.list_examples(dataset_name=..., splits=["test"], as_of="v2")`.
        seed: What draws the sample; the same one draws the same.
        stratify_by: Draw from each group its share: `"split"`, a key of the examples' metadata, or a
            function of an example.
        requests_per_minute: How many calls may be sent in a minute, over all rows; None is no limit.
        tokens_per_minute: How many tokens they may take; None is no limit.
        ledger: Where the money is held; None is the one that all guards of the process share.
        progress: Show a bar on a terminal.
        say: Told the estimate, the sample and the result, in words; None is nobody.
        **kwargs: What else `langsmith.evaluate` takes.

    Returns:
        The rows, with the experiment, the estimate and what was spent.

    Raises:
        EvalBudgetError: It doesn't fit, and no sample may be drawn or not even one example fits.
        UnknownPrice: A model of `spec` has no price.
    """
    if _is_async(target):
        raise TypeError("the target is async; use `await aguarded_evaluate(...)`")
    asked = Asked(
        client=client_for(kwargs.pop("client", None), data, uploads=kwargs.get("upload_results", True)),
        spec=spec,
        evaluators=evaluators,
        max_calls=max_calls,
        max_cost_usd=max_cost_usd,
        concurrency=kwargs.pop("max_concurrency", safe_concurrency),
        sample_if_over=sample_if_over,
        data=data,
        seed=seed,
        stratify_by=stratify_by,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        ledger=ledger,
        say=say,
        options=kwargs,
    )
    if _has_run(target):
        return judge(target, asked)
    plan = Plan(asked)
    bar = Progress(plan, shown=progress)
    with plan.tally(bar.spent) as tally:
        with bar:
            while chunk := plan.next_chunk(tally):
                with quiet(announced=plan.announced):
                    ran = langsmith.evaluate(cast("Any", target), data=chunk, evaluators=evaluators, **plan.options)
                bar.ran(plan.took(tally, ran, list(ran)))
        return plan.finish(tally)


async def aguarded_evaluate(
    target: object,
    spec: EvalSpec,
    evaluators: Sequence[Any] = (),
    *,
    max_calls: int | None = 400,
    max_cost_usd: str | float | Decimal | None = 25,
    safe_concurrency: int = 4,
    sample_if_over: bool = True,
    data: object = None,
    seed: int = 0,
    stratify_by: str | Callable[[Example], Hashable] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    ledger: Ledger | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = print,
    **kwargs: Any,  # noqa: ANN401 - what aevaluate() takes, whichever release it is
) -> EvalResults:
    """The same as `guarded_evaluate` for async targets and evaluators, over `langsmith.aevaluate`."""
    if not (_is_async(target) or _has_run(target) or hasattr(target, "ainvoke")):
        raise TypeError("the target is not async; use `guarded_evaluate(...)`")
    if isinstance(data, AsyncIterable):
        data = [example async for example in data]
    asked = Asked(
        client=client_for(kwargs.pop("client", None), data, uploads=kwargs.get("upload_results", True)),
        spec=spec,
        evaluators=evaluators,
        max_calls=max_calls,
        max_cost_usd=max_cost_usd,
        concurrency=kwargs.pop("max_concurrency", safe_concurrency),
        sample_if_over=sample_if_over,
        data=data,
        seed=seed,
        stratify_by=stratify_by,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        ledger=ledger,
        say=say,
        options=kwargs,
    )
    if _has_run(target):
        return await ajudge(target, asked)
    plan = await asyncio.to_thread(Plan, asked)  # datasets are read beside the event loop
    bar = Progress(plan, shown=progress)
    async with plan.tally(bar.spent) as tally:
        with bar:
            while chunk := plan.next_chunk(tally):
                with quiet(announced=plan.announced):
                    ran = await langsmith.aevaluate(
                        cast("Any", target), data=chunk, evaluators=evaluators, **plan.options
                    )
                bar.ran(plan.took(tally, ran, [row async for row in ran]))
        return await asyncio.to_thread(plan.finish, tally)


def _has_run(target: object) -> bool:
    return isinstance(target, (str, UUID, tuple, list, TracerSession))


def _is_async(target: object) -> bool:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004 - an object's own
