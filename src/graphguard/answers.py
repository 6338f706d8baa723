"""What a model call's messages and answers tell, in LangChain's terms: no state, no callbacks."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from graphguard.bounds import input_bytes
from graphguard.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

__all__ = ["answer", "caches_an_hour", "fingerprint", "output_bytes", "prompt_bytes", "surely_not_billed"]

_MESSAGE: Final = attrgetter("type", "content", "name", "additional_kwargs")
_CALLS: Final = attrgetter("tool_calls", "invalid_tool_calls")
_TOLD_BY_MODELS: Final = frozenset({"ai", "AIMessageChunk"})


def fingerprint(message: BaseMessage | str) -> int:
    """What tells a message of a prompt from another; each call asks for those of the whole conversation."""
    if type(message) is str:
        return hash(message)
    kind, content, name, extra = _MESSAGE(message)
    rest: object = None
    # By name: isinstance() takes longer than all the rest here, as messages have an abstract base class.
    if kind in _TOLD_BY_MODELS:
        kind = "ai"  # a streamed answer is put into the state as a whole one
        calls, wrong = _CALLS(message)
        if calls or wrong:
            rest = repr(([(call["id"], call["name"], call["args"]) for call in calls], wrong))
    elif kind == "tool":
        rest = getattr(message, "tool_call_id", None)
    text = content if isinstance(content, str) else repr(content)
    return hash((kind, text, name, rest, repr(extra) if extra else None))


def prompt_bytes(prompt: Sequence[BaseMessage | str]) -> int:
    """An upper bound of the tokens of some messages."""
    texts = sum(len(part.encode()) for part in prompt if isinstance(part, str))
    return texts + sum(input_bytes([part for part in prompt if not isinstance(part, str)]))


def answer(response: LLMResult) -> tuple[Usage | None, str | None, str | None]:
    """Usage, model and provider of an answer; several choices of one answer report the same usage."""
    best: Usage | None = None
    model = provider = None
    for choices in response.generations:
        for choice in choices:
            message = getattr(choice, "message", None)
            if message is None:
                continue
            usage = Usage.from_message(message)
            if usage is not None and (best is None or usage.tokens > best.tokens):
                best = usage
            told = message.response_metadata
            model = model or told.get("model_name") or told.get("model")
            provider = provider or told.get("model_provider")
    output = response.llm_output or {}
    if best is None:
        counts = output.get("token_usage") or output.get("usage")
        best = Usage.from_response({"usage": counts}) if isinstance(counts, dict) and counts else None
        model = model or output.get("model_name") or output.get("model")
    return best, str(model) if model else None, str(provider) if provider else None


def caches_an_hour(prompt: Sequence[BaseMessage | str], params: Mapping[str, object]) -> bool:
    """Whether the request asks Anthropic to cache anything for an hour."""
    blocks: list[object] = [params, *cast("Sequence[object]", params.get("tools") or ())]
    for message in prompt:
        if not isinstance(message, str) and isinstance(message.content, list):
            blocks += message.content
    asked = (block.get("cache_control") for block in blocks if isinstance(block, dict))
    return any(isinstance(control, dict) and control.get("ttl") == "1h" for control in asked)


def output_bytes(response: LLMResult) -> int:
    """An upper bound of the tokens in an answer that doesn't tell them."""
    return sum(
        sum(input_bytes([message])) if (message := getattr(choice, "message", None)) else len(choice.text.encode())
        for choices in response.generations
        for choice in choices
    )


_NEVER_SENT: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})
_REJECTED: Final = range(400, 600)


def surely_not_billed(error: BaseException) -> bool:
    """Whether a provider rejected the request, or never got it; anything else may have been billed."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        status = getattr(seen, "status_code", None) or getattr(response, "status_code", None)
        if isinstance(status, int) and status in _REJECTED:
            return True
        if isinstance(seen, ConnectionRefusedError) or type(seen).__name__ in _NEVER_SENT:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
