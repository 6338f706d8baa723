"""Rows B1 to B16: state, schemas, reducers, nodes and edges of LangGraph under a guard."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

import pytest
from langchain_core.messages import HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import InvalidUpdateError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, Overwrite, Send, StreamWriter
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, Spend, Trip, guard, model_nodes, to
from tests.conftest import thread
from tests.needs import PROFILES, needs
from tests.scripted import NANOUSD_PER_CALL, Scripted

Log = Annotated[list[str], operator.add]
GATES = pytest.mark.parametrize("gate", ["auto", "node", "inline"])


class State(TypedDict):
    log: Log


def calls(model: Scripted, name: str, *then: object):
    """Give a node that calls the model, and writes its name to the log."""

    def node(state: State) -> State:
        model.invoke(name)
        return {"log": [name]}

    return node


def notes(name: str):
    """Give a node that only writes its name to the log."""
    return lambda _: {"log": [name]}


def line(model: Scripted, *names: str) -> StateGraph:
    """Build a graph of nodes one after another, each of which calls the model."""
    return StateGraph(State).add_sequence([(name, calls(model, name)) for name in names]).add_edge(START, names[0])


def fan(model: Scripted, *names: str) -> StateGraph:
    """Build a graph in which these nodes run side by side and are joined in `end`."""
    builder = StateGraph(State)
    for name in names:
        builder.add_node(name, calls(model, name))
        builder.add_edge(START, name)
    builder.add_node("end", notes("end"))
    builder.add_edge(list(names), "end")
    return builder


def steps(graph: Any, given: object, config: RunnableConfig | None = None) -> list[list[str]]:
    """Give the user's nodes that ran, superstep by superstep."""
    found = [
        (event["step"], event["payload"]["name"])
        for event in graph.stream(given, config, stream_mode="debug")
        if event["type"] == "task" and ".budget" not in event["payload"]["name"]
    ]
    return [sorted(name for at, name in found if at == step) for step in dict.fromkeys(at for at, _ in found)]


# B1


@GATES
def test_b1_gate_sees_all_spend_of_earlier_steps(gate, ledger):
    """A guard that reads spend in step k sees all that was written through step k-1."""
    model = Scripted()
    graph = guard(line(model, "a", "b", "c"), Budget(calls=2), gate=gate, ledger=ledger).compile()

    assert graph.invoke({"log": []}) == {"log": ["a", "b"]}
    assert model.billed == 2


@GATES
def test_b1_siblings_cannot_all_pass_on_the_same_money(gate, ledger):
    """Of five siblings planned in one step on a budget of two calls, exactly two make theirs."""
    model = Scripted()
    graph = guard(fan(model, *"abcde"), Budget(calls=2), gate=gate, ledger=ledger).compile()

    graph.invoke({"log": []})

    assert model.billed == ledger.total().calls == 2
    assert ledger.open_holds() == ()


def test_b1_supersteps_stay():
    """With room enough, the same nodes run in the same supersteps, beside the same siblings."""
    builder = fan(Scripted(), *"abc")

    bare = steps(builder.compile(), {"log": []})

    assert steps(guard(builder, Budget(calls=9)).compile(), {"log": []}) == bare == [["a", "b", "c"], ["end"]]


# B2


def test_b2_compile_takes_its_arguments():
    """`guard(builder).compile(...)` takes what `compile` takes, and passes it on."""
    saver, cache, store = InMemorySaver(), InMemoryCache(), InMemoryStore()

    graph = guard(line(Scripted(), "a", "b"), Budget(calls=9)).compile(
        checkpointer=saver, cache=cache, store=store, interrupt_before=["b"], interrupt_after=["a"], name="mine"
    )

    assert (graph.checkpointer, graph.cache, graph.store, graph.name) == (saver, cache, store, "mine")
    assert (graph.interrupt_before_nodes, graph.interrupt_after_nodes) == (["b"], ["a"])


@pytest.mark.parametrize("compiled", [False, True], ids=["guard(builder)", "guard(compiled)"])
@GATES
async def test_b2_both_ways_give_the_same_api(compiled, gate):
    """Guarded before or after compiling, an un-tripped graph has the same API and gives the bare graph's output."""
    builder = line(Scripted(), "a", "b")
    bare = builder.compile(checkpointer=InMemorySaver())
    again = {"checkpointer": InMemorySaver()}
    graph = (
        guard(builder.compile(**again), Budget(calls=99), gate=gate)
        if compiled
        else guard(builder, Budget(calls=99), gate=gate).compile(**again)
    )
    given: State = {"log": []}

    assert type(graph) is type(bare)
    assert graph.invoke(given, thread("1")) == bare.invoke(given, thread("1"))
    assert await graph.ainvoke(given, thread("2")) == bare.invoke(given, thread("2"))
    assert graph.batch([given, given], [thread("3"), thread("4")]) == [{"log": ["a", "b"]}] * 2
    assert list(graph.stream(given, thread("5"), stream_mode="values"))[-1]["log"] == ["a", "b"]
    assert graph.get_state(thread("1")).values["log"] == ["a", "b"]
    assert graph.get_state(thread("1")).next == ()


def test_b2_compiled_arguments_stay():
    """Guarding a compiled graph keeps its checkpointer, cache, store, breakpoints, name and config."""
    saver, store = InMemorySaver(), InMemoryStore()
    compiled = line(Scripted(), "a", "b").compile(checkpointer=saver, store=store, interrupt_before=["b"], name="mine")
    bound = compiled.with_config(recursion_limit=7, tags=["t"])

    graph = guard(bound, Budget(calls=9))

    assert (graph.checkpointer, graph.store, graph.name) == (saver, store, "mine")
    assert graph.interrupt_before_nodes == ["b"]
    assert (graph.config["recursion_limit"], graph.config["tags"]) == (7, ["t"])


