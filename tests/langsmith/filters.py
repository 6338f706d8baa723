"""LangSmith's filter language, as far as the tests use it.

`and(...)`, `or(...)`, `not(...)`, the comparisons `eq`, `neq`, `gt`, `gte`, `lt`, `lte`, `has(tags, "x")`, on fields of
a run, `metadata_key`, `metadata_value`, `feedback_key` and `feedback_score`. A metadata key and a metadata value under
one `and` must belong together, which is how the documentation of the service describes it.
"""

from __future__ import annotations

import json
import operator
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.langsmith.store import Json

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|[(),]|[^\s(),"\']+)')
_COMPARE: dict[str, Callable[[object, object], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def matches(expression: str, run: Json, feedback: list[Json]) -> bool:
    """Tell whether a run, with the feedback it got, is what a filter asks for."""
    return _holds(_parse(iter(_TOKEN.findall(expression))), run, feedback)


def _parse(tokens: Iterator[str]) -> tuple[str, list[object]]:
    name = next(tokens)
    if next(tokens) != "(":
        msg = f'a filter is a call such as has(tags, "x"), not {name!r}'
        raise ValueError(msg)
    return name, _arguments(tokens)


def _arguments(tokens: Iterator[str]) -> list[object]:
    found: list[object] = []
    for token in tokens:
        if token == ")":
            break
        if token == "(":  # the name before it was a call, not a field
            found.append((found.pop(), _arguments(tokens)))
        elif token[0] in "\"'":
            found.append(json.loads(token) if token[0] == '"' else token[1:-1])
        elif token != ",":
            found.append(_word(token))
    return found


def _word(token: str) -> object:
    try:
        return json.loads(token)
    except ValueError:
        return token


def _holds(call: tuple[str, list[object]], run: Json, feedback: list[Json]) -> bool:
    name, arguments = call
    if name == "and":
        pairs = {args[0]: args[1] for op, args in arguments if op == "eq"}  # type: ignore[misc] # calls all
        if {"metadata_key", "metadata_value"} <= set(pairs):
            value = _metadata(run).get(str(pairs["metadata_key"]))
            if value is None or str(value) != str(pairs["metadata_value"]):
                return False
        return all(_holds(part, run, feedback) for part in arguments)  # type: ignore[arg-type]
    if name == "or":
        return any(_holds(part, run, feedback) for part in arguments)  # type: ignore[arg-type]
    if name == "not":
        return not _holds(arguments[0], run, feedback)  # type: ignore[arg-type]
    key, wanted = str(arguments[0]), arguments[1]
    if name == "has":
        return wanted in (run.get(key) or [])  # type: ignore[operator]
    return any(value is not None and _COMPARE[name](value, wanted) for value in _values(key, run, feedback))


def _values(key: str, run: Json, feedback: list[Json]) -> list[object]:
    if key == "metadata_key":
        return list(_metadata(run))
    if key == "metadata_value":
        return [str(value) for value in _metadata(run).values()]
    if key.startswith("feedback_"):
        return [entry.get(key.removeprefix("feedback_")) for entry in feedback]
    return [run.get(key)]


def _metadata(run: Json) -> Json:
    return (run.get("extra") or {}).get("metadata") or {}  # type: ignore[attr-defined, no-any-return]
