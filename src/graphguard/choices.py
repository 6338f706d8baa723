"""What `guard()` was asked for: read, checked, and laid out over a graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

from langgraph.constants import START
from langgraph.graph.state import CompiledStateGraph

from graphguard.budget import Budget
from graphguard.discovery import evidence, models_in
from graphguard.errors import InvalidBudget, NoModelNodes, StateConflict, UnknownNode, UnknownPrice
from graphguard.ledger.tolerant import TolerantLedger
from graphguard.meter import DEFAULT_LEDGER, Settings
from graphguard.placement import AnyBuilder, AnyGraph, ModelNode, Shape, place
from graphguard.prices import DEFAULT_PRICES, PriceBook
from graphguard.spend import add_spend
from graphguard.trip import merge_trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graphguard.budget import Policy
    from graphguard.ledger.protocol import Ledger

__all__ = [
    "FIELDS",
    "To",
    "caps_of",
    "check",
    "check_kept",
    "check_prices",
    "identity",
    "joined",
    "make_settings",
    "plan",
    "to",
]

FIELDS: Final = ("spend", "trip")
"""The state fields that graphguard keeps."""

_MODES: Final = ("end", "interrupt", "raise")
_ON_LEDGER_ERROR: Final = ("refuse", "allow")
_GATES: Final = ("auto", "node", "inline")


@dataclass(frozen=True, slots=True)
class To:
    """Where a tripped graph goes on; see `to`."""

    node: str


def to(node: str) -> To:
    """Lead a tripped graph to one of its own nodes, such as a cheap summary, instead of to END.

    >>> to("summary")
    To(node='summary')
    """
    return To(node)


def make_settings(
    budgets: Sequence[Budget | Policy] = (),
    *,
    on_trip: str | To = "end",
    gate: str = "auto",
    nodes: Sequence[str] | None = None,
    ledger: Ledger | None = None,
    prices: PriceBook | None = None,
    on_ledger_error: str = "refuse",
) -> Settings:
    """The settings of one `guard()` call.

    Raises:
        InvalidBudget: Something else than a budget, or an unknown `on_trip`, `gate` or `on_ledger_error`.
    """
    for budget in budgets:
        if not isinstance(budget, Budget) and not callable(budget):
            msg = f"expected Budget(...) or a function (Spend, Call) -> Breach | None, got {budget!r}"
            raise InvalidBudget(msg)
    if not isinstance(on_trip, To) and on_trip not in _MODES:
        msg = f"on_trip must be 'end', 'interrupt', 'raise' or to('node'), got {on_trip!r}"
        raise InvalidBudget(msg)
    if gate not in _GATES:
        msg = f"gate must be 'auto', 'node' or 'inline', got {gate!r}"
        raise InvalidBudget(msg)
    if on_ledger_error not in _ON_LEDGER_ERROR:
        msg = f"on_ledger_error must be 'refuse' or 'allow', got {on_ledger_error!r}"
        raise InvalidBudget(msg)
    if on_ledger_error == "allow" and ledger is not None:
        ledger = cast("Ledger", TolerantLedger(ledger))
    if isinstance(nodes, str):
        nodes = [nodes]
    return Settings(
        budgets=tuple(dict.fromkeys(b for b in budgets if isinstance(b, Budget))),
        policies=tuple(b for b in budgets if not isinstance(b, Budget)),
        on_trip="end" if isinstance(on_trip, To) else on_trip,
        to=on_trip.node if isinstance(on_trip, To) else None,
        gate=gate,
        nodes=None if nodes is None else tuple(nodes),
        ledger=DEFAULT_LEDGER if ledger is None else ledger,
        prices=DEFAULT_PRICES if prices is None else prices,
    )


def joined(old: Settings | None, new: Settings) -> Settings:
    """The settings of a guard around a guard: all budgets, and what the outer one did not choose."""
    if old is None:
        return new
    plain = new.on_trip == "end" and new.to is None
    return Settings(
        budgets=tuple(dict.fromkeys([*old.budgets, *new.budgets])),
        policies=(*old.policies, *new.policies),
        on_trip=old.on_trip if plain else new.on_trip,
        to=old.to if plain else new.to,
        gate=old.gate if new.gate == "auto" else new.gate,
        nodes=old.nodes if new.nodes is None else tuple(dict.fromkeys([*(old.nodes or ()), *new.nodes])),
        ledger=old.ledger if new.ledger is DEFAULT_LEDGER else new.ledger,
        prices=old.prices if new.prices is DEFAULT_PRICES else new.prices,
    )


def check(builder: AnyBuilder, bounds: Mapping[str, object], settings: Settings | None) -> None:
    """Find misuse now rather than in the middle of a run."""
    if settings is None:
        return
    names = list(bounds)
    for name in (*(settings.nodes or ()), *([settings.to] if settings.to else ())):
        if name not in bounds:
            raise UnknownNode(name, names)
    check_kept(settings)
    everywhere = list(_flat(bounds))
    inner = {name for name, _ in everywhere}
    for budget in settings.budgets:
        if budget.node is not None and budget.node not in {*names, *inner}:
            raise UnknownNode(budget.node, names)
    builders = [builder, *(bound.builder for _, bound in everywhere if isinstance(bound, CompiledStateGraph))]
    for field, owner in itertools.product(FIELDS, builders):
        channel = owner.channels.get(field)
        if channel is not None and getattr(channel, "operator", None) not in (add_spend, merge_trip):
            raise StateConflict(field)
    has_limits = bool(settings.budgets or settings.policies)
    if has_limits and settings.nodes is None and not any(evidence(bound) for _, bound in everywhere):
        raise NoModelNodes(names)
    check_prices(bounds, settings)


def check_kept(settings: Settings) -> None:
    """Raise `InvalidBudget` where an amount is kept for a node that nobody named."""
    for budget in settings.budgets:
        if budget.kept and settings.to is None:
            msg = f"{budget!r} keeps an amount for one node: name it with on_trip=to('node'), or leave out keep="
            raise InvalidBudget(msg)


def _flat(bounds: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Each node with what it runs; those of graphs inside too, however deep."""
    for name, bound in bounds.items():
        yield name, bound
        if isinstance(bound, CompiledStateGraph):
            yield from _flat({inner: node.bound for inner, node in bound.nodes.items() if inner != START})