# B3


@dataclass
class AsDataclass:
    log: Log
    limit: int = 3


class AsModel(BaseModel):
    log: Log
    limit: int = 3


SCHEMAS = pytest.mark.parametrize("schema", [State, AsDataclass, AsModel], ids=["TypedDict", "dataclass", "Pydantic"])


def one(model: Scripted, schema: type, seen: list[object]) -> StateGraph:
    """Build a graph of one model node, which notes what it is given."""

    def node(state: Any) -> dict[str, list[str]]:
        seen.append(state)
        model.invoke("hi")
        return {"log": ["a"]}

    return StateGraph(schema).add_node("a", node, input_schema=schema).add_edge(START, "a")


@SCHEMAS
@GATES
def test_b3_fields_are_added_to_any_schema(schema, gate):
    """Wrapping adds the spend to TypedDict, dataclass and Pydantic graphs; nodes get and give what they did."""
    bare_seen: list[object] = []
    seen: list[object] = []
    bare = one(Scripted(), schema, bare_seen).compile()
    graph = guard(one(Scripted(), schema, seen), Budget(calls=9), gate=gate).compile(checkpointer=InMemorySaver())

    assert graph.invoke({"log": ["x"]}, thread("t")) == bare.invoke({"log": ["x"]})
    assert seen == bare_seen
    assert type(seen[0]) is type(bare_seen[0])
    assert Spend.of(graph.get_state(thread("t"))).calls == 1


@GATES
def test_b3_user_validation_still_fires(gate):
    """A Pydantic graph refuses the input that the bare graph refuses, before any call."""
    model = Scripted()
    graph = guard(one(model, AsModel, []), Budget(calls=9), gate=gate).compile()

    with pytest.raises(ValidationError, match="limit"):
        graph.invoke({"log": [], "limit": "many"})
    assert model.billed == 0


@SCHEMAS
def test_b3_absent_spend_reads_as_nothing(schema):
    """A state that graphguard has never written to has spent 0 and has no trip."""
    graph = guard(one(Scripted(), schema, []), Budget(calls=9)).compile(checkpointer=InMemorySaver())

    assert Spend.of(graph.get_state(thread("new"))) == Spend()
    assert Trip.of(graph.get_state(thread("new"))) is None


# B4


class Asked(TypedDict):
    question: str


class Answered(TypedDict):
    answer: str


class Whole(Asked, Answered):
    log: Log


class Private(TypedDict):
    draft: str


def schemas(model: Scripted) -> StateGraph:
    """Build a graph with input, output and private schemas of their own."""

    def draft(state: Asked) -> Private:
        return {"draft": str(model.invoke(state["question"]).content)}

    def answer(state: Private) -> Answered:
        return {"answer": f"{state['draft']}!"}

    builder = StateGraph(Whole, input_schema=Asked, output_schema=Answered)
    return builder.add_sequence([draft, answer]).add_edge(START, "draft")


@GATES
def test_b4_spend_is_neither_input_nor_output(gate):
    """The fields are not in the output, nor in the input and output schemas, which stay as they were."""
    bare = schemas(Scripted()).compile()
    graph = guard(schemas(Scripted()), Budget(calls=9), gate=gate, on_trip="interrupt").compile()

    assert graph.invoke({"question": "?"}) == {"answer": "ok!"}
    assert graph.get_input_jsonschema() == bare.get_input_jsonschema()
    assert graph.get_output_jsonschema() == bare.get_output_jsonschema()


@GATES
def test_b4_spend_is_not_in_the_output_of_a_plain_graph(gate):
    """Without schemas of its own, a graph gives and shows what it did as well."""
    bare = line(Scripted(), "a").compile()
    graph = guard(line(Scripted(), "a"), Budget(calls=9), gate=gate).compile()

    assert graph.invoke({"log": []}) == {"log": ["a"]}
    assert graph.get_input_jsonschema() == bare.get_input_jsonschema()
    assert graph.get_output_jsonschema() == bare.get_output_jsonschema()


def test_b4_spend_is_in_the_output_when_asked_for():
    """Who asks for the field by name gets it."""
    graph = guard(schemas(Scripted()), Budget(calls=9)).compile()

    assert Spend.of(graph.invoke({"question": "?"}, output_keys=["answer", "spend"])).calls == 1


# B5


@GATES
def test_b5_parallel_nodes_add_up(gate, saver):
    """Two parallel nodes that each spend once make two, with no InvalidUpdateError."""
    graph = guard(fan(Scripted(), "a", "b"), gate=gate, nodes=["a", "b"]).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    spend = Spend.of(graph.get_state(thread("t")))
    assert (spend.calls, spend.nanousd) == (2, 2 * NANOUSD_PER_CALL)


@GATES
def test_b5_shared_with_a_subgraph_counts_once(gate, saver, ledger):
    """A graph as a node of a graph, both of which keep the field: ten and one are eleven, and not twenty-one."""
    inner = line(Scripted(), "c", "d").compile()
    outer = StateGraph(State)
    outer.add_node("b", calls(Scripted(), "b"))
    outer.add_node("inner", inner)
    outer.add_edge(START, "b").add_edge("b", "inner")
    graph = guard(outer, Budget(calls=9), gate=gate, ledger=ledger).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))) == ledger.total() == Spend.total(ledger.charges())
    assert ledger.total().calls == 3


