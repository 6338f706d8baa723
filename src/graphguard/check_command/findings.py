"""What is wrong with a graph, or may be, and what it can cost at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.store.base import BaseStore

from graphguard.budget import Budget, amount_text
from graphguard.ledger.memory import MemoryLedger
from graphguard.prices import DEFAULT_PRICES, PriceBook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphguard.check_command.seen import Model, Seen
    from graphguard.meter import Settings

__all__ = ["Ceiling", "Finding", "Report", "ceilings", "findings"]

_WIDER: Final = ("run", "branch", "thread")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at.

    Attributes:
        level: `"error"` or `"warning"`.
        code: Its kind, for programs.
        node: The node it is about; None for the graph.
        text: What it is, and what to do.
    """

    level: str
    code: str
    node: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that can be spent.

    Attributes:
        nanousd: So much, in nano-USD.
        per: By what: `"run"`, `"user_id every day"`, …
        exact: False when a model without an output cap may exceed it by one call on each branch.
        why: What keeps it.
    """

    nanousd: int
    per: str
    exact: bool
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about one graph.

    Attributes:
        id: Its id in `langgraph.json`.
        target: The file and the name that it stands for.
        guards: What it is guarded with, and what graphs inside are; middleware counts too.
        calls: Its model calls.
        gates: Where the gate of each is, by name.
        ceilings: What it can cost at most, the lowest first; empty where nothing says.
        findings: What is wrong, errors first.
    """

    id: str
    target: str
    guards: tuple[Settings, ...] = ()
    calls: tuple[Seen, ...] = ()
    gates: dict[str, str] = field(default_factory=dict)
    ceilings: tuple[Ceiling, ...] = ()
    findings: tuple[Finding, ...] = ()


def findings(graph: object, calls: Sequence[Seen], *, from_factory: bool) -> Iterator[Finding]:
    """All that is to be said of a graph."""
    yield from _of_graph(graph, from_factory=from_factory)
    if not calls:
        yield Finding(
            "warning", "no-models", None, "no node was seen to call a model; name them with guard(..., nodes=)"
        )
    for call in calls:
        yield from _of_call(call)
    all_settings = dict.fromkeys(settings for call in calls for settings in call.around)
    for settings in all_settings:
        yield from _of_budgets(settings, [call for call in calls if settings in call.around])


def _of_graph(graph: object, *, from_factory: bool) -> Iterator[Finding]:
    for name, kind in (("checkpointer", BaseCheckpointSaver), ("store", BaseStore)):
        if isinstance(own := getattr(graph, name, None), kind):
            does = "puts its own in its place" if from_factory else "refuses to start"
            level = "warning" if from_factory else "error"
            problem = (
                f"compiled with a {name} ({type(own).__name__}); the server brings its own and {does}: leave it out"
            )
            yield Finding(level, f"own-{name}", None, problem)


def _of_call(call: Seen) -> Iterator[Finding]:
    if call.unseen is not None:
        text = f"uses {call.unseen}, so it is not counted; tell what it cost with charge(...)"
        yield Finding("warning", "uncounted", call.name, text)
        return
    if not call.around:
        yield Finding(
            "error", "unguarded", call.name, f"{call.how}, and no guard is around it; guard(graph, Budget(...))"
        )
    budgets = [budget for settings in call.around for budget in settings.budgets]
    ruled = any(settings.policies for settings in call.around)  # a rule of the user's may end it
    if call.loops and not ruled and not any(_bounds(budget, call) for budget in budgets):
        text = "is in a loop that no budget ends; give it one, such as Budget(calls=50)"
        yield Finding("error", "endless", call.name, text)
    prices = _prices(call)
    for model in call.models:
        if model.name is None or not prices.knows(model.name, model.provider):
            text = f"{model} has no known price; add one with PriceBook.add(), or budgets in USD refuse its calls"
            yield Finding("warning", "unpriced", call.name, text)
        if model.output_tokens is None and any(set(budget.limits) - {"calls"} for budget in budgets):
            text = f"{model} has no cap on its output, so one call may exceed a budget; set max_tokens"
            yield Finding("warning", "uncapped", call.name, text)


def _prices(call: Seen) -> PriceBook:
    return call.around[-1].prices if call.around else DEFAULT_PRICES


def _bounds(budget: Budget, call: Seen) -> bool:
    """Whether a budget ends a loop around a call."""
    of_model = budget.model is None or (not call.chosen_late and {m.name for m in call.models} == {budget.model})
    return of_model and (budget.node is None or budget.node in call.path)


