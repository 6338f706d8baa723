"""What a call costs, and the most that one not yet made can cost."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphguard.errors import UnknownPrice
from graphguard.prices import DEFAULT_PRICES, PriceBook
from graphguard.usage import Usage, model_of

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "provider_responses.jsonl"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)

MODELS = [
    ("gpt-5", "openai"),
    ("gpt-5.4", "openai"),
    ("gpt-5.6-sol", "openai"),
    ("gpt-4o-mini", "openai"),
    ("o3-2025-04-16", "openai"),
    ("gpt-realtime", "openai"),
    ("gpt-audio", "openai"),
    ("gpt-image-1.5", "openai"),
    ("claude-sonnet-4-5", "anthropic"),
    ("claude-opus-4-8", "anthropic"),
    ("claude-3-5-haiku-latest", "anthropic"),
    ("gemini-2.5-flash", "google_genai"),
    ("gemini-2.5-pro", "google_vertexai"),
    ("gemini-2.5-flash-image", "google_genai"),
    ("gemini-3-flash-preview", "google_genai"),
    ("mistral-large-latest", "mistralai"),
    ("llama-3.3-70b-versatile", "groq"),
    ("deepseek-chat", "deepseek"),
    ("deepseek-v4-pro", "deepseek"),
    ("grok-4", "xai"),
    ("sonar-pro", "perplexity"),
    ("sonar-deep-research", "perplexity"),
    ("gpt-5", "azure"),
    ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon_bedrock"),
    ("anthropic/claude-sonnet-4.5", "openrouter"),
]
PLAIN = Usage(input_tokens=300_001, output_tokens=1234, cache_read_tokens=299_000, reasoning_tokens=1001)
TIERS = [None, "default", "standard", "priority", "flex", "fast", "batch", "performance"]


@st.composite
def usages(draw) -> Usage:
    """Draw a usage whose parts fit into their wholes."""
    size = draw(st.sampled_from([10, 10_000, 250_000, 2_000_000]))
    ins, outs = draw(st.integers(0, size)), draw(st.integers(0, size))
    read = draw(st.integers(0, ins))
    write = draw(st.integers(0, ins - read))
    hour = draw(st.integers(0, write))
    audio = draw(st.integers(0, ins - read - write))
    spoken = draw(st.integers(0, outs))
    return Usage(
        input_tokens=ins,
        output_tokens=outs,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        cache_write_5m_tokens=write - hour,
        input_audio_tokens=audio,
        output_audio_tokens=spoken,
        reasoning_tokens=draw(st.integers(0, outs - spoken)),
        service_tier=draw(st.sampled_from(TIERS)),
    )


moments = st.datetimes(datetime(2026, 8, 1), datetime(2027, 3, 1), timezones=st.just(UTC))  # noqa: DTZ001 - given UTC


def worst(usage: Usage, model: str | None, provider: str | None = None, at: datetime = NOW) -> int:
    """Bound a call that took exactly these tokens."""
    return DEFAULT_PRICES.worst_case(
        model, provider, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, at=at
    )


# The worst case


@settings(deadline=None, max_examples=400)
@given(usage=usages(), model=st.sampled_from(MODELS), at=moments, hours=st.floats(0, 24))
def test_no_mix_of_tokens_costs_more_than_the_worst_case(usage, model, at, hours):
    """Whatever kinds, tier and hour a call turns out to have, it settles within what was held when it began."""
    cost = DEFAULT_PRICES.cost(usage, *model, at=at + timedelta(hours=hours))

    assert cost <= worst(usage, *model, at=at)


@settings(deadline=None, max_examples=300)
@given(usage=usages(), more=st.integers(0, 500_000), model=st.sampled_from(MODELS))
def test_worst_case_grows_with_the_tokens(usage, more, model):
    """A bound for more tokens is never lower, so a call that stays under its token bounds stays under its hold."""
    bigger = replace(usage, input_tokens=usage.input_tokens + more, output_tokens=usage.output_tokens + more)

    assert worst(usage, *model) <= worst(bigger, *model)


@settings(deadline=None, max_examples=200)
@given(
    counts=st.lists(st.integers(0, 400_000), min_size=9, max_size=9),
    tier=st.sampled_from(TIERS),
    model=st.sampled_from(MODELS),
)
def test_usage_that_contradicts_itself_is_priced(counts, tier, model):
    """Parts larger than their wholes neither raise nor make the call free."""
    names = [name for name in Usage.__dataclass_fields__ if name.endswith("_tokens")]
    usage = Usage(**dict(zip(names, counts, strict=False)), service_tier=tier)

    cost = DEFAULT_PRICES.cost(usage, *model, at=NOW)

    assert cost > 0 or usage.tokens == 0


def test_every_recorded_answer_is_within_its_worst_case():
    """Each recorded answer, priced by the list, costs no more than the bound for its token counts."""
    for usage, model, provider, row in recorded():
        listed = replace(usage, reported_nanousd=None, web_searches=0, also=())

        assert DEFAULT_PRICES.cost(listed, model, provider) <= worst(listed, model, provider, datetime.now(UTC)), row


def test_worst_case_covers_the_dear_hours():
    """A bound made in DeepSeek's cheap hours holds in its dear ones."""
    cheap, dear = datetime(2026, 11, 20, 23, 59, tzinfo=UTC), datetime(2026, 11, 21, 2, tzinfo=UTC)
    usage = Usage(input_tokens=1000, output_tokens=1000)
    price = ("deepseek-v4-pro", "deepseek")

    assert DEFAULT_PRICES.cost(usage, *price, at=cheap) < DEFAULT_PRICES.cost(usage, *price, at=dear)
    assert DEFAULT_PRICES.cost(usage, *price, at=dear) <= worst(usage, *price, at=cheap)