@GATES
def test_b5_three_graphs_deep_counts_once(gate, saver, ledger):
    """Graphs as nodes and graphs called in nodes, three deep: the outermost field holds the sum, turn after turn."""
    model = Scripted()
    called = line(model, "a", "b").compile()
    middle = StateGraph(State).add_node("calls", lambda _: {"log": called.invoke({"log": []})["log"]})
    middle.add_node("is", line(model, "c").compile()).add_edge(START, "calls").add_edge("calls", "is")
    outer = StateGraph(State).add_node("middle", middle.compile()).add_node("z", calls(model, "z"))
    outer.add_edge(START, "middle").add_edge("middle", "z")
    graph = guard(outer, Budget(calls=99), gate=gate, ledger=ledger).compile(checkpointer=saver)

    for turn in (1, 2):
        graph.invoke({"log": []}, thread("t"))
        assert Spend.of(graph.get_state(thread("t"))) == ledger.total()
        assert ledger.total().calls == model.billed == 4 * turn


@GATES
def test_b5_graph_inside_with_a_memory_of_its_own_counts_once(gate, saver):
    """A graph inside that remembers its turns (`checkpointer=True`) adds to the outer field what is new only."""
    model = Scripted()
    inner = line(model, "a").compile(checkpointer=True)
    outer = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
    graph = guard(outer, Budget(calls=3), gate=gate).compile(checkpointer=saver)

    for _ in range(5):
        graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == model.billed == 3


def test_b5_cache_hit_adds_nothing(saver):
    """A write that comes out of a node cache does not add the old spend again."""
    model = Scripted()
    builder = StateGraph(State)
    builder.add_node("a", lambda _: {"log": [str(model.invoke("hi").content)]}, cache_policy=CachePolicy())
    builder.add_edge(START, "a")
    graph = guard(builder, Budget(calls=9)).compile(checkpointer=saver, cache=InMemoryCache())

    for name in ("1", "2"):
        graph.invoke({"log": []}, thread(name))

    assert model.billed == 1
    assert [Spend.of(graph.get_state(thread(name))).calls for name in ("1", "2")] == [1, 0]


# B6


@GATES
def test_b6_overwrite_resets_the_field(gate, saver):
    """`update_state` with `Overwrite` sets the spend, and the graph has its whole budget again."""
    model = Scripted()
    graph = guard(line(model, "a", "b"), Budget(calls=2), gate=gate).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))
    graph.invoke({"log": []}, thread("t"))
    assert model.billed == 2

    graph.update_state(thread("t"), {"spend": Overwrite({})})
    assert Spend.of(graph.get_state(thread("t"))) == Spend()
    graph.invoke({"log": []}, thread("t"))

    assert model.billed == 4


def test_b6_overwrite_in_a_node(saver):
    """A node may reset the field as well, by saying `Overwrite`."""
    builder = line(Scripted(), "a")
    builder.add_node("reset", lambda _: {"spend": Overwrite({"usd": "0", "calls": 7})})
    builder.add_edge("a", "reset")
    graph = guard(builder, Budget(calls=9)).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == 7


def paying(model: Scripted, *updates: object) -> StateGraph:
    """Build a node that pays, and says something about the field as well."""

    def node(state: State) -> Any:
        model.invoke("hi")
        return list(updates) if len(updates) > 1 else updates[0]

    return (
        StateGraph(State).add_node("a", node).add_edge(START, "a").add_node("b", calls(model, "b")).add_edge("a", "b")
    )


@GATES
def test_b6_paying_node_may_raise_a_limit(gate, saver):
    """A node that pays and raises a limit in its output does both."""
    model = Scripted()
    budget = Budget(calls=1)
    builder = paying(model, {"spend": {"limits": {budget.key: {"calls": 2}}}})
    graph = guard(builder, budget, gate=gate).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == model.billed == 2


@GATES
@pytest.mark.parametrize("form", [Overwrite({"calls": 5}), {"__overwrite__": {"calls": 5}}], ids=["typed", "sentinel"])
def test_b6_paying_node_that_resets_the_field_has_paid(gate, form, saver):
    """What a node spends while it overwrites the field counts on top of what it wrote."""
    graph = guard(paying(Scripted(), {"spend": form}), Budget(calls=9), gate=gate).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == 5 + 2


@GATES
def test_b6_paying_node_that_writes_nonsense_has_paid(gate, saver, ledger):
    """What a node spent before it wrote something unreadable to the field is in the state after the next attempt."""
    outputs: list[object] = [{"spend": 0}, {"log": ["a"]}]
    model = Scripted()

    def node(state: State) -> Any:
        model.invoke("hi")
        return outputs.pop(0)

    builder = StateGraph(State).add_node("a", node).add_edge(START, "a")
    graph = guard(builder, Budget(calls=9), gate=gate, ledger=ledger, nodes=["a"]).compile(checkpointer=saver)
    with pytest.raises(ValueError, match="Overwrite"):
        graph.invoke({"log": []}, thread("t"))

    graph.invoke(None, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))) == ledger.total()
    assert ledger.total().calls == model.billed == 2


def test_b6_each_part_of_an_output_is_heard(saver):
    """A node may return several updates of the field, as several Commands."""
    one = Command(update={"spend": {"calls": 1}})
    graph = guard(paying(Scripted(), one, one), Budget(calls=9)).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == 2 + 2


def test_b6_state_update_raises_a_limit(saver):
    """A limit is raised by `update_state`, without touching what was spent."""
    model = Scripted()
    budget = Budget(calls=1)
    graph = guard(line(model, "a", "b", "c"), budget).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))
    graph.update_state(thread("t"), {"spend": {"limits": {budget.key: {"calls": 3}}}})

    graph.invoke({"log": []}, thread("t"))

    assert model.billed == 3
    assert Spend.of(graph.get_state(thread("t"))).calls == 3


