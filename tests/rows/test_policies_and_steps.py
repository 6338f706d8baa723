"""Rows B19 to B29: caches, retries, deferred nodes, limits on steps, runtime context, async and drawings."""

from __future__ import annotations

import operator
import threading
from typing import Annotated, Any, Literal

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.cache.base import BaseCache
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.managed import RemainingSteps
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy, Command, RetryPolicy, Send
from typing_extensions import TypedDict

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, Trip, guard, to
from tests.conftest import thread
from tests.needs import NODE_ATTEMPTS, NODE_ERROR_HANDLERS, NODE_TIMEOUTS, needs
from tests.scripted import NANOUSD_PER_CALL, Scripted

Log = Annotated[list[str], operator.add]
GATES = pytest.mark.parametrize("gate", ["auto", "node", "inline"])
SYNC = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


class State(TypedDict):
    log: Log


def calls(model: Scripted, name: str):
    """Give a node that calls the model, and writes its name to the log."""

    def node(state: State) -> State:
        model.invoke(name)
        return {"log": [name]}

    return node


def line(model: Scripted, *names: str) -> StateGraph:
    """Build a graph of nodes one after another, each of which calls the model."""
    return StateGraph(State).add_sequence([(name, calls(model, name)) for name in names]).add_edge(START, names[0])


async def run(graph: Any, given: object, config: RunnableConfig, *, sync: bool) -> Any:
    """Run a graph one way or the other."""
    return graph.invoke(given, config) if sync else await graph.ainvoke(given, config)


# B19


@pytest.fixture(params=["memory", "sqlite"])
def cache(request: pytest.FixtureRequest, tmp_path: Any) -> BaseCache[Any]:
    """Give a node cache: in memory, and in a SQLite file."""
    return InMemoryCache() if request.param == "memory" else SqliteCache(path=str(tmp_path / "cache.sqlite"))


def cached(model: Scripted) -> StateGraph:
    """Build a graph of one model node whose results are cached."""
    builder = StateGraph(State)
    builder.add_node("a", calls(model, "a"), cache_policy=CachePolicy(ttl=120))
    return builder.add_edge(START, "a")


@GATES
@SYNC
async def test_b19_cache_hit_is_free(gate, sync, cache, ledger):
    """A cache hit charges 0, in the ledger and in the state, in the same thread and in another."""
    model = Scripted()
    graph = guard(cached(model), Budget(calls=9), gate=gate, ledger=ledger).compile(
        cache=cache, checkpointer=InMemorySaver()
    )

    for name in ("1", "1", "2"):
        await run(graph, {"log": []}, thread(name), sync=sync)
        graph.update_state(thread("1"), {"log": []}, as_node="a")

    assert model.billed == ledger.total().calls == 2
    assert [Spend.of(graph.get_state(thread(name))).calls for name in ("1", "2")] == [2, 0]


@GATES
def test_b19_wrapping_does_not_change_the_key(gate, cache):
    """What the bare graph cached answers the guarded one, and the other way round: spend is not in the key."""
    model = Scripted()
    bare = cached(model).compile(cache=cache)
    graph = guard(cached(model), Budget(calls=9), gate=gate).compile(cache=cache)

    bare.invoke({"log": ["x"]})
    graph.invoke({"log": ["x"]})
    assert model.billed == 1
    graph.invoke({"log": ["y"]})
    bare.invoke({"log": ["y"]})
    assert model.billed == 2


@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b19_hit_is_marked_and_streams_as_before(gate, cache):
    """A hit streams the node's update with `__metadata__: {"cached": True}`."""
    graph = guard(cached(Scripted()), Budget(calls=9), gate=gate).compile(cache=cache)
    graph.invoke({"log": []})

    chunks = list(graph.stream({"log": []}, stream_mode="updates"))

    assert next(chunk for chunk in chunks if "a" in chunk)["a"]["log"] == ["a"]
    assert any(chunk.get("__metadata__") == {"cached": True} for chunk in chunks)


