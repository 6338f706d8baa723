"""What a call used: from LangChain's metadata, from raw answers, and bounded before it is made."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from graphguard.bounds import input_bytes, output_cap, tools_bound
from graphguard.usage import Usage, model_of

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "provider_responses.jsonl"

OPENAI_CHAT = {
    "object": "chat.completion",
    "model": "gpt-5-2025-08-07",
    "service_tier": "default",
    "usage": {
        "prompt_tokens": 2000,
        "completion_tokens": 300,
        "total_tokens": 2300,
        "prompt_tokens_details": {"cached_tokens": 1536, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 256, "audio_tokens": 0},
    },
}
OPENAI_RESPONSES = {
    "object": "response",
    "model": "gpt-5.6-sol",
    "service_tier": "priority",
    "usage": {
        "input_tokens": 900,
        "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 700},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 940,
    },
}
ANTHROPIC = {
    "type": "message",
    "model": "claude-sonnet-4-5-20250929",
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 4000,
        "cache_creation_input_tokens": 500,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300},
        "output_tokens": 77,
        "output_tokens_details": {"thinking_tokens": 50},
        "server_tool_use": {"web_search_requests": 2},
        "service_tier": "standard",
    },
}
GOOGLE = {
    "modelVersion": "gemini-2.5-flash",
    "usageMetadata": {
        "promptTokenCount": 1000,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 400}, {"modality": "AUDIO", "tokenCount": 600}],
        "cachedContentTokenCount": 512,
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 500}, {"modality": "TEXT", "tokenCount": 12}],
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 80,
        "toolUsePromptTokenCount": 300,
        "totalTokenCount": 1400,
        "serviceTier": "standard",
    },
}
GROQ = {
    "object": "chat.completion",
    "model": "llama-3.3-70b-versatile",
    "x_groq": {"id": "req_1"},
    "usage": {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59, "queue_time": 0.02},
}
MISTRAL = {
    "object": "chat.completion",
    "model": "mistral-large-latest",
    "usage": {
        "prompt_tokens": 60,
        "completion_tokens": 5,
        "total_tokens": 65,
        "prompt_tokens_details": {"cached_tokens": 32},
    },
}
DEEPSEEK = {
    "object": "chat.completion",
    "model": "deepseek-chat",
    "usage": {
        "prompt_tokens": 563,
        "completion_tokens": 116,
        "total_tokens": 679,
        "prompt_cache_hit_tokens": 512,
        "prompt_cache_miss_tokens": 51,
    },
}
OPENROUTER = {
    "object": "chat.completion",
    "model": "anthropic/claude-sonnet-4.5",
    "provider": "Amazon Bedrock",
    "usage": {
        "prompt_tokens": 43,
        "completion_tokens": 53,
        "total_tokens": 96,
        "cost": 0.0009240001,
        "is_byok": False,
        "cost_details": {"upstream_inference_cost": 0.000924},
    },
}
BEDROCK = {
    "output": {},
    "usage": {"inputTokens": 7, "outputTokens": 3, "totalTokens": 110, "cacheReadInputTokens": 100},
}


# What LangChain says


def test_plain_counts_are_taken():
    """Input and output are those of the usage metadata."""
    usage = Usage.from_metadata({"input_tokens": 20, "output_tokens": 10, "total_tokens": 30})

    assert usage == Usage(input_tokens=20, output_tokens=10)
    assert usage.tokens == 30


def test_details_are_taken():
    """Cache reads and writes, audio and reasoning come out of the two detail fields."""
    usage = Usage.from_metadata(
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "total_tokens": 150,
            "input_token_details": {"cache_read": 10, "cache_creation": 20, "audio": 30},
            "output_token_details": {"audio": 5, "reasoning": 6},
        }
    )

    assert usage == Usage(
        input_tokens=100,
        output_tokens=50,
        cache_read_tokens=10,
        cache_write_tokens=20,
        input_audio_tokens=30,
        output_audio_tokens=5,
        reasoning_tokens=6,
    )


def test_cache_writes_by_lifetime_count_where_the_sum_is_zeroed():
    """langchain-anthropic gives `cache_creation` as 0 beside the split by lifetime: the split is the sum."""
    details = {"cache_creation": 0, "ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300}

    usage = Usage.from_metadata({"input_tokens": 510, "output_tokens": 1, "input_token_details": details})

    assert (usage.cache_write_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (500, 200, 300)


@pytest.mark.parametrize("tier", ["priority", "flex"])
def test_tier_and_its_counts_are_read_from_prefixed_keys(tier):
    """langchain-openai puts the tier into the keys: it is found, and its cache reads and reasoning count."""
    usage = Usage.from_metadata(
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "total_tokens": 150,
            "input_token_details": {tier: 90, f"{tier}_cache_read": 10},
            "output_token_details": {tier: 44, f"{tier}_reasoning": 6},
        }
    )

    assert (usage.service_tier, usage.cache_read_tokens, usage.reasoning_tokens) == (tier, 10, 6)


def test_tier_is_read_from_the_response_metadata():
    """Where no key names the tier, the response metadata does."""
    usage = Usage.from_metadata({"input_tokens": 1, "output_tokens": 1}, {"service_tier": "Flex"})

    assert usage.service_tier == "flex"


def test_cached_answer_is_marked():
    """LangChain's cache says total_cost 0: the answer was not billed, whatever the provider said it cost once."""
    usage = Usage.from_metadata({"input_tokens": 9, "output_tokens": 9, "total_cost": 0}, {"cost": 0.5})

    assert usage.cached_answer
    assert usage.reported_nanousd is None


