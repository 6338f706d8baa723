"""Limits that assistants, runs and users choose: for graphs that a `langgraph.json` names.

The server asks for such a graph at each run, and shows its settings in Studio. Nothing here needs a server.
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from langgraph.graph.state import CompiledStateGraph, StateGraph

from graphguard.budget import Budget, amount_text
from graphguard.errors import InvalidBudget, NotGuardable
from graphguard.guard import guard, model_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from langchain_core.runnables import RunnableConfig

    from graphguard.placement import AnyBuilder, AnyGraph

__all__ = ["adjustable"]

_USER: Final = "langgraph_auth_user"
_RUNS: Final = "__is_for_execution__"  # the server's word, in the config that it gives to factories
_KEPT_GRAPHS: Final = 256


def adjustable(graph: AnyBuilder | AnyGraph, /, **limits: Budget) -> Callable[[RunnableConfig], AnyGraph]:
    """A factory for `langgraph.json`, whose graph's limits are settings of the assistant, the run or the user.

    The settings are shown in Studio beside the graph's own context, whose class stays as it is. Who is asked, in this
    order: the authenticated user, if the server's `authenticate` gave one with an attribute of that name; the run's
    context or `configurable`; the assistant's; then the budget's own amount counts. All but the first are what clients
    choose: guard the graph with fixed budgets too, for what nobody may exceed.

    Args:
        graph: A graph, guarded or not. Its own budgets and all else that `guard` was told stay.
        limits: One budget with one limit for each setting; the limit is what counts where nobody says anything.

    Returns:
        A function of the run's config that gives the compiled graph. It raises `InvalidBudget` for a run with a
        setting that can't be a limit; who only looks at a thread or assistant gets the graph with the budgets' own
        amounts.

    Raises:
        InvalidBudget: A setting's budget has several limits, counts only some calls, keeps something, or the graph's
            own context has a field of that name.

    ```python
    agent = adjustable(
        guard(create_agent(model, tools), Budget(usd=20, per="langgraph_auth_user", every="day")),
        max_usd=Budget(usd="0.50"),
        max_calls=Budget(calls=20, per="run"),
    )
    ```
    """
    if not isinstance(graph, (StateGraph, CompiledStateGraph)):
        raise NotGuardable(type(graph).__name__)
    compiled = graph.compile() if isinstance(graph, StateGraph) else graph
    schema = compiled.get_context_jsonschema() or {"title": "Context", "type": "object", "properties": {}}
    for name, budget in limits.items():
        _check(name, budget, schema)

    @functools.lru_cache(_KEPT_GRAPHS)
    def guarded(*budgets: Budget) -> AnyGraph:
        return guard(compiled, *budgets)

    # Misuse is found now; and the prices are read now, not on the server's event loop.
    default = guarded(*limits.values())
    fields = {name: _field(name, budget, _gates(default)) for name, budget in limits.items()}
    shown = _shown(default, {**schema, "properties": {**schema.get("properties", {}), **fields}})

    def make_graph(config: RunnableConfig) -> AnyGraph:
        configurable = config.get("configurable", {})
        if configurable.get(_RUNS) is False:
            return shown
        return guarded(*(_chosen(name, budget, configurable) for name, budget in limits.items()))

    return make_graph


def _check(name: str, budget: Budget, schema: Mapping[str, Any]) -> None:
    if not isinstance(budget, Budget) or len(budget.limits) != 1:
        problem = f"setting {name!r} needs a budget with one limit, such as Budget(usd='0.50'); got {budget!r}"
    elif budget.narrowed or budget.kept:
        # Accounts of narrowed budgets are named by their limit: another one would begin anew.
        problem = f"setting {name!r} can't count only some calls or keep something; make {budget!r} a fixed budget"
    elif name in schema.get("properties", {}):
        problem = f"the graph's own context has a field {name!r}; give the setting another name"
    else:
        return
    raise InvalidBudget(problem)


def _chosen(name: str, budget: Budget, configurable: Mapping[str, object]) -> Budget:
    """The budget with the limit that this run has."""
    user = configurable.get(_USER)
    value = user.get(name) if hasattr(user, "get") else getattr(user, name, None)  # servers' users have both
    whose = "the authenticated user's" if value is not None else "this run's or its assistant's"
    if value is None:
        value = configurable.get(name)
    if value is None:
        return budget
    (metric,) = budget.limits
    try:
        return replace(budget, **{metric: _amount(metric, value)})  # type: ignore[arg-type] # which Budget checks
    except InvalidBudget as error:
        problem = f"{whose} setting {name!r} can't be a limit: {error}"
        raise InvalidBudget(problem) from error


def _amount(metric: str, value: object) -> object:
    """A limit as forms and JSON give it: numbers may come as text, whole ones with a point."""
    if metric == "usd" or isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _gates(graph: AnyGraph) -> list[str]:
    """The nodes at which budgets are asked for, as Studio knows them."""
    nodes = [node for node in model_nodes(graph).values() if node.gate != "inside"]
    return [f"{node.name}.budget" if f"{node.name}.budget" in graph.nodes else node.name for node in nodes]


def _field(name: str, budget: Budget, gates: list[str]) -> dict[str, object]:
    """A setting as a form shows it, in JSON Schema."""
    ((metric, limit),) = budget.limits.items()
    often = "" if budget.every is None else f", every {budget.every}"
    usd = metric == "usd"
    return {
        "title": name.replace("_", " ").capitalize(),
        "description": f"{'USD' if usd else metric.replace('_', ' ').capitalize()} per {budget.per}{often}; "
        f"{amount_text(metric, limit)} if left out.",
        "type": "number" if usd else "integer",
        "exclusiveMinimum": 0,
        "default": float(cast("Decimal", budget.usd)) if usd else limit,
        "langgraph_nodes": gates,
    }


def _shown(graph: AnyGraph, schema: dict[str, Any]) -> AnyGraph:
    """The graph for who looks at it: its context has the settings."""
    cls = type(graph)

    def get_context_jsonschema(self: AnyGraph) -> dict[str, Any]:  # noqa: ARG001 - Pregel's signature
        return schema

    namespace = {
        "get_context_jsonschema": get_context_jsonschema,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    shown = copy.copy(graph)
    shown.__class__ = type(cls.__name__, (cls,), namespace)
    return shown
