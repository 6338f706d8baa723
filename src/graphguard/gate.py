"""The gate: decide before a model call, ask a person, close the conversation.

One decision with two placements. A gate node of its own calls `at_gate`, and its conditional edge leads to
the model node, to END, to `budget.review` or to the node of `to(...)`. A gate inside a node's own task makes
the same decision; what it does about it lies with the module that changes graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command, interrupt

from graphguard.budget import amount_text, progress_text
from graphguard.errors import BudgetExceeded, NoCheckpointer
from graphguard.ids import new_id
from graphguard.limits import limits_to_state
from graphguard.spend import NANO, usd_text
from graphguard.trip import Trip

if TYPE_CHECKING:
    from graphguard.budget import Breach
    from graphguard.scope import Scope

__all__ = ["CLOSING", "REVIEW", "Answer", "at_gate", "at_review", "closing", "may_ask", "question", "read_answer"]

CLOSING: Final = "graphguard"
"""Key in `additional_kwargs` of the messages that close a tripped conversation."""

REVIEW: Final = "budget.review"
"""Name of the node that asks a person."""

_YES: Final = frozenset({"approve", "accept", "yes", "y", "ok", "true"})
_NO: Final = frozenset({"stop", "reject", "ignore", "response", "no", "n", "end", "false"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered.

    Attributes:
        limit: The new limit in the metric's own unit (nano-USD for `usd`); None to stop.
        error: Why the answer can't be used; None when it can.
    """

    limit: int | None = None
    error: str | None = None


def at_gate(scope: Scope, breach: Breach | None, node: str, gate: str, review: str = REVIEW) -> Command[str]:
    """Where a gate node leads: to its model node while there is room, else where `on_trip` says.

    Args:
        scope: The gate task's scope.
        breach: Why there is no room, as the scope says now.
        node: The model node behind the gate.
        gate: The gate node's own name.
        review: Name of the node that asks.

    Raises:
        BudgetExceeded: A budget tripped and `on_trip="raise"`.
        NoCheckpointer: A budget tripped in interrupt mode and the run could not be resumed.
    """
    settings = scope.meter.settings
    if breach is None or settings.to == node:
        return Command(goto=node)
    trip = replace(scope.tripped(breach, node=node), waiting=(gate,))
    if settings.to is not None and scope.parent is None:
        return Command(goto=settings.to, update={"trip": trip.to_state()})
    stopped = stopped_before(scope)
    if settings.on_trip == "end" or settings.to is not None or stopped:
        trip = replace(trip, answer="stopped") if stopped else trip  # so that the next one hears it too
        scope.stop_outer(trip)
        return Command(update={"trip": trip.to_state(), **closing(scope, trip)})
    may_ask(scope, trip)
    return Command(goto=review, update={"trip": trip.to_state()})


def may_ask(scope: Scope, trip: Trip) -> None:
    """Raise instead of asking, where a question is not wanted or nobody could answer it."""
    if scope.meter.settings.on_trip == "raise" or trip.kind in {"unpriced", "policy"}:
        raise BudgetExceeded(trip)
    if not scope.task.has_checkpointer:
        raise NoCheckpointer(trip)


def stopped_before(scope: Scope) -> bool:
    """Whether a person already said stop in this run."""
    told = scope.task.read("trip")
    return told.get("answer") == "stopped" and told.get("run") == (scope.run or None)


def at_review(scope: Scope, _: Breach | None = None) -> Command[str]:
    """Ask a person about the trip in the state until the answer can be used, then act on it.

    Returns:
        The raised limit and the way back to every gate that waits; or the end, with a closing message.
    """
    trip = Trip.of({"trip": scope.task.read("trip")})
    if trip is None or trip.answer is not None:
        return Command()
    asked = question(trip)
    answer = read_answer(interrupt(asked), trip)
    while answer.error is not None:
        asked = question(trip, error=answer.error)
        answer = read_answer(interrupt(asked), trip)
    if answer.limit is None:
        trip = replace(trip, answer="stopped")
        scope.stop_outer(trip)
        return Command(update={"trip": {"answer": "stopped"}, **closing(scope, trip)})
    raised = {trip.limit_key: {trip.metric: answer.limit}}
    scope.raise_limits(trip.limit_key, raised[trip.limit_key])
    scope.new_limits.clear()
    per_run = any(b.key == trip.budget and b.per == "run" for b in scope.meter.settings.budgets)
    spend = {"run_limits" if per_run else "limits": limits_to_state(raised)}
    return Command(goto=trip.waiting, update={"trip": {"answer": "raised"}, "spend": spend})


def question(trip: Trip, *, error: str | None = None) -> dict[str, object]:
    """The interrupt's payload: rendered with buttons by chat UIs, readable by a plain client.

    Args:
        trip: What tripped.
        error: Why the last answer could not be used.

    Returns:
        Plain JSON. `action_requests` and `review_configs` are LangChain's human-in-the-loop request;
        `arguments` repeats `args` for Agent Chat UI.
    """
    name = f"Budget exhausted: {progress_text(trip.metric, trip.spent, trip.limit)}"
    proposal = _proposal(trip)
    args: dict[str, object] = {_argument(trip): float(usd_text(proposal)) if trip.metric == "usd" else proposal}
    description = (
        f"{trip.reason[0].upper()}{trip.reason[1:]}. Approve to go on with a limit of "
        f"{amount_text(trip.metric, proposal)}, edit the amount, or reject to stop here."
    )
    if error is not None:
        description = f"That answer can't be used: {error}. {description}"
    payload: dict[str, object] = {
        "kind": "graphguard.budget",
        "spend_usd": usd_text(trip.spent) if trip.metric == "usd" else None,
        "limit_usd": usd_text(trip.limit) if trip.metric == "usd" else None,
        "action_requests": [{"name": name, "args": args, "arguments": args, "description": description}],
        "review_configs": [{"action_name": name, "allowed_decisions": ["approve", "edit", "reject"]}],
        "trip": trip.to_state(),
    }
    return payload if error is None else {**payload, "error": error}


