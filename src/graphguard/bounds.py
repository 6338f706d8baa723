"""Bounds: the most tokens that a model call not yet made can take, by what is about to be sent.

Pure: nothing here reads a file, a clock or the network. UTF-8 bytes are an upper bound on tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from graphguard.usage import as_count, as_mapping

__all__ = ["answer_schemas", "input_bytes", "output_cap", "tools_bound"]

_MEDIA_TOKENS = 15_000
_MESSAGE_TOKENS = 32
_TOOLS_TOKENS = 1_000

# Where integrations put the cap on the output and the number of answers, and the settings they nest these in.
_NESTED = ("generation_config", "generationConfig", "extra_body", "model_kwargs", "inferenceConfig", "options")
_CAPS = (
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "maxOutputTokens",
    "maxTokens",
    "max_new_tokens",
    "num_predict",
)
_FORMS = (
    "response_format",
    "response_schema",
    "response_json_schema",
    "output_config",
    "output_format",
    "text",
    "format",
)
_ANSWERS = ("n", "best_of", "candidate_count", "candidateCount")

# Base64 characters in one token at least: none counts in a picture, whose size is in pixels; speech at
# 16 kbit/s has 60 characters to a token; a document has few.
_MEDIA = {
    "image": math.inf,
    "image_url": math.inf,
    "input_image": math.inf,
    "image_generation_call": math.inf,
    "audio": 64,
    "input_audio": 64,
    "video": 64,
    "media": 64,
    "file": 4,
    "input_file": 4,
    "document": 4,
}
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{512}")
_CALLS = frozenset({"tool_use", "tool_call", "function_call"})


def input_bytes(messages: Sequence[BaseMessage]) -> tuple[int, ...]:
    """Bound the input tokens of each message: its UTF-8 bytes, some framing, 15,000 for each image.

    >>> from langchain_core.messages import HumanMessage
    >>> input_bytes([HumanMessage("hi")])
    (34,)
    """
    return tuple(_MESSAGE_TOKENS + _message_bytes(message) for message in messages)


def tools_bound(tools: Sequence[object]) -> int:
    """Bound the tokens that tool definitions add to a call's input: their schemas' bytes and 1,000; 0 for none."""
    if not tools:
        return 0
    return _TOOLS_TOKENS + sum(len(_json(_schema(tool))) for tool in tools)


def answer_schemas(params: Mapping[str, object]) -> tuple[object, ...]:
    """What a request says of the form of its answer, which providers bill as input; empty where it says none.

    >>> answer_schemas({"response_format": {"type": "json_object"}})
    ()
    """
    places = [params, *(as_mapping(params.get(name)) for name in _NESTED if params.get(name))]
    found = [place[name] for place in places for name in _FORMS if place.get(name)]
    return tuple(form for form in found if isinstance(form, type) or '"properties"' in _json(form))


def output_cap(metadata: Mapping[str, object] | None, invocation_params: Mapping[str, object] | None) -> int | None:
    """Give the most output tokens a call may bill, all its answers together; None where nothing caps it.

    Args:
        metadata: The callback's `metadata`, for `ls_max_tokens`.
        invocation_params: The callback's `invocation_params`, read with the settings nested in them. Where
            several caps differ, which of them is sent depends on the integration, so the largest counts.
    """
    params = invocation_params or {}
    places = [params, *(as_mapping(params.get(name)) for name in _NESTED if params.get(name))]
    caps = [as_count((metadata or {}).get("ls_max_tokens"))]
    caps += [as_count(place[name]) for place in places for name in _CAPS if name in place]
    answers = [as_count(place[name]) for place in places for name in _ANSWERS if name in place]
    return max(caps) * max([1, *answers]) or None


def _message_bytes(message: BaseMessage) -> int:
    content = message.content
    size = _bytes(content) if isinstance(content, str) else sum(map(_size, content))
    size += _bytes(message.name or "")
    if isinstance(message, AIMessage):
        blocks = () if isinstance(content, str) else content
        if not any(isinstance(block, dict) and block.get("type") in _CALLS for block in blocks):
            size += sum(len(_json(call)) for call in (*message.tool_calls, *message.invalid_tool_calls))
    elif isinstance(message, ToolMessage):
        size += _bytes(message.tool_call_id)
    # Some integrations send reasoning and signatures back from here; the calls are those of `tool_calls`.
    return size + sum(_size(value) for key, value in message.additional_kwargs.items() if key != "tool_calls")


def _size(value: object, *, characters_a_token: float = 1) -> int:
    """Bound the tokens of a content block: its strings' bytes, keys and punctuation; media by what they are."""
    if isinstance(value, str):
        encoded = characters_a_token > 1 and (value.startswith("data:") or _ENCODED.match(value))
        return int(len(value) / characters_a_token) if encoded else _bytes(value) + 2
    if isinstance(value, bytes):
        return _MEDIA_TOKENS + len(value) // 64
    if isinstance(value, Mapping):
        rate = _MEDIA.get(str(value.get("type")), 0)
        inside = [
            _bytes(str(key)) + 4 + _size(item, characters_a_token=rate or characters_a_token)
            for key, item in value.items()
        ]
        return (_MEDIA_TOKENS if rate else 0) + sum(inside) + 2
    if isinstance(value, Sequence):
        return 2 + sum(2 + _size(item, characters_a_token=characters_a_token) for item in value)
    return len(str(value))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


_ENCODER = json.JSONEncoder(default=str)


def _json(value: object) -> str:
    # Escaped to ASCII, as some integrations send it: that takes more tokens than the text itself.
    return _ENCODER.encode(value)


def _schema(tool: object) -> object:
    if isinstance(tool, Mapping):
        return tool
    try:
        return convert_to_openai_tool(tool)  # type: ignore[arg-type]  # it says itself what it can't convert
    except (TypeError, ValueError):
        return repr(tool)
