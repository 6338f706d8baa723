"""Graphs inside graphs: each level knows its spend, the whole counts once, and a trip surfaces once at the top."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, Trip, guard, top_up
from tests.conftest import thread
from tests.laws.shapes import Bench, Trail, call, chain, nodes
from tests.scripted import Scripted

CONFIG = thread("t")
LEVELS = ("one", "two", "three")
over_modes = pytest.mark.parametrize("mode", ["sync", "async"])
over_memories = pytest.mark.parametrize("memory", [None, True, False], ids=["inherited", "own", "none"])


def bench() -> Bench:
    """Give a bench with a model that answers."""
    return Bench(Scripted())


async def run(graph: Any, mode: str, given: Any = None, config: Any = CONFIG) -> Any:
    """Run it once."""
    given = {"trail": []} if given is None else given
    return graph.invoke(given, config) if mode == "sync" else await graph.ainvoke(given, config)


def deep(on: Bench, calls: int = 2, memory: bool | None = None) -> StateGraph:
    """Give a graph in a graph in a graph, with some calls at the bottom and one at the top after them."""
    inside = chain(on, *(f"model_{n}" for n in range(calls)))
    for name in reversed(LEVELS):
        around = nodes(on, f"before_{name}", f"after_{name}", edges=f"^>before_{name} {name}>after_{name}")
        around.add_node(name, inside.compile(checkpointer=memory))
        around.add_edge(f"before_{name}", name)
        inside = around
    inside.add_node("model_end", call(on, "model_end"))
    inside.add_edge("after_one", "model_end")
    return inside


def levels(snapshot: Any) -> list[int]:
    """Give the calls that each level's state knows of, from the outermost in, of a run that waits."""
    told = []
    while snapshot is not None:
        told.append(Spend.of(snapshot).calls)
        inner = [task.state for task in snapshot.tasks if task.state is not None]
        snapshot = inner[0] if inner else None
    return told


# What is counted where


@over_memories
@over_modes
async def test_the_whole_is_counted_once_at_the_top(mode, memory):
    """However deep and with whatever persistence, the outermost state and the ledger have each call once."""
    on, ledger = bench(), MemoryLedger()
    graph = guard(deep(on, memory=memory), Budget(calls=99), ledger=ledger).compile(checkpointer=InMemorySaver())

    for runs in (1, 2):
        await run(graph, mode)

        assert on.model.billed == ledger.total().calls == 3 * runs
        assert Spend.of(graph.get_state(CONFIG)).calls == 3 * runs


@over_modes
async def test_each_level_shows_its_own_spend(mode):
    """While the bottom waits, the levels inside know what was spent inside them."""
    on = bench()
    graph = guard(deep(on), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger(), gate="inline")
    compiled = graph.compile(checkpointer=InMemorySaver())

    await run(compiled, mode)

    # Those around are in the middle of a task, and are told when it ends.
    assert levels(compiled.get_state(CONFIG, subgraphs=True)) == [0, 0, 0, 1]


def test_own_memory_keeps_its_own_spend():
    """A subgraph with a memory of its own goes on counting where its last run ended."""
    on, saver = bench(), InMemorySaver()
    builder = nodes(on, "a", edges="^>a a>sub")
    builder.add_node("sub", chain(on, "model").compile(checkpointer=True))
    graph = guard(builder, Budget(calls=99), ledger=MemoryLedger()).compile(checkpointer=saver)

    graph.invoke({"trail": []}, CONFIG)
    graph.invoke({"trail": []}, CONFIG)

    inner = saver.get_tuple(thread("t", checkpoint_ns="sub"))
    assert inner is not None
    assert Spend.of(inner.checkpoint["channel_values"]).calls == 2
    assert Spend.of(graph.get_state(CONFIG)).calls == 2


