"""Summary evaluators over all rows of a guarded evaluation, which ran in chunks."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, cast

from langsmith.evaluation import EvaluationResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from langsmith import Client

__all__ = ["summarise"]

logger = logging.getLogger("graphguard.langsmith")


def summarise(
    evaluators: Sequence[object], rows: Sequence[Mapping[str, Any]], client: Client, experiment: UUID | None
) -> list[EvaluationResult]:
    """What each summary evaluator says of all rows, written to the experiment if there is one.

    They take what those of `langsmith.evaluate` take: `runs`, `examples`, `inputs`, `outputs`,
    `reference_outputs`, by name, or runs and examples by position. One that fails is logged, as there.
    """
    found: list[EvaluationResult] = []
    for evaluator in evaluators:
        function = cast("Callable[..., object]", evaluator)
        name = getattr(function, "__name__", type(function).__name__)
        try:
            found += _results(function(**_arguments(function, rows)), name)
        except Exception:
            logger.exception("summary evaluator %r failed", name)
    for result in found if experiment is not None else ():
        client.create_feedback(
            run_id=None,
            key=result.key,
            score=result.score,
            value=result.value,
            comment=result.comment,
            project_id=experiment,
        )
    return found


def _arguments(function: Callable[..., object], rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    runs, examples = [row["run"] for row in rows], [row["example"] for row in rows]
    known: dict[str, object] = {
        "runs": runs,
        "examples": examples,
        "inputs": [example.inputs for example in examples],
        "outputs": [run.outputs for run in runs],
        "reference_outputs": [example.outputs for example in examples],
    }
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if set(names) <= set(known):
        return {name: known[name] for name in names}
    return dict(zip(names, (runs, examples), strict=False))


def _results(said: object, name: str) -> Iterator[EvaluationResult]:
    if isinstance(said, EvaluationResult):
        yield said
    elif isinstance(said, dict) and "results" in said:
        for one in said["results"]:
            yield from _results(one, name)
    elif isinstance(said, dict):
        yield EvaluationResult(**{"key": name, **said})
    else:
        yield EvaluationResult(key=name, score=cast("Any", said))
