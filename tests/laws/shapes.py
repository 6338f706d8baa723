"""What a graph shape is that the laws are tested over, and what shapes are made of; `table` holds all of them."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from graphguard import Budget, guard
from tests.laws.random_graphs import Log
from tests.scripted import Scripted, Streaming


@dataclass
class Bench:
    """What one build of a shape works with: a scripted model of its own, and a log of node runs."""

    model: Scripted
    log: Log = field(default_factory=Log)


Graph = StateGraph | CompiledStateGraph


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    Attributes:
        name: What the tests call it.
        build: Makes the bare builder, or the bare compiled graph, on a bench.
        models: Its model nodes, those of graphs inside as `outer:inner`.
        given: The input.
        script: What the model answers.
        resumes: Answers to the user's own interrupts, in order.
        options: Arguments of `compile`.
        modes: How it can be run.
        skewed: Whether a gate node changes what it does, so that only auto and inline are transparent.
        keyed: Whether its state has keys; a state that is one value has no place to show graphguard's fields.
        unbilled: How many calls it begins that nobody answers, and so nobody bills.
    """

    name: str
    build: Callable[[Bench], Graph]
    models: tuple[str, ...]
    given: object
    _: KW_ONLY
    script: tuple[object, ...] = ("all is well",)
    resumes: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    modes: tuple[str, ...] = ("sync", "async")
    skewed: bool = False
    keyed: bool = True
    unbilled: int = 0

    def bench(self) -> Bench:
        """Give a fresh bench."""
        return Bench(Streaming(script=list(self.script)))

    def bare(self, bench: Bench, saver: BaseCheckpointSaver[str] | None = None) -> CompiledStateGraph:
        """Give the graph as it is without a guard."""
        return self._compiled(self.build(bench), saver)

    def guarded(
        self, bench: Bench, *budgets: Budget, saver: BaseCheckpointSaver[str] | None = None, **options: Any
    ) -> CompiledStateGraph:
        """Give the guarded graph."""
        return self._compiled(guard(self.build(bench), *budgets, **options), saver)

    def _compiled(self, graph: Graph, saver: BaseCheckpointSaver[str] | None) -> CompiledStateGraph:
        if isinstance(graph, StateGraph):
            return graph.compile(checkpointer=saver, **self.options)
        graph.checkpointer = saver
        return graph


SHAPES: dict[str, Shape] = {}


def shape(*models: str, given: object = None, **told: Any) -> Callable[[Callable[[Bench], Graph]], None]:
    """Put a shape into the table."""

    def put(build: Callable[[Bench], Graph]) -> None:
        SHAPES[build.__name__] = Shape(build.__name__, build, models, {"trail": []} if given is None else given, **told)

    return put


class Trail(TypedDict):
    trail: Annotated[list[str], operator.add]


def step(bench: Bench, name: str) -> Callable[[Any], dict[str, list[str]]]:
    """Give a node that calls nothing."""
    log = bench.log  # never the bench itself: it holds the model, and discovery would see it

    def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        return {"trail": [name]}

    return run


def call(bench: Bench, name: str) -> Callable[[Any], dict[str, list[str]]]:
    """Give a node that calls the model once."""
    model, log = bench.model, bench.log

    def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        return {"trail": [f"{name}: {model.invoke('hi').content}"]}

    return run


def acall(bench: Bench, name: str) -> Callable[[Any], Awaitable[dict[str, list[str]]]]:
    """Give an async node that calls the model once."""
    model, log = bench.model, bench.log

    async def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        answer = await model.ainvoke("hi")
        return {"trail": [f"{name}: {answer.content}"]}

    return run


def chain(bench: Bench, *names: str, schema: Any = Trail, **options: Any) -> StateGraph:
    """Give a row of nodes; those whose names begin with `model` call the model."""
    builder = StateGraph(schema, **options)
    for name in names:
        builder.add_node(name, call(bench, name) if name.startswith("model") else step(bench, name))
    for start, end in zip((START, *names), (*names, END), strict=True):
        builder.add_edge(start, end)
    return builder


def nodes(bench: Bench, *names: str, edges: str = "") -> StateGraph:
    """Give nodes as `chain` does, with edges such as `"^>a a>b b>$"`."""
    builder = StateGraph(Trail)
    for name in names:
        builder.add_node(name, call(bench, name) if name.startswith("model") else step(bench, name))
    for edge in edges.split():
        start, _, end = edge.partition(">")
        builder.add_edge(START if start == "^" else start, END if end == "$" else end)
    return builder