def test_cached_answer_without_counts_is_still_usage():
    """An answer from the cache whose original reported nothing is free, not to be estimated."""
    message = AIMessage("x")
    message.usage_metadata = {"total_cost": 0}  # as LangChain sets it, past the type

    assert Usage.from_message(message) == Usage(cached_answer=True)


def test_costs_in_the_usage_metadata_count_as_reported():
    """LangSmith's input_cost and output_cost add up to what was reported."""
    usage = Usage.from_metadata({"input_tokens": 20, "output_tokens": 10, "input_cost": 3.5e-5, "output_cost": 3e-5})

    assert usage.reported_nanousd == 65_000


def test_total_cost_counts_before_its_parts():
    """LangSmith's total_cost is what was reported, where it is there."""
    usage = Usage.from_metadata({"input_tokens": 20, "output_tokens": 10, "input_cost": 1, "total_cost": 6.5e-5})

    assert usage.reported_nanousd == 65_000


@pytest.mark.parametrize(
    "metadata",
    [{"cost": 0.0009240001}, {"token_usage": {"cost": 0.0009240001}}],
    ids=["at the top", "beside the counts"],
)
def test_reported_cost_is_read_from_the_response_metadata(metadata):
    """OpenRouter's cost is found where its own package puts it, and where ChatOpenAI leaves it."""
    usage = Usage.from_metadata({"input_tokens": 43, "output_tokens": 53}, metadata)

    assert usage.reported_nanousd == 924_001


def test_reported_cost_with_a_key_of_ones_own_adds_what_the_provider_bills():
    """With is_byok, OpenRouter's cost is its fee: the upstream price comes on top."""
    raw = {"cost": 0.00005, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.001}}

    assert (
        Usage.from_metadata({"input_tokens": 1, "output_tokens": 1}, {"token_usage": raw}).reported_nanousd == 1_050_000
    )


@pytest.mark.parametrize(
    "raw",
    [
        {"cost": 0},
        {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}},
        {"cost": float("nan")},
        {"cost": -1},
        {"cost": "soon"},
        {"cost": True},
    ],
)
def test_reported_cost_that_says_nothing_is_not_taken_for_zero(raw):
    """A zero that may be the fee for a key of one's own, and what is no amount, leave the cost unreported."""
    usage = Usage.from_metadata({"input_tokens": 1, "output_tokens": 1}, {"token_usage": raw})

    assert usage.reported_nanousd is None


def test_reported_zero_is_believed_when_openrouter_billed_it():
    """With is_byok false, a zero is what OpenRouter billed: a free model."""
    usage = Usage.from_metadata({"input_tokens": 1, "output_tokens": 1}, {"token_usage": {"cost": 0, "is_byok": False}})

    assert usage.reported_nanousd == 0


