"""Recorded agent runs, made into answers for the local server and an agent that asks for them.

The recordings carry no usage, so it is counted from the text by one fixed rule, and these counts are what the server
reports and what the brute-force sums use:

* `completion_tokens`: the UTF-8 bytes of the answer's content, tool names and tool arguments, divided by four,
  rounded up.
* `prompt_tokens`: the same over each message before the answer, added up, the system message included.

A run's user turns become the inputs of consecutive invocations on one thread; a last user turn that was never
answered is left out. Where a recording breaks off after a tool's result, an agent would ask once more: it is given a
closing sentence of this project's own. Tool call ids are numbered anew, since the recordings repeat some.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool

from tests.recorded.oracle import bill
from tests.recorded.server import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from langchain_core.runnables import RunnableConfig

    from tests.recorded.oracle import Json

MODEL = "gpt-4o-2024-08-06"
CLOSING = "That is done. Is there anything else that I can do for you?"
OUTPUT_CAP = 320  # no recorded answer is longer; the tests hold that


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """One recorded run.

    Attributes:
        id: The recording's name.
        messages: All messages up to the last answer, in order; the first is the system message.
        inputs: The user's turns that were answered, in order.
        calls: The body of each model answer, in order, usage included.
        results: What each tool call gave, by tool call id.
        tools: The names of the tools that were called.
    """

    id: str
    messages: tuple[Json, ...]
    inputs: tuple[str, ...]
    calls: tuple[Json, ...]
    results: Mapping[str, str]
    tools: tuple[str, ...]

    @property
    def system(self) -> str:
        """The system message's text."""
        return str(self.messages[0]["content"])

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The bodies as the server gives them."""
        return tuple(Answer.of(body) for body in self.calls)

    @property
    def costs(self) -> tuple[int, ...]:
        """What each call cost, in nano-USD."""
        bills = [bill("openai", body, MODEL) for body in self.calls]
        return tuple(one.nanousd or 0 for one in bills if one is not None)


def load(path: Path) -> tuple[AgentRun, ...]:
    """Give the runs of a file with one recording in each line."""
    with path.open(encoding="utf-8") as lines:
        return tuple(_run(json.loads(line)) for line in lines)


def said(messages: Iterable[Json]) -> list[tuple[object, ...]]:
    """Give what messages say, however their JSON is written: role, content, and each tool call's name and arguments."""
    return [
        (
            message["role"],
            message.get("content") or "",
            [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in _calls(message)],
        )
        for message in messages
    ]


def tokens(message: Json) -> int:
    """Give the tokens of one message by the rule above."""
    called = "".join(call["function"]["name"] + call["function"]["arguments"] for call in _calls(message))
    text = str(message.get("content") or "") + called
    return -(-len(text.encode()) // 4)


def tools(run: AgentRun) -> list[BaseTool]:
    """Give tools that return what the recorded ones returned."""
    return [_tool(name, run.results) for name in run.tools]


class _Recorded(StructuredTool):
    """A tool that looks its result up by the id of the call, which a tool's function would not see."""

    results: dict[str, str]

    def invoke(self, input: object, config: RunnableConfig | None = None, **kwargs: object) -> ToolMessage:  # noqa: A002
        call = cast("dict[str, str]", input)
        return ToolMessage(self.results[call["id"]], name=self.name, tool_call_id=call["id"])

    async def ainvoke(self, input: object, config: RunnableConfig | None = None, **kwargs: object) -> ToolMessage:  # noqa: A002
        return self.invoke(input, config)


def _calls(message: Json) -> list[dict[str, dict[str, str]]]:
    return cast("list[dict[str, dict[str, str]]]", message.get("tool_calls") or [])


def _tool(name: str, results: Mapping[str, str]) -> BaseTool:
    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    return _Recorded(name=name, description=f"Recorded: {name}.", args_schema=schema, func=None, results=dict(results))


def _run(recording: Json) -> AgentRun:
    messages = list(_numbered(cast("list[Json]", recording["messages"])))
    if messages[-1]["role"] == "user":
        messages.pop()
    if messages[-1]["role"] == "tool":
        messages.append({"role": "assistant", "content": CLOSING})
    run_id = str(recording["id"])
    return AgentRun(
        id=run_id,
        messages=tuple(messages),
        inputs=tuple(str(message["content"]) for message in messages if message["role"] == "user"),
        calls=tuple(
            _completion(f"{run_id}-{at}", messages[:at], message)
            for at, message in enumerate(messages)
            if message["role"] == "assistant"
        ),
        results={str(m["tool_call_id"]): str(m["content"]) for m in messages if m["role"] == "tool"},
        tools=tuple(sorted({str(m["name"]) for m in messages if m["role"] == "tool"})),
    )


def _numbered(messages: Sequence[Json]) -> Iterator[Json]:
    """Give the messages with tool call ids that are unique in the run; each call is answered by the next message."""
    number = 0
    for message in messages:
        calls = cast("list[Json]", message.get("tool_calls") or [])
        if calls:
            number += 1
            yield {**message, "tool_calls": [{**calls[0], "id": f"call_{number}"}]}
        elif message["role"] == "tool":
            yield {**message, "tool_call_id": f"call_{number}"}
        else:
            yield message


def _completion(name: str, before: Iterable[Json], message: Json) -> Json:
    given, made = sum(tokens(one) for one in before), tokens(message)
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": 1_715_800_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"content": None, **message},
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }
