"""Recorded provider answers, and for each the real LangChain client that can ask for it.

A file holds one recording in each line: `provider`, `endpoint`, `request_model`, `request_max_tokens`, `stream`, and
either `response` (the JSON body) or `sse` (the event stream, verbatim).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from langchain_anthropic import ChatAnthropic
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_groq import ChatGroq
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI

from tests.recorded.oracle import Bill, bill
from tests.recorded.server import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from langchain_core.language_models import BaseChatModel

    from tests.recorded.oracle import Json

NO_CLIENT = {
    "/v1/responses/compact": "compacts a conversation; no chat model of LangChain asks for it",
    "/v1/responses/resp_": "fetches an earlier answer by its id; no chat model of LangChain does",
    "/v1beta/cachedContents": "stores input in a cache and answers nothing",
}
"""Why an endpoint's recordings can't be replayed to a client, by the start of its path."""


SPEECH = "how much of Gemini's input is speech, which costs more than text"
COST = "the cost at the end of OpenRouter's streams"
ADVISERS = "what a stream says of the models that were asked as advisers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded answer.

    Attributes:
        name: Its provider and place in the file, for messages.
        provider: Whose API answered.
        path: The endpoint's path.
        model: The model asked for.
        max_tokens: The output cap asked for, or None.
        payload: The JSON body, or the event stream as text.
    """

    name: str
    provider: str
    path: str
    model: str
    max_tokens: int | None
    payload: Json | str

    @property
    def stream(self) -> bool:
        """Whether it is an event stream."""
        return isinstance(self.payload, str)

    @property
    def no_client(self) -> str | None:
        """Why no client can ask for it, or None."""
        return next((why for start, why in NO_CLIENT.items() if self.path.startswith(start)), None)

    @property
    def lost(self) -> str | None:
        """What of its price LangChain does not pass on, so that no handler can know it; None for nothing."""
        text = str(self.payload)
        if self.provider == "google" and "'modality': 'AUDIO'" in text:
            return SPEECH
        if self.provider == "openrouter" and self.stream:
            return COST
        if self.provider == "anthropic" and self.stream and '"advisor_message"' in text:
            return ADVISERS
        return None

    @property
    def torn(self) -> str | None:
        """How the body contradicts itself about tokens, so that more than one reading is right; None for not at all."""
        told = [int(count) for count in re.findall(r'"totalTokenCount": ?(\d+)', str(self.payload))]
        if self.provider == "google" and self.stream and max(told) > told[-1]:
            return "its last event counts less than one before"
        return None

    @property
    def answer(self) -> Answer:
        """What the server gives."""
        return Answer.of(self.payload)

    @property
    def bill(self) -> Bill | None:
        """What it cost, from its raw body."""
        return bill(self.provider, self.payload, self.model)


def load(path: Path) -> tuple[Recording, ...]:
    """Give the recordings of a file."""
    with path.open(encoding="utf-8") as lines:
        return tuple(_recording(at, json.loads(line)) for at, line in enumerate(lines))


def by_client(recordings: Iterable[Recording]) -> dict[tuple[str, str], list[Recording]]:
    """Group what one client can ask for: the same provider and model, in the file's order."""
    groups: dict[tuple[str, str], list[Recording]] = {}
    for recording in recordings:
        if recording.no_client is None:
            groups.setdefault((recording.provider, recording.model), []).append(recording)
    return groups


def client(provider: str, model: str, url: str) -> BaseChatModel:
    """Give the real client of a provider, pointed at a lane of the local server."""
    return CLIENTS[provider](model, url)


def _openai(model: str, url: str) -> BaseChatModel:
    return ChatOpenAI(
        model=model, base_url=f"{url}/v1", api_key="x", max_retries=0, use_responses_api=False, stream_usage=True
    )


def _openai_responses(model: str, url: str) -> BaseChatModel:
    return ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="x", max_retries=0, use_responses_api=True)


def _anthropic(model: str, url: str) -> BaseChatModel:
    return ChatAnthropic(model_name=model, base_url=url, api_key="x", max_retries=0, max_tokens_to_sample=4096)


def _google(model: str, url: str) -> BaseChatModel:
    return ChatGoogleGenerativeAI(model=model, base_url=url, api_key="x", max_retries=1)


def _groq(model: str, url: str) -> BaseChatModel:
    return ChatGroq(model=model, base_url=url, api_key="x", max_retries=0)


def _mistral(model: str, url: str) -> BaseChatModel:
    return ChatMistralAI(model_name=model, endpoint=f"{url}/v1", api_key="x", max_retries=1)


CLIENTS: dict[str, Callable[[str, str], BaseChatModel]] = {
    "openai": _openai,
    "openai_responses": _openai_responses,
    "anthropic": _anthropic,
    "google": _google,
    "groq": _groq,
    "mistral": _mistral,
    "openrouter": _openai,  # both speak OpenAI's protocol
    "deepseek": _openai,
}


def _recording(at: int, data: Json) -> Recording:
    path = urlsplit(str(data["endpoint"])).path
    asked_for = data["request_model"] or path.rpartition("/")[2].partition(":")[0]
    return Recording(
        name=f"{data['provider']}-{at}",
        provider=str(data["provider"]),
        path=path,
        model=str(asked_for),
        max_tokens=cast("int | None", data.get("request_max_tokens")),
        payload=cast("Json", data["response"]) if data["response"] else str(data["sse"]),
    )