@pytest.mark.parametrize("total", [0, 160, 9336])
def test_input_that_leaves_cache_reads_out_is_completed(total):
    """A cache read larger than the input shows that the integration left it out of the input."""
    usage = Usage.from_metadata(
        {"input_tokens": 4, "output_tokens": 156, "total_tokens": total, "input_token_details": {"cache_read": 9176}}
    )

    assert usage.input_tokens == 9180
    assert usage.output_tokens == 156


def test_total_that_exceeds_its_parts_adds_output():
    """The total of xAI has the reasoning that its output leaves out: it counts as output, the dearer side."""
    usage = Usage.from_metadata({"input_tokens": 10, "output_tokens": 5, "total_tokens": 115})

    assert (usage.input_tokens, usage.output_tokens) == (10, 105)


def test_total_that_exceeds_its_parts_adds_input_for_google():
    """Google's total has what its tools read, which is input."""
    usage = Usage.from_metadata(
        {"input_tokens": 10, "output_tokens": 5, "total_tokens": 115}, {"model_provider": "google_genai"}
    )

    assert (usage.input_tokens, usage.output_tokens) == (110, 5)


def test_reasoning_larger_than_the_output_is_added_to_it():
    """Reasoning that can't be inside the output was left out of it."""
    usage = Usage.from_metadata(
        {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "output_token_details": {"reasoning": 100}}
    )

    assert usage.output_tokens == 105


@pytest.mark.parametrize("odd", [None, -5, "7", True, float("nan"), float("inf"), [1]])
def test_counts_that_are_none_are_zero(odd):
    """What isn't a finite count of zero or more is no count; it never raises, and never gives money back."""
    assert Usage.from_metadata({"input_tokens": odd, "output_tokens": 3}) == Usage(output_tokens=3)


def test_message_without_usage_has_none():
    """No usage metadata and none in the response metadata: None, so that the caller estimates."""
    assert Usage.from_message(AIMessage("hello", response_metadata={"model_name": "gpt-5"})) is None


def test_message_with_counts_of_zero_has_none():
    """A stream without usage may end with zeros: that is missing usage, not a free call."""
    message = AIMessage("hello", usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})

    assert Usage.from_message(message) is None


def test_message_with_raw_usage_only_has_usage():
    """Integrations that fill response_metadata alone are read too."""
    message = AIMessage("hello", response_metadata={"token_usage": OPENAI_CHAT["usage"], "service_tier": "flex"})

    usage = Usage.from_message(message)

    assert usage == Usage(
        input_tokens=2000, output_tokens=300, cache_read_tokens=1536, reasoning_tokens=256, service_tier="flex"
    )


def test_human_message_has_none():
    """Only answers have usage."""
    assert Usage.from_message(HumanMessage("hi")) is None


def test_work_of_other_models_is_kept_apart():
    """Anthropic bills an advisor's tokens to the advisor's model, and its totals leave them out."""
    steps = [
        {"type": "message", "input_tokens": 100, "output_tokens": 10},
        {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 900, "output_tokens": 30},
        {"type": "message", "input_tokens": 200, "output_tokens": 20},
    ]
    usage = Usage.from_metadata(
        {"input_tokens": 300, "output_tokens": 30, "total_tokens": 330}, {"usage": {"iterations": steps}}
    )

    assert usage.tokens == 330
    assert usage.also == (("claude-opus-4-8", Usage(input_tokens=900, output_tokens=30)),)


def test_compactions_are_counted():
    """Anthropic's totals leave out a compaction of the context, which the list of iterations has."""
    steps = [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ]
    usage = Usage.from_metadata({"input_tokens": 23_000, "output_tokens": 1_000}, {"usage": {"iterations": steps}})

    assert (usage.input_tokens, usage.output_tokens) == (203_000, 4_500)


def test_negative_count_is_refused():
    """A usage below zero would give money back to a budget."""
    with pytest.raises(ValueError, match="input_tokens is -1"):
        Usage(input_tokens=-1)


# Raw answers