def test_b19_answer_from_the_cache_needs_no_budget(cache):
    """With its budget used up, a graph still answers what its cache knows."""
    model = Scripted()
    graph = guard(cached(model), Budget(calls=1)).compile(cache=cache, checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    graph.update_state(thread("poor"), {"spend": {"calls": 1}})

    assert graph.invoke({"log": []}, thread("poor")) == {"log": ["a"]}
    assert model.billed == 1
    assert Trip.of(graph.get_state(thread("poor"))) is None


@GATES
@SYNC
async def test_b19_trip_is_not_cached(gate, sync, cache):
    """A stop is not replayed as an answer: once there is money, the node runs."""
    model = Scripted()
    budget = Budget(calls=1)
    graph = guard(cached(model), budget, gate=gate).compile(cache=cache, checkpointer=InMemorySaver())
    graph.update_state(thread("t"), {"spend": {"calls": 1}})
    await run(graph, {"log": []}, thread("t"), sync=sync)
    assert model.billed == 0

    out = await run(graph, {"log": []}, thread("rich"), sync=sync)

    assert model.billed == 1
    assert out == {"log": ["a"]}


# B20


class Flaky:
    """A node that pays, and fails so many times before it succeeds."""

    def __init__(self, model: Scripted, failures: int) -> None:
        self.model = model
        self.left = failures

    def __call__(self, _: State) -> State:
        self.model.invoke("hi")
        self._fail()
        return {"log": ["a"]}

    async def acall(self, _: State) -> State:
        await self.model.ainvoke("hi")
        self._fail()
        return {"log": ["a"]}

    def _fail(self) -> None:
        if self.left:
            self.left -= 1
            raise ConnectionError


def flaky(model: Scripted, failures: int, *, sync: bool = True, attempts: int = 3) -> StateGraph:
    """Build a graph of a node that fails so many times, with a retry policy."""
    node = Flaky(model, failures)
    policy = RetryPolicy(max_attempts=attempts, initial_interval=0.001, jitter=False, retry_on=ConnectionError)
    builder = StateGraph(State)
    builder.add_node("a", node if sync else node.acall, retry_policy=policy)
    builder.add_node("b", calls(model, "b"))
    return builder.add_edge(START, "a").add_edge("a", "b")


@needs(*NODE_ATTEMPTS)
@GATES
@SYNC
async def test_b20_every_billed_attempt_is_charged(gate, sync, ledger):
    """A node that pays three times because it fails twice is charged three times, in the ledger and in the state."""
    model = Scripted()
    graph = guard(flaky(model, 2, sync=sync), gate=gate, ledger=ledger, nodes=["a", "b"]).compile(
        checkpointer=InMemorySaver()
    )

    await run(graph, {"log": []}, thread("t"), sync=sync)

    assert model.billed == ledger.total().calls == 4
    assert Spend.of(graph.get_state(thread("t"))) == ledger.total()
    assert [charge.attempt for charge in ledger.charges(node="a")] == [1, 2, 3]


@GATES
def test_b20_next_gate_sees_the_failed_attempts(gate, ledger, saver):
    """Money that failed attempts took is gone for the next node: it trips."""
    model = Scripted()
    graph = guard(flaky(model, 2), Budget(calls=3), gate=gate, ledger=ledger, nodes=["a", "b"]).compile(
        checkpointer=saver
    )

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["a"]}
    assert model.billed == 3
    assert Trip.of(graph.get_state(thread("t"))).node == "b"


@GATES
def test_b20_attempts_that_all_failed_are_charged_on_resume(gate, ledger, saver):
    """A node that gave up has written nothing; what it spent is in the state after the resume."""
    model = Scripted()
    graph = guard(flaky(model, 3), Budget(calls=9), gate=gate, ledger=ledger, nodes=["a", "b"]).compile(
        checkpointer=saver
    )
    with pytest.raises(ConnectionError):
        graph.invoke({"log": []}, thread("t"))
    assert ledger.total().calls == 3

    graph.invoke(None, thread("t"))

    assert model.billed == 5
    assert Spend.of(graph.get_state(thread("t"))).calls == ledger.total().calls == 5