def test_worst_case_covers_the_dearest_tier():
    """A bound made without knowing the tier holds for the priority tier."""
    usage = Usage(input_tokens=1000, output_tokens=1000, service_tier="priority")
    plain = replace(usage, service_tier=None)

    assert DEFAULT_PRICES.cost(plain, "gpt-5", at=NOW) < DEFAULT_PRICES.cost(usage, "gpt-5", at=NOW)
    assert DEFAULT_PRICES.cost(usage, "gpt-5", at=NOW) <= worst(usage, "gpt-5")


def test_worst_case_takes_dearer_rates_for_long_inputs_only():
    """Rates that begin above 200,000 input tokens count in the bounds of such calls, and in no others."""
    long, short = (
        DEFAULT_PRICES.worst_case("gemini-2.5-pro", "google_genai", input_tokens=n, output_tokens=0, at=NOW)
        for n in (200_001, 200_000)
    )

    assert long > short * 1.5


def test_worst_case_ignores_prices_of_the_past():
    """A price that ended does not make today's bound larger: o3 cost five times as much before June 2025."""
    before, after = datetime(2025, 5, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
    usage = Usage(input_tokens=1000, output_tokens=1000)

    assert worst(usage, "o3", "openai", before) > worst(usage, "o3", "openai", after)


# The cost


def test_langsmiths_worked_example_is_exact():
    """5 cached and 15 other input tokens and 10 output tokens at $1, $2 and $3 a million cost 65,000 nano-USD."""
    book = PriceBook().add("my-llm", input_usd=2, output_usd=3, cache_read_usd=1)
    usage = Usage.from_metadata(
        {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30, "input_token_details": {"cache_read": 5}}
    )

    assert book.cost(usage, "my-llm") == 65_000


def test_each_kind_has_its_listed_rate():
    """Anthropic's cache reads, its two kinds of writes, searches and plain tokens are each billed at their rate."""
    usage = Usage(
        input_tokens=4510,
        output_tokens=77,
        cache_read_tokens=4000,
        cache_write_tokens=500,
        cache_write_5m_tokens=200,
        cache_write_1h_tokens=300,
        web_searches=2,
    )
    usd = Decimal(10 * 3 + 300 * 6 + 77 * 15) + 4000 * Decimal("0.3") + 200 * Decimal("3.75")

    assert DEFAULT_PRICES.cost(usage, "claude-sonnet-4-5-20250929", "anthropic", at=NOW) == usd * 1000 + 20_000_000


def test_cost_is_rounded_up_once():
    """7 tokens in and 3 out of gpt-5-nano cost 1,550 nano-USD: nothing is rounded on the way."""
    assert DEFAULT_PRICES.cost(Usage(input_tokens=7, output_tokens=3), "gpt-5-nano", "openai", at=NOW) == 1550


def test_fraction_of_a_nano_usd_is_rounded_up():
    """A cost between two nano-USD counts as the higher."""
    book = PriceBook().add("m", input_usd="0.0001", output_usd="0.0001")

    assert book.cost(Usage(input_tokens=11, output_tokens=1), "m") == 2


def test_audio_and_cached_audio_have_their_rates():
    """Gemini's audio, cached audio, cached text and text cost four different rates."""
    usage = Usage(
        input_tokens=1300,
        output_tokens=100,
        cache_read_tokens=512,
        cache_read_audio_tokens=500,
        input_audio_tokens=600,
    )
    usd = 500 * Decimal("0.1") + 12 * Decimal("0.03") + 100 * 1 + 688 * Decimal("0.3") + 100 * Decimal("2.5")

    assert DEFAULT_PRICES.cost(usage, "gemini-2.5-flash", "google", at=NOW) == usd * 1000


def test_image_output_is_billed_as_such_where_nobody_says_what_it_is():
    """LangChain doesn't tell images from text: the output of an image model costs the dearer rate."""
    usage = Usage(input_tokens=0, output_tokens=1000)

    assert DEFAULT_PRICES.cost(usage, "gemini-2.5-flash-image", "google_genai", at=NOW) == 30_000_000


@pytest.mark.parametrize(("tier", "nanousd"), [(None, 11_250_000), ("default", 11_250_000), ("flex", 5_625_000)])
def test_tier_has_its_own_price(tier, nanousd):
    """A tier that the list has is billed at its price."""
    usage = Usage(input_tokens=1000, output_tokens=1000, service_tier=tier)

    assert DEFAULT_PRICES.cost(usage, "gpt-5", "openai", at=NOW) == nanousd


def test_dear_tier_that_is_not_listed_costs_the_dearest_listed():
    """genai-prices would take the standard price for a tier it doesn't know; here the dearest counts."""
    usage = Usage(input_tokens=1000, output_tokens=1000, service_tier="turbo")

    assert DEFAULT_PRICES.cost(usage, "gpt-5", "openai", at=NOW) == 22_500_000


def test_dear_tier_counts_where_the_price_is_borrowed():
    """Azure's gpt-5.4 has OpenAI's price, and its priority tier OpenAI's too."""
    usage = Usage(input_tokens=1000, output_tokens=1000)

    plain, dear = (
        DEFAULT_PRICES.cost(replace(usage, service_tier=tier), "gpt-5.6-sol", "azure", at=NOW)
        for tier in (None, "priority")
    )

    assert dear == 2 * plain


def test_cheap_tier_that_is_not_listed_costs_the_standard_price():
    """An unlisted discount is not taken."""
    usage = Usage(input_tokens=1000, output_tokens=1000, service_tier="flex")
    model = ("llama-3.3-70b-versatile", "groq")

    assert DEFAULT_PRICES.cost(usage, *model) == DEFAULT_PRICES.cost(replace(usage, service_tier=None), *model)


def test_cache_reads_above_the_input_cost_the_highest_rate():
    """Where genai-prices raises, all tokens cost the highest input rate: here one-hour cache writes at $6."""
    usage = Usage(input_tokens=10, output_tokens=0, cache_read_tokens=90)

    assert DEFAULT_PRICES.cost(usage, "claude-sonnet-4-5", "anthropic", at=NOW) == 100 * 6 * 1000


def test_cached_answer_is_free():
    """An answer out of LangChain's cache costs nothing, even of a model without a price."""
    assert DEFAULT_PRICES.cost(Usage(input_tokens=10, cached_answer=True), "who-knows") == 0


def test_reported_cost_counts_before_the_list():
    """What the provider says the call cost is what it cost, even for a model without a listed price."""
    usage = Usage(input_tokens=10, output_tokens=10, reported_nanousd=924_001)

    assert DEFAULT_PRICES.cost(usage, "anthropic/claude-sonnet-4.5", "openrouter") == 924_001
    assert DEFAULT_PRICES.cost(usage, None) == 924_001


def test_users_price_counts_before_the_reported_cost():
    """A price of the user's own is meant."""
    book = PriceBook().add("m", input_usd=1, output_usd=1)

    assert book.cost(Usage(input_tokens=10, output_tokens=10, reported_nanousd=924_001), "m") == 20_000


def test_work_of_other_models_is_billed_at_their_rates():
    """An advisor's tokens cost what the advisor's model costs, on top."""
    advice = Usage(input_tokens=900, output_tokens=30)
    usage = Usage(input_tokens=300, output_tokens=30, also=(("claude-opus-4-8", advice),))

    together = DEFAULT_PRICES.cost(usage, "claude-sonnet-4-5", "anthropic", at=NOW)

    assert together == (300 * 3 + 30 * 15 + 900 * 5 + 30 * 25) * 1000


def test_fee_for_each_request_is_in_both():
    """Perplexity bills $0.014 for each request: it is in the cost and in the worst case."""
    usage = Usage(input_tokens=1, output_tokens=1)

    assert DEFAULT_PRICES.cost(usage, "sonar-pro", "perplexity", at=NOW) == 14_000_000 + 18_000
    assert worst(usage, "sonar-pro", "perplexity") >= 14_018_000


def test_price_depends_on_when_the_call_was_made():
    """DeepSeek's hours and OpenAI's dated prices are those of the call."""
    usage = Usage(input_tokens=1_000_000, output_tokens=0)
    night, day = (datetime(2026, 11, 20, hour, tzinfo=UTC) for hour in (20, 2))

    assert DEFAULT_PRICES.cost(usage, "deepseek-v4-pro", "deepseek", at=night) == 660_000_000
    assert DEFAULT_PRICES.cost(usage, "deepseek-v4-pro", "deepseek", at=day) == 1_320_000_000


@pytest.mark.parametrize("at", [datetime(2026, 11, 20, 2), NOW.replace(hour=2)], ids=["naive", "aware"])  # noqa: DTZ001
def test_moment_without_a_zone_is_utc(at):
    """A naive time is taken for UTC, in the cost and in the worst case."""
    usage = Usage(input_tokens=1_000_000, output_tokens=0)

    assert DEFAULT_PRICES.cost(usage, "deepseek-v4-pro", "deepseek", at=at) == 1_320_000_000
    assert worst(usage, "deepseek-v4-pro", "deepseek", at) == 1_320_000_000


@pytest.mark.parametrize(
    "usage", [Usage(input_tokens=7, output_tokens=3), PLAIN, replace(PLAIN, cache_write_tokens=501)]
)
def test_every_listed_model_costs_what_genai_prices_says(usage):
    """Plain, cached and reasoning tokens cost what genai-prices computes, for each listed model but those of media."""
    data, types = (pytest.importorskip(f"genai_prices.{name}") for name in ("data_snapshot", "types"))
    counts = {name: getattr(usage, name) for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
    counts |= {"cache_write_tokens": usage.cache_write_tokens, "output_reasoning_tokens": usage.reasoning_tokens}
    media = {"input_image_mtok", "input_video_mtok", "output_image_mtok", "output_video_mtok", "output_citation_mtok"}
    compared = 0
    for provider in data.get_snapshot().providers:
        for model in provider.models:
            price = model.get_prices(NOW)
            found = DEFAULT_PRICES.knows(model.id, provider.id) and not media & price.__dict__.keys()
            if found and model is provider.find_model(model.id.lower()):
                compared += 1
                usd = price.calc_price(types.Usage(**counts))["total_price"]
                assert DEFAULT_PRICES.cost(usage, model.id, provider.id, at=NOW) == ceil(usd * 10**9), model.id

    assert compared > 1000


def test_recorded_answers_cost_what_their_bodies_say():
    """Each recorded answer costs what genai-prices computes from its raw body by its own reading of it."""
    genai_prices = pytest.importorskip("genai_prices")
    readings = {
        "openai": ("openai", "chat"),
        "openai_responses": ("openai", "responses"),
        "openrouter": ("openrouter", "chat"),
    }
    compared = 0
    for usage, model, provider, row in recorded():
        vendor, flavor = readings.get(row["provider"], (row["provider"], "default"))
        try:
            read = genai_prices.extract_usage(row["response"], provider_id=vendor, api_flavor=flavor)
            usd = read.calc_price(genai_request_timestamp=NOW).total_price
        except (LookupError, ValueError):
            continue
        if usd:
            compared += 1
            listed = replace(usage, reported_nanousd=None, also=())
            assert DEFAULT_PRICES.cost(listed, model, provider, at=NOW) == ceil(usd * 10**9), row["source"]

    assert compared >= 565  # 569 when this was written


def test_recorded_costs_that_openrouter_reported_are_taken():
    """Each recorded OpenRouter answer that says its cost is charged exactly that."""
    costs = [
        (DEFAULT_PRICES.cost(usage, model, provider), row["response"]["usage"]["cost"])
        for usage, model, provider, row in recorded()
        if row["provider"] == "openrouter" and row["response"]["usage"].get("cost")
    ]

    assert len(costs) == 18
    assert all(cost == ceil(Decimal(str(usd)) * 10**9) for cost, usd in costs)


def recorded() -> list[tuple[Usage, str, str, dict]]:
    """Read the recorded answers with usage and a listed price that lie beside the checkout, or skip."""
    if not RECORDED.exists():
        pytest.skip("the recorded provider answers (../shared/data) are not beside this checkout")
    rows = [row for line in RECORDED.read_text().splitlines() if (row := json.loads(line))["response"]]
    found = []
    for row in rows:
        usage, model = Usage.from_response(row["response"]), model_of(row["response"])[0] or row["request_model"]
        provider = row["provider"].removesuffix("_responses")
        if usage and DEFAULT_PRICES.knows(model, provider):
            found.append((usage, model, provider, row))
    assert len(found) >= len(rows) - 4  # an aborted answer, one that has counts of zero, a free model, a cache's own
    return found


# Names


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-5-2025-08-07", "openai"),
        ("gpt-5-2099-01-01", "openai"),
        ("GPT-5", "OpenAI"),
        (" gpt-5 ", None),
        ("gpt-5", "azure"),
        ("gpt-5", "azure_openai"),
        ("gpt-5", "openai-codex"),
        ("gpt-5", "nobody-knows"),
        ("gpt-5", "anthropic"),
        ("gpt-5", "litellm"),
        ("openai:gpt-5", None),
        ("openai/gpt-5", "openrouter"),
        ("openai/gpt-5", "openai"),
    ],
)
def test_name_is_found_however_it_is_written(model, provider):
    """Dated, prefixed, oddly spelled names, and wrong or unknown providers, lead to one price."""
    usage = Usage(input_tokens=1000, output_tokens=1000)

    assert DEFAULT_PRICES.cost(usage, model, provider, at=NOW) == 11_250_000


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("models/gemini-2.5-flash", "google_genai"),
        ("publishers/google/models/gemini-2.5-flash", "google_vertexai"),
        ("mistral-large-latest", "mistralai"),
        ("llama-3.3-70b-versatile", "groq"),
        ("openai/gpt-oss-120b", "groq"),
        ("anthropic.claude-3-5-sonnet-20240620-v1:0", "amazon_bedrock"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock_converse"),
        ("claude-sonnet-4-5@20250929", "google_anthropic_vertex"),
        ("deepseek-chat", "deepseek"),
        ("grok-4", "xai"),
        ("x-ai/grok-4", "openrouter"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "together"),
        ("command-r-plus", "cohere"),
        ("sonar-pro", "perplexity"),
    ],
)
def test_langchains_names_are_known(model, provider):
    """The names under which LangChain reports models and providers have a price."""
    assert DEFAULT_PRICES.knows(model, provider)