RAW = {
    "openai chat": (
        OPENAI_CHAT,
        Usage(
            input_tokens=2000, output_tokens=300, cache_read_tokens=1536, reasoning_tokens=256, service_tier="default"
        ),
        ("gpt-5-2025-08-07", None),
    ),
    "openai responses": (
        OPENAI_RESPONSES,
        Usage(
            input_tokens=900,
            output_tokens=40,
            cache_read_tokens=100,
            cache_write_tokens=700,
            reasoning_tokens=30,
            service_tier="priority",
        ),
        ("gpt-5.6-sol", "openai"),
    ),
    "anthropic": (
        ANTHROPIC,
        Usage(
            input_tokens=4510,
            output_tokens=77,
            cache_read_tokens=4000,
            cache_write_tokens=500,
            cache_write_5m_tokens=200,
            cache_write_1h_tokens=300,
            reasoning_tokens=50,
            web_searches=2,
            service_tier="standard",
        ),
        ("claude-sonnet-4-5-20250929", "anthropic"),
    ),
    "google": (
        GOOGLE,
        Usage(
            input_tokens=1300,
            output_tokens=100,
            cache_read_tokens=512,
            cache_read_audio_tokens=500,
            input_audio_tokens=600,
            reasoning_tokens=80,
            service_tier="standard",
        ),
        ("gemini-2.5-flash", "google"),
    ),
    "groq": (GROQ, Usage(input_tokens=50, output_tokens=9), ("llama-3.3-70b-versatile", "groq")),
    "mistral": (
        MISTRAL,
        Usage(input_tokens=60, output_tokens=5, cache_read_tokens=32),
        ("mistral-large-latest", None),
    ),
    "deepseek": (DEEPSEEK, Usage(input_tokens=563, output_tokens=116, cache_read_tokens=512), ("deepseek-chat", None)),
    "openrouter": (
        OPENROUTER,
        Usage(input_tokens=43, output_tokens=53, reported_nanousd=924_001),
        ("anthropic/claude-sonnet-4.5", "openrouter"),
    ),
    "bedrock": (BEDROCK, Usage(input_tokens=107, output_tokens=3, cache_read_tokens=100), (None, None)),
}


def as_objects(value: object) -> object:
    """Turn dicts into attribute-only objects, as SDKs give them; google-genai's are in snake_case."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: as_objects(item) for key, item in value.items()})
    return [as_objects(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", RAW)
def test_raw_answer_is_counted(name):
    """Each provider's own body gives the same kinds of tokens, with input and output whole."""
    body, usage, _ = RAW[name]

    assert Usage.from_response(body) == usage


@pytest.mark.parametrize("name", [name for name in RAW if name not in {"google", "bedrock"}])
def test_raw_object_is_counted_like_its_dict(name):
    """An SDK's object, nested objects included, is read like the JSON it came from."""
    body, usage, _ = RAW[name]

    assert Usage.from_response(as_objects(body)) == usage


def test_pydantic_object_is_counted():
    """The openai package's own type is read, unchecked extra fields included."""
    completion = pytest.importorskip("openai").types.chat.ChatCompletion.construct(**OPENAI_CHAT)

    assert Usage.from_response(completion) == RAW["openai chat"][1]


def test_snake_case_google_object_is_counted():
    """google-genai's objects, in snake_case and with an enum for the modality, are read like its JSON."""
    audio = SimpleNamespace(modality=SimpleNamespace(value="AUDIO"), token_count=600)
    raw = SimpleNamespace(prompt_token_count=1000, prompt_tokens_details=[audio], total_token_count=1000)

    usage = Usage.from_response(SimpleNamespace(usage_metadata=raw, model_version="gemini-2.5-flash"))

    assert usage == Usage(input_tokens=1000, input_audio_tokens=600)


def test_what_googles_tools_read_is_input():
    """Tokens that Google's tools read are input, even where no total says so."""
    raw = {"promptTokenCount": 10, "toolUsePromptTokenCount": 300, "candidatesTokenCount": 2}

    assert Usage.from_response({"usageMetadata": raw}) == Usage(input_tokens=310, output_tokens=2)


@pytest.mark.parametrize("name", RAW)
def test_model_of_raw_answer_is_named(name):
    """The model is named; the provider only where the body shows it."""
    body, _, model = RAW[name]

    assert model_of(body) == model


def test_model_of_message_is_named():
    """A LangChain message names its model and provider itself."""
    message = AIMessage("x", response_metadata={"model_name": "gpt-5", "model_provider": "openai"})

    assert model_of(message) == ("gpt-5", "openai")


