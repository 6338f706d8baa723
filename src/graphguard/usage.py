"""Usage: the tokens of one model call by kind, from LangChain results or raw provider answers.

Pure: nothing here reads a file, a clock or the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache
from operator import attrgetter

from langchain_core.messages import BaseMessage

__all__ = ["Usage", "all_input", "as_count", "as_mapping", "model_of", "nanousd_of"]

_NANO = 1_000_000_000
_TIERS = ("priority", "flex", "fast", "batch", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many tokens one model call took, by kind.

    Attributes:
        input_tokens: All input, cache reads and writes and audio included.
        output_tokens: All output, reasoning and audio included.
        cache_read_tokens: Input read from the provider's prompt cache.
        cache_write_tokens: Input written to that cache, the next two included.
        cache_write_5m_tokens: Of these, kept five minutes.
        cache_write_1h_tokens: Of these, kept one hour.
        cache_read_audio_tokens: Audio among the cache reads.
        input_audio_tokens: Audio among the input.
        output_audio_tokens: Audio among the output.
        reasoning_tokens: Reasoning among the output.
        web_searches: Searches that the provider ran and bills apart from tokens.
        service_tier: The tier that served the call, as the provider names it; None where it doesn't say.
        reported_nanousd: What the provider itself says the call cost, in nano-USD; None where it doesn't say.
        cached_answer: The answer came out of LangChain's LLM cache, so nothing was billed.
        estimated: The counts are bounds, not what the provider reported.
        also: Work that the same answer bills to other models, as (model, usage).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_audio_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0
    service_tier: str | None = None
    reported_nanousd: int | None = None
    cached_answer: bool = False
    estimated: bool = False
    also: tuple[tuple[str, Usage], ...] = ()

    def __post_init__(self) -> None:
        """Refuse negative counts, which would give money back to a budget."""
        if min(_ALL_COUNTS(self)) >= 0:
            return
        for name in _COUNTS:
            if getattr(self, name) < 0:
                msg = f"{name} is {getattr(self, name)}; a count can't be negative"
                raise ValueError(msg)

    @property
    def tokens(self) -> int:
        """Input and output together, without what is billed to other models."""
        return self.input_tokens + self.output_tokens

    @classmethod
    def from_metadata(
        cls, usage_metadata: Mapping[str, object], response_metadata: Mapping[str, object] | None = None
    ) -> Usage:
        """Read what LangChain says of a call.

        Args:
            usage_metadata: `AIMessage.usage_metadata`; LangSmith's `total_cost`, `input_cost` and
                `output_cost` (USD) count as reported by the provider.
            response_metadata: `AIMessage.response_metadata`, for the tier and the reported cost.

        >>> Usage.from_metadata({"input_tokens": 20, "output_tokens": 10, "total_tokens": 30}).tokens
        30
        """
        meta = response_metadata or {}
        if _PLAIN.issuperset(usage_metadata) and _UNTOLD.isdisjoint(meta):
            sent, received = as_count(usage_metadata.get("input_tokens")), as_count(usage_metadata.get("output_tokens"))
            if as_count(usage_metadata.get("total_tokens")) <= sent + received:
                return cls(input_tokens=sent, output_tokens=received)
        raw = as_mapping(meta.get("token_usage") or meta.get("usage"))
        rest_is_input = "google" in str(meta.get("model_provider", ""))
        usage = _whole(
            _counted_by_langchain(usage_metadata, _tier(meta, raw)),
            total=as_count(usage_metadata.get("total_tokens")),
            rest_is_input=rest_is_input,
        )
        total_cost = _usd(usage_metadata.get("total_cost"))
        searches = _searches(raw) if raw else 0
        reported = None if total_cost == 0 else _said_by_langsmith(usage_metadata) or _reported(meta, raw)
        usage = _with_iterations(usage, raw) if raw else usage
        if not searches and total_cost != 0 and reported is None:
            return usage
        return replace(usage, web_searches=searches, cached_answer=total_cost == 0, reported_nanousd=reported)

    @classmethod
    def from_message(cls, message: BaseMessage) -> Usage | None:
        """Read a message's usage; None when it has none, so that it must be estimated."""
        meta = message.response_metadata
        if found := getattr(message, "usage_metadata", None):
            usage = cls.from_metadata(found, meta)
            # Some streams end with counts of zero: that is missing usage, not a free call.
            if usage.tokens or usage.cached_answer or usage.reported_nanousd is not None:
                return usage
        raw = meta.get("token_usage") or meta.get("usage")
        return cls.from_response({"usage": raw, "service_tier": meta.get("service_tier")}) if raw else None

    @classmethod
    def from_response(cls, response: object) -> Usage | None:
        """Read a raw provider answer; None when it has no usage.

        Args:
            response: A dict or an SDK's object: OpenAI chat completions and responses, Anthropic
                messages, Google generateContent, Groq, Mistral, OpenRouter, DeepSeek, Bedrock; one of
                their stream events; a list of such events; or a LangChain message.
        """
        if isinstance(response, BaseMessage):
            return cls.from_message(response)
        if isinstance(response, Sequence) and not isinstance(response, str | bytes):
            return _most([usage for part in response if (usage := cls.from_response(part))])
        body, raw = _usage_of(response)
        if not raw:
            return None
        usage = replace(
            _with_iterations(_counted(raw), raw),
            web_searches=_searches(raw),
            service_tier=_tier(body, raw),
            reported_nanousd=_reported({}, raw),
        )
        return usage if usage.tokens or usage.reported_nanousd is not None else None

    @classmethod
    def estimate(cls, input_bytes: int, output_bytes: int) -> Usage:
        """Bound the usage of a call that reported none, by the UTF-8 bytes of what went in and out."""
        return cls(input_tokens=input_bytes, output_tokens=output_bytes, estimated=True)