@GATES
@SYNC
@pytest.mark.parametrize("retry_on", [Exception, (RuntimeError, BudgetExceeded)], ids=["Exception", "by name"])
async def test_b20_budget_error_is_not_retried(gate, sync, retry_on):
    """`BudgetExceeded` in the middle of a node is no failure to try again: the node runs once."""
    model = Scripted()
    ran: list[int] = []

    def twice(state: State) -> State:
        ran.append(1)
        model.invoke("one")
        model.invoke("two")
        return {"log": ["a"]}

    async def atwice(state: State) -> State:
        ran.append(1)
        await model.ainvoke("one")
        await model.ainvoke("two")
        return {"log": ["a"]}

    builder = StateGraph(State)
    policy = RetryPolicy(max_attempts=5, initial_interval=0.001, jitter=False, retry_on=retry_on)
    builder.add_node("a", twice if sync else atwice, retry_policy=policy)
    builder.add_edge(START, "a")
    graph = guard(builder, Budget(calls=1), gate=gate, on_trip="raise", nodes=["a"]).compile()

    with pytest.raises(BudgetExceeded):
        await run(graph, {"log": []}, {}, sync=sync)
    assert ran == [1]
    assert model.billed == 1


@needs(*NODE_ERROR_HANDLERS)
@GATES
def test_b20_error_handler_of_a_node_is_not_called_for_a_trip(gate):
    """A node's error handler hears of the node's failures, and not of a trip."""
    model = Scripted()
    heard: list[str] = []

    def twice(state: State) -> State:
        model.invoke("one")
        model.invoke("two")
        return {"log": ["a"]}

    builder = StateGraph(State)
    builder.add_node("a", twice, error_handler=lambda _: heard.append("error"))
    builder.add_edge(START, "a")
    graph = guard(builder, Budget(calls=1), gate=gate, on_trip="raise", nodes=["a"]).compile()

    with pytest.raises(BudgetExceeded):
        graph.invoke({"log": []})
    assert heard == []


@needs(*NODE_TIMEOUTS)
@GATES
def test_b20_policies_of_nodes_stay(gate):
    """Retry, cache and timeout policies, metadata and defer of a user's node are on the guarded node."""
    from langgraph.types import TimeoutPolicy  # noqa: PLC0415 - older releases lack it

    model = Scripted()

    async def node(state: State) -> State:
        await model.ainvoke("hi")
        return {"log": ["a"]}

    builder = StateGraph(State)
    builder.add_node(
        "a",
        node,
        retry_policy=RetryPolicy(max_attempts=7),
        cache_policy=CachePolicy(ttl=3),
        timeout=TimeoutPolicy(run_timeout=30),
        metadata={"team": "x"},
        defer=True,
    )
    builder.add_edge(START, "a")
    bare, graph = builder.compile(), guard(builder, Budget(calls=1), gate=gate).compile()

    for policy in ("retry_policy", "cache_policy", "timeout", "metadata", "tags", "is_error_handler"):
        assert getattr(graph.nodes["a"], policy) == getattr(bare.nodes["a"], policy)
    assert graph.nodes["a"].retry_policy[0].max_attempts == 7
    assert type(graph.channels["branch:to:a"]) is type(bare.channels["branch:to:a"])


@needs(*NODE_TIMEOUTS)
@GATES
async def test_b20_node_timeout_still_ends_a_node(gate, ledger):
    """A node with a timeout is still stopped by it, and what its call held is charged."""
    import asyncio  # noqa: PLC0415 - this test only

    from langgraph.errors import NodeTimeoutError  # noqa: PLC0415 - this test only

    model = Scripted()

    async def node(state: State) -> State:
        await model.ainvoke("hi")
        await asyncio.Event().wait()
        return {"log": ["a"]}

    builder = StateGraph(State).add_node("a", node, timeout=0.05).add_edge(START, "a")
    graph = guard(builder, Budget(calls=1), gate=gate, ledger=ledger).compile()

    with pytest.raises(NodeTimeoutError):
        await graph.ainvoke({"log": []})
    assert ledger.total().calls == 1
    assert ledger.open_holds() == ()