@pytest.mark.parametrize("provider", ["anthropic-bedrock", "anthropic-mantle", "amazon_bedrock"])
def test_bedrock_is_not_taken_for_the_vendor(provider):
    """Bedrock's regional Claude costs a tenth more than Anthropic's, under each of Bedrock's names."""
    usage = Usage(input_tokens=1_000_000, output_tokens=0)

    assert DEFAULT_PRICES.cost(usage, "us.anthropic.claude-sonnet-4-5-20250929-v1:0", provider) == 3_300_000_000


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("llama3.2", "ollama"),
        ("my-deployment", "azure"),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", "amazon_bedrock"),
        ("google/gemini-2.0-flash-exp:free", "openrouter"),
        ("whisper-1", "openai"),
        ("", None),
        (None, None),
        (None, "openai"),
    ],
)
def test_unknown_price_is_not_zero(model, provider):
    """A model without a price, or with a list price of zero, is refused both before and after a call."""
    assert not DEFAULT_PRICES.knows(model, provider)
    with pytest.raises(UnknownPrice):
        DEFAULT_PRICES.cost(Usage(input_tokens=1, output_tokens=1), model, provider)
    with pytest.raises(UnknownPrice):
        DEFAULT_PRICES.worst_case(model, provider, input_tokens=1, output_tokens=1)


