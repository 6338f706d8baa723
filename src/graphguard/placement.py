"""Decide where each model node's gate goes: a node of its own, or inline in the node's task.

A gate node takes a superstep. Where the model node may run beside another node, that shifts them against
each other, and what follows both may run twice. So a gate node is chosen only where nothing can run beside.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from langgraph.channels import BinaryOperatorAggregate, LastValue
from langgraph.constants import END, START

from graphguard.discovery import mentions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from langgraph.graph.state import CompiledStateGraph, StateGraph

__all__ = ["AnyBuilder", "AnyGraph", "ModelNode", "Shape", "place"]

AnyBuilder: TypeAlias = "StateGraph[Any, Any, Any, Any]"
"""A builder of any state, context, input and output schema."""

AnyGraph: TypeAlias = "CompiledStateGraph[Any, Any, Any, Any]"
"""A compiled graph of any state, context, input and output schema."""

_KEPT_WHOLE: Final = (LastValue, BinaryOperatorAggregate)
_BEYOND_STATE: Final = frozenset({"DeltaChannel"})  # newer than the oldest LangGraph that works
_READ_AT_ONCE: Final = frozenset({"jump_to"})  # create_agent's: read by edges of the very task that wrote it


@dataclass(frozen=True, slots=True)
class ModelNode:
    """One node that calls a model, as `model_nodes(graph)` shows it.

    Attributes:
        name: The node's name; nodes of graphs inside are named `outer:inner`.
        found: How it was recognised.
        gate: `"node"`, `"inline"`, or `"inside"` for a graph whose own nodes are gated.
        reason: Why the gate is there.
    """

    name: str
    found: str
    gate: str
    reason: str


class Shape:
    """What a builder says about which node can follow which."""

    def __init__(self, builder: AnyBuilder) -> None:
        """Read the edges, branches and declared destinations."""
        self.builder = builder
        self.ways: defaultdict[str, int] = defaultdict(int)
        self.next: defaultdict[str, set[str]] = defaultdict(set)
        self.joined: set[str] = set()
        self._converging: dict[str, bool] = {}
        names = {*builder.nodes, END}
        for start, end in builder.edges:
            self.ways[start] += 1
            self.next[start].add(end)
        for starts, end in builder.waiting_edges:
            self.joined.add(end)
            for start in starts:
                self.ways[start] += 1
                self.next[start].add(end)
        for start, branches in builder.branches.items():
            for branch in branches.values():
                self.ways[start] += 1
                self.next[start] |= set(branch.ends.values()) if branch.ends else names
        for name, spec in builder.nodes.items():
            if spec.ends:
                self.ways[name] += 1
                self.next[name] |= set(spec.ends)

    def beside(self) -> dict[str, str]:
        """Nodes that may run beside another, each with the fork that leads there."""
        found: dict[str, str] = {}
        for fork in (name for name, ways in self.ways.items() if ways > 1):
            todo = list(self.next[fork])
            while todo:
                name = todo.pop()
                if name not in found and name != END:
                    found[name] = fork
                    todo += self.next[name]
        return found

    def converges(self, name: str) -> bool:
        """Whether all that leaves the node leads to one place, however many of its tasks run at once."""
        if name not in self._converging:
            spec = self.builder.nodes.get(name)
            # What a node's code does not mention it will hardly return; a declared Command is among the ways already.
            elsewhere = spec is not None and not spec.ends and mentions(spec.runnable, "Command")
            self._converging[name] = len(self.next[name] - {END}) <= 1 and not elsewhere
        return self._converging[name]

    def whole_graph_reason(self, *, breakpoints: bool) -> str | None:
        """Why no gate of this graph may be a node; None if it may."""
        if breakpoints:
            return "the graph has static breakpoints, which a gate node would shift"
        if self.builder.managed:
            return f"the state counts steps with {sorted(self.builder.managed)!r}"
        for key, channel in self.builder.channels.items():
            if key in _READ_AT_ONCE:
                continue
            if not isinstance(channel, _KEPT_WHOLE) and type(channel).__name__ not in _BEYOND_STATE:
                return f"the state field {key!r} lives for one step only"
        return None


def place(
    shape: Shape, found: Mapping[str, str], *, gate: str, breakpoints: bool, cached: Iterable[str]
) -> dict[str, ModelNode]:
    """Where the gate of each model node goes.

    Args:
        shape: The graph's shape.
        found: Model nodes with how they were recognised.
        gate: `"auto"`, or `"node"` or `"inline"` for all.
        breakpoints: Whether the graph was compiled with static breakpoints.
        cached: Nodes whose results may come from a cache.
    """
    if gate != "auto":
        return {name: ModelNode(name, how, gate, f"gate={gate!r}") for name, how in found.items()}
    whole = shape.whole_graph_reason(breakpoints=breakpoints)
    beside = shape.beside()
    cached = set(cached)
    placed: dict[str, ModelNode] = {}
    for name, how in found.items():
        reason = whole
        if reason is None and name in beside:
            fork = "the start" if beside[name] == START else repr(beside[name])
            reason = f"it may run beside another node after the fork at {fork}"
        if reason is None and name in shape.joined:
            reason = "it waits for several nodes"
        if reason is None and shape.builder.nodes[name].defer:
            reason = "it is deferred"
        if reason is None and name in cached:
            reason = "an answer from its cache needs no budget"
        gate_there = "inline" if reason else "node"
        placed[name] = ModelNode(name, how, gate_there, reason or "nothing can run beside it")
    return placed