_PLAIN = frozenset({"input_tokens", "output_tokens", "total_tokens"})
_UNTOLD = frozenset(
    {"token_usage", "usage", "service_tier", "serviceTier", "speed", "cost"}
)  # what else may be told beside these
_COUNTS = tuple(field.name for field in fields(Usage) if field.type == "int")
_ALL_COUNTS = attrgetter(*_COUNTS)


def all_input(usage: Usage) -> int:
    """Count the input when its parts add up to more: a part larger than the whole was left out of it."""
    if max(usage.cache_read_tokens, usage.cache_write_tokens, usage.input_audio_tokens) <= usage.input_tokens:
        return usage.input_tokens
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens + usage.input_audio_tokens


def model_of(response: object) -> tuple[str | None, str | None]:
    """Name the model that gave a raw answer, and guess its provider; None for what can't be told."""
    if isinstance(response, BaseMessage):
        meta = response.response_metadata
        return _text(meta.get("model_name") or meta.get("model")), _text(meta.get("model_provider"))
    if isinstance(response, Sequence) and not isinstance(response, str | bytes):
        return next((found for part in response if (found := model_of(part))[0]), (None, None))
    body, raw = _usage_of(response)
    if model := _text(_get(body, "model_version")):
        return model, "google"
    return _text(_get(body, "model")), _provider_of(body, raw)


def _provider_of(body: object, raw: Mapping[str, object]) -> str | None:
    if _get(body, "x_groq") is not None:
        return "groq"
    if "cost" in raw or _text(_get(body, "provider")):
        return "openrouter"
    if _get(body, "type") == "message":
        return "anthropic"
    if _get(body, "object") == "response":
        return "openai"
    # Not "openai" for chat completions: many others use that format, and OpenAI's SDK.
    package = type(body).__module__.partition(".")[0]
    return {"anthropic": "anthropic", "groq": "groq", "mistralai": "mistralai"}.get(package)


def _usage_of(response: object) -> tuple[object, Mapping[str, object]]:
    """Find the part of an answer or stream event that carries usage, and that usage in snake_case."""
    for body in (response, _get(response, "response"), _get(response, "message")):
        raw = _get(body, "usage") or _get(body, "usage_metadata") or _get(_get(body, "x_groq"), "usage")
        if found := as_mapping(raw):
            return body, as_mapping(found.get("billed_units")) or found
    return response, {}


def _counted_by_langchain(metadata: Mapping[str, object], tier: str | None) -> Usage:
    """Count LangChain's `usage_metadata`, in whose details langchain-openai puts the tier into the keys."""
    ins, outs = as_mapping(metadata.get("input_token_details")), as_mapping(metadata.get("output_token_details"))
    tier = _tier_in_keys((*ins, *outs)) or tier

    def kind(details: Mapping[str, object], name: str) -> int:
        if not details:
            return 0
        return as_count(details.get(name)) + (as_count(details.get(f"{tier}_{name}")) if tier else 0)

    return Usage(
        input_tokens=as_count(metadata.get("input_tokens")),
        output_tokens=as_count(metadata.get("output_tokens")),
        cache_read_tokens=kind(ins, "cache_read"),
        # langchain_anthropic zeroes `cache_creation` when it gives the two by lifetime.
        cache_write_tokens=kind(ins, "cache_creation"),
        cache_write_5m_tokens=kind(ins, "ephemeral_5m_input_tokens"),
        cache_write_1h_tokens=kind(ins, "ephemeral_1h_input_tokens"),
        input_audio_tokens=kind(ins, "audio"),
        output_audio_tokens=kind(outs, "audio"),
        reasoning_tokens=kind(outs, "reasoning"),
        service_tier=tier,
    )


