"""What a guarded evaluation was told, and what of it every part needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphguard.langsmith.rates import RateLimit
from graphguard.langsmith.spec import EvalBudgetError, EvalSpec, Need
from graphguard.langsmith.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from decimal import Decimal

    from langsmith import Client
    from langsmith.schemas import Example

    from graphguard.ledger.protocol import Ledger
    from graphguard.spend import Spend

__all__ = ["Asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The arguments of `guarded_evaluate`, which says what they mean.

    Attributes:
        client: The client, given or found.
        options: What else `langsmith.evaluate` takes.
    """

    client: Client
    spec: EvalSpec
    evaluators: Sequence[Any]
    max_calls: int | None
    max_cost_usd: str | float | Decimal | None
    concurrency: int | None
    sample_if_over: bool
    data: object
    seed: int
    stratify_by: str | Callable[[Example], Hashable] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    ledger: Ledger | None
    say: Callable[[str], None] | None
    options: Mapping[str, Any]

    @property
    def ceilings(self) -> Need:
        """Both ceilings; infinite where there is none."""
        return Need.ceilings(self.max_calls, self.max_cost_usd)

    def too_much(self, problem: str, need: Need) -> EvalBudgetError:
        """The error of what would be needed."""
        return EvalBudgetError.of(problem, need, self.max_calls, self.max_cost_usd)

    def tell(self, text: str) -> None:
        """Say something to whoever listens."""
        if self.say is not None:
            self.say(f"[guarded_evaluate] {text}")

    def tally(self, *, judges_only: bool = False, heard: Callable[[Spend, int], None] | None = None) -> Tally:
        """The account that the evaluation spends from."""
        rate = None
        if self.requests_per_minute is not None or self.tokens_per_minute is not None:
            spec = self.spec
            mean = (spec.target_input_tokens, spec.target_output_tokens)
            if judges_only:
                mean = (spec.judge_input_tokens, spec.judge_output_tokens)
            rate = RateLimit(self.requests_per_minute, self.tokens_per_minute, tokens_per_call=sum(mean))
        return Tally(
            max_calls=self.max_calls,
            max_cost_usd=self.max_cost_usd,
            ledger=self.ledger,
            prices=self.spec.prices,
            rate=rate,
            judges_only=judges_only,
            heard=heard,
        )
