"""Model calls that LangSmith has traced but LangChain never saw: of `wrap_openai`, or `@traceable(run_type="llm")`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphguard.errors import BudgetExceeded
from graphguard.usage import Usage, as_mapping, model_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

__all__ = ["TracedCall", "traced_calls"]


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One such call.

    Attributes:
        id: Its run's id.
        usage: What it took; bounded by the bytes of its inputs and outputs where it doesn't say.
        model: The model, as far as it is told.
        provider: Its provider, likewise.
    """

    id: str
    usage: Usage
    model: str | None
    provider: str | None


def traced_calls(run: Any, metered: Container[str]) -> Iterator[TracedCall]:  # noqa: ANN401 - the SDK's RunTree or Run
    """The calls under a run, but for those metered already or refused, and for runs around another call.

    Args:
        run: The run, with its children.
        metered: Ids of runs that were charged already.
    """
    yield from _calls(run, metered)[0]


def _calls(run: Any, metered: Container[str]) -> tuple[list[TracedCall], bool]:  # noqa: ANN401
    """The calls to charge, and whether there is any call at all, charged or not."""
    below = [_calls(child, metered) for child in getattr(run, "child_runs", None) or ()]
    found, any_below = [call for calls, _ in below for call in calls], any(some for _, some in below)
    if str(run.run_type) != "llm":
        return found, any_below
    refused = str(getattr(run, "error", None) or "").startswith(BudgetExceeded.__name__)
    if not any_below and not refused and str(run.id) not in metered:
        found.append(_call(run))
    return found, True


def _call(run: Any) -> TracedCall:  # noqa: ANN401
    outputs, metadata = as_mapping(run.outputs), as_mapping(as_mapping(run.extra).get("metadata"))
    told = as_mapping(outputs.get("usage_metadata") or metadata.get("usage_metadata"))
    usage = Usage.from_metadata(told) if told else Usage.from_response(outputs)
    if usage is None:
        usage = Usage.estimate(_size(run.inputs), _size(run.outputs))
    model, provider = model_of(outputs)
    named, vendor = metadata.get("ls_model_name"), metadata.get("ls_provider")
    return TracedCall(str(run.id), usage, str(named) if named else model, str(vendor) if vendor else provider)


def _size(value: object) -> int:
    return len(json.dumps(value, default=str, ensure_ascii=False).encode()) if value else 0