# B21


def deferring(model: Scripted) -> StateGraph:
    """Build two branches of unequal length, and a deferred model node behind both."""
    builder = StateGraph(State)
    for name in ("a", "b", "b2"):
        builder.add_node(name, calls(model, name))
    builder.add_node("last", calls(model, "last"), defer=True)
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("b", "b2")
    return builder.add_edge("a", "last").add_edge("b2", "last")


@GATES
def test_b21_defer_survives(gate):
    """A deferred node waits for all pending tasks, and runs once."""
    bare = deferring(Scripted()).compile().invoke({"log": []})

    graph = guard(deferring(Scripted()), Budget(calls=9), gate=gate).compile()

    assert graph.invoke({"log": []}) == bare == {"log": ["a", "b", "b2", "last"]}


@GATES
def test_b21_deferred_node_sees_the_final_spend(gate, ledger):
    """A deferred model node is gated with what all branches spent before it."""
    model = Scripted()
    graph = guard(deferring(model), Budget(calls=3), gate=gate, ledger=ledger).compile(checkpointer=InMemorySaver())

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["a", "b", "b2"]}
    assert Trip.of(graph.get_state(thread("t"))).node == "last"
    assert Trip.of(graph.get_state(thread("t"))).spent == model.billed == 3


# B23


class Peak:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


def crowd(model: Scripted, peak: Peak, count: int) -> StateGraph:
    """Build map-reduce over so many workers, which count themselves."""

    def worker(payload: str) -> State:
        with peak:
            model.invoke(payload)
        return {"log": [payload]}

    builder = StateGraph(State).add_node("worker", worker)
    builder.add_conditional_edges(START, lambda _: [Send("worker", str(n)) for n in range(count)], ["worker"])
    return builder


@GATES
def test_b23_max_concurrency_is_the_users(gate):
    """`max_concurrency` at the top level of the config holds as without a guard, and no guard changes it."""
    peak = Peak()
    graph = guard(crowd(Scripted(), peak, 8), Budget(calls=9), gate=gate).compile()

    out = graph.invoke({"log": []}, {"max_concurrency": 2})

    assert sorted(out["log"]) == [str(n) for n in range(8)]
    assert peak.most <= 2


@GATES
@SYNC
@pytest.mark.parametrize("at_once", [1, 4])
async def test_b23_waiting_for_room_never_blocks_for_good(gate, sync, at_once):
    """With room for one worst case at a time, all workers are served, one after another."""
    model, ledger = Scripted(usage=(10, 10)), MemoryLedger(wait=30)
    graph = guard(crowd(model, Peak(), 8), Budget(output_tokens=179), gate=gate, ledger=ledger).compile()

    out = await run(graph, {"log": []}, {"max_concurrency": at_once}, sync=sync)

    assert model.billed == 8
    assert len(out["log"]) == 8


# B24


@SYNC
@pytest.mark.parametrize("gate", ["bare", "node", "inline"])
async def test_b24_gates_take_no_steps(gate, sync):
    """A graph fits its recursion limit exactly as the bare one does, whichever gates it has."""
    names = list("abcdef")
    bare = line(Scripted(), *names)
    graph = (bare if gate == "bare" else guard(bare, Budget(calls=9), gate=gate)).compile()

    assert await run(graph, {"log": []}, {"recursion_limit": 7}, sync=sync) == {"log": names}
    with pytest.raises(GraphRecursionError):
        await run(graph, {"log": []}, {"recursion_limit": 6}, sync=sync)


@GATES
def test_b24_a_question_takes_no_steps(gate):
    """A run that asks a person and goes on fits the limits that its parts need without a question."""
    names = list("abcdef")
    graph = guard(line(Scripted(), *names), Budget(calls=3), gate=gate, on_trip="interrupt")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: RunnableConfig = {"recursion_limit": 4, "configurable": {"thread_id": "t"}}

    compiled.invoke({"log": []}, config)

    assert compiled.invoke(Command(resume=9), config)["log"] == names