def _counted(raw: Mapping[str, object]) -> Usage:
    """Count a provider's usage object. What Anthropic and Bedrock keep apart from the input is added to it."""
    ins = _parts(raw, "prompt_tokens_details", "input_tokens_details")
    outs = _parts(raw, "completion_tokens_details", "output_tokens_details", "candidates_tokens_details")
    tools = _parts(raw, "tool_use_prompt_tokens_details")
    lifetimes, cached = as_mapping(raw.get("cache_creation")), _parts(raw, "cache_tokens_details")
    write_5m, write_1h = (as_count(lifetimes.get(f"ephemeral_{kept}_input_tokens")) for kept in ("5m", "1h"))
    read_apart = _first(raw, "cache_read_input_tokens")
    write_apart = max(_first(raw, "cache_creation_input_tokens", "cache_write_input_tokens"), write_5m + write_1h)
    thoughts = _first(raw, "thoughts_token_count")
    usage = Usage(
        input_tokens=_first(raw, "prompt_tokens", "input_tokens", "prompt_token_count")
        + _first(raw, "tool_use_prompt_token_count")
        + read_apart
        + write_apart,
        output_tokens=_first(raw, "completion_tokens", "output_tokens", "candidates_token_count") + thoughts,
        cache_read_tokens=read_apart
        or _first(ins, "cached_tokens")
        or _first(raw, "prompt_cache_hit_tokens", "cached_content_token_count"),
        cache_write_tokens=write_apart or _first(ins, "cache_write_tokens"),
        cache_write_5m_tokens=write_5m,
        cache_write_1h_tokens=write_1h,
        cache_read_audio_tokens=_first(cached, "audio_tokens")
        or _first(as_mapping(ins.get("cached_tokens_details")), "audio_tokens"),
        input_audio_tokens=_first(ins, "audio_tokens") + _first(tools, "audio_tokens"),
        output_audio_tokens=_first(outs, "audio_tokens"),
        reasoning_tokens=thoughts or _first(outs, "reasoning_tokens", "thinking_tokens"),
    )
    total = _first(raw, "total_tokens", "total_token_count")
    return _whole(usage, total=total, rest_is_input="total_token_count" in raw)


def _whole(usage: Usage, *, total: int, rest_is_input: bool) -> Usage:
    """Make input and output cover all their parts, whichever parts the source left out of them."""
    write = max(usage.cache_write_tokens, usage.cache_write_5m_tokens + usage.cache_write_1h_tokens)
    cached = usage.cache_read_tokens + write
    given_in, given_out = usage.input_tokens, usage.output_tokens
    rest = total - given_in - given_out
    # Reads and writes may be the same tokens (OpenRouter for Gemini), so their sum alone proves nothing.
    if max(usage.cache_read_tokens, write) > given_in or 0 < cached == rest:
        given_in, rest = given_in + cached, rest - cached
    if usage.reasoning_tokens > given_out:
        given_out, rest = given_out + usage.reasoning_tokens, rest - usage.reasoning_tokens
    if rest > 0:
        # Google's total alone has what its tools read; xAI's alone has the reasoning.
        given_in, given_out = (given_in + rest, given_out) if rest_is_input else (given_in, given_out + rest)
    if (given_in, given_out, write) == (usage.input_tokens, usage.output_tokens, usage.cache_write_tokens):
        return usage
    return replace(usage, input_tokens=given_in, output_tokens=given_out, cache_write_tokens=write)


def _with_iterations(usage: Usage, raw: Mapping[str, object]) -> Usage:
    """Add what Anthropic lists under `iterations` only: other models' work, and compactions."""
    steps = raw.get("iterations")
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        return usage
    own, also = Usage(), []
    for step in map(as_mapping, steps):
        if model := _text(step.get("model")):
            also.append((model, _counted(step)))
        else:
            counted = _counted(step)
            own = Usage(**{name: getattr(own, name) + getattr(counted, name) for name in _COUNTS})
    whole = usage if usage.tokens >= own.tokens else replace(own, service_tier=usage.service_tier)
    return replace(whole, also=tuple(also))


