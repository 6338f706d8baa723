"""A chat model that does as it is told: scripted answers with scripted usage, sync, async and streamed."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

NANOUSD_PER_CALL = 210_000
"""What one default call costs: gpt-4o-mini, 1,000 tokens in and 100 out."""


class Scripted(BaseChatModel):
    """Answers `script[i]` to call i (the last one again when it runs out) and counts what it bills.

    A script entry is a text, an `AIMessage` (its own usage is kept), or an exception to raise.
    """

    model_name: str = "gpt-4o-mini"
    max_tokens: int | None = 100
    script: list[Any] = Field(default_factory=lambda: ["ok"])
    usage: tuple[int, int] | None = (1_000, 100)
    pieces: int = 1
    before: Callable[[], None] | None = None

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _billed: list[AIMessage] = PrivateAttr(default_factory=list)
    _asked: int = PrivateAttr(default=0)

    @property
    def billed(self) -> int:
        """Calls that the provider would bill."""
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = {"ls_provider": "openai", "ls_model_name": self.model_name, "ls_model_type": "chat"}
        return params if self.max_tokens is None else {**params, "ls_max_tokens": self.max_tokens}

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Tools are offered, but the script decides."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _next(self) -> AIMessage:
        with self._lock:
            entry = self.script[min(self._asked, len(self.script) - 1)]
            self._asked += 1
        if self.before is not None:
            self.before()
        if isinstance(entry, BaseException):
            raise entry
        message = AIMessage(entry) if isinstance(entry, str) else entry.model_copy(update={"id": None})
        if message.usage_metadata is None and self.usage is not None:
            sent, received = self.usage
            message.usage_metadata = {
                "input_tokens": sent,
                "output_tokens": received,
                "total_tokens": sent + received,
            }
        metadata = {"model_name": self.model_name, "model_provider": "openai"}
        message.response_metadata = {**metadata, **message.response_metadata}
        return message

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next())])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)


class Streaming(Scripted):
    """The same, streamed word by word; the usage comes with the last chunk."""

    def _chunks(self) -> Iterator[ChatGenerationChunk]:
        message = self._next()
        words = str(message.content).split(" ")
        for at, word in enumerate(words):
            last = at == len(words) - 1
            chunk = AIMessageChunk(
                content=word if last else f"{word} ",
                usage_metadata=message.usage_metadata if last else None,
                response_metadata=message.response_metadata if last else {},
                tool_call_chunks=[
                    {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": at}
                    for at, call in enumerate(message.tool_calls)
                ]
                if last
                else [],
            )
            yield ChatGenerationChunk(message=chunk)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks():
            yield chunk


def tool_call(name: str, call_id: str = "c1", **args: Any) -> AIMessage:
    """An answer that asks for a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": call_id, "type": "tool_call"}])