def looping(model: Scripted) -> StateGraph:
    """Build a node that goes on for ever."""
    return StateGraph(State).add_node("a", calls(model, "a")).add_edge(START, "a").add_edge("a", "a")


@GATES
def test_b24_trip_comes_before_the_recursion_limit(gate):
    """A loop without end is stopped by the budget, long before LangGraph's 10,007 steps."""
    model = Scripted()

    guard(looping(model), Budget(calls=5), gate=gate, ledger=MemoryLedger()).compile().invoke({"log": []})

    assert model.billed == 5


@GATES
def test_b24_default_recursion_limit_stays(gate):
    """A guarded graph has the bare graph's config, and so its default limit."""
    bare = looping(Scripted()).compile()
    bound = bare.with_config(recursion_limit=33)

    assert guard(bare, Budget(calls=5), gate=gate).config == bare.config
    assert guard(bound, Budget(calls=5), gate=gate).config["recursion_limit"] == 33


# B25


class Counting(TypedDict):
    log: Log
    remaining_steps: RemainingSteps


def counting(model: Scripted) -> StateGraph:
    """Build a loop that ends when three steps remain, and writes down what it saw."""

    def node(state: Counting) -> dict[str, list[str]]:
        model.invoke("hi")
        return {"log": [str(state["remaining_steps"])]}

    def route(state: Counting) -> Literal["a", "__end__"]:
        return END if state["remaining_steps"] <= 3 else "a"

    return StateGraph(Counting).add_node("a", node).add_edge(START, "a").add_conditional_edges("a", route)


def test_b25_routing_on_remaining_steps_keeps_its_meaning():
    """A graph that counts its steps sees the same counts, and so takes the same way."""
    config: RunnableConfig = {"recursion_limit": 10}

    out = guard(counting(Scripted()), Budget(calls=99)).compile().invoke({"log": []}, config)

    assert out == counting(Scripted()).compile().invoke({"log": []}, config)


@GATES
def test_b25_metadata_of_a_step_is_told_to_nodes(gate):
    """`langgraph_node`, `_triggers`, `_path` and `_checkpoint_ns` are in a node's metadata, as before."""
    seen: list[dict[str, object]] = []
    model = Scripted()

    def node(state: State, config: RunnableConfig) -> State:
        seen.append(dict(config["metadata"]))
        model.invoke("hi")
        return {"log": ["a"]}

    builder = StateGraph(State).add_node("a", node).add_edge(START, "a")
    builder.compile().invoke({"log": []})
    guard(builder, Budget(calls=9), gate=gate).compile().invoke({"log": []})

    bare, guarded = seen
    assert guarded.keys() == bare.keys()
    for key in ("langgraph_node", "langgraph_triggers", "langgraph_path"):
        assert guarded[key] == bare[key]


@GATES
def test_b25_charges_say_where(gate, ledger):
    """Each charge tells its node, model, run, thread, task and attempt."""
    graph = guard(line(Scripted(), "a", "b"), Budget(calls=9), gate=gate, ledger=ledger).compile(
        checkpointer=InMemorySaver()
    )
    graph.invoke({"log": []}, thread("t"))

    first, second = ledger.charges()

    assert [first.node, second.node] == ["a", "b"]
    assert {first.thread, second.thread} == {"t"}
    assert first.run == second.run
    assert first.run
    assert first.task != second.task
    assert (first.attempt, first.model, first.provider) == (1, "gpt-4o-mini", "openai")


# B26


@GATES
@SYNC
async def test_b26_end_gives_partial_state_and_the_trip(gate, sync):
    """Proactive: the graph completes normally with partial state, and the trip is in the state."""
    graph = guard(line(Scripted(), "a", "b", "c"), Budget(calls=2), gate=gate).compile(checkpointer=InMemorySaver())

    out = await run(graph, {"log": []}, thread("t"), sync=sync)

    state = graph.get_state(thread("t"))
    assert out == {"log": ["a", "b"]}
    assert state.next == ()
    trip = Trip.of(state)
    assert (trip.node, trip.metric, trip.spent, trip.limit, trip.mode) == ("c", "calls", 2, 2, "end")


