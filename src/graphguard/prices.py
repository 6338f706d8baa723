"""Prices: from the usage of a call to nano-USD, and the worst case of a call not yet made.

The prices are those that genai-prices carries, which `listed` asks for, and the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from graphguard.errors import UnknownPrice
from graphguard.listed import DATE, LIST, plain_provider
from graphguard.usage import Usage, all_input, nanousd_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_PRICES", "Money", "PriceBook"]

Money: TypeAlias = str | int | float | Decimal
"""An amount of USD; a float stands for what it prints as."""

_MEGA = 1_000_000
_NANO = 1_000_000_000
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """USD for each token by kind, and for each call."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    call: Decimal

    def usd(self, usage: Usage) -> Decimal:
        plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        if plain < 0:
            return self.ceiling(all_input(usage), usage.output_tokens)
        return (
            plain * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
            + self.call
        )

    def ceiling(self, input_tokens: int, output_tokens: int) -> Decimal:
        return (
            input_tokens * max(self.input, self.cache_read, self.cache_write) + output_tokens * self.output + self.call
        )


@dataclass(frozen=True, slots=True, eq=False)
class PriceBook:
    """What models cost: the listed prices, the user's own before them, and other names for models.

    >>> from graphguard.usage import Usage
    >>> book = PriceBook().add("my-llm", input_usd="0.20", output_usd="0.60")
    >>> book.cost(Usage(input_tokens=1000, output_tokens=100), "my-llm")
    260000
    """

    _own: Mapping[tuple[str | None, str], _Rates] = field(default_factory=dict, repr=False)
    _aliases: Mapping[str, tuple[str, str | None]] = field(default_factory=dict, repr=False)

    def add(
        self,
        model: str,
        *,
        input_usd: Money,
        output_usd: Money,
        cache_read_usd: Money | None = None,
        cache_write_usd: Money | None = None,
        call_usd: Money = 0,
        provider: str | None = None,
    ) -> PriceBook:
        """Give a new book in which a model has this price, whatever the list or the provider says.

        Args:
            model: The name the provider or LangChain gives; a dated form of it costs the same.
            input_usd: USD for 1,000,000 tokens. Zero is allowed: you said so.
            output_usd: Likewise.
            cache_read_usd: Likewise; None means as other input.
            cache_write_usd: Likewise.
            call_usd: USD for each call, on top.
            provider: Where the price holds; None means everywhere.

        Raises:
            ValueError: an amount is negative, or no finite number.
        """
        plain = _money(input_usd, "input_usd")
        rates = _Rates(
            input=plain / _MEGA,
            output=_money(output_usd, "output_usd") / _MEGA,
            cache_read=(plain if cache_read_usd is None else _money(cache_read_usd, "cache_read_usd")) / _MEGA,
            cache_write=(plain if cache_write_usd is None else _money(cache_write_usd, "cache_write_usd")) / _MEGA,
            call=_money(call_usd, "call_usd"),
        )
        name = _plain_name(model)
        aliases = {other: target for other, target in self._aliases.items() if other != name}
        return replace(self, _own={**self._own, (plain_provider(provider), name): rates}, _aliases=aliases)

    def alias(self, name: str, model: str, *, provider: str | None = None) -> PriceBook:
        """Give a new book in which `name` costs what `model` costs: fine-tunes, Azure deployments, Bedrock ARNs.

        Args:
            name: The name that calls are made under.
            model: A listed model, one of your own, or another alias.
            provider: Where to look `model` up; None means by its name alone.
        """
        own = {key: rates for key, rates in self._own.items() if key[1] != _plain_name(name)}
        return replace(self, _own=own, _aliases={**self._aliases, _plain_name(name): (model, provider)})

    def knows(self, model: str | None, provider: str | None = None) -> bool:
        """Whether a USD budget can be kept for this model."""
        try:
            self.worst_case(model, provider, input_tokens=1, output_tokens=1)
        except UnknownPrice:
            return False
        return True

    def cost(self, usage: Usage, model: str | None, provider: str | None = None, *, at: datetime | None = None) -> int:
        """Price a call that was made, in nano-USD, rounded up once.

        Args:
            usage: What it took. What the provider reported as its cost counts before the list's price,
                and the user's own price before both.
            model: The name of the model that answered.
            provider: LangChain's or the provider's own name for it; where it is unknown, or doesn't have
                the model, the model's name alone decides.
            at: When the call was made; None is now. Some prices depend on the date or the time of day.

        Raises:
            UnknownPrice: nobody says what the model costs. A list price of zero counts as unknown.
        """
        if usage.cached_answer:
            return 0
        return nanousd_of(self._usd(usage, model, provider, at or datetime.now(UTC)))

    def worst_case(
        self,
        model: str | None,
        provider: str | None = None,
        *,
        input_tokens: int,
        output_tokens: int,
        at: datetime | None = None,
    ) -> int:
        """Bound what a call can cost, in nano-USD, rounded up once.

        The bound holds for any mix of token kinds, any service tier, and any hour of this UTC day and the
        next. Searches that a provider runs and bills apart are not in it, nor what it bills to other models.

        Raises:
            UnknownPrice: nobody says what the model costs.
        """
        name, provider = self._resolved(model, provider)
        if own := self._own_rates(name, provider):
            return nanousd_of(own.ceiling(input_tokens, output_tokens))
        ceiling = LIST.ceiling(name, provider, at or datetime.now(UTC))
        if ceiling is None or (usd := ceiling.usd(input_tokens, output_tokens)) is None:
            raise UnknownPrice(model or "")
        return nanousd_of(usd)

    def _usd(self, usage: Usage, model: str | None, provider: str | None, at: datetime) -> Decimal:
        name, provider = self._resolved(model, provider)
        own = self._own_rates(name, provider)
        if own is None and usage.reported_nanousd is not None:
            return Decimal(usage.reported_nanousd) / _NANO
        usd = own.usd(usage) if own else LIST.usd(usage, name, provider, at)
        if usd is None:
            raise UnknownPrice(model or "")
        for other, part in usage.also:
            usd += self._usd(part, other, provider, at)
        return usd

    def _resolved(self, model: str | None, provider: str | None) -> tuple[str, str | None]:
        """Follow aliases, each once, so that a circle of them ends."""
        name, seen = _plain_name(model or ""), set[str]()
        if not self._aliases:
            return name, plain_provider(provider)
        while (target := self._aliases.get(name) or self._aliases.get(DATE.sub("", name))) and name not in seen:
            seen.add(name)
            name, provider = _plain_name(target[0]), target[1]
        return name, plain_provider(provider)

    def _own_rates(self, name: str, provider: str | None) -> _Rates | None:
        if not self._own:
            return None
        names = (name, DATE.sub("", name))
        return next((self._own[key] for n in names for key in ((provider, n), (None, n)) if key in self._own), None)


DEFAULT_PRICES = PriceBook()
"""The listed prices alone."""


@lru_cache(maxsize=_REMEMBERED)
def _plain_name(model: str) -> str:
    return model.strip().lower().removeprefix("models/")


def _money(amount: Money, name: str) -> Decimal:
    try:
        usd = Decimal(str(amount))
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0:
        raise ValueError(f"{name}={amount!r} is no price; give USD as a finite number of zero or more, like '0.25'")
    return usd