def _of_budgets(settings: Settings, calls: Sequence[Seen]) -> Iterator[Finding]:
    real = [budget for budget in settings.budgets if budget.per not in {"branch", "run"}]
    if real and isinstance(settings.ledger, MemoryLedger):
        text = f"{real[0]!r} is counted by a MemoryLedger, which forgets when the process ends; pass ledger="
        yield Finding("warning", "forgetful", None, text)
    for budget in settings.budgets:
        if why := _never(budget, settings, calls):
            yield Finding("warning", "never-trips", None, f"{budget!r} can never trip: {why}")
        for call in calls:
            if (least := _smallest(budget, call)) > budget.limits.get("usd", least):
                text = f"{budget!r} refuses even the first call, which may cost up to {amount_text('usd', least)}"
                yield Finding("warning", "too-small", call.name, f"{text}; raise it, or lower max_tokens")


def _never(budget: Budget, settings: Settings, calls: Sequence[Seen]) -> str | None:
    """Why a budget can never trip; None if it may."""
    if budget.node is not None and not any(budget.node in call.path for call in calls):
        return f"no call of a model was seen in the node {budget.node!r}"
    names = {model.name for call in calls for model in call.models}
    if budget.model is not None and budget.model not in names and not any(call.chosen_late for call in calls):
        return f"no node calls the model {budget.model!r}; they call {', '.join(sorted(map(str, names)))}"
    narrower = [other for other in settings.budgets if other is not budget and _is_within(budget, other)]
    if all(any(_comes_first(other, budget, metric) for other in narrower) for metric in budget.limits):
        return f"{narrower[0]!r} always trips before"
    return None


def _is_within(budget: Budget, other: Budget) -> bool:
    """Whether all that one budget counts, another counts too, for as long."""
    if other.node not in {None, budget.node} or other.model not in {None, budget.model}:
        return False
    if other.every not in {None, budget.every}:
        return False
    if budget.per in _WIDER and other.per in _WIDER:
        return _WIDER.index(other.per) >= _WIDER.index(budget.per)
    return budget.per == other.per


def _comes_first(other: Budget, budget: Budget, metric: str) -> bool:
    theirs, ours = other.limits.get(metric), budget.limits[metric]
    # Of equal ones, the budget that counts more is the one that trips.
    return theirs is not None and (theirs < ours or (theirs == ours and not _is_within(other, budget)))


def _smallest(budget: Budget, call: Seen) -> int:
    """The least that a call must find room for, in nano-USD; 0 where no USD count or nobody knows."""
    if "usd" not in budget.limits or call.chosen_late or not call.models or not _bounds(budget, call):
        return 0
    return min(_worst(model, _prices(call), input_tokens=1) for model in call.models)


def _worst(model: Model, prices: PriceBook, *, input_tokens: int, output_tokens: int | None = None) -> int:
    """What one call can cost, in nano-USD; 0 if that is not known."""
    if not prices.knows(model.name, model.provider):
        return 0
    output_tokens = model.output_tokens or 0 if output_tokens is None else output_tokens
    return prices.worst_case(model.name, model.provider, input_tokens=input_tokens, output_tokens=output_tokens)


def ceilings(calls: Sequence[Seen]) -> Iterator[Ceiling]:
    """What a graph can cost at most, by each budget that counts all of its calls."""
    if not calls or any(call.unseen for call in calls):
        return
    shared = [settings for settings in calls[0].around if all(settings in call.around for call in calls)]
    models = [(model, _prices(call)) for call in calls for model in call.models]
    known = bool(models) and not any(call.chosen_late for call in calls)
    exact = known and all(model.output_tokens for model, _ in models)
    for settings in shared:
        for budget in settings.budgets:
            per = budget.per if budget.every is None else f"{budget.per} every {budget.every}"
            if budget.narrowed:
                continue
            if "usd" in budget.limits:
                yield Ceiling(budget.limits["usd"], per, exact, repr(budget))
            elif known and (most := _by_count(budget, models)):
                yield Ceiling(most, per, exact, f"{budget!r} at the dearest model's price")


def _by_count(budget: Budget, models: Sequence[tuple[Model, PriceBook]]) -> int | None:
    """What so many calls or tokens can cost, in nano-USD; None where something isn't known."""
    calls, tokens = budget.limits.get("calls"), budget.limits.get("tokens")
    found: list[int] = []
    for model, prices in models:
        if tokens is not None:
            each = [_worst(model, prices, input_tokens=i, output_tokens=o) for i, o in ((tokens, 0), (0, tokens))]
            found.append(max(each))
        elif calls is not None and model.input_tokens and model.output_tokens:
            found.append(calls * _worst(model, prices, input_tokens=model.input_tokens))
        else:
            found.append(0)
    return max(found) if found and all(found) else None