@pytest.mark.parametrize("value", [0, 0.0, None, "0", Overwrite(0), Overwrite(None)], ids=repr)
def test_b6_field_cannot_be_zeroed_by_accident(value, saver):
    """A node that writes a bare number to the field is told; the spend stays, and so does the thread's use."""
    builder = line(Scripted(), "a")
    builder.add_node("oops", lambda _: {"spend": value})
    builder.add_edge("a", "oops")
    graph = guard(builder, Budget(calls=9)).compile(checkpointer=saver)

    with pytest.raises(ValueError, match="Overwrite"):
        graph.invoke({"log": []}, thread("t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == 1
    assert graph.get_state(thread("t")).next == ("oops",)


def test_b6_budget_is_topped_up_before_the_first_run(saver):
    """A thread that nothing ran in yet takes an update of the field as well."""
    model = Scripted()
    budget = Budget(calls=1)
    graph = guard(line(model, "a", "b"), budget).compile(checkpointer=saver)
    graph.update_state(thread("t"), {"spend": {"limits": {budget.key: {"calls": 2}}}})

    graph.invoke({"log": []}, thread("t"))

    assert model.billed == 2


def test_b6_input_cannot_touch_the_field(saver):
    """The field is not in the input schema, and what an input says about it is not heard."""
    model = Scripted()
    graph = guard(line(model, "a"), Budget(calls=1)).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))

    graph.invoke({"log": [], "spend": {"calls": -1}}, thread("t"))
    graph.invoke({"log": [], "spend": Overwrite({})}, thread("t"))

    assert model.billed == 1


def test_b6_update_by_hand_is_checked_too(saver):
    """An unreadable `update_state` is refused at once, and the thread stays as it was."""
    graph = guard(line(Scripted(), "a"), Budget(calls=9)).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))

    with pytest.raises(ValueError, match="Overwrite"):
        graph.update_state(thread("t"), {"spend": 0})

    assert Spend.of(graph.get_state(thread("t"))).calls == 1


def test_b6_two_overwrites_in_one_step_are_refused():
    """Two `Overwrite` in one superstep are an InvalidUpdateError, as in LangGraph."""
    builder = StateGraph(State)
    for name in ("a", "b"):
        builder.add_node(name, lambda _: {"spend": Overwrite({})})
        builder.add_edge(START, name)

    with pytest.raises(InvalidUpdateError):
        guard(builder).compile().invoke({"log": []})


# B7, B8


