"""Rows B59, B60, B62 and B65: every stream mode and every version of events, over the laws' table of shapes."""

from __future__ import annotations

import asyncio
import gc
import operator
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, adispatch_custom_event
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, Trip, guard
from tests.laws.shapes import Shape
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG, is_gate, plain
from tests.needs import needs, older
from tests.scripted import Scripted, Streaming

RICH = Budget(usd=1000, calls=1000)
MODES = ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]
FEW = [
    "plain_loop",
    "several_entries",
    "send_map_reduce",
    "command_annotated",
    "subgraph_with_shared_keys",
    "subgraphs_three_deep",
    "send_to_subgraphs",
    "call_in_tool",
    "input_output_private_schemas",
    "cached_model",
]
STREAMED = [shape for shape in SHAPES.values() if "async" in shape.modes and not shape.resumes]
over_few = pytest.mark.parametrize("shape", [SHAPES[name] for name in FEW if name in SHAPES], ids=lambda s: s.name)
over_streamed = pytest.mark.parametrize("shape", STREAMED, ids=lambda shape: shape.name)
over_gates = pytest.mark.parametrize("gate", ["auto", "inline"])
needs_v3 = pytest.mark.skipif(older("langgraph", "1.2.0"), reason="events v3 came with langgraph 1.2.0")


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def fields(shape: Shape) -> list[str] | str:
    """Give the fields that the bare graph streams."""
    return shape.bare(shape.bench()).stream_channels_asis


def shown(mode: str, ns: tuple[str, ...], chunk: Any) -> list[Any]:
    """Give what a chunk shows of the user's own nodes, without ids and times."""
    depth = tuple(part.partition(":")[0] for part in ns)
    if mode == "updates":
        return [repr((depth, name, plain(update))) for name, update in chunk.items() if not is_gate(name)]
    if mode == "messages":
        return [repr((depth, plain(chunk[0]), chunk[1]["langgraph_node"]))]
    if mode == "tasks":
        return [] if is_gate(chunk["name"]) else [repr((depth, chunk["name"], "input" in chunk))]
    if mode == "checkpoints":
        return [repr((depth, sorted(chunk["next"]), plain(chunk["values"])))]
    if mode == "debug":
        payload = chunk["payload"]
        name = payload["name"] if "name" in payload else sorted(payload["next"])
        return [] if is_gate(str(name)) else [repr((depth, chunk["type"], name))]
    return [repr((depth, plain(chunk)))]


def streamed(graph: Any, given: object, mode: str, **options: Any) -> list[Any]:
    """Run a graph in one stream mode, and give what it showed, sorted: tasks beside each other have no order."""
    chunks = graph.stream(given, CONFIG, stream_mode=mode, subgraphs=True, **options)
    return sorted(part for ns, chunk in chunks for part in shown(mode, ns, chunk))


@over_few
@pytest.mark.parametrize("mode", MODES)
def test_b59_b60_each_mode_by_itself_shows_what_it_shows_of_the_bare_graph(shape: Shape, mode: str) -> None:
    """Each mode alone, subgraphs included, shows with inline gates the chunks of the bare graph, and no others."""
    only = {"output_keys": fields(shape)} if mode in {"values", "updates"} else {}

    bare = streamed(shape.bare(shape.bench(), InMemorySaver()), shape.given, mode)
    graph = shape.guarded(shape.bench(), RICH, saver=InMemorySaver(), gate="inline", ledger=MemoryLedger())

    assert streamed(graph, shape.given, mode, **only) == bare


@over_few
@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "tasks"])
def test_b59_gates_show_under_their_own_names_only(shape: Shape, mode: str) -> None:
    """With gate nodes, too, what is not under a gate's name is what the bare graph shows."""
    only = {"output_keys": fields(shape)} if mode in {"values", "updates"} else {}

    bare = streamed(shape.bare(shape.bench(), InMemorySaver()), shape.given, mode)
    graph = shape.guarded(shape.bench(), RICH, saver=InMemorySaver(), ledger=MemoryLedger())

    assert streamed(graph, shape.given, mode, **only) == bare


def silent(model: Scripted) -> StateGraph:
    """A node that calls the model and writes nothing, and one that writes."""
    builder = StateGraph(Log)
    builder.add_node("silent", lambda state: model.invoke("hi") and None)
    builder.add_node("writes", lambda state: {"log": ["w"]})
    return builder.add_edge(START, "silent").add_edge("silent", "writes")


@over_gates
def test_b59_one_more_values_chunk_has_the_spend_alone(gate: str) -> None:
    """A node that spends and writes nothing gives one more values chunk, unless the user's own fields are asked for."""
    graph = guard(silent(Scripted()), Budget(calls=9), gate=gate, ledger=MemoryLedger()).compile()

    everything = [(c["log"], c["spend"].get("calls", 0)) for c in graph.stream({"log": []}, stream_mode="values")]
    own = list(graph.stream({"log": []}, stream_mode="values", output_keys=["log"]))

    assert everything == [([], 0), ([], 1), (["w"], 1)]
    assert own == list(silent(Scripted()).compile().stream({"log": []}, stream_mode="values"))