@GATES
@SYNC
async def test_b26_raise_keeps_what_was_done(gate, sync):
    """Reactive: a typed error outside, the partial results checkpointed, and the thread goes on once there is room."""
    budget = Budget(calls=2)
    graph = guard(line(Scripted(), "a", "b", "c"), budget, gate=gate, on_trip="raise").compile(
        checkpointer=InMemorySaver()
    )

    with pytest.raises(BudgetExceeded, match=r"at 'c': 2 of 2 calls spent") as caught:
        await run(graph, {"log": []}, thread("t"), sync=sync)
    assert caught.value.trip.node == "c"
    assert graph.get_state(thread("t")).values["log"] == ["a", "b"]
    assert graph.get_state(thread("t")).next != ()

    graph.update_state(thread("t"), {"spend": {"limits": {budget.key: {"calls": 3}}}})
    out = await run(graph, None, thread("t"), sync=sync)

    assert out == {"log": ["a", "b", "c"]}


@GATES
def test_b26_trip_belongs_to_its_run(gate):
    """The next run of the thread begins without the last one's trip."""
    budget = Budget(calls=1)
    graph = guard(line(Scripted(), "a", "b"), budget, gate=gate).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    assert Trip.of(graph.get_state(thread("t"))) is not None

    graph.update_state(thread("t"), {"spend": {"limits": {budget.key: {"calls": 9}}}})
    graph.invoke({"log": []}, thread("t"))

    assert Trip.of(graph.get_state(thread("t"))) is None


@GATES
def test_b26_to_gives_a_summary(gate):
    """A third way: the graph goes on at a node of its own, which may be cheap or free."""
    builder = line(Scripted(), "a", "b", "c")
    builder.add_node("summary", lambda _: {"log": ["summary"]})
    graph = guard(builder, Budget(calls=2), gate=gate, on_trip=to("summary")).compile()

    assert graph.invoke({"log": []}) == {"log": ["a", "b", "summary"]}


# B27


class Tenant(TypedDict):
    tenant: str


@GATES
@SYNC
async def test_b27_context_is_the_users(gate, sync):
    """The user's `context_schema` stays, and nodes get the run's context."""
    model, seen = Scripted(), []

    def node(state: State, runtime: Runtime[Tenant]) -> State:
        seen.append(runtime.context)
        model.invoke("hi")
        return {"log": ["a"]}

    builder = StateGraph(State, context_schema=Tenant).add_node("a", node).add_edge(START, "a")
    bare, graph = builder.compile(), guard(builder, Budget(calls=9), gate=gate).compile()

    context = {"tenant": "acme"}
    if sync:
        graph.invoke({"log": []}, context=context)
    else:
        await graph.ainvoke({"log": []}, context=context)

    assert seen == [{"tenant": "acme"}]
    assert graph.context_schema is bare.context_schema is Tenant
    assert graph.get_context_jsonschema() == bare.get_context_jsonschema()


@GATES
def test_b27_graph_without_a_context_needs_none(gate):
    """A graph that has no context schema has none after, and takes keys in its config as before."""
    graph = guard(line(Scripted(), "a"), Budget(calls=9), gate=gate).compile()

    assert graph.context_schema is None
    assert graph.invoke({"log": []}, {"configurable": {"user_id": "u"}}) == {"log": ["a"]}


# B28


def both(model: Scripted, count: int) -> StateGraph:
    """Build a graph whose nodes have a sync and an async way to the model."""

    def ask(state: State) -> State:
        return {"log": [str(model.invoke("hi").content)]}

    async def aask(state: State) -> State:
        return {"log": [str((await model.ainvoke("hi")).content)]}

    builder = StateGraph(State).add_sequence([(f"s{n}", ask) for n in range(count)]).add_edge(START, "s0")
    builder.add_sequence([(f"a{n}", aask) for n in range(count)])
    return builder.add_edge(f"s{count - 1}", "a0")