def test_b7_same_message_again_is_not_charged_again(saver):
    """Re-emitting an AIMessage with the same id does not charge twice."""
    model = Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("chat", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("edit", lambda state: {"messages": [state["messages"][-1].model_copy(update={"content": "!"})]})
    builder.add_edge(START, "chat").add_edge("chat", "edit")
    graph = guard(builder, Budget(calls=9)).compile(checkpointer=saver)

    out = graph.invoke({"messages": [("user", "hi")]}, thread("t"))

    assert [m.content for m in out["messages"]] == ["hi", "!"]
    assert Spend.of(graph.get_state(thread("t"))).calls == 1


@pytest.mark.parametrize("every", [True, False], ids=["REMOVE_ALL_MESSAGES", "one by one"])
def test_b8_removed_messages_stay_paid(every, saver):
    """Spend is unchanged after messages are removed."""
    model = Scripted()

    def trim(state: MessagesState) -> dict[str, list[RemoveMessage]]:
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES if every else m.id) for m in state["messages"][:]]}

    builder = StateGraph(MessagesState)
    builder.add_node("chat", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("trim", trim)
    builder.add_edge(START, "chat").add_edge("chat", "trim")
    graph = guard(builder, Budget(calls=2)).compile(checkpointer=saver)
    for _ in range(3):
        graph.invoke({"messages": [HumanMessage("hi")]}, thread("t"))

    assert model.billed == 2
    assert Spend.of(graph.get_state(thread("t"))).calls == 2


# B9


class Tenant(TypedDict):
    tenant: str


Seen = dict[str, object]


def _asks_nothing(state: State) -> Seen:
    return {}


def _asks_config(state: State, config: RunnableConfig) -> Seen:
    return {"thread": config["configurable"]["thread_id"]}


def _asks_runtime(state: State, runtime: Runtime[Tenant]) -> Seen:
    return {"tenant": runtime.context["tenant"]}


def _asks_store(state: State, *, store: BaseStore) -> Seen:
    return {"store": type(store).__name__}


def _asks_writer(state: State, writer: StreamWriter) -> Seen:
    writer({"said": "hi"})
    return {}


def _asks_all(
    state: State, config: RunnableConfig, runtime: Runtime[Tenant], *, store: BaseStore, writer: StreamWriter
) -> Seen:
    _asks_writer(state, writer)
    return {**_asks_config(state, config), **_asks_runtime(state, runtime), **_asks_store(state, store=store)}


SIGNATURES = {
    "nothing": (_asks_nothing, {}),
    "config": (_asks_config, {"thread": "t"}),
    "runtime": (_asks_runtime, {"tenant": "acme"}),
    "store": (_asks_store, {"store": "InMemoryStore"}),
    "writer": (_asks_writer, {}),
    "all": (_asks_all, {"thread": "t", "tenant": "acme", "store": "InMemoryStore"}),
}


def as_kind(kind: str, model: Scripted, asks: Any, seen: Seen) -> Any:
    """Give a node of that kind, with the signature of `asks`, that calls the model and notes what it was given."""
    import functools  # noqa: PLC0415 - used here only

    def plain(*args: Any, **kwargs: Any) -> State:
        seen.update(asks(*args, **kwargs))
        model.invoke("hi")
        return {"log": ["a"]}

    async def coroutine(*args: Any, **kwargs: Any) -> State:
        seen.update(asks(*args, **kwargs))
        await model.ainvoke("hi")
        return {"log": ["a"]}

    sync, asynchronous = functools.wraps(asks)(plain), functools.wraps(asks)(coroutine)

    class Called:
        __call__ = staticmethod(sync)

    class CalledAsync:
        __call__ = staticmethod(asynchronous)

    return {"function": sync, "coroutine": asynchronous, "callable": Called(), "async callable": CalledAsync()}[kind]


@pytest.mark.parametrize("kind", ["function", "coroutine", "callable", "async callable"])
@pytest.mark.parametrize("signature", list(SIGNATURES))
@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_b9_nodes_get_what_they_ask_for(kind, signature, gate):
    """A wrapped node with any of these parameters, whatever kind of callable it is, still receives them."""
    asks, expected = SIGNATURES[signature]
    seen: Seen = {}
    builder = StateGraph(State, context_schema=Tenant)
    builder.add_node("a", as_kind(kind, Scripted(), asks, seen))
    builder.add_edge(START, "a")
    graph = guard(builder, Budget(calls=1), gate=gate, nodes=["a"]).compile(store=InMemoryStore())

    said = [
        part
        async for part in graph.astream({"log": []}, thread("t"), context={"tenant": "acme"}, stream_mode="custom")
        if part.get("type") != "budget"
    ]

    assert seen == expected
    assert said == ([{"said": "hi"}] if signature in ("writer", "all") else [])


@GATES
def test_b9_runnables_and_graphs_as_nodes(gate, ledger):
    """A Runnable, a sequence of them and a compiled graph run as nodes as they did, and are held."""
    model = Scripted()
    inner = line(model, "inner").compile()
    sequence = RunnableLambda(lambda _: model.invoke("x")) | RunnableLambda(lambda _: {"log": ["seq"]})
    builder = StateGraph(State)
    builder.add_sequence([("one", RunnableLambda(calls(model, "one"))), ("seq", sequence), ("graph", inner)])
    builder.add_edge(START, "one")
    graph = guard(builder, Budget(calls=3), gate=gate, ledger=ledger).compile()

    assert graph.invoke({"log": []}) == builder.compile().invoke({"log": []})
    assert ledger.total().calls == 3
    assert sorted({charge.node for charge in ledger.charges()}) == ["inner", "one", "seq"]


# B10


@GATES
def test_b10_names_keep_working(gate, saver):
    """`graph.nodes["x"]`, `update_state(as_node=...)` and `interrupt_before=[...]` take the user's names."""
    model = Scripted()
    graph = guard(line(model, "a", "b", "c"), Budget(calls=9), gate=gate).compile(
        checkpointer=saver, interrupt_before=["c"]
    )
    assert {"a", "b", "c"} <= set(graph.nodes)

    graph.invoke({"log": []}, thread("t"))
    assert graph.get_state(thread("t")).values["log"] == ["a", "b"]
    graph.update_state(thread("t"), {"log": ["by hand"]}, as_node="a")
    graph.invoke(None, thread("t"))
    if graph.get_state(thread("t")).next:
        graph.invoke(None, thread("t"))

    assert graph.get_state(thread("t")).values["log"] == ["a", "b", "by hand", "b", "c"]
    assert model.billed == 4


@pytest.mark.parametrize("taken", ["a.budget", "budget.review"])
def test_b10_own_names_make_way(taken, saver):
    """A user's node may have the name that a gate or the review would get: it stays the user's."""
    model = Scripted()
    builder = line(model, "a")
    builder.add_node(taken, notes(taken))
    builder.add_edge("a", taken)
    graph = guard(builder, Budget(calls=1), on_trip="interrupt").compile(checkpointer=saver)

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["a", taken]}
    asked = graph.invoke({"log": []}, thread("t"))
    assert asked["__interrupt__"]
    assert graph.invoke(Command(resume=True), thread("t"))["log"] == ["a", taken, "a", taken]


def test_b10_enum_names():
    """Node names may be members of a string enum."""
    from enum import StrEnum  # noqa: PLC0415 - this test only

    class Name(StrEnum):
        A = "a"

    model = Scripted()
    builder = StateGraph(State).add_node(Name.A, calls(model, "a")).add_edge(START, Name.A)

    assert guard(builder, Budget(calls=1, node="a")).compile().invoke({"log": []}) == {"log": ["a"]}


# B11


def entries(model: Scripted, kind: str) -> StateGraph:
    """Build a graph whose model node `a` is reached from START in one of several ways."""
    builder = StateGraph(State).add_node("a", calls(model, "a")).add_node("b", notes("b"))
    if kind == "edge":
        builder.add_edge(START, "a")
    elif kind == "entry point":
        builder.set_entry_point("a")
    elif kind == "branch":
        builder.add_conditional_edges(START, lambda _: "a", ["a", "b"])
    elif kind == "branch without a map":
        builder.add_conditional_edges(START, lambda _: "a")
    elif kind == "several":
        builder.add_edge(START, "a").add_edge(START, "b")
    else:
        builder.add_edge(START, "b").add_edge("b", "a").add_conditional_edges(START, lambda _: [], ["a"])
    return builder


@pytest.mark.parametrize("kind", ["edge", "entry point", "branch", "branch without a map", "several", "both"])
@GATES
def test_b11_every_entry_is_guarded(kind, gate, ledger):
    """A model node reached from START, by an edge, a branch or several entries, is still gated."""
    model = Scripted()
    graph = guard(entries(model, kind), Budget(calls=1), gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, thread("t"))
    graph.invoke({"log": []}, thread("t"))

    assert model.billed == 1
    assert Trip.of(graph.get_state(thread("t"))).node == "a"


# B12


