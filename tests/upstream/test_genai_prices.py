"""What graphguard.prices relies on in genai-prices; when an upgrade changes it, the test says so by name."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ConditionalPrice, ModelPrice, StartDateConstraint, TimeOfDateConstraint

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def price(usage: Usage, model: str, provider: str | None = None, **context: str) -> Decimal:
    """Price a usage at a fixed time."""
    calculation = calc_price(
        usage, model, provider_id=provider, genai_request_timestamp=NOW, price_context=context or None
    )
    return calculation.total_price


def all_prices() -> list[ModelPrice]:
    """List each price of each model, conditional ones and variants too."""
    found = []
    for model in (model for provider in get_snapshot().providers for model in provider.models):
        found += [model.prices] if isinstance(model.prices, ModelPrice) else [item.prices for item in model.prices]
        found += [variant.prices for variant in model.price_variants or ()]
    return found


def test_input_tokens_include_cached_ones():
    """Cache reads are part of input_tokens, as in LangChain, and not added to them."""
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=1_000_000)

    assert price(usage, "gpt-5", "openai") == Decimal("0.125")


def test_cache_reads_above_the_input_raise():
    """A part larger than its whole is a ValueError, which is why prices.py catches one."""
    with pytest.raises(ValueError, match="cannot exceed"):
        price(Usage(input_tokens=1, cache_read_tokens=2), "gpt-5", "openai")


def test_overlapping_parts_need_their_overlap_told():
    """Cached tokens and audio raise unless it is said how much of the audio was cached, be it 0."""
    parts = {"input_tokens": 100, "cache_read_tokens": 10, "input_audio_tokens": 10, "output_tokens": 0}

    with pytest.raises(ValueError, match="cache_audio_read_tokens"):
        price(Usage(**parts), "gemini-2.5-flash", "google")
    assert price(Usage(**parts, cache_audio_read_tokens=0), "gemini-2.5-flash", "google")


def test_tier_that_is_not_listed_costs_the_standard_price():
    """An unknown service tier falls back without a word."""
    usage = Usage(input_tokens=1000, output_tokens=1000)

    assert price(usage, "gpt-5", "openai", service_tier="turbo") == price(usage, "gpt-5", "openai")
    assert price(usage, "gpt-5", "openai", service_tier="priority") == 2 * price(usage, "gpt-5", "openai")


def test_tier_is_ignored_where_the_price_is_borrowed():
    """Azure borrows OpenAI's price of gpt-5.6-sol, and calc_price leaves its tiers out."""
    usage = Usage(input_tokens=1000, output_tokens=1000)

    assert price(usage, "gpt-5.6-sol", "azure", service_tier="priority") == price(usage, "gpt-5.6-sol", "azure")


def test_zero_stands_for_free_and_unknown_alike():
    """A model that is free for some, or whose price is not listed, costs 0."""
    assert price(Usage(input_tokens=1000, output_tokens=1000), "google/gemini-2.0-flash-exp:free", "openrouter") == 0


@pytest.mark.parametrize(
    ("name", "vendor"), [("anthropic-bedrock", "anthropic"), ("openai-mantle", "openai"), ("azure_openai", "openai")]
)
def test_hosts_are_taken_for_vendors(name, vendor):
    """A provider's name that contains a vendor's finds the vendor, which is why prices.py renames some."""
    assert get_snapshot().find_provider(None, name, None).id == vendor


def test_models_prefix_is_not_understood():
    """Google's "models/" in front of a name must be taken off."""
    with pytest.raises(LookupError):
        price(Usage(input_tokens=1), "models/gemini-2.5-flash", "google")


def test_wrong_provider_is_a_lookup_error():
    """A provider that doesn't have the model raises, instead of looking elsewhere."""
    with pytest.raises(LookupError):
        price(Usage(input_tokens=1), "gpt-5", "anthropic")


def test_every_token_price_is_of_input_cache_or_output():
    """All prices of tokens have names by which the worst case finds them."""
    keys = {key for prices in all_prices() for key in prices.__dict__ if key.endswith("_mtok")}

    assert {key for key in keys if not key.startswith(("input_", "cache_", "output_"))} == set()


def test_fees_apart_from_tokens_are_those_that_were_looked_at():
    """Of what is billed apart from tokens, requests are in the worst case and web searches in the cost."""
    keys = {key for prices in all_prices() for key in prices.__dict__ if not key.endswith("_mtok")}

    assert keys == {
        "requests_kcount",
        "web_searches_kcount",
        "storage_searches_kcount",
        "audio_hours",
        "input_audio_hours",
        "input_document_kpages",
        "input_annotated_document_kpages",
        "input_mchars",
        "input_text_messages_kcount",
    }


def test_prices_change_at_utc_midnight_or_at_set_hours_only():
    """The worst case looks at these two kinds of conditions."""
    conditions = set()
    for model in (model for provider in get_snapshot().providers for model in provider.models):
        found = model.prices if isinstance(model.prices, list) else []
        assert all(isinstance(item, ConditionalPrice) for item in found)
        conditions |= {type(item.constraint) for item in (*found, *(model.price_variants or ()))}

    assert conditions == {type(None), StartDateConstraint, TimeOfDateConstraint}


def test_snapshot_is_the_same_object_until_replaced():
    """What was looked up may be kept as long as get_snapshot() gives the same object."""
    assert get_snapshot() is get_snapshot()


def test_pricing_needs_no_network():
    """Prices come out of the package alone: no connection is opened to find one."""
    code = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit("the network was asked")
sys.addaudithook(refuse)
from genai_prices import Usage, calc_price
assert calc_price(Usage(input_tokens=1000), "gpt-5").total_price
"""
    subprocess.run([sys.executable, "-c", code], check=True)
