"""Shapes by their ways: edges, branches, joins, Commands and Sends."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send

from tests.laws.shapes import Trail, call, chain, nodes, shape, step

# Edges


@shape("model")
def plain_chain(bench):
    return chain(bench, "before", "model", "after")


@shape("model")
def plain_loop(bench):
    builder = nodes(bench, "model", "check", edges="^>model model>check")
    builder.add_conditional_edges("check", lambda state: "model" if len(state["trail"]) < 6 else END, ["model", END])
    return builder


@shape("model_a", "model_b", skewed=True)
def several_entries(bench):
    return nodes(bench, "model_a", "model_b", "c", "d", edges="^>model_a ^>model_b ^>c model_a>d model_b>d c>d")


@shape("model_a", "model_b")
def conditional_entry(bench):
    builder = nodes(bench, "model_a", "model_b", "d", edges="model_a>d model_b>d")
    builder.add_conditional_edges(START, lambda _: "model_b")
    return builder


@shape("model")
def branch_with_map(bench):
    builder = nodes(bench, "a", "model", "b", edges="^>a")
    builder.add_conditional_edges("a", lambda _: "yes", {"yes": "model", "no": "b"})
    return builder


@shape("model")
def branch_without_map(bench):
    builder = nodes(bench, "a", "model", "b", edges="^>a model>b")
    builder.add_conditional_edges("a", lambda _: "model")
    return builder


@shape("model", skewed=True)
def branch_to_several(bench):
    builder = nodes(bench, "a", "model", "b", "d", edges="^>a model>d b>d")
    builder.add_conditional_edges("a", lambda _: ["model", "b"])
    return builder


@shape("model", skewed=True)
def fan_out_one_model(bench):
    return nodes(bench, "a", "model", "c", "d", edges="^>a a>model a>c model>d c>d")


@shape("model_b", "model_c")
def fan_out_two_models(bench):
    return nodes(bench, "a", "model_b", "model_c", "d", edges="^>a a>model_b a>model_c model_b>d model_c>d")


@shape("model", skewed=True)
def uneven_fan_out(bench):
    return nodes(bench, "a", "b", "c", "c2", "model", "d", edges="^>a a>b a>c c>c2 b>model model>d c2>d")


@shape("model")
def list_join_into_model(bench):
    builder = nodes(bench, "a", "b", "c", "model", edges="^>a a>b a>c")
    builder.add_edge(["b", "c"], "model")
    return builder


@shape("model", skewed=True)
def list_join_behind_model(bench):
    builder = nodes(bench, "a", "model", "c", "c2", "d", edges="^>a a>model a>c c>c2")
    builder.add_edge(["model", "c2"], "d")
    return builder


@shape("model")
def deferred_model(bench):
    builder = nodes(bench, "a", "b", "c", "c2", edges="^>a a>b a>c c>c2")
    builder.add_node("model", call(bench, "model"), defer=True)
    builder.add_edge("b", "model")
    builder.add_edge("c2", "model")
    return builder


@shape("model", skewed=True)
def deferred_behind_model(bench):
    builder = nodes(bench, "a", "model", "c", edges="^>a a>model a>c")
    builder.add_node("end", step(bench, "end"), defer=True)
    builder.add_edge("model", "end")
    builder.add_edge("c", "end")
    return builder


# Commands


@shape("model")
def command_annotated(bench):
    log = bench.log

    def a(state: Trail) -> Command[Literal["model"]]:
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "b", edges="model>b")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model")
def command_unannotated(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "b", edges="model>b")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", skewed=True)
def command_to_several(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto=["model", "c"], update={"trail": ["a"]})

    builder = nodes(bench, "model", "c", "d", edges="model>d c>d")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", skewed=True)
def command_beside_static_edge(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "c", "d", edges="a>c model>d c>d")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", "model_2")
def command_from_model(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail) -> Command[Literal["model_2"]]:
        log.add("model")
        return Command(goto="model_2", update={"trail": [str(model.invoke("hi").content)]})

    builder = nodes(bench, "model_2")
    builder.add_node("model", ask)
    builder.add_edge(START, "model")
    return builder


@shape("sub:model", "model_end")
def command_to_parent(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return Command(graph=Command.PARENT, goto="model_end", update={"trail": [str(model.invoke("hi").content)]})

    inner = StateGraph(Trail)
    inner.add_node("model", ask)
    inner.add_edge(START, "model")
    builder = nodes(bench, "model_end", edges="^>sub")
    builder.add_node("sub", inner.compile(), destinations=("model_end",))
    return builder


# Sends


@shape("model", skewed=True)
def send_map_reduce(bench):
    builder = nodes(bench, "a", "model", "reduce", edges="^>a model>reduce")
    builder.add_conditional_edges("a", lambda _: [Send("model", {"trail": []})] * 3, ["model"])
    return builder


@shape("model")
def send_to_workers_then_model(bench):
    builder = nodes(bench, "a", "worker", "model", edges="^>a worker>model")
    builder.add_conditional_edges("a", lambda _: [Send("worker", {"trail": []})] * 3, ["worker"])
    return builder


@shape("model", skewed=True)
def send_to_workers_that_command(bench):
    log = bench.log

    def worker(state: Any):
        log.add("worker")
        return Command(goto=state["to"], update={"trail": ["worker"]})

    builder = nodes(bench, "a", "model", "c", "d", edges="^>a model>d c>d")
    builder.add_node("worker", worker)
    builder.add_conditional_edges("a", lambda _: [Send("worker", {"to": to}) for to in ("model", "c")], ["worker"])
    return builder


@shape("model", skewed=True)
def send_beside_edge(bench):
    builder = nodes(bench, "a", "model", "c", "d", edges="^>a a>c model>d c>d")
    builder.add_conditional_edges("a", lambda _: [Send("model", {"trail": []})], ["model"])
    return builder