def _most(usages: Sequence[Usage]) -> Usage | None:
    """Fold a stream's usages, each a running total, into the last state."""
    if not usages:
        return None
    return replace(usages[-1], **{name: max(getattr(usage, name) for usage in usages) for name in _COUNTS})


_COSTS = ("total_cost", "input_cost", "output_cost")


def _said_by_langsmith(usage_metadata: Mapping[str, object]) -> int | None:
    if usage_metadata.keys().isdisjoint(_COSTS):
        return None
    total = _usd(usage_metadata.get("total_cost"))
    if total is None:
        parts = [usd for side in ("input_cost", "output_cost") if (usd := _usd(usage_metadata.get(side))) is not None]
        total = sum(parts, Decimal(0)) if parts else None
    return nanousd_of(total) if total else None


def _reported(*sources: Mapping[str, object]) -> int | None:
    """Read the cost that OpenRouter, and Perplexity, put beside the token counts."""
    for source in sources:
        cost = source.get("cost")
        if cost is None:
            continue
        usd = _usd(as_mapping(cost).get("total_cost") if isinstance(cost, Mapping) else cost)
        if usd is None:
            continue
        if source.get("is_byok"):
            # With a key of one's own `cost` is OpenRouter's fee; the model's price is billed by its provider.
            upstream = _usd(as_mapping(source.get("cost_details")).get("upstream_inference_cost"))
            return None if upstream is None else nanousd_of(usd + upstream)
        # A zero is believed only where it can't be the fee for a key of one's own.
        return nanousd_of(usd) if usd or source.get("is_byok") is False else None
    return None


def _searches(raw: Mapping[str, object]) -> int:
    return as_count(as_mapping(raw.get("server_tool_use")).get("web_search_requests"))


def _tier(body: object, raw: Mapping[str, object]) -> str | None:
    tier = "fast" if raw.get("speed") == "fast" else _get(body, "service_tier") or raw.get("service_tier")
    return tier.lower() if (tier := _text(getattr(tier, "value", tier))) else None


def _tier_in_keys(keys: Sequence[str]) -> str | None:
    if not keys:
        return None
    return next((tier for tier in _TIERS for key in keys if key == tier or key.startswith(f"{tier}_")), None)


def _usd(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        usd = Decimal(str(value))
    except InvalidOperation:
        return None
    return usd if usd.is_finite() and usd >= 0 else None


def nanousd_of(usd: Decimal) -> int:
    """USD as nano-USD, rounded up: the one rounding that money goes through."""
    return int((usd * _NANO).to_integral_value(rounding=ROUND_CEILING))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def as_count(value: object) -> int:
    """Read a number of tokens, rounded up; 0 for what is none."""
    if type(value) is int:  # nearly always; not a bool
        return max(value, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return max(math.ceil(value), 0)


def _first(found: Mapping[str, object], *names: str) -> int:
    return next((as_count(found[name]) for name in names if found.get(name) is not None), 0)


def _parts(raw: Mapping[str, object], *names: str) -> Mapping[str, object]:
    """Read a breakdown, which Google gives as a list of modalities, under OpenAI's names."""
    found = next((raw[name] for name in names if raw.get(name)), None)
    if not isinstance(found, Sequence):
        return as_mapping(found)
    counts: dict[str, object] = {}
    for part in map(as_mapping, found):
        modality = part.get("modality")
        counts[f"{getattr(modality, 'value', modality)}_tokens".lower()] = part.get("token_count")
    return counts


@lru_cache(maxsize=512)
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _get(found: object, name: str) -> object:
    if type(found) is dict or isinstance(found, Mapping):
        if name in found:
            return found[name]
        return next((value for key, value in found.items() if isinstance(key, str) and _snake(key) == name), None)
    return getattr(found, name, None)


def as_mapping(found: object) -> Mapping[str, object]:
    """View a dict or an SDK's object as a dict in snake_case, one level deep, without serializing it."""
    if found is None or isinstance(found, str | bytes | int | float | list | tuple):
        return {}
    if type(found) is not dict and not isinstance(found, Mapping):
        # Not model_dump(): SDKs build models unchecked, and dumping those warns.
        found = {**getattr(found, "__dict__", {}), **(getattr(found, "model_extra", None) or {})}
    return {_snake(str(key)): value for key, value in found.items()}