@pytest.mark.parametrize("nothing", [None, "text", b"bytes", 7, {}, [], {"usage": None}, {"usage": "much"}, object()])
def test_answer_without_usage_has_none(nothing):
    """What carries no usage gives None, and no model, and doesn't raise."""
    assert Usage.from_response(nothing) is None
    assert model_of(nothing) == (None, None)


def test_message_given_as_response_is_counted():
    """charge(response) may get what LangChain returned."""
    message = AIMessage("x", usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})

    assert Usage.from_response(message) == Usage(input_tokens=3, output_tokens=4)


def test_events_of_a_stream_count_once():
    """Anthropic's first event has the cache reads, its last the running total: together one usage."""
    events = [
        {"type": "message_start", "message": {"model": "claude-x", "type": "message", "usage": ANTHROPIC["usage"]}},
        {"type": "content_block_delta", "delta": {"text": "hi"}},
        {"type": "message_delta", "usage": {"output_tokens": 99}},
    ]

    usage = Usage.from_response(events)

    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (4510, 99, 4000)
    assert model_of(events) == ("claude-x", "anthropic")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.completed", "response": OPENAI_RESPONSES},
        {"choices": [], **OPENAI_RESPONSES},
        {"x_groq": {"usage": GROQ["usage"]}, "model": "llama-3.3-70b-versatile"},
    ],
    ids=["response", "chunk", "groq"],
)
def test_last_event_of_a_stream_is_counted(event):
    """The event that carries the usage is enough."""
    assert Usage.from_response(event).tokens in {940, 59}


def test_speed_is_a_tier():
    """Anthropic's fast mode costs more, and says so by `speed`."""
    body = {"type": "message", "usage": {"input_tokens": 1, "output_tokens": 1, "speed": "fast"}}

    assert Usage.from_response(body).service_tier == "fast"


def test_estimate_is_marked():
    """An estimate counts bytes as tokens and says that it is one."""
    assert Usage.estimate(700, 300) == Usage(input_tokens=700, output_tokens=300, estimated=True)


def test_every_recorded_answer_with_counts_is_read():
    """Of the recorded JSON answers, only the two that count nothing have no usage."""
    bodies = [row["response"] for row in recorded() if row["response"]]

    missing = [body for body in bodies if Usage.from_response(body) is None]

    assert all((body.get("usage") or {"total_tokens": 0})["total_tokens"] == 0 for body in missing)
    assert len(missing) <= 2


def test_every_recorded_stream_is_read():
    """Of the recorded event streams, each that carries counts has usage."""
    missing = []
    for row in recorded():
        if row["sse"]:
            lines = [line.removeprefix("data:").strip() for line in row["sse"].splitlines() if line.startswith("data:")]
            events = [json.loads(line) for line in lines if line.startswith("{")]
            if Usage.from_response(events) is None:
                missing.append(row)

    assert [row["source"] for row in missing if '_tokens":' in row["sse"] or "TokenCount" in row["sse"]] == []


def recorded() -> list[dict]:
    """Read the recorded answers that lie beside the checkout, or skip."""
    if not RECORDED.exists():
        pytest.skip("the recorded provider answers (../shared/data) are not beside this checkout")
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


# Bounds of a call not made yet


def test_each_message_is_bounded_by_its_bytes():
    """Text counts its UTF-8 bytes, and some framing for each message."""
    plain, thai = input_bytes([SystemMessage("abcd"), HumanMessage("สวัสดี")])

    assert plain - 4 == thai - 18 > 0


def test_tool_calls_names_and_ids_are_bounded():
    """What an assistant's and a tool's message carry beside content counts too."""
    call = {"name": "search", "args": {"query": "x" * 100}, "id": "call_1"}
    asked, answered = input_bytes(
        [AIMessage("", tool_calls=[call]), ToolMessage("42", tool_call_id="call_1", name="n")]
    )

    assert asked > len(json.dumps(call["args"])) + len("search") + len("call_1")
    assert answered >= len("42") + len("call_1") + len("n")


def test_tool_calls_in_the_content_count_once():
    """Anthropic's messages have each call twice, as a block and as tool_calls: only one is sent."""
    text = "x" * 5000
    block = {"type": "tool_use", "id": "1", "name": "save", "input": {"text": text}}
    message = AIMessage([block], tool_calls=[{"name": "save", "args": {"text": text}, "id": "1"}])

    assert 5000 < input_bytes([message])[0] < 6000


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBO" * 100_000}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO" * 100_000}},
        {"type": "image", "base64": "iVBO" * 100_000, "mime_type": "image/png"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ],
    ids=["openai", "anthropic", "langchain", "link"],
)
def test_image_is_bounded_apart_from_its_bytes(block):
    """A picture counts 15,000 tokens, however it is given, and its base64 nothing."""
    assert 15_000 <= input_bytes([HumanMessage([block])])[0] < 15_500