@over_modes
async def test_hand_over_to_the_parent_carries_its_spend_once(mode):
    """A `Command` to the parent takes the charge of the node that gave it along, once."""
    on, ledger, model = bench(), MemoryLedger(), Scripted()

    def ask(state: Trail) -> Command[Any]:
        return Command(graph=Command.PARENT, goto="model_end", update={"trail": [str(model.invoke("hi").content)]})

    inner = StateGraph(Trail)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    builder = nodes(on, "model_end", edges="^>sub")
    builder.add_node("sub", inner.compile(), destinations=("model_end",))
    graph = guard(builder, Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())

    await run(graph, mode)

    assert on.model.billed + model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 2


# Budgets of graphs inside


@over_modes
@pytest.mark.parametrize(("inner", "outer"), [(1, 9), (9, 1)])
async def test_the_tighter_of_two_guards_trips(inner, outer, mode):
    """A guarded graph in a guarded graph keeps both budgets, and counts each call once in either."""
    on, ledger = bench(), MemoryLedger()
    inside = guard(chain(on, "model_1", "model_2"), Budget(calls=inner), ledger=ledger).compile()
    builder = nodes(on, "a", edges="^>a a>sub")
    builder.add_node("sub", inside)
    graph = guard(builder, Budget(calls=outer), ledger=ledger).compile(checkpointer=InMemorySaver())

    await run(graph, mode)

    assert on.model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 1


@over_modes
async def test_a_guarded_graph_that_a_function_calls_keeps_both_budgets(mode):
    """Called from a node's code, an inner guard ends its graph alone, and its calls count outside too."""
    on, ledger = bench(), MemoryLedger()
    inside = guard(chain(on, "model_1", "model_2"), Budget(calls=1), ledger=ledger).compile()

    def ask(state: Trail) -> dict[str, Any]:
        return {"trail": [inside.invoke({"trail": []})["trail"][-1]]}

    async def aask(state: Trail) -> dict[str, Any]:
        return {"trail": [(await inside.ainvoke({"trail": []}))["trail"][-1]]}

    builder = nodes(on, "after", edges="ask>after")
    builder.add_node("ask", ask if mode == "sync" else aask)
    builder.add_edge(START, "ask")
    graph = guard(builder, Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())

    out = await run(graph, mode)

    assert out["trail"] == ["model_1: ok", "after"]
    assert on.model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 1
    assert Trip.of(graph.get_state(CONFIG)) is None


# Trips inside


@over_memories
@over_modes
@pytest.mark.parametrize("gate", ["auto", "inline"])
async def test_a_trip_deep_inside_ends_the_whole(gate, mode, memory):
    """A trip three levels down ends all levels, and is the trip of the outermost state."""
    on, ledger = bench(), MemoryLedger()
    graph = guard(deep(on, memory=memory), Budget(calls=1), ledger=ledger, gate=gate)
    compiled = graph.compile(checkpointer=InMemorySaver())

    out = await run(compiled, mode)

    assert on.model.billed == ledger.total().calls == 1
    assert "model_end: ok" not in out["trail"]
    trip = Trip.of(compiled.get_state(CONFIG))
    assert trip is not None
    assert trip.node == "model_1"
    assert compiled.get_state(CONFIG).next == ()


@pytest.mark.parametrize("memory", [None, True], ids=["inherited", "own"])
@over_modes
@pytest.mark.parametrize("gate", ["auto", "inline"])
async def test_a_trip_deep_inside_asks_once_at_the_top_and_goes_on_there(gate, mode, memory):
    """One question surfaces; after the answer the run goes on where it stopped, and pays for nothing twice."""
    on, ledger = bench(), MemoryLedger()
    graph = guard(deep(on, memory=memory), Budget(calls=1), on_trip="interrupt", ledger=ledger, gate=gate)
    compiled = graph.compile(checkpointer=InMemorySaver())

    asked = await run(compiled, mode)
    assert len(asked["__interrupt__"]) == 1
    assert on.model.billed == 1
    out = await run(compiled, mode, Command(resume=9))

    assert out["trail"][-1] == "model_end: ok"
    assert on.model.billed == ledger.total().calls == Spend.of(compiled.get_state(CONFIG)).calls == 3