async def events(graph: Any, given: object, version: str) -> Counter[tuple[str, str, str | None]]:
    """Count what events tell of the user's own nodes, by event, runnable and node."""
    found: Counter[tuple[str, str, str | None]] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of v1, which is still used
        async for event in graph.astream_events(given, CONFIG, version=version):
            node = event["metadata"].get("langgraph_node")
            chunk = event["data"].get("chunk")
            of_gate = isinstance(chunk, Mapping) and chunk and all(map(is_gate, map(str, chunk)))
            if not is_gate(event["name"]) and not is_gate(str(node)) and not of_gate:
                found[event["event"], event["name"], node] += 1
    return found


@over_few
@over_gates
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_b59_events_are_those_of_the_bare_graph(shape: Shape, gate: str, version: str) -> None:
    """`astream_events`, v1 and v2, tells of the user's nodes, models and tools what it tells of the bare graph."""
    bare = await events(shape.bare(shape.bench(), InMemorySaver()), shape.given, version)
    graph = shape.guarded(shape.bench(), RICH, saver=InMemorySaver(), gate=gate, ledger=MemoryLedger())

    assert await events(graph, shape.given, version) == bare


@needs("langgraph", "1.1.0", 'stream(version="v2")')
@pytest.mark.parametrize("name", ["plain_chain", "dataclass_state", "pydantic_state", "input_output_private_schemas"])
@over_gates
def test_b59_parts_of_v2_have_the_users_types(name: str, gate: str) -> None:
    """`stream(version="v2")` gives values as the user's own dataclass or model, as on the bare graph."""
    shape, last = SHAPES[name], []
    for graph in (shape.bare(shape.bench()), shape.guarded(shape.bench(), RICH, gate=gate, ledger=MemoryLedger())):
        *_, part = graph.stream(shape.given, CONFIG, stream_mode="values", version="v2")
        last.append((part["type"], part["ns"], type(part["data"]), plain(part["data"])))

    assert last[1] == last[0]


class Listening(AsyncCallbackHandler):
    """Somebody else who listens to calls."""


async def test_b59_a_refused_call_leaves_nothing_unawaited() -> None:
    """LangChain prepares to tell others of a call; when it is refused, Python has nothing to warn of."""
    model = Scripted()

    async def node(state: Log) -> Log:
        return {"log": [message.content for message in await model.abatch(["q", "q", "q"])]}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(calls=1), nodes=["n"], ledger=MemoryLedger()).compile()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await graph.ainvoke({"log": []}, {"callbacks": [Listening()]})
        gc.collect()

    assert model.billed == 1
    assert [str(w.message) for w in warned if "never awaited" in str(w.message)] == []


async def drained(graph: Any, way: str, given: object) -> None:
    """Run a graph to its end in one of the ways to stream it."""
    if way == "log":
        async for _ in graph.astream_log(given, CONFIG):
            pass
    elif way == "v3":
        async with await graph.astream_events(given, CONFIG, version="v3") as run:
            async for _ in run:
                pass
    else:
        async for _ in graph.astream_events(given, CONFIG, version=way):
            pass


@over_streamed
@pytest.mark.parametrize("way", ["v2", pytest.param("v3", marks=needs_v3)])
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_b59_budgets_hold_however_events_are_read(shape: Shape, way: str) -> None:
    """With its events read, each shape bills as many calls as its budget allows, graphs inside included."""
    bench, other = shape.bench(), shape.bench()
    await shape.bare(bench, InMemorySaver()).ainvoke(shape.given, CONFIG)
    budget = Budget(calls=1, warn_at=())
    graph = shape.guarded(other, budget, saver=InMemorySaver(), ledger=MemoryLedger())

    await drained(graph, way, shape.given)

    assert other.model.billed == min(1, bench.model.billed)
    assert (Trip.of(await graph.aget_state(CONFIG)) is not None) == (bench.model.billed > 1) or not shape.keyed


@over_streamed
async def test_b59_with_events_read_each_call_is_charged_once(shape: Shape) -> None:
    """With its events read, each shape's calls are in the ledger and in the state once each."""
    bench, ledger = shape.bench(), MemoryLedger()
    graph = shape.guarded(bench, RICH, saver=InMemorySaver(), ledger=ledger)

    await drained(graph, "v2", shape.given)

    assert ledger.total().calls == bench.model.billed
    if shape.keyed:
        assert Spend.of(await graph.aget_state(CONFIG)).calls == bench.model.billed


@needs_v3
@over_few
@over_gates
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_b59_v3_tells_what_it_tells_of_the_bare_graph(shape: Shape, gate: str) -> None:
    """`stream_events` v3 gives the bare graph's output, messages and inner graphs under the bare graph's namespaces."""
    told = []
    for graph in (shape.bare(shape.bench()), shape.guarded(shape.bench(), RICH, gate=gate, ledger=MemoryLedger())):
        run = graph.stream_events(shape.given, CONFIG, version="v3", output_keys=fields(shape))
        seen = Counter(
            (event["method"], tuple(part.partition(":")[0] for part in event["params"]["namespace"])) for event in run
        )
        told.append((plain(run.output), seen))

    assert told[1] == told[0]