@GATES
def test_b12_joins_survive(gate):
    """Fan-out, fan-in and list joins give what the bare graph gives, and the join runs once."""
    builder = fan(Scripted(), "a", "b", "c")
    builder.add_node("last", calls(Scripted(), "last")).add_edge("end", "last")

    out = guard(builder, Budget(calls=9), gate=gate).compile().invoke({"log": []})

    assert out == builder.compile().invoke({"log": []})
    assert out["log"].count("end") == out["log"].count("last") == 1


def test_b12_uneven_branches_are_not_shifted():
    """In a → {b, c} → d with only b gated, d runs as often as in the bare graph: once."""
    model = Scripted()
    builder = StateGraph(State)
    for name, node in (("a", notes("a")), ("b", calls(model, "b")), ("c", notes("c")), ("d", calls(model, "d"))):
        builder.add_node(name, node)
    builder.add_edge(START, "a").add_edge("a", "b").add_edge("a", "c").add_edge("b", "d").add_edge("c", "d")
    graph = guard(builder, Budget(calls=9)).compile()

    assert graph.invoke({"log": []}) == {"log": ["a", "b", "c", "d"]}
    assert model.billed == 2


def forking(model: Scripted, fork: object) -> StateGraph:
    """Build a → {b, c} → d in which only the running graph tells that b and c run side by side."""
    builder = StateGraph(State).add_node("a", lambda _: fork)
    for name, node in (("b", calls(model, "b")), ("c", notes("c")), ("d", calls(model, "d"))):
        builder.add_node(name, node)
    return builder.add_edge(START, "a").add_edge("b", "d").add_edge("c", "d")


@pytest.mark.parametrize(
    "fork",
    [
        Command(goto=["b", "c"]),
        [Command(goto="b"), Command(goto="c")],
        Command(goto=["b", Send("c", {"log": []})]),
        Command(goto=[Send("b", {"log": []}), "c"]),
    ],
    ids=["list", "two Commands", "with a Send", "with a Send to the model"],
)
def test_b12_forks_that_no_edge_announces_shift_nothing(fork):
    """Where a Command forks at run time, b has no gate node in its way, and d runs once, as in the bare graph."""
    model = Scripted()
    bare = steps(forking(Scripted(), fork).compile(), {"log": []})
    graph = guard(forking(model, fork), Budget(calls=9)).compile()
    assert model_nodes(graph)["b"].gate == "node"

    assert steps(graph, {"log": []}) == bare
    assert model.billed == 2


def test_b12_lines_that_began_to_fork_go_on_without_gate_nodes():
    """Two lines of different length that run side by side meet as in the bare graph, far behind the fork."""
    model = Scripted()

    def shape() -> StateGraph:
        builder = StateGraph(State).add_node("a", lambda _: Command(goto=["b", "x"]))
        for name in ("b", "c", "d", "end"):
            builder.add_node(name, calls(model, name))
        for name in ("x", "y", "z"):
            builder.add_node(name, notes(name))
        builder.add_edge(START, "a").add_edge("b", "c").add_edge("c", "d").add_edge("x", "y").add_edge("y", "z")
        return builder.add_edge("d", "end").add_edge("z", "end")

    bare = steps(shape().compile(), {"log": []})

    assert steps(guard(shape(), Budget(calls=99)).compile(), {"log": []}) == bare
    assert bare[-1] == ["end"]


def test_b12_forked_lines_are_gated_inline(ledger):
    """Where no gate node is passed, the model nodes' own doors decide."""
    model = Scripted()
    graph = guard(forking(model, Command(goto=["b", "c"])), Budget(calls=1), ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["b", "c"]}
    assert Trip.of(graph.get_state(thread("t"))).node == "d"
    assert graph.get_state(thread("t")).next == ()


def test_b12_next_run_has_its_gate_nodes_again():
    """A fork shifts the gates of its own run only: the next run, without a fork, passes the gate nodes."""
    ways = [Command(goto=["b", "c"]), Command(goto="b")]
    builder = forking(Scripted(), None)
    builder.nodes["a"].runnable.func = lambda _: ways.pop(0)
    graph = guard(builder, Budget(calls=9)).compile(checkpointer=InMemorySaver())
    seen = [
        [name for chunk in graph.stream({"log": []}, thread("t"), stream_mode="updates") for name in chunk]
        for _ in range(2)
    ]

    assert not [name for name in seen[0] if name.endswith(".budget")]
    assert [name for name in seen[1] if name.endswith(".budget")] == ["b.budget", "d.budget"]


@GATES
@pytest.mark.parametrize("mode", ["end", "to"])
def test_b12_trip_leaves_no_join_waiting(gate, mode, saver):
    """A trip on one branch ends the graph; the join does not wait in the thread for ever."""
    model = Scripted()
    builder = fan(model, "a", "b", "c")
    builder.add_node("summary", notes("summary"))
    on_trip = to("summary") if mode == "to" else "end"
    graph = guard(builder, Budget(calls=2), gate=gate, on_trip=on_trip).compile(checkpointer=saver)

    out = graph.invoke({"log": []}, thread("t"))

    assert model.billed == 2
    assert graph.get_state(thread("t")).next == ()
    assert Trip.of(graph.get_state(thread("t"))) is not None
    assert out["log"].count("summary") == (1 if mode == "to" else 0)


def test_b12_new_run_after_a_trip_beside_a_join(saver):
    """After the budget is raised, the next input runs the whole graph, join included."""
    model = Scripted()
    budget = Budget(calls=2)
    graph = guard(fan(model, "a", "b", "c"), budget).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))
    graph.update_state(thread("t"), {"spend": {"limits": {budget.key: {"calls": 9}}}}, as_node="end")

    out = graph.invoke({"log": [":"]}, thread("t"))

    assert out["log"][out["log"].index(":") + 1 :] == ["a", "b", "c", "end"]


