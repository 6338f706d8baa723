"""Listed prices: what a call costs, and the most it can cost, by the list that genai-prices carries.

Nothing is fetched. genai-prices loads its data in about 300 ms, so that is put off until the first price
is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING

# Loaded here although its data is not: its first import reads a file, which an event loop must not wait for.
import genai_prices as _genai_prices  # noqa: F401

from graphguard.usage import Usage, all_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

__all__ = ["DATE", "LIST", "listed_usd", "plain_provider", "plain_rates"]

_MEGA = 1_000_000
_ORDINARY_TIERS = frozenset({"auto", "default", "standard", "on_demand", "flex", "batch", "scale"})
_REMEMBERED = 4096
_UNTOLD_KINDS = {"input": ("input_image", "input_video"), "output": ("output_image", "output_video", "output_citation")}
_PROVIDERS = {"bedrock": "aws", "mantle": "aws", "vertex": "google", "azure": "azure", "mistral": "mistral"}
DATE = re.compile(r"[-@]20\d\d-?[01]\d-?[0-3]\d$")
"""The date at the end of a model's name, without which it is looked up too."""


@dataclass(frozen=True, slots=True)
class _Ceiling:
    """The highest rates of a listed model on two days: steps of (from more input tokens than, USD for each token)."""

    input: tuple[tuple[int, Decimal], ...]
    output: tuple[tuple[int, Decimal], ...]
    call: Decimal

    def usd(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The most that so many tokens can cost; None where some of them have no price."""
        in_rate, out_rate = _step(self.input, input_tokens), _step(self.output, input_tokens)
        # A list price of zero says that nobody found the price out, or that it is free for some only.
        if (input_tokens and not in_rate) or (output_tokens and not out_rate):
            return None
        return input_tokens * in_rate + output_tokens * out_rate + self.call


def _step(steps: tuple[tuple[int, Decimal], ...], input_tokens: int) -> Decimal:
    for start, rate in reversed(steps):
        if input_tokens > start:
            return rate
    return Decimal(0)


class _List:
    """genai-prices' list, loaded when first asked; what was looked up is kept until newer data is installed."""

    def __init__(self) -> None:
        self._snapshot: DataSnapshot | None = None
        self._models: dict[tuple[str, str | None], ModelInfo | None] = {}
        self._ceilings: dict[tuple[str, str | None, date], _Ceiling | None] = {}
        # By the id of the price, which is kept with its rates so that the id stays its own.
        self._plain: dict[int, tuple[ModelPrice, _PlainRates | None]] = {}

    def model(self, name: str, provider: str | None) -> ModelInfo | None:
        snapshot = self._get_snapshot()
        if snapshot is not self._snapshot or len(self._models) + len(self._ceilings) > _REMEMBERED:
            self._snapshot, self._models, self._ceilings, self._plain = snapshot, {}, {}, {}
        models, key = self._models, (name, provider)
        if key not in models:
            models[key] = next(filter(None, (_found(snapshot, *way) for way in _ways(name, provider))), None)
        return models[key]

    @cached_property
    def _get_snapshot(self) -> Callable[[], DataSnapshot]:
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - loading it takes 300 ms

        return get_snapshot

    def ceiling(self, name: str, provider: str | None, at: datetime) -> _Ceiling | None:
        return self._ceiling(self.model(name, provider), name, provider, at)

    def _ceiling(self, model: ModelInfo | None, name: str, provider: str | None, at: datetime) -> _Ceiling | None:
        utc = at if at.tzinfo is UTC or at.tzinfo is None else at.astimezone(UTC)
        ceilings, key = self._ceilings, (name, provider, utc.date())
        if key not in ceilings:
            ceilings[key] = _ceiling(list(_prices_from(model, key[2]))) if model else None
        return ceilings[key]

    def usd(self, usage: Usage, name: str, provider: str | None, at: datetime) -> Decimal | None:
        model = self.model(name, provider)
        ceiling = self._ceiling(model, name, provider, at)
        if model is None or ceiling is None or ceiling.usd(usage.input_tokens, usage.output_tokens) is None:
            return None
        try:
            if _is_plain(usage) and (usage.service_tier is None or not model.price_variants):
                prices = model.get_prices(at)
                if rates := self._plain_rates(prices):
                    return rates.usd(usage)
                return listed_usd(prices, usage)
            return max(listed_usd(model.get_prices(at, tier), usage) for tier in _tiers(model, usage.service_tier, at))
        except ValueError:
            # genai-prices refuses parts larger than their whole; which of both is wrong can't be known.
            return ceiling.usd(all_input(usage), max(usage.output_tokens, usage.output_audio_tokens))

    def _plain_rates(self, prices: ModelPrice) -> _PlainRates | None:
        known = self._plain.get(id(prices))
        if known is None:
            known = self._plain[id(prices)] = prices, plain_rates(prices)
        return known[1]


LIST = _List()
"""The one list, shared by all price books."""


@dataclass(frozen=True, slots=True)
class _PlainRates:
    """USD for each token of a listed price without steps, by the kinds that nearly all calls are made of."""

    input: Decimal
    cache_read: Decimal
    output: Decimal
    reasoning: Decimal
    call: Decimal

    def usd(self, usage: Usage) -> Decimal:
        usd = (usage.input_tokens - usage.cache_read_tokens) * self.input + self.call
        usd += (usage.output_tokens - usage.reasoning_tokens) * self.output
        if usage.cache_read_tokens:
            usd += usage.cache_read_tokens * self.cache_read
        if usage.reasoning_tokens:
            usd += usage.reasoning_tokens * self.reasoning
        return usd


def _is_plain(usage: Usage) -> bool:
    return (
        not (usage.cache_write_tokens or usage.cache_write_5m_tokens or usage.cache_write_1h_tokens)
        and not (usage.cache_read_audio_tokens or usage.input_audio_tokens or usage.output_audio_tokens)
        and not usage.web_searches
        and usage.cache_read_tokens <= usage.input_tokens
        and usage.reasoning_tokens <= usage.output_tokens
    )


def plain_rates(prices: ModelPrice) -> _PlainRates | None:
    """Ask the list once what a million tokens of each kind cost; None where that depends on how many there are.

    genai-prices takes about 100 µs to price a call, which is a tenth of what LangGraph takes to make one.
    """
    from genai_prices.types import TieredPrices  # noqa: PLC0415 - loading it takes 300 ms

    if any(isinstance(value, TieredPrices) for value in prices.__dict__.values()):
        return None

    def rate(usage: Usage) -> Decimal:
        return (listed_usd(prices, usage) - call) / _MEGA

    try:
        call = listed_usd(prices, Usage())
        return _PlainRates(
            input=rate(Usage(input_tokens=_MEGA)),
            cache_read=rate(Usage(input_tokens=_MEGA, cache_read_tokens=_MEGA)),
            output=rate(Usage(output_tokens=_MEGA)),
            reasoning=rate(Usage(output_tokens=_MEGA, reasoning_tokens=_MEGA)),
            call=call,
        )
    except ValueError:
        return None


def listed_usd(prices: ModelPrice, usage: Usage) -> Decimal:
    """Price a usage as genai-prices does, in USD; ValueError where it refuses the counts."""
    from genai_prices import Usage as ListUsage  # noqa: PLC0415 - loading it takes 300 ms

    # Where the source doesn't say how much of the audio was cached: as little as the sums allow, which costs most.
    overlap = usage.cache_read_tokens + usage.cache_write_tokens + usage.input_audio_tokens - usage.input_tokens
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_5m_tokens": usage.cache_write_5m_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "cache_audio_read_tokens": max(usage.cache_read_audio_tokens, overlap, 0),
        "cache_image_read_tokens": 0,
        "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
        "web_searches": usage.web_searches,
    }
    untold = {"input": -overlap, "output": usage.output_tokens - usage.output_audio_tokens - usage.reasoning_tokens}
    for side, kinds in _UNTOLD_KINDS.items():
        rate, kind = max((_top(getattr(prices, f"{kind}_mtok")), kind) for kind in kinds)
        if rate > _top(getattr(prices, f"{side}_mtok")):
            counts[f"{kind}_tokens"] = max(untold[side], 0)
    return prices.calc_price(ListUsage(**counts))["total_price"]