def test_unknown_price_names_the_model_as_it_was_given():
    """The error says which model, so that it can be added."""
    with pytest.raises(UnknownPrice, match="'My-LLM'"):
        DEFAULT_PRICES.cost(Usage(input_tokens=1), "My-LLM")


# The user's own prices


def test_added_price_is_used_everywhere():
    """A price of one's own holds for the cost and the worst case, for each kind, and for each call."""
    book = PriceBook().add(
        "m", input_usd="1", output_usd=Decimal(2), cache_read_usd=0.1, cache_write_usd=3, call_usd="0.01"
    )
    usage = Usage(input_tokens=100, output_tokens=10, cache_read_tokens=50, cache_write_tokens=20)

    assert book.cost(usage, "m") == (30 * 1 + 10 * 2 + 5 + 20 * 3) * 1000 + 10_000_000
    assert book.worst_case("m", input_tokens=100, output_tokens=10) == (100 * 3 + 10 * 2) * 1000 + 10_000_000


def test_book_is_not_changed():
    """add() and alias() give new books."""
    book = PriceBook()
    book.add("m", input_usd=1, output_usd=1)
    book.alias("n", "gpt-5")

    assert not book.knows("m")
    assert not book.knows("n")


def test_cache_without_a_price_of_its_own_costs_as_other_input():
    """Leaving the cache's prices out gives no discount."""
    book = PriceBook().add("m", input_usd=1, output_usd=1)

    assert book.cost(Usage(input_tokens=10, cache_read_tokens=5, cache_write_tokens=5), "m") == 10_000