# B13


class Grade(TypedDict):
    log: Log
    good: NotRequired[bool]


def graded(model: Scripted) -> StateGraph:
    """Build a graph with path maps: by value, by a Literal, and by a list."""

    def by_literal(state: Grade) -> Literal["b", "__end__"]:
        return "b"

    builder = StateGraph(Grade)
    for name in ("a", "b", "c"):
        builder.add_node(name, calls(model, name))
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", by_literal)
    builder.add_conditional_edges("b", lambda _: True, {True: "c", False: "a"})
    return builder


def arrows(graph: Any) -> set[tuple[str, str, object]]:
    """Give the edges of a graph's drawing with their labels."""
    return {(edge.source, edge.target, edge.data) for edge in graph.get_graph().edges}


def test_b13_path_maps_are_kept():
    """User's path maps lead where they did, by way of the gate, under the same labels."""
    bare = arrows(graded(Scripted()).compile())

    drawn = arrows(guard(graded(Scripted()), Budget(calls=9)).compile())

    # LangGraph leaves a label out where it is the target's name, and the target's name is the gate's now.
    through = {(a, b.removesuffix(".budget"), label) for a, b, label in drawn if not a.endswith(".budget")}
    assert {(a, b, None if label == b else label) for a, b, label in through} == bare


@pytest.mark.parametrize("mode", ["end", "raise", "interrupt"])
def test_b13_own_branch_declares_its_ends(mode):
    """The gate's own branch leads to the model node, to END, and to the review where there is one, and nowhere else."""
    drawn = arrows(guard(graded(Scripted()), Budget(calls=9), on_trip=mode).compile())

    ends = {target for source, target, _ in drawn if source == "b.budget"}

    assert ends == {"b", END, *(["budget.review"] if mode == "interrupt" else [])}


def test_b13_node_of_to_is_declared():
    """Where a trip leads to a node of the user's, the drawing says so."""
    builder = graded(Scripted())
    builder.add_node("summary", notes("summary"))

    drawn = arrows(guard(builder, Budget(calls=9), on_trip=to("summary")).compile())

    assert {target for source, target, _ in drawn if source == "b.budget"} == {"b", "summary", END}


def test_b13_inline_gates_change_no_drawing():
    """With inline gates the drawing is the bare graph's."""
    bare = graded(Scripted()).compile().get_graph().draw_mermaid()

    assert guard(graded(Scripted()), Budget(calls=9), gate="inline").compile().get_graph().draw_mermaid() == bare


# B14


def routed(model: Scripted, grader: Scripted) -> StateGraph:
    """Build a graph that grades its answer by a model call inside a conditional edge."""

    def grade(state: State) -> str:
        grader.invoke("good?")
        return "b"

    builder = StateGraph(State).add_node("a", calls(model, "a")).add_node("b", calls(model, "b"))
    return builder.add_edge(START, "a").add_conditional_edges("a", grade, ["b"])


@GATES
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_b14_spend_in_an_edge_is_counted(gate, sync, ledger, saver):
    """A call made inside a conditional edge is charged, to its node, and the next gated node trips on it."""
    model, grader = Scripted(), Scripted()
    saver = saver if sync else InMemorySaver()
    graph = guard(routed(model, grader), Budget(calls=2), gate=gate, ledger=ledger).compile(checkpointer=saver)

    out = graph.invoke({"log": []}, thread("t")) if sync else await graph.ainvoke({"log": []}, thread("t"))

    assert out == {"log": ["a"]}
    assert (model.billed, grader.billed) == (1, 1)
    assert [charge.node for charge in ledger.charges()] == ["a", "a"]
    assert Spend.of(graph.get_state(thread("t"))).calls == 2
    assert Trip.of(graph.get_state(thread("t"))).node == "b"


@GATES
def test_b14_edge_itself_is_held(gate, saver):
    """A call in an edge that the budget can't pay for is not made; the node's own output stays."""
    model, grader = Scripted(), Scripted()
    graph = guard(routed(model, grader), Budget(calls=1), gate=gate).compile(checkpointer=saver)

    out = graph.invoke({"log": []}, thread("t"))

    assert (model.billed, grader.billed) == (1, 0)
    assert out == {"log": ["a"]}
    assert graph.get_state(thread("t")).next == ()
    assert Trip.of(graph.get_state(thread("t"))).node == "a"


# B15


class Jokes(TypedDict):
    subjects: list[str]
    log: Log


def mapped(model: Scripted, *, command: bool = False) -> StateGraph:
    """Build map-reduce: one worker a subject, told nothing else; then `reduce`."""

    def worker(payload: dict[str, str]) -> dict[str, list[str]]:
        assert set(payload) == {"subject"}
        model.invoke(payload["subject"])
        return {"log": [payload["subject"]]}

    def sends(state: Jokes) -> list[Send]:
        return [Send("worker", {"subject": subject}) for subject in state["subjects"]]

    builder = StateGraph(Jokes).add_node("worker", worker).add_node("reduce", notes("reduce"))
    builder.add_edge("worker", "reduce")
    if command:
        builder.add_node("plan", lambda state: Command(goto=sends(state)), destinations=("worker",))
    else:
        builder.add_node("plan", notes("plan")).add_conditional_edges("plan", sends, ["worker"])
    return builder.add_edge(START, "plan")