def test_image_in_a_tool_result_is_bounded_as_one():
    """A screenshot that a tool returned counts like any other picture."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO" * 100_000}}
    message = HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": [image]}])

    assert 15_000 <= input_bytes([message])[0] < 15_500


def test_text_in_a_document_counts_in_full():
    """A document given as text is text: its bytes count, beside the flat bound."""
    text = "These are words of a contract. " * 2000
    block = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}

    assert input_bytes([HumanMessage([block])])[0] > len(text) + 15_000


def test_text_of_content_blocks_counts_in_full():
    """Text and reasoning blocks count as their text does."""
    blocks = [
        {"type": "text", "text": "a" * 1000},
        {"type": "thinking", "thinking": "b" * 1000, "signature": "c" * 500},
    ]

    assert 2500 < input_bytes([AIMessage(blocks)])[0] < 2800


def test_lone_surrogates_do_not_raise():
    """Text that isn't valid Unicode is bounded like any other."""
    assert input_bytes([HumanMessage("\ud800")])[0] >= 3


def test_bounding_input_is_fast():
    """Two messages of 1 MB take less than 100 ms, a hundred times what was measured."""
    messages = [HumanMessage("plain " * 170_000), HumanMessage("ไทย" * 110_000)]
    start = time.perf_counter()

    input_bytes(messages)

    assert time.perf_counter() - start < 0.1


def test_no_tools_cost_nothing():
    """Without tools, nothing is added."""
    assert tools_bound([]) == 0


@tool
def book_flight(origin: str, destination: str) -> str:
    """Book a flight, whatever it costs."""
    return origin + destination


def test_tools_are_bounded_by_their_schemas():
    """Tool definitions count the bytes of their JSON, however they are given, and 1,000 tokens."""
    schema = {"type": "function", "function": {"name": "f", "description": "d" * 300, "parameters": {}}}

    assert tools_bound([schema]) == 1000 + len(json.dumps(schema))
    assert tools_bound([book_flight]) > 1000 + len("book_flight Book a flight, whatever it costs. origin destination")


@pytest.mark.parametrize(
    ("metadata", "params", "cap"),
    [
        (None, None, None),
        ({}, {}, None),
        ({"ls_max_tokens": 100}, {}, 100),
        ({}, {"max_tokens": 200}, 200),
        ({}, {"max_completion_tokens": 300, "max_tokens": None}, 300),
        ({}, {"max_output_tokens": 400}, 400),
        ({}, {"generation_config": {"max_output_tokens": 500}}, 500),
        ({}, {"generation_config": {"maxOutputTokens": 500, "candidateCount": 2}}, 1000),
        ({}, {"max_tokens": 600, "extra_body": {"max_tokens": 700}}, 700),
        ({"ls_max_tokens": 100}, {"n": 3}, 300),
        ({"ls_max_tokens": 100}, {"max_tokens": 100, "n": 2, "best_of": 5}, 500),
        ({"ls_max_tokens": 0}, {"max_tokens": -1, "n": 3}, None),
        ({"ls_max_tokens": None}, {"max_tokens": "many"}, None),
        ({"ls_max_tokens": True}, {}, None),
    ],
)
def test_output_cap_covers_all_answers_asked_for(metadata, params, cap):
    """The cap is the largest setting found, times the answers asked for; None where nothing caps the output."""
    assert output_cap(metadata, params) == cap


def test_chunks_of_one_message_are_read_like_it():
    """A streamed answer, summed up by LangChain, has the usage of its parts."""
    first = AIMessageChunk("a", usage_metadata={"input_tokens": 5, "output_tokens": 0, "total_tokens": 5})
    last = AIMessageChunk("b", usage_metadata={"input_tokens": 0, "output_tokens": 2, "total_tokens": 2})

    assert Usage.from_message(first + last) == Usage(input_tokens=5, output_tokens=2)
