"""Make a model request fit what is left of its budgets: a cheaper model, a shorter answer, a note to the model."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage

from graphguard.bounds import input_bytes, tools_bound
from graphguard.budget import amount_text
from graphguard.choices import caps_of, identity
from graphguard.errors import InvalidBudget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain.agents.middleware.types import ContextT, ModelRequest

    from graphguard.budget import Claim
    from graphguard.prices import PriceBook
    from graphguard.scope import Scope
    from graphguard.spend import Spend

__all__ = ["Balance", "Fitting"]

Balance: TypeAlias = "tuple[Claim, Spend, Spend]"
"""A budget as one call meets it, with what is spent and what is held."""

_CAPS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
"""Fields that cap the output in LangChain's chat models."""

_LARGEST: Final = 1_000_000
"""Tokens; no model answers more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How requests are made to fit.

    Attributes:
        prices: The price book.
        downgrade: Models by the share of the budget from which on they are used, smallest first.
        min_output_tokens: The shortest answer to ask for; None leaves each model's own cap as it is.
        tell_model: Whether the model is told what is left.
    """

    prices: PriceBook
    downgrade: Mapping[float, BaseChatModel]
    min_output_tokens: int | None
    tell_model: bool

    @classmethod
    def of(
        cls,
        prices: PriceBook,
        *,
        downgrade: Mapping[float, str | BaseChatModel] | None,
        min_output_tokens: int | None,
        tell_model: bool,
    ) -> Fitting:
        """The settings, checked.

        Raises:
            InvalidBudget: A share outside 0 to 1, something else than a model, or a cap that is no whole number.
        """
        given = min_output_tokens
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            problem = f"min_output_tokens must be a whole number of at least 1, got {given!r}"
            raise InvalidBudget(problem)
        if not isinstance(downgrade or {}, Mapping):
            problem = f"downgrade must be a dict such as {{0.8: 'openai:gpt-5-nano'}}, got {downgrade!r}"
            raise InvalidBudget(problem)
        models = {_share(share): _model(model) for share, model in (downgrade or {}).items()}
        ordered = dict(sorted(models.items()))
        return cls(prices=prices, downgrade=ordered, min_output_tokens=given, tell_model=tell_model)

    def claims(self, scope: Scope, model: BaseChatModel) -> tuple[Claim, ...]:
        """The budgets whose balances `fitted` needs; none where nothing was asked for."""
        if self.downgrade or self.min_output_tokens or self.tell_model:
            return scope.claims(model=identity(model)[0])
        return ()

    def fitted(self, request: ModelRequest[ContextT], balances: Sequence[Balance]) -> ModelRequest[ContextT]:
        """The request with a cheaper model, a lower cap and a note, as far as these were asked for and help."""
        if not balances:
            return request
        if self.tell_model:
            # At the end, where it leaves alone what the provider has cached of the prompt.
            request = request.override(messages=[*request.messages, HumanMessage(_note(balances))])
        used = _used(balances)
        reached = [model for share, model in self.downgrade.items() if share <= used]
        model = reached[-1] if reached else request.model
        if self.min_output_tokens is not None:
            model = self._shortened(model, request, balances, self.min_output_tokens)
        return request if model is request.model else request.override(model=model)

    def _shortened(
        self, model: BaseChatModel, request: ModelRequest[ContextT], balances: Sequence[Balance], least: int
    ) -> BaseChatModel:
        """The model with an output cap that fits; as it is where none does, or none is needed."""
        field = next((name for name in _CAPS if name in type(model).model_fields), None)
        name, provider = identity(model)
        if field is None or name is None:
            return model
        cap = getattr(model, field) or caps_of({name: model}).get(name) or _LARGEST
        sent = _sent(request)

        def lacks(received: int) -> bool:
            needed = {"input_tokens": sent, "output_tokens": received, "tokens": sent + received, "calls": 1}
            if any("usd" in claim.limits for claim, _, _ in balances):
                needed["usd"] = self.prices.worst_case(name, provider, input_tokens=sent, output_tokens=received)
            return any(
                spent.amount(metric) + held.amount(metric) + needed.get(metric, 0) > limit
                for claim, spent, held in balances
                for metric, limit in claim.limits.items()
            )

        if not lacks(cap) or lacks(min(least, cap)):
            return model
        # The first number of tokens that there is no room for comes after the last that fits.
        fits = range(least, cap)[bisect.bisect_left(range(least, cap), 1, key=lacks) - 1]
        return model.model_copy(update={field: fits})


def _sent(request: ModelRequest[ContextT]) -> int:
    """An upper bound of the tokens that a request sends."""
    # LangChain 1.0 has the text alone.
    system = getattr(request, "system_message", None) or request.system_prompt
    prompt = [*([SystemMessage(system) if isinstance(system, str) else system] if system else ()), *request.messages]
    schemas = [spec.json_schema for spec in getattr(request.response_format, "schema_specs", ())]
    return sum(input_bytes(prompt)) + tools_bound([*request.tools, *schemas])


def _share(share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        problem = f"downgrade takes shares of the budget from 0 to 1, such as 0.8, got {share!r}"
        raise InvalidBudget(problem)
    return float(share)


def _model(model: str | BaseChatModel) -> BaseChatModel:
    if isinstance(model, BaseChatModel):
        return model
    if not isinstance(model, str):
        problem = f"downgrade takes names such as 'openai:gpt-5-nano', or chat models, got {model!r}"
        raise InvalidBudget(problem)
    return init_chat_model(model)


def _used(balances: Sequence[Balance]) -> float:
    """The share of the tightest limit that is spent or held."""
    return max(
        (
            (spent.amount(metric) + held.amount(metric)) / limit
            for claim, spent, held in balances
            for metric, limit in claim.limits.items()
            if limit > 0
        ),
        default=0.0,
    )


def _note(balances: Sequence[Balance]) -> str:
    left: dict[str, int] = {}
    for claim, spent, held in balances:
        for metric, limit in claim.limits.items():
            room = max(limit - spent.amount(metric) - held.amount(metric), 0)
            left[metric] = min(left.get(metric, room), room)
    amounts = ", ".join(amount_text(metric, amount) for metric, amount in left.items())
    return f"[Budget left for this task, this call included: {amounts}.]"