@GATES
@pytest.mark.parametrize("command", [False, True], ids=["branch", "Command"])
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_b15_workers_start_while_there_is_room(gate, command, sync, ledger):
    """Eight workers on a budget of three calls: exactly three run, and what they made is reduced and kept."""
    model = Scripted()
    graph = guard(mapped(model, command=command), Budget(calls=3), gate=gate, ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )
    given = {"subjects": list("abcdefgh"), "log": []}

    out = graph.invoke(given, thread("t")) if sync else await graph.ainvoke(given, thread("t"))

    assert model.billed == ledger.total().calls == 3
    assert len([entry for entry in out["log"] if entry in "abcdefgh"]) == 3
    assert Spend.of(graph.get_state(thread("t"))).calls == 3
    assert ledger.open_holds() == ()


@GATES
def test_b15_workers_with_room_change_nothing(gate, ledger):
    """With room for all, map-reduce gives what the bare graph gives, and each worker is metered."""
    given = {"subjects": list("abcde"), "log": []}
    graph = guard(mapped(Scripted()), Budget(calls=5), gate=gate, ledger=ledger).compile()

    assert graph.invoke(given) == mapped(Scripted()).compile().invoke(given)
    assert [charge.node for charge in ledger.charges()] == ["worker"] * 5


# B16


def commanded(model: Scripted, seen: list[object]) -> StateGraph:
    """Build a graph of which each node names the next by Command."""

    def first(state: State) -> Command[Literal["model"]]:
        return Command(update={"log": ["first"]}, goto="model")

    def ask(state: State) -> Command[Literal["first", "__end__"]]:
        model.invoke("hi")
        return Command(update={"log": ["model"]}, goto="first" if len(state["log"]) < 7 else END)

    return StateGraph(State).add_node("first", first).add_node("model", ask).add_edge(START, "first")


@GATES
def test_b16_command_cannot_skip_the_guard(gate, ledger):
    """`Command(goto="model")` from any node is gated: of four turns on a budget of two, two are made."""
    model = Scripted()
    graph = guard(commanded(model, []), Budget(calls=2), gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver())

    out = graph.invoke({"log": []}, thread("t"))

    assert model.billed == 2
    assert out["log"] == ["first", "model", "first", "model", "first"]
    assert Trip.of(graph.get_state(thread("t"))).node == "model"


@GATES
def test_b16_command_without_a_declared_end_is_gated(gate):
    """A goto that no annotation and no edge announces is gated all the same."""
    model = Scripted()
    builder = StateGraph(State).add_node("model", calls(model, "model"))
    builder.add_node("first", lambda _: Command(goto="model"))
    builder.add_edge(START, "first").add_edge("model", "first")
    graph = guard(builder, Budget(calls=2), gate=gate).compile()

    assert graph.invoke({"log": []}) == {"log": ["model", "model"]}
    assert model.billed == 2


def test_b16_literal_annotations_render():
    """Destinations that only the Literal annotation tells are drawn, by way of the gate."""
    drawn = arrows(guard(commanded(Scripted(), []), Budget(calls=9), on_trip="end").compile())

    assert {"model.budget", "first", END} <= {target for _, target, _ in drawn}
    assert {source for source, target, _ in drawn if target == "model.budget"} == {"first"}


@GATES
def test_b16_command_to_the_parent_is_gated_there(gate, saver):
    """`Command(graph=PARENT)` from a graph inside leads through the parent's gate, and its spend arrives."""
    model = Scripted()
    inner = StateGraph(State).add_node("hand", lambda _: Command(graph=Command.PARENT, goto="model"))
    inner.add_edge(START, "hand")
    outer = StateGraph(State).add_node("inner", inner.compile()).add_node("model", calls(model, "model"))
    outer.add_edge(START, "inner").add_edge("model", "inner")
    graph = guard(outer, Budget(calls=2), gate=gate).compile(checkpointer=saver)

    out = graph.invoke({"log": []}, thread("t"))

    assert out == {"log": ["model", "model"]}
    assert Spend.of(graph.get_state(thread("t"))).calls == model.billed == 2


@GATES
def test_b16_handed_over_spend_is_not_lost(gate, saver, ledger):
    """A graph inside that pays and then leaves by `Command(graph=PARENT)` has paid in the parent's field too."""
    model = Scripted()

    def hand(state: State) -> Command[Any]:
        model.invoke("hi")
        return Command(graph=Command.PARENT, goto="after", update={"log": ["hand"]})

    inner = StateGraph(State).add_node("hand", hand).add_edge(START, "hand").compile()
    outer = StateGraph(State).add_node("inner", inner).add_node("after", calls(model, "after")).add_edge(START, "inner")
    graph = guard(outer, Budget(calls=2), gate=gate, ledger=ledger).compile(checkpointer=saver)

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["hand", "after"]}
    assert Spend.of(graph.get_state(thread("t"))) == ledger.total()
    assert ledger.total().calls == 2


def test_b2_b16_guard_of_a_guard_counts_once():
    """Guarding twice is guarding with both budgets: each call counts once in each."""
    model, ledger = Scripted(), MemoryLedger()
    graph = guard(guard(line(model, "a", "b", "c"), Budget(calls=9), ledger=ledger).compile(), Budget(calls=2))

    assert graph.invoke({"log": []}) == {"log": ["a", "b"]}
    assert ledger.total().calls == model.billed == 2
    assert set(model_nodes(graph)) == {"a", "b", "c"}


@needs(*PROFILES)
def test_b15_cap_of_a_model_in_a_graph_inside(ledger):
    """The output cap that only a model's profile tells is known for models of graphs inside, too."""
    model = Scripted(max_tokens=None, profile={"max_output_tokens": 50}, usage=(10, 10))
    outer = StateGraph(State).add_node("inner", line(model, "a").compile()).add_edge(START, "inner")
    graph = guard(outer, Budget(output_tokens=40), ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, thread("t"))

    assert model.billed == 0
    assert Trip.of(graph.get_state(thread("t"))).needed == 50
