"""What a model call's messages and answers tell, in LangChain's terms: no state, no callbacks."""

from __future__ import annotations

import operator
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from graphguard.bounds import input_bytes, tools_bound
from graphguard.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

__all__ = ["Known", "Prompt", "answer", "caches_an_hour", "fingerprint", "output_bytes", "surely_not_billed"]

_MESSAGE: Final = operator.attrgetter("type", "content", "name", "additional_kwargs")
_CONTENT: Final = operator.attrgetter("content")
_CALLS: Final = operator.attrgetter("tool_calls", "invalid_tool_calls")
_ANSWER_FRAME: Final = 16  # tokens that frame an answer when it is sent back
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


@dataclass(frozen=True, slots=True)
class Known:
    """What a provider said of a prompt and its answer, for the next call that sends them again.

    Attributes:
        tokens: Tokens of both together.
        marks: What tells each message of the prompt from another.
        answers: The same of the answer, for each choice.
        tools: The tools that were offered.
        tools_bound: An upper bound of the tokens that these take.
        same: The messages, weakly, and the ids of their contents: the very same need no second look.
    """

    tokens: int
    marks: tuple[int, ...]
    answers: tuple[int, ...]
    tools: Sequence[object]
    tools_bound: int
    same: tuple[tuple[weakref.ref[BaseMessage | str], ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a call sends.

    Attributes:
        messages: The messages.
        tools: The tools it offers.
        marks: What tells each message from another.
        tools_bound: An upper bound of the tokens that the tools take.
        bound: An upper bound of all its tokens.
    """

    messages: Sequence[BaseMessage | str]
    tools: Sequence[object]
    marks: tuple[int, ...]
    tools_bound: int
    bound: int

    @classmethod
    def of(
        cls,
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        tools: Sequence[object],
        known: Known | None,
    ) -> Prompt:
        """A call's prompt; `known` is what was sent and answered last at its place.

        Where it goes on from there, its bound is the tokens told then and the bytes added since.
        """
        sent: list[BaseMessage | str] = []
        for part in messages:
            sent += [part] if isinstance(part, str) else part
        marks = _marks(sent, known)
        # Equal tools are often the same ones, which are compared by their ids first.
        same_tools = known is not None and tools == known.tools
        tools_ = known.tools_bound if known is not None and same_tools else tools_bound(tools)
        count = len(known.marks) if known is not None else 0
        if known is None or not same_tools or marks[:count] != known.marks:
            return cls(sent, tools, marks, tools_, tools_ + prompt_bytes(sent))
        added = sent[count:]
        # The answer itself, whose tokens the last call told too, unless somebody edited it since.
        if added and marks[count] in known.answers:
            return cls(sent, tools, marks, tools_, known.tokens + _ANSWER_FRAME + prompt_bytes(added[1:]))
        return cls(sent, tools, marks, tools_, known.tokens + prompt_bytes(added))

    def answered(self, response: LLMResult, tokens: int) -> Known:
        """What is known once the provider told the tokens of the prompt and the answer."""
        choices = [choice for choices in response.generations for choice in choices]
        answers = [message for choice in choices if (message := getattr(choice, "message", None)) is not None]
        # Blocks may change in place, and stay the very same object.
        fixed = all(type(getattr(message, "content", None)) is str for message in self.messages)
        messages = self.messages if fixed else ()
        same = tuple(map(weakref.ref, messages)), tuple(map(id, map(_CONTENT, messages)))
        return Known(tokens, self.marks, tuple(map(fingerprint, answers)), self.tools, self.tools_bound, same)


def _marks(sent: Sequence[BaseMessage | str], known: Known | None) -> tuple[int, ...]:
    """What tells each message from another; a loop sends its whole conversation again with each call."""
    if known is not None and (count := len(known.same[0])) and count <= len(sent):
        messages, contents = known.same
        before = sent[:count]
        if all(map(operator.is_, map(operator.call, messages), before)) and contents == tuple(
            map(id, map(_CONTENT, before))
        ):
            return (*known.marks, *map(fingerprint, sent[count:]))
    return tuple(map(fingerprint, sent))


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


def surely_not_billed(error: BaseException, amid: BaseException | None = None) -> bool:
    """Whether a provider rejected the request, or never got it; anything else may have been billed.

    Args:
        error: What the request raised.
        amid: What its caller was handling, such as the failure of another model; it says nothing of this one.
    """
    seen: BaseException | None = error
    while seen is not None and (seen is error or seen is not amid):
        response = getattr(seen, "response", None)
        status = getattr(seen, "status_code", None) or getattr(response, "status_code", None)
        if isinstance(status, int) and status in _REJECTED:
            return True
        if isinstance(seen, ConnectionRefusedError) or type(seen).__name__ in _NEVER_SENT:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
