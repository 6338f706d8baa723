"""Law 1: what comes out of `guard` is a genuine graph, and everything such a graph can do works."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from graphguard import Budget, Spend, guard
from tests.laws.shapes import Shape
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG, plain

RICH = Budget(usd=1000)
GATES = ("auto", "inline")
over_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
# Those that end in one run, sync: what a law says of a method needs no person and no loop.
STRAIGHT = [shape for shape in SHAPES.values() if not shape.resumes and "sync" in shape.modes]
over_straight = pytest.mark.parametrize("shape", STRAIGHT, ids=[shape.name for shape in STRAIGHT])


def both(shape: Shape, gate: str = "auto") -> tuple[CompiledStateGraph, CompiledStateGraph]:
    """Give a bare graph and a guarded one."""
    return (
        shape.bare(shape.bench(), InMemorySaver()),
        shape.guarded(shape.bench(), RICH, saver=InMemorySaver(), gate=gate),
    )


@over_shapes
def test_the_class_stays(shape):
    """A builder gives a StateGraph and a compiled graph a CompiledStateGraph."""
    given = shape.build(shape.bench())

    guarded = guard(given, RICH)

    assert isinstance(guarded, StateGraph if isinstance(given, StateGraph) else CompiledStateGraph)
    assert isinstance(guarded, type(given))
    assert isinstance(shape.guarded(shape.bench(), RICH), CompiledStateGraph)


@over_shapes
@pytest.mark.parametrize("gate", GATES)
def test_schemas_stay(shape, gate):
    """Input, output and config schemas are those of the bare graph."""
    bare, guarded = both(shape, gate)

    assert guarded.get_input_jsonschema() == bare.get_input_jsonschema()
    assert guarded.get_output_jsonschema() == bare.get_output_jsonschema()
    assert guarded.get_context_jsonschema() == bare.get_context_jsonschema()
    assert (guarded.input_channels, guarded.output_channels) == (bare.input_channels, bare.output_channels)
    assert guarded.name == bare.name


@over_shapes
def test_the_user_s_nodes_stay(shape):
    """Every node keeps its name, policies, metadata and tags; only gate nodes are new."""
    bare, guarded = both(shape)

    for name, node in bare.nodes.items():
        kept = guarded.nodes[name]
        for policy in ("retry_policy", "timeout", "metadata", "tags", "error_handler_node", "is_error_handler"):
            assert getattr(kept, policy, None) == getattr(node, policy, None), (name, policy)
        assert (kept.cache_policy is None) == (node.cache_policy is None)
    assert all(name.endswith(".budget") for name in set(guarded.nodes) - set(bare.nodes))


@over_straight
def test_state_can_be_read_and_changed(shape):
    """`get_state`, `get_state_history` and `update_state` work; an update adds no spend of its own."""
    _, guarded = both(shape)
    guarded.invoke(shape.given, CONFIG)
    before = guarded.get_state(CONFIG)

    guarded.update_state(CONFIG, shape.given)

    after = guarded.get_state(CONFIG)
    assert len(list(guarded.get_state_history(CONFIG))) > 1
    assert after.metadata["source"] == "update"
    assert Spend.of(after) == Spend.of(before)


@over_straight
async def test_state_can_be_read_and_changed_on_a_loop(shape):
    """`aget_state` and `aupdate_state` work likewise."""
    _, guarded = both(shape)
    await guarded.ainvoke(shape.given, CONFIG)
    before = await guarded.aget_state(CONFIG)

    await guarded.aupdate_state(CONFIG, shape.given)

    assert Spend.of(await guarded.aget_state(CONFIG)) == Spend.of(before)


@over_straight
def test_every_stream_mode_streams(shape):
    """Each stream mode gives as many chunks of the user's nodes as on the bare graph, or more with gate nodes."""
    for mode in ("values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"):
        counts = [len(list(graph.stream(shape.given, CONFIG, stream_mode=mode))) for graph in both(shape, "inline")]

        assert counts[0] == counts[1], mode


@over_straight
def test_batch_gives_each_input_its_output(shape):
    """`batch` runs every input on its own."""
    configs: list[RunnableConfig] = [{"configurable": {"thread_id": str(n)}, "max_concurrency": 1} for n in range(2)]
    bare, guarded = (graph.batch([shape.given, shape.given], configs) for graph in both(shape))

    assert plain(guarded) == plain(bare)


@over_straight
async def test_abatch_gives_each_input_its_output(shape):
    """`abatch` runs every input on its own."""
    configs: list[RunnableConfig] = [{"configurable": {"thread_id": str(n)}, "max_concurrency": 1} for n in range(2)]
    bare, guarded = [await graph.abatch([shape.given, shape.given], configs) for graph in both(shape)]

    assert plain(guarded) == plain(bare)


@over_straight
async def test_events_are_those_of_the_bare_graph(shape):
    """`astream_events` names the same runs in the same number, with inline gates."""
    kinds = []
    for graph in both(shape, "inline"):
        events = [event async for event in graph.astream_events(shape.given, CONFIG, version="v2")]
        # A node that is a runnable of its own is invoked behind its door, so its last chunk is not reported twice.
        own = [e for e in events if e["event"] != "on_chain_stream" or e["name"] in {graph.name, *graph.nodes}]
        kinds.append(Counter((e["event"], e["name"], e["metadata"].get("langgraph_node")) for e in own))

    assert kinds[0] == kinds[1]


COPIES = {
    "with_config": lambda graph: graph.with_config(tags=["copied"]),
    "copy": lambda graph: graph.copy(update={"name": "copied"}),
    "copy.copy": copy.copy,
    "with_types": lambda graph: graph.with_types(),
    "pipe": lambda graph: graph | (lambda output: output),
}


@pytest.mark.parametrize("made", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["plain_loop", "agent_with_tool", "fan_out_one_model", "subgraph_with_shared_keys"])
def test_copies_are_guarded_too(name, gate, made):
    """A copy made with LangGraph's own means keeps the budget, and works."""
    shape = SHAPES[name]
    bench = shape.bench()
    graph = made(shape.guarded(bench, Budget(calls=1), gate=gate, saver=InMemorySaver()))

    for run in range(3):
        graph.invoke(shape.given, {"configurable": {"thread_id": "t"}, "metadata": {"run": run}})

    assert bench.model.billed == 1


@pytest.mark.parametrize("gate", GATES)
@over_shapes
def test_subgraphs_are_found(shape, gate):
    """`get_subgraphs` names what it names on the bare graph, and gives guarded graphs."""
    bare, guarded = both(shape, gate)

    found = dict(guarded.get_subgraphs(recurse=True))

    assert list(found) == [name for name, _ in bare.get_subgraphs(recurse=True)]
    assert all(isinstance(graph, CompiledStateGraph) for graph in found.values())


@over_shapes
def test_a_guarded_graph_can_be_drawn(shape):
    """Drawings name every node, gate nodes among them."""
    _, guarded = both(shape)

    drawn = guarded.get_graph(xray=True)

    assert drawn.draw_mermaid()
    assert {name for name in guarded.nodes if name.endswith(".budget")} <= set(drawn.nodes)
