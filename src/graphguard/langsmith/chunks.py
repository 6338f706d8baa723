"""The course of a guarded evaluation: estimate, sample, one experiment, and its chunks of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from graphguard.langsmith.experiments import begin, examples_of, note, unrecorded
from graphguard.langsmith.results import EvalResults
from graphguard.langsmith.spec import Need, sample
from graphguard.langsmith.summaries import summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from langsmith.schemas import Example, TracerSession

    from graphguard.langsmith.asked import Asked
    from graphguard.langsmith.tally import Tally
    from graphguard.spend import Spend

__all__ = ["Plan"]

_NOT_ONE: Final = "not even one example fits the ceilings; raise them, or evaluate with a cheaper model"
_TOO_MUCH: Final = "the evaluation exceeds its ceilings; raise them, or pass sample_if_over=True to draw a sample"
_UNLIMITED: Final = 8
"""Rows in the first chunk where concurrency has no limit."""


class Plan:
    """One guarded evaluation from its estimate to its results.

    Attributes:
        chosen: The examples to run.
        chunks: How many chunks have begun.
        options: What `langsmith.evaluate` is given beside target, data and evaluators.
    """

    def __init__(self, asked: Asked) -> None:
        """Read the dataset, say what it will take, draw the sample, and begin the experiment.

        Raises:
            EvalBudgetError: It doesn't fit, and nothing may be drawn or not even one example fits.
        """
        options = dict(asked.options)
        if not options.pop("blocking", True):
            raise TypeError("blocking=False is not possible: the ceiling is kept chunk by chunk")
        spec = replace(asked.spec, num_repetitions=options.pop("num_repetitions", asked.spec.num_repetitions))
        examples = list(examples_of(asked.client, spec.dataset_name if asked.data is None else asked.data))
        if not examples:
            raise ValueError(f"there are no examples to evaluate in {spec.dataset_name!r}")
        said, self._available = spec.num_examples, len(examples)
        self._asked = replace(asked, spec=spec.for_examples(len(examples), len(asked.evaluators)))
        self._each = self._asked.spec.per_example()
        self._announce(said)
        self._seed: int | None = None
        self.chosen = self._choose(examples)
        self.chunks = 0
        self._begun = 0
        self._short = False
        self._rows: list[Mapping[str, Any]] = []
        self._parts: list[object] = []
        self._summarisers: Sequence[object] = options.pop("summary_evaluators", None) or ()
        self._experiment: TracerSession | None = None
        client = asked.client
        if not options.get("upload_results", True):
            client = unrecorded(client)
        else:
            need = self._each.times(len(self.chosen))
            self._experiment = begin(asked, options, self.chosen, available=self._available, seed=self._seed, need=need)
            options["experiment"] = self._experiment
        self.options: dict[str, Any] = {
            **options,
            "client": client,
            "num_repetitions": spec.num_repetitions,
            "max_concurrency": asked.concurrency,
        }

    def _announce(self, said: int | None) -> None:
        spec, whole = self._asked.spec, self._each.times(self._available)
        self._asked.tell(
            f"dataset={spec.dataset_name!r} examples={self._available} repetitions={spec.num_repetitions} "
            f"evaluators={spec.num_evaluators}: estimated calls={whole.calls:.0f} estimated cost=${whole.usd:.4f}"
        )
        if said is not None and said != self._available:
            self._asked.tell(f"the spec says {said} examples, but there are {self._available}")

    def _choose(self, examples: list[Example]) -> list[Example]:
        asked, each = self._asked, self._each
        fits = each.fits_into(asked.ceilings)
        if fits is None or fits >= len(examples):
            return examples
        if fits == 0:
            raise asked.too_much(_NOT_ONE, each)
        if not asked.sample_if_over:
            raise asked.too_much(_TOO_MUCH, each.times(len(examples)))
        self._seed = asked.seed
        taken = each.times(fits)
        asked.tell(
            f"sampling {fits}/{len(examples)} examples with seed {asked.seed} "
            f"(calls≈{taken.calls:.0f}, cost≈${taken.usd:.4f})"
        )
        return sample(
            examples, fits, seed=asked.seed, key=lambda example: str(example.id), stratum=_stratum(asked.stratify_by)
        )

    @property
    def repetitions(self) -> int:
        """Rows of each example."""
        return self._asked.spec.num_repetitions

    @property
    def announced(self) -> bool:
        """Whether whoever listens knows of the experiment by now, or there is none to know of."""
        return self.chunks > 1 or self._experiment is None or self._asked.say is None

    def tally(self, heard: Callable[[Spend, int], None]) -> Tally:
        """The account of this evaluation, which tells `heard` its sum and the rows after each call."""
        return self._asked.tally(heard=heard)

    def next_chunk(self, tally: Tally) -> list[Example]:
        """The examples to run next: as many as there is surely room for, by what rows took so far; none at the end."""
        left = self.chosen[self._begun :]
        if not left or tally.stopped:
            return []
        count = self._count(len(left), tally)
        self._short = count == 0
        self.chunks += 1
        self._begun += min(count, len(left))
        return left[:count]

    def _count(self, left: int, tally: Tally) -> int:
        concurrency = self._asked.concurrency
        at_once = _UNLIMITED if concurrency is None else max(concurrency, 1)
        if not self._begun:
            fits = self._each.fits_into(tally.room)
            return left if fits is None else min(fits, at_once)
        row = tally.dearest_row.times(self._asked.spec.num_repetitions)
        mean = Need(tally.spend.calls / self._begun, tally.spend.nanousd / self._begun)
        fits = row.at_least(mean).fits_into(tally.room)
        if fits is None or fits >= 2 * left:
            return left
        # What rows take varies, so where it is tight some wait for what the others will show.
        return max(fits // 2, min(fits, at_once))

    def took(self, tally: Tally, part: object, rows: Sequence[Mapping[str, Any]]) -> int:
        """Keep what a chunk gave, and charge what only LangSmith has seen of it; how many examples have run."""
        self._parts.append(part)
        self._rows += rows
        for row in rows:
            tally.fold(row["run"])
        return self._begun

    def finish(self, tally: Tally) -> EvalResults:
        """Sum up, in the experiment too."""
        experiment, client = self._experiment, self._asked.client
        summary = summarise(self._summarisers, self._rows, client, experiment.id if experiment else None)
        stopped = tally.stopped
        if stopped is None and self._short:
            stopped = f"the ceilings leave no room for another example ({len(self.chosen) - self._begun} not run)"
        results = EvalResults(
            rows=tuple(self._rows),
            estimate=self._each.times(len(self.chosen)),
            spent=tally.spend,
            spent_by_targets=tally.spend_of("target"),
            spent_by_evaluators=tally.spend_of("evaluator"),
            examples=self._begun,
            sampled=len(self.chosen),
            available=self._available,
            seed=self._seed,
            stopped=stopped,
            summary=tuple(summary),
            experiment_name=experiment.name if experiment else None,
            experiment_id=experiment.id if experiment else None,
            url=getattr(self._parts[0], "url", None) if experiment and self._parts else None,
            target_model=tally.model_of("target"),
            judge_model=tally.model_of("evaluator"),
            parts=tuple(self._parts),
        )
        if experiment is not None:
            note(client, experiment, results)
        self._asked.tell(results.report())
        return results


def _stratum(by: str | Callable[[Example], Hashable] | None) -> Callable[[Example], Hashable] | None:
    if by is None or callable(by):
        return by
    name = "dataset_split" if by == "split" else by

    def of_metadata(example: Example) -> Hashable:
        return repr((example.metadata or {}).get(name))

    return of_metadata