def test_price_of_zero_is_allowed_when_the_user_says_so():
    """A local model may be free, if its owner says it is."""
    book = PriceBook().add("llama3.2", input_usd=0, output_usd=0)

    assert book.knows("llama3.2", "ollama")
    assert book.cost(Usage(input_tokens=10, output_tokens=10), "llama3.2", "ollama") == 0


def test_added_price_replaces_the_listed_one():
    """A negotiated price holds for the model's dated names too."""
    book = PriceBook().add("gpt-5", input_usd=1, output_usd=1)
    usage = Usage(input_tokens=1000)

    assert book.cost(usage, "gpt-5-2025-08-07", "openai") == 1_000_000
    assert book.cost(usage, "models/GPT-5") == 1_000_000


def test_added_price_holds_where_it_was_said_to():
    """A price for one provider leaves the others' alone, and counts before one for all."""
    book = PriceBook().add("gpt-5", input_usd=1, output_usd=1, provider="azure_openai")
    usage = Usage(input_tokens=1000)

    assert book.cost(usage, "gpt-5", "azure") == 1_000_000
    assert book.cost(usage, "gpt-5", "openai") == 1_250_000
    assert book.add("gpt-5", input_usd=2, output_usd=2).cost(usage, "gpt-5", "azure") == 1_000_000