def _tiers(model: ModelInfo, tier: str | None, at: datetime) -> Iterator[Mapping[str, str] | None]:
    """Give the contexts to price a tier in: its own; all there are, when a tier that may cost more isn't listed."""
    if tier is None:
        yield None
        return
    own = {"service_tier": tier, "speed": tier, "processing": tier}
    listed = [
        variant.when
        for variant in model.price_variants or ()
        if variant.constraint is None or variant.constraint.active(at)
    ]
    # genai-prices falls back to the standard price without a word.
    if tier in _ORDINARY_TIERS or any(when.items() <= own.items() for when in listed):
        yield own
    else:
        yield None
        yield from listed


def _ceiling(prices: Sequence[ModelPrice]) -> _Ceiling:
    return _Ceiling(
        input=_steps(prices, "input_", "cache_"),
        output=_steps(prices, "output_"),
        call=max(_top(price.requests_kcount) for price in prices) / 1000,
    )


def _steps(prices: Sequence[ModelPrice], *sides: str) -> tuple[tuple[int, Decimal], ...]:
    """Give the highest rate of all these kinds, as it grows with the input's size."""
    from genai_prices.types import TieredPrices  # noqa: PLC0415 - loading it takes 300 ms

    rates: list[tuple[int, Decimal]] = []
    for price in prices:
        for key, value in price.__dict__.items():
            if not (key.startswith(sides) and key.endswith("_mtok")):
                continue
            if isinstance(value, TieredPrices):
                rates += [(-1, value.base), *((tier.start, tier.price) for tier in value.tiers)]
            elif value is not None:
                rates.append((-1, value))
    highest = {start: max(rate for other, rate in rates if other <= start) for start, _ in rates}
    return tuple((start, rate / _MEGA) for start, rate in sorted(highest.items()))