async def test_b62_custom_events_of_the_users_pass_in_events() -> None:
    """Custom events that nodes dispatch are read beside the guard's own, which stay on the custom stream."""

    async def node(state: Log) -> Log:
        await adispatch_custom_event("mine", {"n": 1})
        return {"log": [(await model.ainvoke("q")).content]}

    model = Scripted()
    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(calls=1), nodes=["n"], ledger=MemoryLedger()).compile()

    read = [event["name"] async for event in graph.astream_events({"log": []}, version="v2")]

    assert read.count("mine") == 1


def told(graph: Any, given: object) -> list[Any]:
    """Give the events of trips on the custom stream, whatever the run ends in."""
    found: list[Any] = []
    try:
        events = graph.stream(given, CONFIG, stream_mode="custom")
        found.extend(event for event in events if event["event"] == "trip")
    except BudgetExceeded:
        found.append("raised")
    return found


def calling(model: Scripted) -> StateGraph:
    """A loop of calls."""
    builder = StateGraph(Log).add_node("n", lambda state: {"log": [model.invoke("q").content]})
    return builder.add_edge(START, "n").add_edge("n", "n")


@over_gates
@pytest.mark.parametrize("on_trip", ["end", "interrupt", "raise"])
def test_b62_a_trip_is_told_on_the_custom_stream(gate: str, on_trip: str) -> None:
    """A trip is told once, with what was spent, what was allowed and why, before the run ends, asks or raises."""
    options = {"gate": gate, "on_trip": on_trip, "ledger": MemoryLedger()}
    graph = guard(calling(Scripted()), Budget(calls=2), **options).compile(checkpointer=InMemorySaver())

    event, *more = told(graph, {"log": []})

    assert event == {
        "type": "budget",
        "event": "trip",
        "budget": "calls=2 per branch",
        "kind": "spent",
        "metric": "calls",
        "node": "n",
        "mode": on_trip,
        "reason": "budget exhausted at 'n': 2 of 2 calls spent",
        "spent": 2,
        "limit": 2,
        "remaining": 0,
    }
    assert more == (["raised"] if on_trip == "raise" else [])


def test_b62_an_answer_leads_to_the_next_trip() -> None:
    """A question that is asked again is no new trip; the next limit that is reached is."""
    options = {"on_trip": "interrupt", "ledger": MemoryLedger()}
    graph = guard(calling(Scripted()), Budget(calls=2), **options).compile(checkpointer=InMemorySaver())
    told(graph, {"log": []})

    assert told(graph, Command(resume="nonsense")) == []
    (event,) = told(graph, Command(resume=3))
    assert (event["spent"], event["limit"]) == (3, 3)


@pytest.mark.parametrize("on_trip", ["end", "interrupt"])
def test_b62_lines_that_trip_together_are_one_event(on_trip: str) -> None:
    """Of six payloads on a budget for two calls, four are refused and one event says so."""
    model = Scripted()
    builder = StateGraph(Log).add_node("n", lambda state: {"log": [model.invoke("q").content]})
    builder.add_conditional_edges(START, lambda state: [Send("n", {})] * 6, ["n"])
    options = {"on_trip": on_trip, "ledger": MemoryLedger()}
    graph = guard(builder, Budget(calls=2), **options).compile(checkpointer=InMemorySaver())

    assert len(told(graph, {"log": []})) == 1


def test_b62_a_trip_inside_is_told_without_subgraphs() -> None:
    """A client that doesn't ask for subgraphs hears of a trip in a graph inside, too."""
    inner = calling(Scripted()).compile()
    builder = StateGraph(Log).add_node("sub", inner).add_edge(START, "sub")
    graph = guard(builder, Budget(usd="0.0005"), ledger=MemoryLedger()).compile()

    (event,) = told(graph, {"log": []})

    assert (event["node"], event["spent_usd"], event["limit_usd"]) == ("n", "0.00021", "0.0005")


async def test_b65_a_client_that_stops_reading_is_charged_what_was_sent() -> None:
    """Closed in the middle of an answer, a stream of events leaves a charge and no open hold."""
    ledger = MemoryLedger()

    async def node(state: Log) -> Log:
        async for _ in Streaming(script=["one two three four five six"]).astream("q"):
            await asyncio.sleep(0)
        return {"log": ["done"]}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(usd=1), nodes=["n"], ledger=ledger).compile()

    reading = graph.astream_events({"log": []}, version="v2")
    async for event in reading:
        if event["event"] == "on_chat_model_stream":
            break
    await reading.aclose()

    (charge,) = ledger.charges()
    assert charge.calls == 1
    assert charge.nanousd > 0
    assert not ledger.open_holds()