def test_top_up_goes_on_deep_inside():
    """`top_up` answers a question from three levels down."""
    on = bench()
    graph = guard(deep(on), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"trail": []}, CONFIG)

    top_up(compiled, CONFIG, calls=9)

    assert on.model.billed == 3


@over_modes
async def test_raise_deep_inside_raises_at_the_top(mode):
    """With on_trip="raise" the exception comes out, and the thread can go on under a larger budget."""
    on, ledger, saver = bench(), MemoryLedger(), InMemorySaver()
    bare = deep(on)
    with pytest.raises(BudgetExceeded):
        await run(guard(bare, Budget(calls=1), on_trip="raise", ledger=ledger).compile(checkpointer=saver), mode)

    larger = guard(bare, Budget(calls=9), on_trip="raise", ledger=ledger).compile(checkpointer=saver)
    out = larger.invoke(None, CONFIG) if mode == "sync" else await larger.ainvoke(None, CONFIG)

    assert out["trail"][-1] == "model_end: ok"
    assert on.model.billed == ledger.total().calls == Spend.of(larger.get_state(CONFIG)).calls == 3


@over_modes
async def test_a_trip_in_a_graph_that_a_function_calls_pauses_the_node(mode):
    """A trip in a graph that a node calls asks at the top; the node starts over, and pays for that again."""
    on, ledger = bench(), MemoryLedger()
    inside = chain(on, "model_1", "model_2").compile()

    def ask(state: Trail) -> dict[str, Any]:
        return {"trail": inside.invoke({"trail": []})["trail"]}

    async def aask(state: Trail) -> dict[str, Any]:
        return {"trail": (await inside.ainvoke({"trail": []}))["trail"]}

    builder = StateGraph(Trail)
    builder.add_node("ask", ask if mode == "sync" else aask)
    builder.add_edge(START, "ask")
    guarded = guard(builder, Budget(calls=1), on_trip="interrupt", ledger=ledger, nodes=["ask"])
    graph = guarded.compile(checkpointer=InMemorySaver())

    asked = await run(graph, mode)
    assert len(asked["__interrupt__"]) == 1
    out = await run(graph, mode, Command(resume=9))

    assert out["trail"] == ["model_1: ok", "model_2: ok"]
    assert on.model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls
    assert on.model.billed <= 3


@over_modes
@pytest.mark.parametrize("per", ["branch", "run", "thread"])
async def test_another_process_knows_what_finished_siblings_spent(per, mode):
    """With nothing but the checkpoints to go by, a node that goes on has no room that those beside it used up."""
    on, saver, budget = bench(), InMemorySaver(), Budget(calls=1, per=per)

    def person(state: Trail) -> dict[str, list[str]]:
        return {"trail": [str(interrupt("may I?")), str(on.model.invoke("then").content)]}

    builder = nodes(on, "a", "model", edges="^>a a>model a>person")
    builder.add_node("person", person)
    await run(guard(builder, budget, ledger=MemoryLedger()).compile(checkpointer=saver), mode)
    assert on.model.billed == 1

    again = guard(builder, budget, ledger=MemoryLedger()).compile(checkpointer=saver)
    await run(again, mode, Command(resume="yes"))

    assert on.model.billed == 1
    assert Trip.of(again.get_state(CONFIG)) is not None


# Streams


@over_modes
async def test_no_level_is_added_to_namespaces(mode):
    """With inline gates, events of graphs inside come under the namespaces of the bare graph."""
    seen = []
    for guarded in (False, True):
        builder = deep(bench())
        graph = (guard(builder, Budget(calls=99), gate="inline") if guarded else builder).compile()
        given = {"trail": []}
        if mode == "sync":
            chunks = list(graph.stream(given, CONFIG, stream_mode="updates", subgraphs=True))
        else:
            chunks = [chunk async for chunk in graph.astream(given, CONFIG, stream_mode="updates", subgraphs=True)]
        seen.append([[part.partition(":")[0] for part in ns] + list(update) for ns, update in chunks])

    assert seen[0] == seen[1]
