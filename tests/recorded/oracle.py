"""What a recorded answer cost, worked out from the provider's raw body alone.

Nothing here imports graphguard or LangChain: the tests compare two computations that share only the price table.

A body's price is that of the answering model's tokens, and of what its usage says was billed beside them: searches by
Anthropic's own tool, another model asked as an adviser. Where OpenRouter's `cost` says what was charged, that is the
price. Prices are rounded up to a whole nano-USD once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, cast

from genai_prices import Usage, calc_price

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, object]

NANOUSD = 1_000_000_000
DISCOUNTED_OR_RAISED = frozenset({"flex", "priority", "batch"})  # the other tier names mean the listed price


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one answer consumed and cost.

    Attributes:
        model: The model that the body names, or the one asked for where the body names none.
        input_tokens: All input of that model, cached and tool input included.
        output_tokens: All its output, reasoning included.
        nanousd: The price of all parts, or the provider's own figure where it gives one; None without a price.
    """

    model: str
    input_tokens: int
    output_tokens: int
    nanousd: int | None


def bill(provider: str, payload: Json | str, asked_for: str) -> Bill | None:
    """Give the bill of a raw body or event stream; None when it reports no usage, or counts of zero."""
    body = final(provider, payload) if isinstance(payload, str) else payload
    raw = _mapping(body.get("usageMetadata") if provider == "google" else body.get("usage"))
    counts = COUNTS[provider](raw)
    if not any(counts.values()):
        return None
    named = body.get("modelVersion") if provider == "google" else body.get("model")
    model = str(named or asked_for).removeprefix("models/")
    reported = raw.get("cost")
    if isinstance(reported, int | float):
        price: int | None = rounded_up(Decimal(str(reported)))
    else:
        tier = str(raw.get("service_tier") or body.get("service_tier") or raw.get("serviceTier") or "")
        usd = usd_of(PRICED_BY[provider], (model, asked_for), counts, tier)
        price = None if usd is None else rounded_up(usd + beside(provider, model, raw))
    return Bill(model=model, input_tokens=counts["input_tokens"], output_tokens=counts["output_tokens"], nanousd=price)


def usd_of(provider: str, names: tuple[str, ...], counts: Mapping[str, int], tier: str = "") -> Decimal | None:
    """Give the price of these counts under the first of the names that has one, in USD; None if none has.

    A name such as `x-ai/grok-4` is looked up at the vendor it names too. A list price of zero counts as none: it
    stands for a price that nobody has found out.
    """
    context = {"service_tier": tier} if tier in DISCOUNTED_OR_RAISED else None
    for name in map(str.lower, names):
        vendor, found, rest = name.partition("/")
        for place, model in ((provider, name), (vendor, rest)) if found else ((provider, name),):
            try:
                price = calc_price(Usage(**counts), model, provider_id=place, price_context=context).total_price
            except LookupError:
                continue
            if price:
                return price
    return None


def rounded_up(usd: Decimal) -> int:
    """Give an amount in whole nano-USD, rounded up."""
    return int((usd * NANOUSD).to_integral_value(rounding=ROUND_CEILING))


def beside(provider: str, model: str, raw: Json) -> Decimal:
    """Give what the body says was billed beside the answering model's own tokens, in USD."""
    total = Decimal(0)
    if provider == "anthropic":
        if searches := _count(_mapping(raw.get("server_tool_use")), "web_search_requests"):
            total += usd_of(provider, (model,), {"web_searches": searches}) or 0
        for step in cast("list[Json]", raw.get("iterations") or []):
            if step.get("type") == "advisor_message":
                total += usd_of(provider, (str(step["model"]),), _of_anthropic(step)) or 0
    return total


def final(provider: str, stream: str) -> Json:
    """Give the body that an event stream adds up to, as far as usage and model go."""
    events = [
        cast("Json", json.loads(line.removeprefix("data:")))
        for line in stream.splitlines()
        if line.startswith("data:") and line.strip() != "data: [DONE]"
    ]
    return FINAL[provider](events)


def _last_with_usage(events: list[Json]) -> Json:
    key = "usageMetadata" if any("usageMetadata" in event for event in events) else "usage"
    return next((event for event in reversed(events) if event.get(key)), {})


