"""Law 3: the graph that is guarded stays as it is; guards compose, and a call counts once."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, StateGraph
from langgraph.graph.state import CompiledStateGraph

from graphguard import Budget, MemoryLedger, Spend, guard
from tests.laws.shapes import Trail, chain, step
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG, awatch, watch

ONE_CALL = Budget(calls=1, warn_at=())
RICH = Budget(usd=1000, warn_at=())
over_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def _looks(graph: StateGraph | CompiledStateGraph) -> dict[str, object]:
    """Everything about a graph that a guard could have changed, by identity where that is what counts."""
    builder = graph if isinstance(graph, StateGraph) else graph.builder
    looks: dict[str, object] = {
        "class": type(graph),
        "attributes": sorted(vars(graph)),
        "nodes": {name: (id(spec), id(spec.runnable)) for name, spec in builder.nodes.items()},
        "edges": sorted(builder.edges),
        "joins": sorted(builder.waiting_edges),
        "branches": {start: {name: id(b) for name, b in named.items()} for start, named in builder.branches.items()},
        "state": sorted(builder.channels),
        "schemas": sorted(schema.__name__ for schema in builder.schemas if hasattr(schema, "__name__")),
    }
    if isinstance(graph, CompiledStateGraph):
        looks |= {
            "channels": {name: id(channel) for name, channel in graph.channels.items()},
            "compiled": {
                name: (id(node), id(node.bound), *map(id, node.writers)) for name, node in graph.nodes.items()
            },
            "triggers": {name: list(node.triggers) for name, node in graph.nodes.items()},
            "woken": {channel: list(names) for channel, names in graph.trigger_to_nodes.items()},
            "streamed": list(graph.stream_channels_list),
            "drawing": graph.get_graph(xray=True).draw_mermaid(),
        }
    return looks


@over_shapes
def test_the_input_stays_untouched(shape):
    """Neither guarding nor running a guarded graph changes the graph that was given, or what is inside it."""
    bench = shape.bench()
    graphs = [shape.build(bench), shape.bare(bench, InMemorySaver())]
    before = [_looks(graph) for graph in graphs]

    for graph in graphs:
        guarded = guard(graph, ONE_CALL, on_trip="interrupt")
        compiled = guarded.compile() if isinstance(guarded, StateGraph) else guarded
        if "sync" in shape.modes and not shape.resumes and getattr(graph, "checkpointer", None):
            compiled.invoke(shape.given, CONFIG)

    assert [_looks(graph) for graph in graphs] == before


@over_shapes
async def test_the_bare_graph_goes_on_behaving(shape):
    """A bare graph, and the graphs inside it, run without any budget after a guard was made of them."""
    bench, other = shape.bench(), shape.bench()
    graph = shape.build(bench)
    guard(graph, ONE_CALL)
    bare = graph.compile(checkpointer=InMemorySaver(), **shape.options) if isinstance(graph, StateGraph) else graph
    bare.checkpointer = InMemorySaver()

    after = await awatch(bare, shape.given, shape.resumes)

    expected = await awatch(shape.bare(other, InMemorySaver()), shape.given, shape.resumes)
    assert after.told() == expected.told()
    assert bench.model.billed == other.model.billed


@over_shapes
def test_guards_compose(shape):
    """A guard around a guard counts each call once, in the drawing and the fields of a single guard."""
    if "sync" not in shape.modes:
        pytest.skip("async only; what composes is made before anything runs")
    seen = []
    for nested in (False, True):
        bench, ledger = shape.bench(), MemoryLedger()
        more = Budget(calls=1000, warn_at=())
        bare = shape.bare(bench, InMemorySaver())
        first = guard(bare, RICH, ledger=ledger)
        graph = guard(first, more) if nested else guard(bare, RICH, more, ledger=ledger)
        told = watch(graph, shape.given, shape.resumes)
        seen.append((told.told(), told.gates, told.checkpoints, ledger.total().calls, bench.model.billed))
        assert ledger.total().calls == bench.model.billed
        assert graph.get_graph().draw_mermaid()

    assert seen[0] == seen[1]


@pytest.mark.parametrize("gates", [("auto", "auto"), ("inline", "auto"), ("node", "auto"), ("auto", "inline")])
@pytest.mark.parametrize("name", ["plain_loop", "agent_with_tool", "subgraph_with_shared_keys", "send_map_reduce"])
def test_both_guards_keep_their_budgets(name, gates):
    """Whichever of two guards has the tighter budget, it trips, and the trip names it."""
    shape = SHAPES[name]
    for tight_first in (True, False):
        bench = shape.bench()
        order = (ONE_CALL, RICH) if tight_first else (RICH, ONE_CALL)
        graph = guard(guard(shape.bare(bench, InMemorySaver()), order[0], gate=gates[0]), order[1], gate=gates[1])

        graph.invoke(shape.given, CONFIG)
        graph.invoke(shape.given, CONFIG)

        assert bench.model.billed == 1
        assert graph.get_state(CONFIG).values["trip"]["budget"] == ONE_CALL.key


@pytest.mark.parametrize("name", ["plain_loop", "subgraph_with_shared_keys", "fan_out_two_models"])
def test_guarded_subgraph_in_guarded_graph_counts_once(name):
    """A guarded graph as a node of a guarded graph charges each call once to each state."""
    shape = SHAPES[name]
    bench, ledger = shape.bench(), MemoryLedger()
    outer = StateGraph(Trail)
    outer.add_node("inner", guard(shape.bare(bench), RICH, ledger=ledger))
    outer.set_entry_point("inner")
    graph = guard(outer, Budget(calls=100, warn_at=()), ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke(shape.given, CONFIG)

    assert ledger.total().calls == bench.model.billed
    assert Spend.of(graph.get_state(CONFIG)).calls == bench.model.billed


def test_the_bare_builder_can_grow_afterwards():
    """What is added to the bare builder after `guard` is not in the guarded one, and the other way round."""
    shape = SHAPES["plain_chain"]
    bench = shape.bench()
    bare = chain(bench, "a", "model")
    guarded = guard(bare, RICH)
    bare.add_node("later", step(bench, "later"))
    bare.add_edge("a", "later")
    bare.add_conditional_edges("later", lambda _: END)
    guarded.add_node("other", step(bench, "other"))
    guarded.add_edge("a", "other")

    assert "later" not in guarded.nodes
    assert not {edge for edge in guarded.edges if "later" in edge}
    assert "later" not in guarded.branches
    assert "other" not in bare.nodes
    assert guarded.compile().invoke({"trail": []})["trail"] == ["a", "model: all is well", "other"]
    assert bare.compile().invoke({"trail": []})["trail"] == ["a", "later", "model: all is well"]