def _prices_from(model: ModelInfo, day: date) -> Iterator[ModelPrice]:
    """Give each price that can hold from the start of a UTC day to the end of the next."""
    variants = model.price_variants or []
    constraints = [variant.constraint for variant in variants]
    constraints += [price.constraint for price in model.prices] if isinstance(model.prices, list) else []
    hours = {time()} | {
        hour for limit in constraints for name in ("start_time", "end_time") if (hour := getattr(limit, name, None))
    }
    contexts = [None, *(variant.when for variant in variants)]
    for offset, hour, context in product((0, 1), hours, contexts):
        moment = datetime.combine(day + timedelta(days=offset), hour.replace(tzinfo=hour.tzinfo or UTC))
        yield model.get_prices(moment, context)


def _ways(name: str, provider: str | None) -> Iterator[tuple[str, str | None]]:
    """Give the names and providers to look a model up by, in order."""
    for spelled in dict.fromkeys((name, DATE.sub("", name))):
        yield spelled, provider
        yield spelled, None
    for mark in "/:":
        head, found, tail = name.partition(mark)
        if found:
            yield tail, plain_provider(head)
    if "/" in name:
        yield name.rpartition("/")[2], provider
        yield name, "openrouter"


def _found(snapshot: DataSnapshot, name: str, provider: str | None) -> ModelInfo | None:
    try:
        return snapshot.find_provider_model(name, None, provider, None)[1]
    except LookupError:
        return None


@lru_cache(maxsize=_REMEMBERED)
def plain_provider(provider: str | None) -> str | None:
    """Give genai-prices' name for a provider where it would take LangChain's for another one."""
    if not provider:
        return None
    name = provider.strip().lower()
    for word, plain in _PROVIDERS.items():
        if word in name:
            return plain
    return name


def _top(price: Decimal | TieredPrices | None) -> Decimal:
    if price is None or isinstance(price, Decimal):
        return price or Decimal(0)
    return max(price.base, *(tier.price for tier in price.tiers))