def _of_anthropic_events(events: list[Json]) -> Json:
    body: Json = {}
    usage: Json = {}
    for event in events:
        if event["type"] == "message_start":
            body = _mapping(event["message"])
            usage |= _mapping(body["usage"])
        elif event["type"] == "message_delta":  # totals so far, not differences
            usage |= {key: value for key, value in _mapping(event.get("usage")).items() if value is not None}
    return {**body, "usage": usage}


def _of_responses_events(events: list[Json]) -> Json:
    whole = (_mapping(event.get("response")) for event in reversed(events))
    return next((body for body in whole if body.get("usage")), {})


def _of_chat(raw: Json) -> dict[str, int]:
    given, made = _mapping(raw.get("prompt_tokens_details")), _mapping(raw.get("completion_tokens_details"))
    return {
        "input_tokens": _count(raw, "prompt_tokens"),
        "output_tokens": _count(raw, "completion_tokens"),
        "cache_read_tokens": _count(given, "cached_tokens"),
        "cache_write_tokens": _count(given, "cache_write_tokens"),
        "input_audio_tokens": _count(given, "audio_tokens"),
        "output_audio_tokens": _count(made, "audio_tokens"),
        "output_reasoning_tokens": _count(made, "reasoning_tokens"),
    }


def _of_responses(raw: Json) -> dict[str, int]:
    given, made = _mapping(raw.get("input_tokens_details")), _mapping(raw.get("output_tokens_details"))
    return {
        "input_tokens": _count(raw, "input_tokens"),
        "output_tokens": _count(raw, "output_tokens"),
        "cache_read_tokens": _count(given, "cached_tokens"),
        "cache_write_tokens": _count(given, "cache_write_tokens"),
        "output_reasoning_tokens": _count(made, "reasoning_tokens"),
    }


def _of_anthropic(raw: Json) -> dict[str, int]:
    read, written = _count(raw, "cache_read_input_tokens"), _count(raw, "cache_creation_input_tokens")
    by_age = _mapping(raw.get("cache_creation"))
    return {
        "input_tokens": _count(raw, "input_tokens") + read + written,  # the provider counts cached input apart
        "output_tokens": _count(raw, "output_tokens"),
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "cache_write_5m_tokens": _count(by_age, "ephemeral_5m_input_tokens"),
        "cache_write_1h_tokens": _count(by_age, "ephemeral_1h_input_tokens"),
        "output_reasoning_tokens": _count(_mapping(raw.get("output_tokens_details")), "thinking_tokens"),
    }


def _of_google(raw: Json) -> dict[str, int]:
    thoughts = _count(raw, "thoughtsTokenCount")
    counts = {
        "input_tokens": _count(raw, "promptTokenCount") + _count(raw, "toolUsePromptTokenCount"),
        "output_tokens": _count(raw, "candidatesTokenCount") + thoughts,
        "cache_read_tokens": _count(raw, "cachedContentTokenCount"),
        "output_reasoning_tokens": thoughts,
        "input_audio_tokens": _spoken(raw, "promptTokensDetails") + _spoken(raw, "toolUsePromptTokensDetails"),
        "cache_audio_read_tokens": _spoken(raw, "cacheTokensDetails"),
    }
    return {key: count for key, count in counts.items() if count or key in {"input_tokens", "output_tokens"}}


def _spoken(raw: Json, key: str) -> int:
    kinds = cast("list[Json]", raw.get(key) or [])
    return sum(_count(kind, "tokenCount") for kind in kinds if kind.get("modality") == "AUDIO")


def _mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _count(raw: Json, key: str) -> int:
    value = raw.get(key)
    return value if isinstance(value, int) else 0


COUNTS = {
    "openai": _of_chat,
    "openai_responses": _of_responses,
    "anthropic": _of_anthropic,
    "google": _of_google,
    "groq": _of_chat,
    "mistral": _of_chat,
    "openrouter": _of_chat,
    "deepseek": _of_chat,
}
FINAL = dict.fromkeys(COUNTS, _last_with_usage) | {
    "anthropic": _of_anthropic_events,
    "openai_responses": _of_responses_events,
}
PRICED_BY = {provider: provider for provider in COUNTS} | {"openai_responses": "openai"}