def test_parts_above_the_whole_cost_the_users_highest_rate():
    """A contradiction is priced at the highest rate of the user's price too, never below."""
    book = PriceBook().add("m", input_usd=2, output_usd=3, cache_read_usd=1)

    assert book.cost(Usage(input_tokens=10, cache_read_tokens=90), "m") == 100 * 2 * 1000


@settings(deadline=None)
@given(usage=usages(), rates=st.lists(st.integers(0, 100), min_size=5, max_size=5))
def test_users_prices_have_a_worst_case_too(usage, rates):
    """No mix of tokens costs more than the bound, at any price of the user's own."""
    names = ("input_usd", "output_usd", "cache_read_usd", "cache_write_usd", "call_usd")
    book = PriceBook().add("m", **dict(zip(names, rates, strict=True)))

    bound = book.worst_case("m", input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)

    assert book.cost(usage, "m") <= bound


def test_alias_costs_what_its_model_costs():
    """Fine-tunes, deployments and ARNs cost what they are said to stand for, through several steps."""
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/AbC"
    book = PriceBook().alias("prod-llm", arn).alias(arn, "gpt-5", provider="openai")

    assert book.cost(Usage(input_tokens=1000), "prod-llm", "amazon_bedrock") == 1_250_000


def test_alias_of_an_added_price_holds():
    """An alias may stand for a model of the user's own."""
    book = PriceBook().add("mine", input_usd=1, output_usd=1).alias("ours", "mine")

    assert book.cost(Usage(input_tokens=1000), "ours") == 1_000_000


