"""RecursiveTraceGuard: exact ceilings in every shape of concurrency, whatever tracing does."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langsmith import Client, ContextThreadPoolExecutor, traceable, tracing_context
from urllib3 import Retry

from graphguard import Budget, BudgetExceeded, InvalidBudget, MemoryLedger, guard
from graphguard.langsmith import AgentBudgetError, RecursiveTraceGuard, guarded_traceable
from tests.langsmith.server import LangSmithServer, unreachable
from tests.scripted import NANOUSD_PER_CALL, Scripted

CEILING = 7
MANY = 40


class Bodies:
    """Counts the bodies that ran, and those that ran inside each other."""

    def __init__(self) -> None:
        self.ran = 0
        self.deepest = 0
        self._lock = threading.Lock()

    def __call__(self, depth: int = 1) -> None:
        with self._lock:
            self.ran += 1
            self.deepest = max(self.deepest, depth)


def sequence(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Call one after the other."""
    step = guarded_traceable(guard, name="step")(bodies)
    for _ in range(MANY):
        with suppress(AgentBudgetError):
            step()


def recursion(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Call from within the call."""

    @guarded_traceable(guard)
    def step(depth: int) -> None:
        bodies(depth)
        if depth < MANY:
            step(depth + 1)

    with suppress(AgentBudgetError):
        step(1)


def threads(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Call from eight threads at once."""
    step = guarded_traceable(guard, name="step")(lambda _: bodies())
    with ContextThreadPoolExecutor(8) as pool:
        results = [pool.submit(step, n) for n in range(MANY)]
        for result in results:
            with suppress(AgentBudgetError):
                result.result()


def generators(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Call generators, each begun while the ones before it still run."""

    @guarded_traceable(guard)
    def step() -> Iterator[int]:
        bodies()
        yield 1
        yield 2

    begun = [step() for _ in range(MANY)]
    for generator in begun:
        with suppress(AgentBudgetError):
            next(generator)
    for generator in begun:
        generator.close()


def tasks(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Call from forty tasks at once, and from within each of them."""

    @guarded_traceable(guard)
    async def step(depth: int = 1) -> None:
        bodies(depth)
        await asyncio.sleep(0)
        if depth < 3:
            await step(depth + 1)

    async def main() -> None:
        await asyncio.gather(*(step() for _ in range(MANY)), return_exceptions=True)

    asyncio.run(main())


def async_generators(guard: RecursiveTraceGuard, bodies: Bodies) -> None:
    """Iterate async generators in tasks beside each other."""

    @guarded_traceable(guard)
    async def step() -> AsyncIterator[int]:
        bodies()
        await asyncio.sleep(0)
        yield 1

    async def consume() -> None:
        async for _ in step():
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(consume() for _ in range(MANY)), return_exceptions=True)

    asyncio.run(main())


SHAPES = [sequence, recursion, threads, generators, tasks, async_generators]
SITUATIONS = ["off", "on", "slow", "429", "500", "down", "sampled out"]


@contextmanager
def tracing(situation: str, server: LangSmithServer) -> Iterator[Client | None]:
    """Trace to a server that is in a situation; nothing is asked of it before everything has run."""
    if situation == "off":
        with tracing_context(enabled=False):
            yield None
        return
    server.latency = 0.3 if situation == "slow" else 0.0
    if situation in ("429", "500"):
        server.fail(int(situation), "/runs")
    options: dict[str, object] = {"retry_config": Retry(total=0)}
    if situation == "down":
        options["api_url"] = unreachable()
    if situation == "sampled out":
        options["tracing_sampling_rate"] = 0.0
    client = server.client(**options)
    with tracing_context(enabled=True, client=client, project_name="tests"):
        yield client
    server.latency = 0.0


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_exactly_as_many_bodies_run_as_the_ceiling_says(langsmith, situation, shape):
    """Under one root, however the calls are made and whatever tracing does, no body runs beyond the ceiling."""
    guard = RecursiveTraceGuard(max_calls=CEILING, max_depth=MANY)
    bodies = Bodies()

    with tracing(situation, langsmith), guard.trace() as trace:
        shape(guard, bodies)

    assert (bodies.ran, trace.calls) == (CEILING, CEILING)


@pytest.mark.parametrize("situation", ["off", "on"])
def test_exactly_as_many_bodies_nest_as_the_ceiling_says(langsmith, situation):
    """With max_depth=3, the third body runs inside the second, and a fourth is refused."""
    guard = RecursiveTraceGuard(max_depth=3)
    bodies = Bodies()

    with tracing(situation, langsmith):
        recursion(guard, bodies)

    assert bodies.deepest == 3
    assert [trip.reason for trip in guard.trips] == ["depth_exceeded (depth=3, max=3)"]


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_plain_traceable_is_a_root(langsmith, situation, shape):
    """Calls that share nothing but an unguarded root share the ceiling, and two such roots don't."""
    guard = RecursiveTraceGuard(max_calls=CEILING, max_depth=MANY)
    first, second = Bodies(), Bodies()
    root = traceable(name="root")(lambda bodies: traceable(name="between")(shape)(guard, bodies))

    with tracing(situation, langsmith):
        root(first)
        root(second)

    assert (first.ran, second.ran) == (CEILING, CEILING)


@pytest.mark.parametrize("situation", ["off", "on"])
def test_an_async_traceable_is_a_root(langsmith, situation):
    """So is an async one, for what it awaits one after the other and beside each other."""
    guard = RecursiveTraceGuard(max_calls=CEILING)
    bodies = Bodies()

    @guarded_traceable(guard)
    async def step() -> None:
        bodies()

    @traceable
    async def request() -> None:
        for _ in range(3):
            await step()
        await asyncio.gather(*(step() for _ in range(MANY)), return_exceptions=True)

    with tracing(situation, langsmith):
        asyncio.run(request())

    assert bodies.ran == CEILING


@pytest.mark.parametrize("situation", ["off", "on"])
def test_traces_count_for_themselves(langsmith, situation):
    """Two requests of as many calls as are allowed both go through, one after the other and beside each other."""
    guard = RecursiveTraceGuard(max_calls=3)
    bodies = Bodies()

    @guarded_traceable(guard)
    def request(n: int) -> None:
        bodies()
        step()
        step()

    step = guarded_traceable(guard, name="step")(bodies)
    with tracing(situation, langsmith):
        request(1)
        with ContextThreadPoolExecutor(4) as pool:
            list(pool.map(request, range(4)))

    assert (bodies.ran, guard.trips) == (15, ())


@pytest.mark.parametrize("situation", ["off", "on"])
def test_a_block_around_a_graph_is_a_root(langsmith, situation):
    """What the nodes of a graph call counts together, one after the other and beside each other."""
    guard = RecursiveTraceGuard(max_calls=CEILING)
    bodies = Bodies()
    step = guarded_traceable(guard, name="step")(bodies)

    def node(state: MessagesState) -> dict[str, list[object]]:
        for _ in range(5):
            with suppress(AgentBudgetError):
                step()
        return {"messages": []}

    builder = StateGraph(MessagesState)
    for name in ("left", "right", "last"):
        builder.add_node(name, node)
    builder.add_edge(START, "left")
    builder.add_edge(START, "right")
    builder.add_edge(["left", "right"], "last")
    with tracing(situation, langsmith), guard.trace():
        builder.compile().invoke({"messages": [HumanMessage("q")]})

    assert bodies.ran == CEILING


def test_two_guards_count_for_themselves():
    """A function under two guards needs room under both, and neither counts for the other."""
    loose, tight = RecursiveTraceGuard(max_calls=5), RecursiveTraceGuard(max_calls=2)
    bodies = Bodies()
    step = guarded_traceable(loose, name="outer")(guarded_traceable(tight, name="inner")(bodies))

    with tracing_context(enabled=False), loose.trace() as wide, tight.trace() as narrow:
        for _ in range(4):
            with suppress(AgentBudgetError):
                step()

    assert (bodies.ran, wide.calls, narrow.calls) == (2, 4, 2)


def test_depth_is_restored_after_an_error():
    """A body that failed, or a task that was cancelled, leaves no depth behind."""
    guard = RecursiveTraceGuard(max_depth=1)

    @guarded_traceable(guard)
    def fails() -> None:
        raise ValueError

    @guarded_traceable(guard)
    async def waits() -> None:
        await asyncio.Event().wait()

    async def cancelled() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    with tracing_context(enabled=False), guard.trace() as trace:
        for _ in range(3):
            with suppress(ValueError):
                fails()
        asyncio.run(cancelled())
        asyncio.run(cancelled())

    assert (trace.calls, trace.deepest, guard.trips) == (5, 1, ())


def test_a_body_can_be_a_block_of_code():
    """Blocks one after the other are each as deep as they stand, and the trace counts them all."""
    guard = RecursiveTraceGuard(max_depth=2, max_calls=10)

    with tracing_context(enabled=False), guard.trace() as trace:
        for _ in range(3):
            with guard.body("outer"), guard.body("inner"), pytest.raises(AgentBudgetError), guard.body("too deep"):
                pass

    assert (trace.calls, trace.deepest) == (6, 2)


def test_functions_keep_their_kind_and_their_names():
    """Sync, async, generator and async generator functions are still that, with signature and docstring."""
    guard = RecursiveTraceGuard()

    def plain(draft: str, *, iteration: int = 0) -> str:
        """Say what it does."""
        return draft

    async def coroutine(draft: str) -> str:
        return draft

    def generator(draft: str) -> Iterator[str]:
        yield draft

    async def async_generator(draft: str) -> AsyncIterator[str]:
        yield draft

    kinds: list[Callable[[object], bool]] = [
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ]
    decorate = guarded_traceable(guard)
    wrapped = [decorate(function) for function in (plain, coroutine, generator, async_generator)]

    assert [[kind(function) for kind in kinds] for function in wrapped] == [
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert [*inspect.signature(wrapped[0]).parameters][:2] == ["draft", "iteration"]
    assert (wrapped[0].__name__, wrapped[0].__doc__) == ("plain", "Say what it does.")
    with tracing_context(enabled=False):
        assert (wrapped[0]("a", iteration=1), list(wrapped[2]("b"))) == ("a", ["b"])


def test_a_trip_is_on_the_leaf_and_on_the_root_in_their_last_write(langsmith, traced):
    """Both runs end with the tag and what was reached; the runs between them have neither, nor an error."""
    guard = RecursiveTraceGuard(max_depth=2)

    @guarded_traceable(guard, name="reflect")
    def reflect(draft: str) -> str:
        return reflect(draft + "!")

    @traceable
    def handle(task: str) -> str:
        try:
            return reflect(task)
        except AgentBudgetError as error:
            return f"[guarded] {error.reason}"

    with traced():
        assert handle("secret draft") == "[guarded] depth_exceeded (depth=2, max=2)"

    (root,) = langsmith.store.named("handle")
    outer, middle, leaf = langsmith.store.named("reflect")
    assert [run.get("tags") for run in (root, outer, middle, leaf)] == [["runguard_trip"], [], [], ["runguard_trip"]]
    assert [bool(run.get("error")) for run in (root, outer, middle, leaf)] == [False, False, False, True]
    for run in (root, leaf):
        metadata = run["extra"]["metadata"]
        assert metadata["runguard_trip"] == "depth_exceeded (depth=2, max=2)"
        assert (metadata["runguard_label"], metadata["runguard_limit"]) == ("reflect", 2)
        assert "secret" not in json.dumps(metadata)
    assert not [request for request in langsmith.requests if request.method == "PATCH"]


@pytest.mark.parametrize("kind", ["sync", "threads", "async", "tasks", "generator"])
def test_the_root_is_told_through_functions_that_nobody_guards(langsmith, traced, kind):
    """A root that is far from the guarded function, with plain traced functions between, has the trip as well."""
    guard = RecursiveTraceGuard(max_calls=1)
    step = guarded_traceable(guard, name="step")(lambda _: None)

    @traceable
    def between() -> None:
        with suppress(AgentBudgetError):
            if kind == "threads":
                with ContextThreadPoolExecutor(2) as pool:
                    list(pool.map(step, range(2)))
            else:
                [step(n) for n in range(2)]

    @traceable
    async def abetween() -> None:
        await asyncio.sleep(0)
        between()

    @traceable
    def request() -> None:
        between()

    @traceable(name="request")
    async def arequest() -> None:
        if kind == "tasks":
            await asyncio.gather(abetween(), asyncio.sleep(0))
        else:
            await abetween()

    @traceable(name="request")
    def generated() -> Iterator[int]:
        between()
        yield 1

    with traced():
        if kind in ("async", "tasks"):
            asyncio.run(arequest())
        elif kind == "generator":
            list(generated())
        else:
            request()

    (root,) = langsmith.store.named("request")
    assert root["tags"] == ["runguard_trip"]
    assert langsmith.store.named("between")[0]["tags"] == []


def test_a_refused_call_is_not_overwritten_where_duplicates_are(langsmith):
    """Tags are in the one write that each run makes, so a server that refuses a second one has them too."""
    langsmith.store.refuse_duplicates = True
    guard = RecursiveTraceGuard(max_calls=1)

    @guarded_traceable(guard, name="step")
    def step() -> None:
        step()

    with tracing_context(enabled=True, client=langsmith.client(auto_batch_tracing=False)), suppress(AgentBudgetError):
        step()

    assert [run["tags"] for run in langsmith.store.named("step")] == [["runguard_trip"]] * 2


def test_a_trip_waits_for_no_server(langsmith):
    """With a server that takes a second for each answer, forty calls with their trips take less than that."""
    langsmith.latency = 1.0
    guard = RecursiveTraceGuard(max_calls=1)
    with tracing_context(enabled=True, client=langsmith.client()), guard.trace():
        began = time.perf_counter()
        sequence(guard, Bodies())
        took = time.perf_counter() - began
    langsmith.latency = 0.0

    assert (len(guard.trips), took < 1.0) == (MANY - 1, True)


def test_an_unsampled_trip_is_kept_by_the_guard(langsmith):
    """LangSmith never hears of it; the guard's own record has it."""
    guard = RecursiveTraceGuard(max_calls=1)
    with tracing("sampled out", langsmith) as client, guard.trace():
        sequence(guard, Bodies())
    client.flush()

    assert langsmith.store.runs == {}
    assert {trip.kind for trip in guard.trips} == {"call_budget_exceeded"}


@pytest.mark.parametrize("situation", ["off", "on"])
@pytest.mark.parametrize("shape", ["sequence", "threads", "tasks"])
def test_money_is_never_overspent(langsmith, situation, shape):
    """What ten calls spend stays within max_usd, however many run at once; the next is refused before it is billed."""
    ledger = MemoryLedger(wait=0)
    model = Scripted()
    usd = Decimal(4 * NANOUSD_PER_CALL) / 10**9
    prompt = "x" * 1_000  # of as many tokens as the script says, at most
    guard = RecursiveTraceGuard(max_calls=MANY, max_usd=usd, ledger=ledger)

    @guarded_traceable(guard)
    def ask(n: int) -> str:
        return str(model.invoke(prompt).content)

    @guarded_traceable(guard)
    async def aask(n: int) -> str:
        return str((await model.ainvoke(prompt)).content)

    async def gather() -> None:
        await asyncio.gather(*(aask(n) for n in range(10)), return_exceptions=True)

    with tracing(situation, langsmith), guard.trace() as trace:
        if shape == "tasks":
            asyncio.run(gather())
        else:
            with ContextThreadPoolExecutor(1 if shape == "sequence" else 8) as pool:
                for result in [pool.submit(ask, n) for n in range(10)]:
                    with suppress(AgentBudgetError):
                        result.result()

    assert 1 <= model.billed <= 4
    assert trace.usd <= usd
    assert ledger.total().calls == model.billed
    assert trace.usd == ledger.total().usd
    assert ledger.open_holds() == ()
    assert {trip.kind for trip in guard.trips} == {"usd_budget_exceeded"}


def test_a_graph_called_in_a_guarded_function_counts_in_its_money():
    """A call in a guarded graph inside needs room under both, and is charged once to the ledger they share."""
    ledger, model = MemoryLedger(wait=0), Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "model")
    graph = guard(builder, Budget(calls=5), nodes=["model"], ledger=ledger).compile()
    usd = (2 * NANOUSD_PER_CALL + 1000) / 1e9
    traces = RecursiveTraceGuard(max_usd=usd, ledger=ledger)
    ask = guarded_traceable(traces, name="ask")(lambda: graph.invoke({"messages": [HumanMessage("q")]}))

    with tracing_context(enabled=False), traces.trace() as trace:
        ask()
        ask()
        with pytest.raises(AgentBudgetError):
            ask()

    assert (model.billed, ledger.total().calls) == (2, 2)
    assert trace.usd == ledger.total().usd


def test_the_error_tells_everything_and_survives():
    """It has both numbers and the way out, is a BudgetExceeded, and comes back from pickle and JSON the same."""
    guard = RecursiveTraceGuard(max_calls=1)
    with tracing_context(enabled=False), guard.trace() as trace:
        guard.check("plan")
        with pytest.raises(AgentBudgetError) as caught:
            guard.check("write")
    error = caught.value

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert isinstance(error, BudgetExceeded)
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        "RecursiveTraceGuard tripped: call_budget_exceeded (calls=1, max=1); "
        "answer with what there is, or allow more with max_calls="
    )
    assert (error.label, error.limit, error.observed, error.trace_id) == ("write", "1", "1", trace.id)
    assert (str(again), again.to_json()) == (str(error), error.to_json())
    assert json.loads(json.dumps(error.to_json()))["kind"] == "call_budget_exceeded"


@pytest.mark.parametrize("options", [{"max_depth": 0}, {"max_calls": 2.5}, {"max_usd": "-1"}, {"max_calls": True}])
def test_a_ceiling_that_can_t_be_kept_is_found_when_the_guard_is_made(options):
    """Misuse is an InvalidBudget before anything runs."""
    with pytest.raises(InvalidBudget):
        RecursiveTraceGuard(**options)


def test_the_counts_of_a_trace_at_work_are_never_forgotten(traced):
    """However many other traces come and go meanwhile, its own ceiling holds."""

    class Forgetful(RecursiveTraceGuard):
        kept = 3

    guard = Forgetful(max_calls=2)
    step = guarded_traceable(guard, name="step")(lambda: None)

    @traceable
    def long_request() -> int:
        step()
        for _ in range(10):
            step(langsmith_extra={"parent": "ignore"})
        step()
        with pytest.raises(AgentBudgetError):
            step()
        return len(guard._traces)  # noqa: SLF001 - that the others are forgotten is seen nowhere else

    with traced():
        assert long_request() <= 4