def read_answer(answer: object, trip: Trip) -> Answer:
    """Read what a person or a chat UI answered.

    Args:
        answer: A bool, a number (the new limit), `"approve"` or `"stop"`, `{"new_limit_usd": ...}`,
            `{"add_usd": ...}`, LangChain's `{"decisions": [{"type": ...}]}`, or Agent Inbox's
            `[{"type": ...}]`. Amounts may be strings, with or without a dollar sign.
        trip: What was asked about.

    Returns:
        The new limit, a stop, or why the answer can't be used. Never raises: a gate that raised on a bad
        answer would fail again on every later one.

    >>> read_answer({"decisions": [{"type": "approve"}]}, Trip(budget="b", limit=NANO, spent=NANO)).limit
    2000000000
    >>> read_answer("abc", Trip(budget="b", limit=NANO, spent=NANO)).error
    "'abc' is not a number"
    """
    if isinstance(answer, Mapping) and _list(answer.get("decisions")):
        answer = _list(answer["decisions"])[0]
    elif _list(answer):
        answer = _list(answer)[0]
    if answer is True:
        return Answer(limit=_proposal(trip))
    if answer is False:
        return Answer()
    if isinstance(answer, str):
        word = answer.strip().lower()
        if word in _YES | _NO:
            return Answer(limit=_proposal(trip)) if word in _YES else Answer()
    if isinstance(answer, Mapping):
        return _read_decision(answer, trip)
    return _read_amount(answer, trip)


def _read_decision(answer: Mapping[str, object], trip: Trip) -> Answer:
    kind = str(answer.get("type", "")).lower()
    if kind in _NO:
        return Answer()
    if kind in _YES:
        return Answer(limit=_proposal(trip))
    edited = answer.get("edited_action", answer.get("args"))
    places = [answer, edited, edited.get("args") if isinstance(edited, Mapping) else None]
    for place in reversed(places):
        if isinstance(place, Mapping):
            for name in (_argument(trip), "new_limit"):
                if name in place:
                    return _read_amount(place[name], trip)
            if (added := place.get("add_usd" if trip.metric == "usd" else f"add_{trip.metric}")) is not None:
                return _read_amount(added, trip, base=trip.limit)
    for name, chosen in (("approve", True), ("reject", False)):
        if isinstance(answer.get(name), bool):
            return read_answer(answer[name] is chosen, trip)
    return Answer(error=f"expected approve, edit with {_argument(trip)!r}, or reject; got {dict(answer)!r}")


def _read_amount(value: object, trip: Trip, *, base: int = 0) -> Answer:
    try:
        number = Decimal(str(value).strip().lstrip("$").replace(",", "")) if not isinstance(value, bool) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or not math.isfinite(float(number)):
        return Answer(error=f"{value!r} is not a number")
    limit = base + int(number * NANO if trip.metric == "usd" else number)
    if limit <= trip.spent:
        return Answer(
            error=f"the new limit must be above the {amount_text(trip.metric, trip.spent)} already spent, "
            f"got {amount_text(trip.metric, limit)}"
        )
    return Answer(limit=limit)


def _proposal(trip: Trip) -> int:
    """Twice the limit, or what the refused call needs if that is more; cents rounded up."""
    wanted = max(2 * trip.limit, trip.spent + trip.held + trip.needed)
    if trip.metric != "usd":
        return wanted
    cents = (Decimal(wanted) / 10_000_000).to_integral_value(ROUND_CEILING)
    return int(cents) * 10_000_000 if wanted >= 10_000_000 else wanted  # noqa: PLR2004 - a cent in nano-USD


def _argument(trip: Trip) -> str:
    return f"new_limit_{trip.metric}"


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else []


def closing(scope: Scope, trip: Trip) -> dict[str, object]:
    """The update that ends a conversation so that it stays valid for providers.

    Returns:
        `{"messages": [...]}`: an answer to every tool call that waits for one, then an `AIMessage` that
        says what was reached, with the trip in `additional_kwargs["graphguard"]`. Empty where the graph
        has no channel `messages` with a reducer, or keeps something else than messages in it.
    """
    if not scope.talks:
        return {}
    history = scope.task.read_state("messages")
    messages = history if isinstance(history, list) else []
    if not all(isinstance(message, BaseMessage) for message in messages):
        return {}
    # Ids of the superstep: lines that trip beside each other then close the conversation once.
    place = f"budget-{trip.at or new_id()}"
    added: list[BaseMessage] = [
        ToolMessage(
            f"Not run: {trip.reason}.",
            id=f"{place}-{call_id}",
            tool_call_id=call_id,
            name=name,
            status="error",
            additional_kwargs={CLOSING: True},
        )
        for call_id, name in _open_tool_calls(messages)
    ]
    text = f"I stopped here: {trip.reason}."
    return {"messages": [*added, AIMessage(text, id=place, additional_kwargs={CLOSING: trip.to_state()})]}


def _open_tool_calls(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    last = next((m for m in reversed(messages) if not isinstance(m, ToolMessage)), None)
    calls = last.tool_calls if isinstance(last, AIMessage) else []
    return [(str(call["id"]), call["name"]) for call in calls if call["id"] not in answered]