def test_aliases_in_a_circle_are_unknown():
    """Two names that stand for each other have no price, and end."""
    assert not PriceBook().alias("a", "b").alias("b", "a").knows("a")


def test_alias_may_pin_the_provider_of_its_own_name():
    """One name can be sent to one provider's price."""
    book = PriceBook().alias("claude-sonnet-4-5", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", provider="aws")

    assert book.cost(Usage(input_tokens=1_000_000), "claude-sonnet-4-5", "anthropic") == 3_300_000_000


def test_last_word_counts():
    """A name that is added and aliased is what was said last."""
    usage = Usage(input_tokens=1000)
    book = PriceBook().add("m", input_usd=9, output_usd=9).alias("m", "gpt-5")

    assert book.cost(usage, "m") == 1_250_000
    assert book.add("m", input_usd=9, output_usd=9).cost(usage, "m") == 9_000_000


@pytest.mark.parametrize(
    "amount", [-1, "-0.01", float("nan"), "NaN", "sNaN", float("inf"), "-Infinity", "", "cheap", True]
)
@pytest.mark.parametrize("name", ["input_usd", "output_usd", "cache_read_usd", "cache_write_usd", "call_usd"])
def test_amount_that_is_no_price_is_refused(name, amount):
    """Negative, infinite and unreadable amounts are refused by name, when the price is added."""
    prices = {"input_usd": 1, "output_usd": 1, name: amount}

    with pytest.raises(ValueError, match=f"{name}=.* is no price"):
        PriceBook().add("m", **prices)


@pytest.mark.parametrize("amount", ["0.10", 0.1, Decimal("0.1")])
def test_amounts_may_be_written_in_any_way(amount):
    """A float means what it prints as, so 0.1 is ten cents exactly."""
    book = PriceBook().add("m", input_usd=amount, output_usd=1)

    assert book.cost(Usage(input_tokens=1_000_000), "m") == 100_000_000


def test_book_survives_pickle():
    """A book goes to other processes with the graph that uses it."""
    book = pickle.loads(pickle.dumps(PriceBook().add("m", input_usd=1, output_usd=1).alias("n", "m")))  # noqa: S301

    assert book.cost(Usage(input_tokens=1), "n") == 1000


# The list


def test_list_is_loaded_when_first_asked():
    """Importing graphguard.prices, and prices of the user's own, don't load genai-prices' data."""
    code = """
import sys
from graphguard.prices import PriceBook
from graphguard.usage import Usage
PriceBook().add("m", input_usd=1, output_usd=1).cost(Usage(input_tokens=1), "m")
assert "genai_prices.data" not in sys.modules, "loaded"
PriceBook().cost(Usage(input_tokens=1), "gpt-5")
assert "genai_prices.data" in sys.modules, "looked for in the wrong place"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_newer_prices_that_the_user_installed_are_used():
    """A snapshot given to genai-prices takes effect at once, and so does taking it back."""
    from genai_prices import data_snapshot  # noqa: PLC0415 - loading it takes 300 ms
    from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, Provider  # noqa: PLC0415

    price = ModelPrice(input_mtok=Decimal(7), output_mtok=Decimal(7))
    model = ModelInfo(id="gpt-5", match=ClauseEquals("gpt-5"), prices=price)
    provider = Provider(id="openai", name="OpenAI", api_pattern="x", models=[model])
    before = DEFAULT_PRICES.cost(Usage(input_tokens=1000), "gpt-5", "openai")
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([provider], from_auto_update=False))
    try:
        during = DEFAULT_PRICES.cost(Usage(input_tokens=1000), "gpt-5", "openai")
    finally:
        data_snapshot.set_custom_snapshot(None)

    assert (before, during) == (1_250_000, 7_000_000)
    assert DEFAULT_PRICES.cost(Usage(input_tokens=1000), "gpt-5", "openai") == before


def test_the_first_price_can_be_asked_for_on_an_event_loop():
    """A process that prices nothing before its event loop runs, such as a server's graph factory, is not blocked."""
    code = (
        "import asyncio\n"
        "from blockbuster import blockbuster_ctx\n"
        "from graphguard import PriceBook, Usage\n"
        "async def main():\n"
        "    with blockbuster_ctx():\n"
        "        return PriceBook().cost(Usage(input_tokens=1), 'gpt-4o-mini')\n"
        "assert asyncio.run(main()) > 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
