"""Small random graphs: what hypothesis draws, the builder made of it, and what a run of it did."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from tests.scripted import Scripted

Way = tuple[Literal["to", "send"], str]
"""Where a decision leads: to a node, or to a node with a payload of its own."""


def _add_up(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {name: old.get(name, 0) + new.get(name, 0) for name in sorted({*old, *new})}


class State(TypedDict):
    visits: Annotated[dict[str, int], _add_up]
    """Runs by node: decisions look at nothing else, so that they are the same in every run."""

    trail: Annotated[list[str], operator.add]
    last: str


@dataclass(frozen=True)
class Node:
    """One node of a random graph.

    Attributes:
        calls: Whether it calls the model.
        edges: Targets of its static edges.
        branch: Ways that its conditional edge takes, one entry a visit, again from the start after the last.
        mapped: Whether the conditional edge has a path map.
        command: Ways that its `Command` takes, likewise; None if it returns a plain update.
        annotated: Whether the destinations of its `Command` are declared.
        deferred: Whether it waits for the end of everything else.
        overwrites: Whether it writes a field that takes one value a superstep.
    """

    name: str
    calls: bool = False
    edges: tuple[str, ...] = ()
    branch: tuple[tuple[Way, ...], ...] = ()
    mapped: bool = False
    command: tuple[tuple[Way, ...], ...] | None = None
    annotated: bool = False
    deferred: bool = False
    overwrites: bool = False


@dataclass(frozen=True)
class Drawing:
    """A random graph: nodes, entries from START, and joins that wait for several nodes.

    `jump` are the nodes to which a client's `Command` leads after the first run.
    """

    nodes: tuple[Node, ...]
    entries: tuple[str, ...]
    entry_branch: tuple[Way, ...] = ()
    joins: tuple[tuple[tuple[str, ...], str], ...] = ()
    jump: tuple[str, ...] = ()


@dataclass
class Log:
    """Which nodes ran, kept outside of any state.

    A drawing whose Sends multiply is left out when its bare run shows it; a guarded run that multiplies fails.
    """

    bare: bool = False
    ran: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str) -> None:
        """Note that a node's own code ran."""
        with self.lock:
            self.ran.append(name)
            if len(self.ran) > MANY_RUNS:
                raise UnsatisfiedAssumption if self.bare else AssertionError(f"more than {MANY_RUNS} node runs")


MANY_RUNS = 400
"""Node runs of a whole graph that are too many to be worth a test's time."""

MOST_RUNS = 14
"""Node runs after which no decision leads anywhere: what keeps loops and Sends small."""

_NAMES = ("a", "b", "c", "d", "e", "f", "g")


@st.composite
def drawings(draw: st.DrawFn, *, overwrites: bool = True) -> Drawing:
    """Give graphs of three to seven nodes, at least one of which calls a model."""
    names = _NAMES[: draw(st.integers(3, 7))]
    callers = draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    nodes = tuple(_node(draw, names, at, calls=name in callers, overwrites=overwrites) for at, name in enumerate(names))
    entries = draw(st.lists(st.sampled_from(names[:3]), unique=True, min_size=1, max_size=2))
    entry_branch = draw(st.lists(_ways(names), max_size=3)) if draw(st.integers(0, 3)) == 0 else []
    joins = draw(st.lists(_joins(names), max_size=2)) if draw(st.booleans()) else []
    jump = draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=2)) if draw(st.booleans()) else []
    return Drawing(nodes, tuple(entries), tuple(entry_branch), tuple(dict.fromkeys(joins)), tuple(jump))


def _ways(names: Sequence[str]) -> st.SearchStrategy[Way]:
    return st.tuples(st.sampled_from(["to", "to", "send"]), st.sampled_from(list(names)))  # type: ignore[arg-type]


@st.composite
def _joins(draw: st.DrawFn, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    end = draw(st.integers(2, len(names) - 1))
    starts = draw(st.lists(st.sampled_from(names[:end]), unique=True, min_size=2, max_size=3))
    return tuple(starts), names[end]


def _node(draw: st.DrawFn, names: Sequence[str], at: int, *, calls: bool, overwrites: bool) -> Node:
    later = list(names[at + 1 :])
    decisions = st.lists(st.lists(_ways(names), max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
    kind = draw(st.sampled_from(["edges", "edges", "branch", "command", "both"]))
    edges = draw(st.lists(st.sampled_from(later), unique=True, max_size=2)) if later and kind != "branch" else []
    return Node(
        names[at],
        calls=calls,
        edges=tuple(edges),
        branch=draw(decisions) if kind in {"branch", "both"} else (),
        mapped=draw(st.booleans()),
        command=draw(decisions) if kind == "command" else None,
        annotated=draw(st.booleans()),
        deferred=draw(st.integers(0, 7)) == 0,
        overwrites=overwrites and draw(st.integers(0, 4)) == 0,
    )


def build(drawing: Drawing, model: Scripted, log: Log) -> StateGraph:
    """Make a bare builder of a drawing."""
    builder = StateGraph(State)
    names = [node.name for node in drawing.nodes]
    for node in drawing.nodes:
        destinations = tuple(names) if node.command is not None and node.annotated else None
        builder.add_node(node.name, _function(node, model, log), defer=node.deferred, destinations=destinations)
        for end in node.edges:
            builder.add_edge(node.name, end)
        if node.branch:
            path_map = [*names, END] if node.mapped else None
            builder.add_conditional_edges(node.name, _router(node), path_map)
    for starts, end in drawing.joins:
        builder.add_edge(list(starts), end)
    for name in drawing.entries:
        builder.add_edge(START, name)
    if drawing.entry_branch:
        builder.add_conditional_edges(START, lambda state: _taken(drawing.entry_branch, state))
    return builder


def _function(node: Node, model: Scripted, log: Log) -> Callable[..., object]:
    def update(state: State) -> dict[str, object]:
        log.add(node.name)
        told: dict[str, object] = {"visits": {node.name: 1}, "trail": [node.name]}
        return {**told, "last": node.name} if node.overwrites else told

    def commanding(state: State) -> object:
        return Command(update=update(state), goto=_decided(node.command or (), node.name, state))

    plain = update if node.command is None else commanding

    def calling(state: State, config: RunnableConfig) -> object:
        model.invoke("hi", config)
        return plain(state)

    return calling if node.calls else plain


def _router(node: Node) -> Callable[[State], list[str | Send]]:
    # A branch sees the state with its node's own update, so it counts one visit more.
    return lambda state: _decided(node.branch, node.name, state) or [END]  # type: ignore[list-item]


def _decided(decisions: Sequence[Sequence[Way]], name: str, state: State) -> list[str | Send]:
    visits = state.get("visits") or {}
    if sum(visits.values()) > MOST_RUNS:
        return []
    return _taken(decisions[visits.get(name, 0) % len(decisions)], state)


def _taken(ways: Sequence[Way], state: State) -> list[str | Send]:
    return [Send(name, _payload(name, state)) if kind == "send" else name for kind, name in ways]


def _payload(name: str, state: State) -> dict[str, object]:
    # Counted up, so that a node that sends to itself comes to an end.
    return {**state, "visits": _add_up(state.get("visits") or {}, {name: 1})}
