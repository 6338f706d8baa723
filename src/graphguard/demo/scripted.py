"""The models of the demo: real LangChain chat models whose answers are written down beforehand.

No network and no key. Both read what to say next from the messages they are given and keep nothing
themselves, so a run can be resumed, replayed and forked like one with a live model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

__all__ = ["CALLS", "PRICED_AS", "RecordedModel", "RunawayModel", "ScriptedModel", "count_tokens"]

PRICED_AS = "gpt-4o"
"""The model whose prices the scripted agent is billed at."""

CALLS = 40
"""After so many calls the scripted agent gives up by itself, so that the run without a budget ends."""

BYTES_PER_TOKEN = 4
"""A rule of thumb for English text; nobody's tokenizer."""

SEARCHES = (
    "refund order 1042",
    "1042 refund missing",
    "1042 paid to card",
    "parcel back 1042",
    "1042 not paid yet",
    "voucher order 1042",
    "wool blanket 1042",
    "refund card 1042",
)
"""What the scripted agent searches for, over and over; none of it finds what it wants."""

TWISTS = ("", " all", " any date", " again", " exact")
"""What it adds in each round, so that no two searches are the same."""

SIGHS = (
    "That is not it. Other words may find it.",
    "Still no refund for order 1042 itself. Searching once more.",
    "These are refunds of other orders. Trying another phrase.",
    "It must be somewhere. Let me search again.",
)
"""What it says while it loops."""


def count_tokens(messages: Sequence[BaseMessage]) -> int:
    """Give a count of tokens taken from the text alone: its UTF-8 bytes, divided by four, rounded up.

    Args:
        messages: Their texts and the tool calls in them are counted.

    >>> count_tokens([AIMessage("eight by")])
    2
    """
    size = 0
    for message in messages:
        size += len(message.text.encode())
        if isinstance(message, AIMessage):
            size += sum(_bytes([call["name"], call["args"]]) for call in message.tool_calls)
    return -(-size // BYTES_PER_TOKEN)


class ScriptedModel(BaseChatModel):
    """What the two scripted models share: a price, an output cap, and usage counted from the text.

    Attributes:
        model_name: The priced model it is billed as.
        max_tokens: The output cap, in tokens. No answer is longer.
    """

    model_name: str = PRICED_AS
    max_tokens: int = 100

    @property
    def _llm_type(self) -> str:
        """Name the kind of model, for traces."""
        return "graphguard-demo"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: object) -> LangSmithParams:
        """Say what callbacks learn about the model before a call."""
        params = super()._get_ls_params(stop=stop, **kwargs)
        # Only the price is borrowed; a provider named after this class would have none.
        params.pop("ls_provider", None)
        return params

    def bind_tools(
        self,
        tools: Sequence[dict[str, object] | type | Callable[..., object] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: object,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the model with tools: their descriptions are sent, and counted, with each call."""
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **chosen, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - LangChain's signature; a script needs no stop words
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain's signature
        **kwargs: object,
    ) -> ChatResult:
        """Answer with the next line of the script."""
        message = self.answer(messages)
        sent = count_tokens(messages) + -(-_bytes(kwargs["tools"]) // BYTES_PER_TOKEN if "tools" in kwargs else 0)
        said = max(1, count_tokens([message]))
        message = message.model_copy(
            update={
                "usage_metadata": UsageMetadata(input_tokens=sent, output_tokens=said, total_tokens=sent + said),
                "response_metadata": {"model_name": self.model_name, "finish_reason": "stop"},
            }
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def answer(self, messages: list[BaseMessage]) -> AIMessage:
        """Give the answer to these messages, without its usage."""
        raise NotImplementedError


class RunawayModel(ScriptedModel):
    """A model that loops as runaway agents do: one search after another, in slightly different words.

    Attributes:
        calls: After so many calls it gives up and answers.

    >>> RunawayModel().invoke("Where is the refund for order 1042?").tool_calls[0]["name"]
    'look_up_order'
    """

    calls: int = CALLS

    def answer(self, messages: list[BaseMessage]) -> AIMessage:
        """Look the order up, then search, search and search; how far it is shows in the messages."""
        done = sum(isinstance(message, AIMessage) for message in messages)
        if done + 1 >= self.calls:
            return AIMessage(f"I could not find the refund for order 1042 in {self.calls} calls. I give up.")
        call_id = f"call_{done + 1}"
        if done == 0:
            look_up = {"name": "look_up_order", "args": {"order_id": 1042}, "id": call_id}
            return AIMessage("Let me look at the order first.", tool_calls=[look_up])
        words = SEARCHES[(done - 1) % len(SEARCHES)] + TWISTS[(done - 1) // len(SEARCHES) % len(TWISTS)]
        search = {"name": "search_refunds", "args": {"words": words}, "id": call_id}
        return AIMessage(SIGHS[done % len(SIGHS)], tool_calls=[search])


class RecordedModel(ScriptedModel):
    """A model that says what another one said in a recorded run.

    Attributes:
        script: All messages of the recorded run, in order. The one at the place the conversation has
            reached is the answer.
    """

    script: tuple[BaseMessage, ...] = ()

    def answer(self, messages: list[BaseMessage]) -> AIMessage:
        """Give the recorded answer at this place of the conversation."""
        recorded = self.script[len(messages)]
        if not isinstance(recorded, AIMessage):
            problem = f"message {len(messages) + 1} of the recording is of type {recorded.type!r}, not the model's"
            raise TypeError(problem)
        return recorded


def _bytes(value: object) -> int:
    """Give the size of a value as JSON, in UTF-8 bytes."""
    return len(json.dumps(value, ensure_ascii=False).encode())
