"""The most that a call can cost before it is made, worked out from the request bodies alone.

The library's rule, written a second time over what the server was sent:

* Tokens never outnumber UTF-8 bytes. A message may take the bytes of its text, names and ids and 32 tokens more; tool
  definitions take the bytes of their JSON and 1,000 tokens more; the answer takes the cap that the request names.
* In a loop, the call before said how many tokens it read and wrote. What it read and wrote is then known, and only
  the messages added since are counted by their bytes, with 16 tokens for sending the answer back.
* Each token is priced at the highest rate that the model has for its direction, in any tier.

Nothing here imports graphguard or LangChain.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, cast

from genai_prices.data_snapshot import get_snapshot

from tests.recorded.oracle import rounded_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.recorded.oracle import Json

MESSAGE = 32
ANSWER = 16
TOOLS = 1_000
MTOK = 1_000_000


def worst_cases(requests: Sequence[Json], answers: Sequence[Json], model: str) -> Iterator[int]:
    """Give the most that each call of a conversation can cost, in nano-USD.

    Args:
        requests: The chat completion requests of one conversation, in order.
        answers: What was answered to each.
        model: The model asked for, under OpenAI's name.
    """
    read, written = highest_rates(model)
    known: tuple[int, int] | None = None  # messages of the call before, and the tokens it read and wrote
    for request, answer in zip(requests, answers, strict=True):
        messages = cast("list[Json]", request["messages"])
        if known is None:
            given = messages_bound(messages) + tools_bound(cast("list[Json]", request.get("tools") or []))
        else:
            count, tokens = known
            given = tokens + ANSWER + messages_bound(messages, after=count)  # the first of the new ones is the answer
        cap = cast("int", request["max_completion_tokens"])
        yield rounded_up((given * read + cap * written) / MTOK)
        known = len(messages), cast("dict[str, int]", answer["usage"])["total_tokens"]


def messages_bound(messages: Sequence[Json], after: int = -1) -> int:
    """Give the most tokens that system, user and tool messages can take, those after a place or all.

    A tool's result counts the tool's name, which the request has only in the call that the result answers.
    """
    calls = [call for message in messages for call in cast("list[Json]", message.get("tool_calls") or [])]
    names = {call["id"]: cast("Json", call["function"])["name"] for call in calls}
    total = 0
    for message in messages[after + 1 :]:
        texts = (message.get("content"), message.get("tool_call_id"), names.get(message.get("tool_call_id")))
        total += MESSAGE + sum(len(str(text or "").encode()) for text in texts)
    return total


def tools_bound(tools: Sequence[Json]) -> int:
    """Give the most tokens that tool definitions can take."""
    return TOOLS + sum(len(json.dumps(tool)) for tool in tools) if tools else 0


def highest_rates(model: str) -> tuple[Decimal, Decimal]:
    """Give the highest USD per million tokens read and written, over all tiers."""
    _, found = get_snapshot().find_provider_model(model, None, "openai", None)
    tiers = [found.prices, *(variant.prices for variant in found.price_variants or ())]

    def top(*names: str) -> Decimal:
        rates = [getattr(tier, f"{name}_mtok", None) for tier in tiers for name in names]
        return max(rate for rate in rates if isinstance(rate, Decimal))

    return top("input", "cache_read", "cache_write"), top("output")
