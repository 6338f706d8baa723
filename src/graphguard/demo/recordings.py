"""Recorded agent runs, read from a file: one JSON object a line, messages in OpenAI's format."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages

from graphguard.demo.mistakes import WrongUse
from graphguard.demo.scripted import PRICED_AS
from graphguard.prices import PriceBook

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RecordedRun", "read_runs"]

FORMAT = 'each line is one run, like {"id": "run-1", "model": "gpt-4o", "messages": [...]} in OpenAI\'s message format'


@dataclass(frozen=True)
class RecordedRun:
    """One run of an agent, as it was written down.

    Attributes:
        name: The run's id, or its line number.
        model: The model it ran on, which decides the price.
        messages: Everything that was said, in order; at least one message is the model's.
    """

    name: str
    model: str
    messages: tuple[BaseMessage, ...]


def read_runs(path: Path) -> tuple[RecordedRun, ...]:
    """Give the runs that a file holds.

    Args:
        path: A file of JSON lines: `messages`, and if known `id` and `model`. Empty lines are skipped.

    Raises:
        WrongUse: the file is missing, empty, a line of it is not such a run, or its model has no known price.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WrongUse(f"no file {str(path)!r}; pass a file of recorded runs to --trajectory") from error
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"can't read {str(path)!r} ({error}); {FORMAT}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise WrongUse(f"{str(path)!r} is empty; {FORMAT}")
    runs: dict[str, RecordedRun] = {}
    for number, line in lines:
        run = _run(line, number, f"{str(path)!r} line {number}")
        # Names become thread ids, and two runs on one thread would be one conversation.
        run = replace(run, name=f"{run.name} (line {number})") if run.name in runs else run
        runs[run.name] = run
    if unknown := sorted({run.model for run in runs.values() if not PriceBook().knows(run.model)}):
        raise WrongUse(f"no price is known for model {unknown[0]!r} of {str(path)!r}; name the priced model it was")
    return tuple(runs.values())


def _run(line: str, number: int, where: str) -> RecordedRun:
    """Give the run of one line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise WrongUse(f"{where} is not JSON ({error.msg}, column {error.colno}); {FORMAT}") from error
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise WrongUse(f"{where} has no list 'messages'; {FORMAT}")
    try:
        # Recordings leave out an empty content, which LangChain wants to see.
        messages = tuple(convert_to_messages([{"content": "", **message} for message in record["messages"]]))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise WrongUse(f"{where} holds a message that can't be read ({_first_line(error)}); {FORMAT}") from error
    if not any(isinstance(message, AIMessage) for message in messages):
        raise WrongUse(f"{where} has no message of role 'assistant', so no model call to replay; {FORMAT}")
    return RecordedRun(str(record.get("id") or number), str(record.get("model") or PRICED_AS), messages)


def _first_line(error: Exception) -> str:
    """Give the first line of somebody else's error text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
