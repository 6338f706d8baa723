"""What raises a limit and goes on, as a graph's `Command`: pure, the same for graphs and for servers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph.types import Command, Send

from graphguard.budget import Budget, amount_text, is_per_run
from graphguard.errors import NothingToTopUp
from graphguard.gate import CLOSING
from graphguard.limits import limits_from_state, limits_to_state
from graphguard.spend import METRICS, NANO, Spend
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphguard.meter import Settings

__all__ = ["Added", "Stopped", "answering", "going_on", "questions", "raising"]

Added: TypeAlias = "Mapping[str, str | float | Decimal | None]"
"""What to add, by `"usd"`, `"calls"` and `"tokens"`; None is nothing."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A task that a trip kept from running.

    Attributes:
        trip: The trip.
        goto: What leads there again.
    """

    trip: Trip
    goto: str | Send


def questions(interrupts: Iterable[object]) -> dict[str, Trip]:
    """The questions of gates among a state's interrupts, by interrupt id; as objects, or as servers tell them."""
    found: dict[str, Trip] = {}
    for interrupt in interrupts:
        read = interrupt.get if isinstance(interrupt, Mapping) else functools.partial(getattr, interrupt)
        value = read("value", None)
        trip = Trip.of({"trip": value.get("trip")}) if isinstance(value, Mapping) else None
        if trip is not None:
            found[str(read("id", ""))] = trip
    return found


def answering(asked: Mapping[str, Trip], added: Added) -> Command[str]:
    """The answer to all questions that wait."""
    return Command(resume={id_: {f"new_limit_{trip.metric}": _new_limit(trip, added)} for id_, trip in asked.items()})


def going_on(
    stopped: Sequence[Stopped], added: Added, values: object, settings: Settings | None = None
) -> Command[str]:
    """What raises the limits that kept tasks from running, and leads to these tasks.

    Args:
        stopped: The tasks.
        added: What to add.
        values: The state, whose closing messages are taken out again.
        settings: What the graph is guarded with, if that is known: after a replay with other budgets, the trip
            is of one that the graph doesn't have, and its own tightest one is raised instead.
    """
    raised: list[tuple[Trip, int]] = []
    for trip in dict.fromkeys(each.trip for each in stopped):
        if settings is None or any(budget.key == trip.budget for budget in settings.budgets):
            raised.append((trip, _raised(trip, added)))
        elif own := _tightest(settings, trip.metric, values):
            raised.append((own, _raised(own, added)))
    update: dict[str, object] = {"spend": _limits(raised), "trip": {"answer": "raised"}}
    messages = values.get("messages") if isinstance(values, Mapping) else None
    if removed := [id_ for message in messages or () if (id_ := _closing_id(message)) is not None]:
        # A server's messages are plain JSON, and so is what removes them.
        plain = any(isinstance(message, Mapping) for message in messages or ())
        update["messages"] = [
            {"type": "remove", "id": id_, "content": ""} if plain else RemoveMessage(id=id_) for id_ in removed
        ]
    nodes = dict.fromkeys(each.goto for each in stopped if isinstance(each.goto, str))
    return Command(update=update, goto=[*nodes, *(each.goto for each in stopped if isinstance(each.goto, Send))])


def raising(settings: Settings, values: object, added: Added) -> Command[str]:
    """What raises the tightest limits of a graph that raised an exception, of which nothing is in the state."""
    wanted = [metric for metric in METRICS if added.get(_argument(metric)) is not None]
    tight = [trip for metric in wanted if (trip := _tightest(settings, metric, values)) is not None]
    raised = [(trip, _raised(trip, added)) for trip in tight]
    if not raised:
        limited = sorted({_argument(metric) for budget in settings.budgets for metric in budget.limits})
        problem = f"no budget of the graph limits what was added; pass {' or '.join(f'{name}=' for name in limited)}"
        raise NothingToTopUp(problem)
    return Command(update={"spend": _limits(raised)})


def _tightest(settings: Settings, metric: str, values: object) -> Trip | None:
    """The budget with the least room in a metric, as if it had tripped; None if none limits it."""
    limiting = [_as_it_stands(each, metric, values) for each in settings.budgets if metric in each.limits]
    return min(limiting, key=lambda trip: trip.limit - trip.spent, default=None)


def _as_it_stands(budget: Budget, metric: str, values: object) -> Trip:
    """A budget's limit and spend as the state tells them, as if it had tripped there."""
    if budget.narrowed or not budget.in_state:
        problem = f"{budget!r} is not counted in the state, so what to raise isn't known; invoke with a larger budget"
        raise NothingToTopUp(problem)
    told = values.get("spend") if isinstance(values, Mapping) else None
    field: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    place = (field.get("run") or {}) if budget.per == "run" else field
    limits = limits_from_state((place.get("limits") or {}).get(budget.key, {}))
    limit = limits.get(metric, budget.limits[metric])
    return Trip(budget=budget.key, metric=metric, limit=limit, spent=Spend.of({"spend": place}).amount(metric))


def _limits(raised: Iterable[tuple[Trip, int]]) -> dict[str, object]:
    places: dict[str, dict[str, dict[str, int]]] = {}
    for trip, limit in raised:
        place = places.setdefault("run_limits" if is_per_run(trip.budget) else "limits", {})
        known = place.setdefault(trip.limit_key, {})
        known[trip.metric] = max(limit, known.get(trip.metric, 0))
    return {name: limits_to_state(place) for name, place in places.items()}


def _closing_id(message: object) -> str | None:
    """The id of a message that closed the conversation, as an object or as a server tells it."""
    if isinstance(message, BaseMessage):
        return str(message.id) if CLOSING in message.additional_kwargs else None
    if isinstance(message, Mapping):
        return str(message.get("id")) if CLOSING in (message.get("additional_kwargs") or {}) else None
    return None


def _new_limit(trip: Trip, added: Added) -> str | int:
    raised = _raised(trip, added)
    return str(Decimal(raised) / NANO) if trip.metric == "usd" else raised


def _argument(metric: str) -> str:
    return "tokens" if metric.endswith("tokens") else metric


def _raised(trip: Trip, added: Added) -> int:
    name = _argument(trip.metric)
    amount = added.get(name)
    if trip.metric not in METRICS or trip.kind == "policy":
        problem = f"{trip.reason}; a policy has no limit to raise: invoke with another one"
        raise NothingToTopUp(problem)
    if amount is None:
        problem = f"{trip.reason}; pass {name}= to raise that limit"
        raise NothingToTopUp(problem)
    raised = trip.limit + trip.kept + _amount(name, amount)
    if raised - trip.kept <= trip.spent:
        missing = amount_text(trip.metric, trip.spent - trip.limit)
        problem = f"{trip.reason}; {name}={amount!r} does not even cover the {missing} spent beyond the limit"
        raise NothingToTopUp(problem)
    return raised


def _amount(name: str, amount: str | float | Decimal) -> int:
    try:
        number = Decimal(str(amount)) * (NANO if name == "usd" else 1)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number < 1 or isinstance(amount, bool):
        problem = f"{name}={amount!r} is no amount to add; pass a positive number"
        raise NothingToTopUp(problem)
    return int(number)
