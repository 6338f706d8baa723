"""What an evaluation will take, worked out before anything is spent, and the sample that fits its ceilings."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeVar

from graphguard.errors import GraphguardError
from graphguard.prices import DEFAULT_PRICES, PriceBook
from graphguard.spend import NANO, to_usd
from graphguard.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

__all__ = ["EvalBudgetError", "EvalSpec", "Need", "sample"]

_TINY: Final = 1e-9
Example = TypeVar("Example")


class EvalBudgetError(GraphguardError, RuntimeError):
    """An evaluation does not fit its ceilings, so nothing was run.

    Attributes:
        problem: What does not fit.
        calls: Model calls that it would take.
        max_calls: Their ceiling; None is none.
        usd: USD that it would cost.
        max_cost_usd: Its ceiling; None is none.
    """

    def __init__(
        self, problem: str, *, calls: int, max_calls: int | None, usd: Decimal, max_cost_usd: Decimal | None
    ) -> None:
        """Say what does not fit, with all numbers."""
        parts = [f"calls={calls}" + ("" if max_calls is None else f" (max {max_calls})")]
        parts.append(f"cost=${usd:.4f}" + ("" if max_cost_usd is None else f" (max ${max_cost_usd:.2f})"))
        super().__init__(f"{problem}: {', '.join(parts)}")
        self.problem = problem
        self.calls = calls
        self.max_calls = max_calls
        self.usd = usd
        self.max_cost_usd = max_cost_usd

    @classmethod
    def of(
        cls, problem: str, need: Need, max_calls: int | None, max_cost_usd: str | float | Decimal | None
    ) -> EvalBudgetError:
        """The error of what would be needed against its ceilings."""
        ceiling = None if max_cost_usd is None else Decimal(str(max_cost_usd))
        calls = math.ceil(need.calls - _TINY)
        return cls(problem, calls=calls, max_calls=max_calls, usd=need.usd, max_cost_usd=ceiling)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from all of them."""
        return _rebuilt, (self.problem, self.calls, self.max_calls, self.usd, self.max_cost_usd)


def _rebuilt(problem: str, calls: int, max_calls: int | None, usd: Decimal, max_usd: Decimal | None) -> EvalBudgetError:
    return EvalBudgetError(problem, calls=calls, max_calls=max_calls, usd=usd, max_cost_usd=max_usd)


@dataclass(frozen=True, slots=True)
class Need:
    """Model calls and money.

    Attributes:
        calls: Model calls; an expectation may be a fraction.
        nanousd: Nano-USD, likewise.
    """

    calls: float = 0.0
    nanousd: float = 0.0

    @classmethod
    def ceilings(cls, calls: int | None, usd: str | float | Decimal | None) -> Need:
        """Both ceilings; None is infinite."""
        money = math.inf if usd is None else float(Decimal(str(usd)) * NANO)
        return cls(math.inf if calls is None else calls, money)

    def times(self, count: float) -> Need:
        """As much, so many times."""
        return Need(self.calls * count, self.nanousd * count)

    def at_least(self, other: Need) -> Need:
        """The larger of both, each for itself."""
        return Need(max(self.calls, other.calls), max(self.nanousd, other.nanousd))

    def fits_into(self, room: Need) -> int | None:
        """How many times it fits; None when it takes nothing at all.

        >>> Need(12.9, 1e8).fits_into(Need(400, 20e9))
        31
        """
        counts = [
            math.floor(have / take + _TINY)
            for have, take in ((room.calls, self.calls), (room.nanousd, self.nanousd))
            if take > 0 and math.isfinite(have)
        ]
        return max(0, min(counts)) if counts else None

    @property
    def usd(self) -> Decimal:
        """The money in USD, rounded up to a nano-USD."""
        return to_usd(math.ceil(self.nanousd - _TINY))