@GATES
async def test_b28_async_meters_the_same_totals(gate):
    """`ainvoke` and `astream` meter what `invoke` does."""
    totals: list[Spend] = []
    for way in ("invoke", "ainvoke", "astream"):
        ledger = MemoryLedger()
        graph = guard(line(Scripted(), *"abcd"), Budget(calls=99), gate=gate, ledger=ledger).compile()
        if way == "invoke":
            graph.invoke({"log": []})
        elif way == "ainvoke":
            await graph.ainvoke({"log": []})
        else:
            assert [chunk async for chunk in graph.astream({"log": []})]
        totals.append(ledger.total())

    assert totals == [Spend(nanousd=4 * NANOUSD_PER_CALL, input_tokens=4_000, output_tokens=400, calls=4)] * 3


@GATES
async def test_b28_nodes_of_both_kinds_in_one_graph(gate, ledger):
    """Sync and async nodes in one async run are both metered without any config passed on."""
    graph = guard(both(Scripted(), 2), Budget(calls=3), gate=gate, ledger=ledger).compile()

    out = await graph.ainvoke({"log": []})

    assert out == {"log": ["ok", "ok", "ok"]}
    assert ledger.total().calls == 3


# B29


def test_b29_drawing_shows_gate_end_and_review():
    """A drawing of a guarded graph shows the gates, the review and END, joined by declared edges only."""
    graph = guard(line(Scripted(), "a", "b"), Budget(calls=9), on_trip="interrupt").compile()

    drawn = {(edge.source, edge.target) for edge in graph.get_graph().edges}

    assert drawn == {
        (START, "a.budget"),
        ("a.budget", "a"),
        ("a.budget", "budget.review"),
        ("a.budget", END),
        ("a", "b.budget"),
        ("b.budget", "b"),
        ("b.budget", "budget.review"),
        ("b.budget", END),
        ("budget.review", "a.budget"),
        ("budget.review", "b.budget"),
        ("budget.review", END),
        ("b", END),
    }
    assert "budget.review" in graph.get_graph().draw_mermaid()


def nested() -> StateGraph:
    """Build a graph around a graph, both of which call a model."""
    inner = line(Scripted(), "deep").compile()
    outer = line(Scripted(), "a").add_node("inner", inner).add_edge("a", "inner")
    return outer.add_node("summary", lambda _: {"log": ["summary"]})


@pytest.mark.parametrize("on_trip", ["end", "interrupt", "raise", to("summary")], ids=str)
@GATES
def test_b29_xray_draws_graphs_inside(on_trip, gate):
    """`get_graph(xray=True)` shows what is inside, gates too, in every mode."""
    graph = guard(nested(), Budget(calls=9), on_trip=on_trip, gate=gate).compile()

    drawn = graph.get_graph(xray=True)

    assert {"a", "inner:deep"} <= set(drawn.nodes)
    assert ("inner:deep.budget" in drawn.nodes) is (gate != "inline")
    assert drawn.draw_mermaid()
    inside = {edge.target for edge in drawn.edges if edge.source == "inner:deep.budget"}
    assert not any(target.endswith("summary") and target.startswith("inner:") for target in inside)


@pytest.mark.parametrize("compiled", [False, True], ids=["builder", "compiled"])
def test_b29_bare_graph_is_drawn_as_before(compiled):
    """Guarding a graph does not change the drawing of the graph that was passed in."""
    builder = line(Scripted(), "a", "b")
    bare = builder.compile()
    before = bare.get_graph().draw_mermaid()

    guard(bare if compiled else builder, Budget(calls=9), on_trip="interrupt")

    assert bare.get_graph().draw_mermaid() == builder.compile().get_graph().draw_mermaid() == before


def test_b29_messages_graph_draws(ledger):
    """A graph that keeps a conversation is drawn without running anything."""
    model = Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("chat", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "chat")

    assert "chat.budget" in guard(builder, Budget(calls=1), ledger=ledger).compile().get_graph().draw_mermaid()
    assert model.billed == 0