def check_prices(bounds: Mapping[str, object], settings: Settings) -> None:
    """Refuse a USD budget for a model without a known price."""
    if any(budget.usd is not None for budget in settings.budgets):
        for _, bound in _flat(bounds):
            for model in models_in(bound):
                name, provider = identity(model)
                if name is not None and not settings.prices.knows(name, provider):
                    raise UnknownPrice(name)


def identity(model: object) -> tuple[str | None, str | None]:
    """A model's name and its provider's, as LangChain tells them in callbacks; None for what isn't known."""
    params = getattr(model, "_get_ls_params", None)
    told = params() if params else {}
    name, provider = told.get("ls_model_name"), told.get("ls_provider")
    return (str(name) if name else None), (str(provider) if provider else None)


def caps_of(bounds: Mapping[str, object]) -> dict[str, int]:
    """Output caps that only the models' profiles tell, by model name."""
    caps: dict[str, int] = {}
    for _, bound in _flat(bounds):
        for model in models_in(bound):
            profile = getattr(model, "profile", None)
            cap = profile.get("max_output_tokens") if isinstance(profile, Mapping) else None
            name, _ = identity(model)
            if name and isinstance(cap, int) and cap > 0:
                caps[name] = cap
    return caps


def plan(
    builder: AnyBuilder,
    bounds: Mapping[str, object],
    settings: Settings,
    *,
    breakpoints: bool,
    cached: Sequence[str],
    inside_of: Callable[[AnyGraph], Mapping[str, ModelNode]],
) -> dict[str, ModelNode]:
    """Where the gate of each model node goes, in this graph and in those inside it.

    Args:
        builder: The graph's builder.
        bounds: What each node runs.
        settings: What was asked for.
        breakpoints: Whether the graph was compiled with static breakpoints.
        cached: Nodes whose results may come from a cache.
        inside_of: The same plan for a graph inside.
    """
    graphs = {name: bound for name, bound in bounds.items() if isinstance(bound, CompiledStateGraph)}
    found: dict[str, str] = {}
    for name, bound in bounds.items():
        if settings.nodes is not None:
            if name in settings.nodes:
                found[name] = "named by nodes="
        elif name not in graphs and (how := evidence(bound)):
            found[name] = how
    planned = place(Shape(builder), found, gate=settings.gate, breakpoints=breakpoints, cached=cached)
    for name, inner in graphs.items():
        inside = inside_of(inner)
        if inside and name not in planned:
            planned[name] = ModelNode(name, "is a graph that calls models", "inside", "its own nodes are gated")
        planned |= {f"{name}:{k}": replace(node, name=f"{name}:{k}") for k, node in inside.items()}
    return planned