@dataclass(frozen=True, slots=True)
class EvalSpec:
    """What one evaluation is: its dataset, its evaluators, its models, and what a call of each takes.

    The amounts are best measured on a few examples by `pilot`; until then they are guesses, and the ones
    of `target_calls_per_example` are the worst.

    ```python
    spec = EvalSpec("rag-qa", num_repetitions=3, num_evaluators=2, judge_model="gpt-4.1", target_calls_per_example=2.3)
    ```

    Attributes:
        dataset_name: The dataset; also its id.
        num_examples: How many examples it has; None counts them when it is run.
        num_repetitions: How often each example is run.
        num_evaluators: How many evaluators call a model; None is all that are given.
        judge_model: The model they call; None when they call none.
        target_model: The model that the target calls.
        target_calls_per_example: Calls of the target for one example, subagents included.
        target_input_tokens: Input tokens of each of those calls.
        target_output_tokens: Output tokens of each of those calls.
        judge_calls_per_example: Calls of each evaluator for one example.
        judge_input_tokens: Input tokens of each of those calls.
        judge_output_tokens: Output tokens of each of those calls.
        retries: Further attempts for each call, in the mean, for failures and for answers that don't parse.
        prices: What the models cost.
        measured: What one example took once in a pilot, in the mean; counts instead of all guesses above.

    >>> EvalSpec("d", 200, 3, 2, "gpt-4.1", target_calls_per_example=2.3).total_llm_calls()
    2580
    """

    dataset_name: str
    num_examples: int | None = None
    num_repetitions: int = 1
    num_evaluators: int | None = None
    judge_model: str | None = None
    target_model: str = "gpt-4o-mini"
    target_calls_per_example: float = 1.0
    target_input_tokens: float = 1_500.0
    target_output_tokens: float = 500.0
    judge_calls_per_example: float = 1.0
    judge_input_tokens: float = 1_500.0
    judge_output_tokens: float = 500.0
    retries: float = 0.0
    prices: PriceBook = DEFAULT_PRICES
    measured: Need | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be run."""
        if self.num_repetitions < 1:
            raise ValueError(f"num_repetitions must be at least 1, got {self.num_repetitions!r}")
        amounts = (self.num_examples or 0, self.num_evaluators or 0, self.target_calls_per_example, self.retries)
        if min(*amounts, self.judge_calls_per_example) < 0:
            raise ValueError(f"amounts of an EvalSpec can't be negative, got {self!r}")

    def total_llm_calls(self) -> int:
        """Model calls of the whole evaluation, rounded up.

        Raises:
            ValueError: `num_examples` is not known yet.
        """
        return math.ceil(self.per_example().times(self._examples()).calls - _TINY)

    def estimated_cost_usd(self) -> Decimal:
        """What the whole evaluation will cost, in USD.

        Raises:
            ValueError: `num_examples` is not known yet.
            UnknownPrice: A model has no price.
        """
        return self.per_example().times(self._examples()).usd

    def per_example(self) -> Need:
        """What one example takes, all its repetitions, evaluators and retries together.

        Raises:
            UnknownPrice: A model has no price.
        """
        if self.measured is not None:
            return self.measured.times(self.num_repetitions)
        target = self.target_calls_per_example * self.num_repetitions * (1 + self.retries)
        judges = (self.num_evaluators or 0) if self.judge_model is not None else 0
        judge = judges * self.judge_calls_per_example * self.num_repetitions * (1 + self.retries)
        usd = self._price(self.target_model, self.target_input_tokens, self.target_output_tokens) if target else 0.0
        judge_usd = self._price(self.judge_model, self.judge_input_tokens, self.judge_output_tokens) if judge else 0.0
        return Need(target + judge, target * usd + judge * judge_usd)

    def for_examples(self, count: int, evaluators: int) -> EvalSpec:
        """The same for a real number of examples and evaluators.

        Raises:
            ValueError: It was said to be for more evaluators than there are.
        """
        said = self.num_evaluators
        if said is not None and said > evaluators:
            raise ValueError(f"the spec is for {said} evaluators, but {evaluators} were given")
        return replace(self, num_examples=count, num_evaluators=evaluators if said is None else said)

    def _examples(self) -> int:
        if self.num_examples is None:
            raise ValueError("num_examples is not known; pass it, or let guarded_evaluate count the dataset")
        return self.num_examples

    def _price(self, model: str | None, input_tokens: float, output_tokens: float) -> float:
        # Of a thousand calls, so that fractions of a token count too.
        usage = Usage(input_tokens=math.ceil(input_tokens * 1000), output_tokens=math.ceil(output_tokens * 1000))
        return self.prices.cost(usage, model) / 1000


def sample(
    examples: Sequence[Example],
    count: int,
    *,
    seed: int,
    key: Callable[[Example], str],
    stratum: Callable[[Example], Hashable] | None = None,
) -> list[Example]:
    """So many of the examples, drawn by the seed, in the order they were given in.

    Args:
        examples: All of them.
        count: How many to draw, at most all.
        seed: The same seed draws the same ones, in whatever order they are given.
        key: What an example is known by.
        stratum: What group it belongs to; each group gets its share of `count`, to the nearest example. None
            draws from all alike.

    >>> drawn = sample(range(100), 10, seed=1, key=str, stratum=lambda n: n < 20)
    >>> len(drawn), sum(n < 20 for n in drawn)
    (10, 2)
    """
    if count >= len(examples):
        return list(examples)
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    groups: defaultdict[Hashable, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=key):
        groups[stratum(example) if stratum else None].append(example)
    drawn = {
        key(example)
        for group, share in _shares({group: len(members) for group, members in groups.items()}, count).items()
        for example in chance.sample(groups[group], share)
    }
    return [example for example in examples if key(example) in drawn]


def _shares(sizes: dict[Hashable, int], count: int) -> dict[Hashable, int]:
    """Part a count by size: whole shares first, and what is left to those with the largest remainders."""
    total = sum(sizes.values())
    shares = {group: count * size // total for group, size in sizes.items()}
    rest = sorted(sizes, key=lambda group: (-(count * sizes[group] % total), repr(group)))
    for group in rest[: count - sum(shares.values())]:
        shares[group] += 1
    return shares
