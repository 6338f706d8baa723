"""Every model call under a graph is held, charged once, and attributed; what was not billed is free."""

from __future__ import annotations

import asyncio
import logging
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, TypedDict

import httpx
import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy

from graphguard import Breach, Budget, BudgetExceeded, Call, MemoryLedger, PriceBook, Spend, Trip, guard
from tests.needs import NODE_ATTEMPTS, NODE_TIMEOUTS, TASK_IDS_OF_REPLAYS, needs
from tests.scripted import NANOUSD_PER_CALL, Scripted, Streaming, tool_call

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
LONG = "one two three four five six seven eight nine ten"


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


Node = Callable[..., Any]


def one(node: Node, *budgets: Any, ledger: MemoryLedger | None = None, **options: Any) -> Any:
    """A graph of one node, guarded; without budgets it is only metered."""
    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    if budgets:
        options.setdefault("nodes", ["n"])
    return guard(builder, *budgets, ledger=ledger or MemoryLedger(), **options).compile(checkpointer=InMemorySaver())


# Where calls are made


def with_executor(model: Scripted) -> list[str]:
    """Two calls in threads."""
    with ContextThreadPoolExecutor(2) as pool:
        return [str(m.content) for m in pool.map(model.invoke, ["q", "r"])]


def with_tools(model: Scripted) -> list[Any]:
    """Two calls by a tool."""

    @tool
    def ask(what: str = "") -> str:
        """Ask a model."""
        return str(model.invoke("q").content)

    return [ask.invoke({}), ask.invoke({"name": "ask", "args": {}, "id": "c1", "type": "tool_call"})]


def with_inner_graph(model: Scripted) -> list[Any]:
    """Two runs of a graph that makes a call."""
    builder = StateGraph(Log)
    builder.add_node("x", lambda _: {"log": [model.invoke("q").content]})
    builder.add_edge(START, "x")
    inner = builder.compile()
    return [inner.invoke({"log": []})["log"], inner.invoke({"log": []})["log"]]


SYNC: dict[str, Callable[[Scripted], Any]] = {
    "invoke": lambda m: [m.invoke("q"), m.invoke("r")],
    "stream": lambda m: [list(m.stream("q")), list(m.stream("r"))],
    "batch": lambda m: m.batch(["q", "r"]),
    "batch as completed": lambda m: list(m.batch_as_completed(["q", "r"])),
    "generate": lambda m: m.generate([[HumanMessage("q")], [HumanMessage("r")]]),
    "chain": lambda m: (ChatPromptTemplate.from_template("{x}") | m | RunnableLambda(str)).batch([{"x": 1}, {"x": 2}]),
    "parallel": lambda m: RunnableParallel(a=m, b=m).invoke("q"),
    "threads": with_executor,
    "tools": with_tools,
    "inner graph": with_inner_graph,
    "own config": lambda m: [m.invoke("q", {"callbacks": []}), m.invoke("q", {"tags": ["x"], "run_name": "r"})],
    "config of its own callbacks": lambda m: [m.with_config(callbacks=[]).invoke("q"), m.invoke("q")],
    "retry": lambda m: [m.with_retry(stop_after_attempt=1).invoke(q) for q in "qr"],
    "fallbacks": lambda m: [m.with_fallbacks([m]).invoke("q"), m.with_fallbacks([m]).invoke("q")],
    "bound": lambda m: [m.bind(stop=["x"]).invoke("q"), m.bind_tools([]).invoke("q")],
}


@pytest.mark.parametrize("kind", [Scripted, Streaming])
@pytest.mark.parametrize("way", SYNC)
def test_every_way_to_call_is_metered(way: str, kind: type[Scripted]) -> None:
    """Two calls are two charges, with the usage the model told, however they were made."""
    model, ledger = kind(), MemoryLedger()
    graph = one(lambda _: {"log": [bool(SYNC[way](model))]}, Budget(calls=9), ledger=ledger)

    graph.invoke({"log": []}, T)

    assert ledger.total() == Spend.of(graph.get_state(T))
    assert ledger.total() == Spend(nanousd=2 * NANOUSD_PER_CALL, input_tokens=2_000, output_tokens=200, calls=2)
    assert ledger.open_holds() == ()


async def gathered(model: Scripted) -> Any:
    """One call on the loop, one in a thread."""
    return await asyncio.gather(model.ainvoke("q"), asyncio.to_thread(model.invoke, "r"))


async def streamed(model: Scripted) -> Any:
    """Two streams."""
    return [[c async for c in model.astream("q")], [c async for c in model.astream("r")]]


async def evented(model: Scripted) -> Any:
    """One call with its events, one plain."""
    return [e async for e in model.astream_events("q", version="v2")], await model.ainvoke("r")


async def tasks(model: Scripted) -> None:
    """Two calls in a task group."""
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(model.ainvoke("q"))


ASYNC: dict[str, Callable[[Scripted], Awaitable[Any]]] = {
    "gather": gathered,
    "stream": streamed,
    "events": evented,
    "tasks": tasks,
    "batch": lambda m: m.abatch(["q", "r"]),
    "chain": lambda m: (ChatPromptTemplate.from_template("{x}") | m).abatch([{"x": 1}, {"x": 2}]),
    "sync calls": lambda m: asyncio.sleep(0, [m.invoke("q"), m.invoke("r")]),
}


@pytest.mark.parametrize("kind", [Scripted, Streaming])
@pytest.mark.parametrize("way", ASYNC)
async def test_every_async_way_to_call_is_metered(way: str, kind: type[Scripted]) -> None:
    """Two calls on an event loop are two charges, however they were made."""
    model, ledger = kind(), MemoryLedger()

    async def node(state: Log) -> Log:
        return {"log": [str(await ASYNC[way](model))]}

    graph = one(node, Budget(calls=9), ledger=ledger)

    await graph.ainvoke({"log": []}, T)

    assert ledger.total() == Spend.of(graph.get_state(T))
    assert ledger.total() == Spend(nanousd=2 * NANOUSD_PER_CALL, input_tokens=2_000, output_tokens=200, calls=2)
    assert ledger.open_holds() == ()


@pytest.mark.parametrize("way", SYNC)
def test_every_way_to_call_is_held(way: str) -> None:
    """The second of two calls is refused before it is sent, however it was made."""
    model = Scripted()
    graph = one(
        lambda _: {"log": [bool(SYNC[way](model))]}, Budget(calls=1), on_trip="raise", ledger=MemoryLedger(wait=0.2)
    )

    with pytest.raises(BudgetExceeded):
        graph.invoke({"log": []}, T)

    # generate() announces all its prompts before it sends the first.
    assert model.billed == (0 if way == "generate" else 1)


@pytest.mark.parametrize("way", ASYNC)
async def test_every_async_way_to_call_is_held(way: str) -> None:
    """The second of two calls on an event loop is refused before it is sent."""
    model = Scripted()

    async def node(state: Log) -> Log:
        try:
            return {"log": [str(await ASYNC[way](model))]}
        except* BudgetExceeded as group:  # a task group wraps what its tasks raise
            raise group.exceptions[0] from None

    graph = one(node, Budget(calls=1), on_trip="raise", ledger=MemoryLedger(wait=0.2))

    with pytest.raises(BudgetExceeded):
        await graph.ainvoke({"log": []}, T)

    assert model.billed == 1


def test_a_conditional_edge_is_metered_under_its_node() -> None:
    """A call made by a conditional edge counts, and belongs to the node in front of it."""
    model, ledger = Scripted(), MemoryLedger()
    builder = StateGraph(Log).add_node("n", lambda _: {"log": ["n"]}).add_edge(START, "n")
    builder.add_conditional_edges("n", lambda _: END if model.invoke("q") else "n", [END, "n"])
    graph = guard(builder, Budget(calls=2), ledger=ledger, nodes=["n"]).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, T)

    assert [charge.node for charge in ledger.charges()] == ["n"]
    assert Spend.of(graph.get_state(T)).calls == 1


def test_tools_of_a_tool_node_are_metered() -> None:
    """A tool that calls a model is charged to the node that runs the tools."""
    model, ledger = Scripted(), MemoryLedger()

    @tool
    def ask(what: str = "") -> str:
        """Ask a model."""
        return str(model.invoke("q").content)

    builder = StateGraph(MessagesState).add_node("tools", ToolNode([ask])).add_edge(START, "tools")
    graph = guard(builder, ledger=ledger).compile()

    graph.invoke({"messages": [tool_call("ask", "c1")]})

    assert [(charge.node, charge.nanousd) for charge in ledger.charges()] == [("tools", NANOUSD_PER_CALL)]


def test_a_refusal_in_a_tool_is_no_tool_error() -> None:
    """A tool's refused call trips the graph; the tool node doesn't turn it into a message to the model."""
    model = Scripted()

    @tool
    def ask(what: str = "") -> str:
        """Ask a model."""
        return str(model.invoke("q").content) + str(model.invoke("q").content)

    builder = StateGraph(MessagesState).add_node("tools", ToolNode([ask])).add_edge(START, "tools")
    graph = guard(builder, Budget(calls=1), nodes=["tools"], ledger=MemoryLedger()).compile()

    out = graph.invoke({"messages": [tool_call("ask", "c1")]})

    assert "1 of 1 calls spent" in out["messages"][-1].content
    assert model.billed == 1


def test_plain_llms_are_metered() -> None:
    """A text-completion model, which tells no usage, is estimated."""
    llm, ledger = FakeListLLM(responses=["four"]), MemoryLedger()
    graph = one(lambda _: {"log": [llm.invoke("two and two")]}, Budget(tokens=10_000), ledger=ledger)

    graph.invoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.input_tokens > 0
    assert charge.output_tokens > 0


def test_calls_outside_the_graph_are_not_metered() -> None:
    """A call made after the run, or by another graph, is not charged to it."""
    model, ledger = Scripted(), MemoryLedger()
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(calls=5), ledger=ledger)
    graph.invoke({"log": []}, T)

    model.invoke("q")

    assert ledger.total().calls == 1


# Attribution


def test_a_charge_says_whose_it_is() -> None:
    """A charge names node, model, provider, run, thread, task and attempt."""
    ledger, model = MemoryLedger(), Scripted()
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(calls=5), ledger=ledger)
    seen = [chunk for chunk in graph.stream({"log": []}, T, stream_mode="tasks") if chunk["name"] == "n"]

    (charge,) = ledger.charges()

    assert (charge.node, charge.model, charge.provider) == ("n", "gpt-4o-mini", "openai")
    assert (charge.thread, charge.attempt, charge.task) == ("t", 1, seen[0]["id"])
    assert charge.run == graph.get_state(T).values["spend"]["run"]["id"]


@needs(*NODE_ATTEMPTS)
def test_every_attempt_is_charged_with_its_number() -> None:
    """Attempts of one task share the task's id; each has its own number and its own charge."""
    ledger, model = MemoryLedger(), Scripted()

    def node(state: Log) -> Log:
        text = model.invoke("q").content
        if model.billed < 3:
            raise ConnectionError("lost")
        return {"log": [text]}

    policy = RetryPolicy(initial_interval=0.001, jitter=False)
    builder = StateGraph(Log).add_node("n", node, retry_policy=policy).add_edge(START, "n")
    graph = guard(builder, Budget(calls=5), nodes=["n"], ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, T)

    assert [charge.attempt for charge in ledger.charges()] == [1, 2, 3]
    assert len({charge.task for charge in ledger.charges()}) == 1
    assert len({charge.id for charge in ledger.charges()}) == 3
    assert Spend.of(graph.get_state(T)).calls == 3


def test_runs_and_threads_are_kept_apart() -> None:
    """Each input is a run of its own, and each thread has its own total."""
    ledger, model = MemoryLedger(), Scripted()
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(calls=5), ledger=ledger)
    for thread in ("a", "a", "b"):
        graph.invoke({"log": []}, {"configurable": {"thread_id": thread}})

    assert len({charge.run for charge in ledger.charges()}) == 3
    assert (ledger.total(thread="a").calls, ledger.total(thread="b").calls) == (2, 1)


def test_calls_of_a_graph_inside_name_the_innermost_node() -> None:
    """A call in a graph inside is charged once, to its own node, and counts in the states of both graphs."""
    ledger, model = MemoryLedger(), Scripted()
    inside = StateGraph(Log).add_node("x", lambda _: {"log": [model.invoke("q").content]}).add_edge(START, "x")
    builder = StateGraph(Log).add_node("sub", inside.compile()).add_edge(START, "sub")
    graph = guard(builder, Budget(calls=5), ledger=ledger).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, T)

    assert [charge.node for charge in ledger.charges()] == ["x"]
    assert Spend.of(graph.get_state(T)).calls == 1


# Usage that is missing, free or lost


@pytest.mark.parametrize("kind", [Scripted, Streaming])
def test_missing_usage_is_estimated_and_marked(kind: type[Scripted]) -> None:
    """A call without usage is never free: it is estimated from what was sent and received, and says so."""
    model, ledger = kind(usage=None, script=[LONG]), MemoryLedger()
    graph = one(lambda _: {"log": [list(model.stream("a question"))[-1].content]}, Budget(usd=1), ledger=ledger)

    graph.invoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.input_tokens >= len("a question")
    assert charge.output_tokens >= len(LONG.split())
    assert charge.nanousd > 0
    assert Spend.of(graph.get_state(T)).estimated == 1


@pytest.fixture
def llm_cache() -> Iterator[None]:
    """LangChain's process-wide cache of answers, for one test."""
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


@pytest.mark.usefixtures("llm_cache")
@pytest.mark.parametrize("kind", [Scripted, Streaming])
def test_cached_answers_are_free(kind: type[Scripted]) -> None:
    """An answer out of LangChain's cache is neither charged nor counted."""
    model, ledger = kind(), MemoryLedger()
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in range(5)]}, Budget(calls=2), ledger=ledger)

    out = graph.invoke({"log": []}, T)

    assert out == {"log": ["ok"] * 5}
    assert ledger.total().calls == model.billed == 1
    assert ledger.open_holds() == ()


@pytest.mark.usefixtures("llm_cache")
async def test_cached_answers_are_free_on_an_event_loop() -> None:
    """The same holds for async calls."""
    model, ledger = Scripted(), MemoryLedger()

    async def node(state: Log) -> Log:
        return {"log": [(await model.ainvoke("q")).content for _ in range(5)]}

    await one(node, Budget(calls=2), ledger=ledger).ainvoke({"log": []}, T)

    assert ledger.total().calls == model.billed == 1


def test_a_stream_closed_early_is_charged() -> None:
    """A stream that is broken off is charged: the prompt, and what had come until then."""
    model, ledger = Streaming(script=[LONG]), MemoryLedger()

    def node(state: Log) -> Log:
        stream = model.stream("q")
        first = next(stream).content
        stream.close()
        return {"log": [first]}

    one(node, Budget(usd=1), ledger=ledger).invoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.output_tokens >= 1
    assert charge.nanousd > 0
    assert ledger.open_holds() == ()


def test_a_stream_left_open_is_charged_when_its_task_ends() -> None:
    """A stream that nobody reads on is charged at the end of its task, and not again when it is closed."""
    model, ledger, kept = Streaming(script=[LONG]), MemoryLedger(), []

    def node(state: Log) -> Log:
        kept.append(model.stream("q"))
        return {"log": [next(kept[0]).content]}

    one(node, Budget(usd=1), ledger=ledger).invoke({"log": []}, T)
    kept[0].close()

    assert len(ledger.charges()) == 1
    assert ledger.open_holds() == ()


class Stuck(Streaming):
    """Streams one word and then waits for ever."""

    begun: Any = None

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        self._next()
        yield ChatGenerationChunk(message=AIMessageChunk("one "))
        if self.begun is not None:
            self.begun.set()
        await asyncio.Event().wait()


async def test_a_cancelled_stream_is_charged() -> None:
    """A stream whose asyncio task is cancelled half-way is charged for what had come."""
    ledger, begun = MemoryLedger(), asyncio.Event()
    model = Stuck(begun=begun)

    async def read() -> None:
        async for _ in model.astream("q"):
            pass

    async def node(state: Log) -> Log:
        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return {"log": ["gave up"]}

    graph = one(node, Budget(usd=1), ledger=ledger)
    await graph.ainvoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.nanousd > 0
    assert Spend.of(graph.get_state(T)).calls == 1
    assert ledger.open_holds() == ()


async def test_a_cancelled_run_is_charged() -> None:
    """Cancelling the whole run in the middle of a call charges the call; no hold stays open."""
    ledger, begun = MemoryLedger(), asyncio.Event()
    model = Stuck(begun=begun)

    async def node(state: Log) -> Log:
        return {"log": [chunk.content async for chunk in model.astream("q")]}

    running = asyncio.create_task(one(node, Budget(usd=1), ledger=ledger).ainvoke({"log": []}, T))
    await begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert ledger.total().calls == 1
    assert ledger.total().nanousd > 0
    assert ledger.open_holds() == ()


@needs(*NODE_TIMEOUTS)
async def test_a_node_timeout_charges_its_call() -> None:
    """A call that runs into its node's timeout is charged."""
    ledger, model = MemoryLedger(), Stuck()

    async def node(state: Log) -> Log:
        return {"log": [chunk.content async for chunk in model.astream("q")]}

    builder = StateGraph(Log).add_node("n", node, timeout=0.05).add_edge(START, "n")
    graph = guard(builder, Budget(usd=1), nodes=["n"], ledger=ledger).compile(checkpointer=InMemorySaver())

    with pytest.raises(Exception, match=r"(?i)time"):
        await graph.ainvoke({"log": []}, T)

    assert ledger.total().calls == 1
    assert ledger.open_holds() == ()


async def test_a_billed_sibling_of_a_refused_call_is_charged() -> None:
    """In `abatch`, a call that was sent beside a refused one is charged even if its answer is never read."""
    model, ledger = Scripted(), MemoryLedger()

    async def node(state: Log) -> Log:
        return {"log": [len(await model.abatch(["q", "r", "s"]))]}

    graph = one(node, Budget(calls=2), ledger=ledger)
    out = await graph.ainvoke({"log": []}, T)

    assert out == {"log": []}
    assert ledger.total().calls == model.billed == 2
    assert ledger.open_holds() == ()


# Retries, fallbacks, errors


def test_a_refused_call_falls_back_to_a_cheaper_model() -> None:
    """`with_fallbacks` tries the next model when a call is refused, and only what was sent is billed."""
    ledger = MemoryLedger()
    dear, cheap = Scripted(model_name="gpt-4o", max_tokens=10_000), Scripted(script=["cheap"])
    chain = dear.with_fallbacks([cheap], exceptions_to_handle=(BudgetExceeded,))

    out = one(lambda _: {"log": [chain.invoke("q").content]}, Budget(usd="0.01"), ledger=ledger).invoke({"log": []}, T)

    assert out == {"log": ["cheap"]}
    assert (dear.billed, cheap.billed) == (0, 1)
    assert [charge.model for charge in ledger.charges()] == ["gpt-4o-mini"]


def test_a_refusal_that_was_caught_leaves_no_trip() -> None:
    """A node that catches a refusal and goes on without the call writes its output and no trip."""
    model = Scripted()

    def node(state: Log) -> Log:
        texts = [str(model.invoke("q").content)]
        try:
            texts.append(str(model.invoke("q").content))
        except BudgetExceeded as refused:
            texts.append(refused.trip.metric)
        return {"log": texts}

    graph = one(node, Budget(calls=1))

    assert graph.invoke({"log": []}, T) == {"log": ["ok", "calls"]}
    assert Trip.of(graph.get_state(T)) is None


def test_each_attempt_of_with_retry_is_charged() -> None:
    """LangChain's own retries are charged one by one; a failed one whose bill is unknown at its worst case."""
    model, ledger = Scripted(script=[ValueError("half an answer"), "ok"]), MemoryLedger()
    chain = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=2)

    out = one(lambda _: {"log": [chain.invoke("q").content]}, Budget(usd=1), ledger=ledger).invoke({"log": []}, T)

    assert out == {"log": ["ok"]}
    assert [charge.assumed for charge in ledger.charges()] == [True, False]


def test_a_retried_refusal_is_never_sent() -> None:
    """`with_retry` may try a refused call again; none of the attempts is sent."""
    model = Scripted()
    chain = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=3)

    one(lambda _: {"log": [chain.invoke("q").content for _ in "ab"]}, Budget(calls=1)).invoke({"log": []}, T)

    assert model.billed == 1


def test_an_unknown_error_is_charged_at_its_worst_case() -> None:
    """A call that fails for a reason that says nothing of its bill costs what was held for it."""
    held: list[int] = []
    ledger = MemoryLedger()
    model = Scripted(
        script=[ValueError("?")], before=lambda: held.extend(h.call.worst.nanousd for h in ledger.open_holds())
    )
    graph = one(lambda _: {"log": [model.invoke("a question").content]}, Budget(usd=1), ledger=ledger)

    with pytest.raises(ValueError, match=r"\?"):
        graph.invoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.assumed
    assert charge.nanousd == held[0] > 100 * 600
    assert ledger.open_holds() == ()


def openai_model(answer: Callable[[httpx.Request], httpx.Response]) -> ChatOpenAI:
    """The real client, over a transport that answers from this process."""
    client = httpx.Client(transport=httpx.MockTransport(answer))
    return ChatOpenAI(model="gpt-4o-mini", max_tokens=50, api_key="test", max_retries=0, http_client=client)


def refusing(request: httpx.Request) -> httpx.Response:
    """A transport that reaches nobody."""
    raise httpx.ConnectError("connection refused", request=request)


def breaking(request: httpx.Request) -> httpx.Response:
    """A transport that loses the answer."""
    raise httpx.ReadError("connection reset", request=request)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_a_rejected_request_is_not_billed(status: int) -> None:
    """A request that the provider answered with an error status gives its hold back."""
    ledger = MemoryLedger()
    model = openai_model(lambda _: httpx.Response(status, json={"error": {"message": "no"}}))
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(usd=1, calls=1), ledger=ledger)

    with pytest.raises(openai.APIStatusError):
        graph.invoke({"log": []}, T)

    assert ledger.total() == Spend()
    assert ledger.open_holds() == ()


def test_a_refused_connection_is_not_billed() -> None:
    """A request that never reached the provider gives its hold back."""
    ledger, model = MemoryLedger(), openai_model(refusing)
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(usd=1), ledger=ledger)

    with pytest.raises(openai.APIConnectionError):
        graph.invoke({"log": []}, T)

    assert ledger.total() == Spend()
    assert ledger.open_holds() == ()


def test_a_broken_connection_is_charged_at_its_worst_case() -> None:
    """A request whose answer was lost on the way may have been billed, and is charged."""
    ledger, model = MemoryLedger(), openai_model(breaking)
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(usd=1), ledger=ledger)

    with pytest.raises(openai.APIConnectionError):
        graph.invoke({"log": []}, T)

    (charge,) = ledger.charges()
    assert charge.assumed
    assert charge.nanousd > 0


def test_the_user_sees_the_error_and_not_the_guard() -> None:
    """A failing call raises what it raises in the bare graph."""
    error = ValueError("the model's own")

    with pytest.raises(ValueError, match="the model's own") as caught:
        one(lambda _: {"log": [Scripted(script=[error]).invoke("q")]}, Budget(usd=1)).invoke({"log": []}, T)

    assert caught.value is error


# Budgets


@pytest.mark.parametrize(
    ("budget", "billed"),
    [
        (Budget(calls=3), 3),
        (Budget(tokens=3_500), 3),
        (Budget(input_tokens=3_200), 3),
        (Budget(output_tokens=350), 3),
        (Budget(usd="0.0009"), 3),
        (Budget(usd=1), 9),
    ],
    ids=repr,
)
@pytest.mark.parametrize("per", ["branch", "run", "thread"])
def test_every_metric_stops(budget: Budget, billed: int, per: str) -> None:
    """Calls, tokens of each kind and USD stop a node in the middle, wherever they are counted."""
    model, kinds = Scripted(), {**budget.limits}
    usd = str(budget.usd) if budget.usd is not None else None
    kinds.pop("usd", None)
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in range(9)]}, Budget(usd=usd, per=per, **kinds))

    graph.invoke({"log": []}, T)

    assert model.billed == billed


def test_several_budgets_hold_at_once() -> None:
    """A call needs room in every budget; the one without says no, by its name."""
    model = Scripted()
    budgets = [Budget(usd=1), Budget(calls=2), Budget(tokens=99_999, per="thread")]
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in range(9)]}, *budgets)

    graph.invoke({"log": []}, T)

    assert model.billed == 2
    assert Trip.of(graph.get_state(T)).budget == budgets[1].key


def two(models: dict[str, Scripted], *budgets: Budget, **options: Any) -> Any:
    """Nodes that call their models in a row, three times each."""
    builder = StateGraph(Log)
    for before, name in zip([START, *models], models, strict=False):
        builder.add_node(
            name, lambda _, name=name: {"log": [name + str(models[name].invoke("q").content) for _ in range(3)]}
        )
        builder.add_edge(before, name)
    options.setdefault("ledger", MemoryLedger())
    return guard(builder, *budgets, nodes=list(models), **options).compile(checkpointer=InMemorySaver())


def test_a_budget_for_a_node_counts_that_node() -> None:
    """A budget with `node=` leaves the other nodes alone."""
    models = {"a": Scripted(), "b": Scripted()}
    graph = two(models, Budget(calls=2, node="b"))

    graph.invoke({"log": []}, T)

    assert (models["a"].billed, models["b"].billed) == (3, 2)


def test_a_budget_for_a_model_counts_that_model() -> None:
    """A budget with `model=` leaves calls to other models alone."""
    models = {"a": Scripted(), "b": Scripted(model_name="gpt-4o")}
    graph = two(models, Budget(calls=2, model="gpt-4o"))

    graph.invoke({"log": []}, T)

    assert (models["a"].billed, models["b"].billed) == (3, 2)
    assert Trip.of(graph.get_state(T)).model == "gpt-4o"


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_a_spent_budget_for_a_model_leaves_nodes_of_other_models_alone(gate: str) -> None:
    """No gate stops a node for the sake of a model that it doesn't call."""
    models = {"a": Scripted(model_name="gpt-4o"), "b": Scripted()}
    graph = two(models, Budget(calls=3, model="gpt-4o"), gate=gate)

    graph.invoke({"log": []}, T)

    assert (models["a"].billed, models["b"].billed) == (3, 3)
    assert Trip.of(graph.get_state(T)) is None


@pytest.mark.parametrize(("per", "billed"), [("run", 4), ("branch", 3), ("thread", 3)])
def test_where_a_budget_counts(per: str, billed: int) -> None:
    """Two inputs of two calls each: a budget of three per run lets all pass, per branch or thread one less."""
    model = Scripted()
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in "ab"]}, Budget(calls=3, per=per))
    for _ in "ab":
        graph.invoke({"log": []}, T)

    assert model.billed == billed


@needs(*TASK_IDS_OF_REPLAYS)
def test_a_thread_budget_counts_all_branches() -> None:
    """Time travel gives branch money back, and thread money not."""
    for per, runs in (("branch", True), ("thread", False)):
        model = Scripted()
        graph = one(lambda _, m=model: {"log": [m.invoke("q").content]}, Budget(calls=1, per=per))
        graph.invoke({"log": []}, T)
        start = next(s.config for s in graph.get_state_history(T) if s.next in {("n",), ("n.budget",)})

        graph.invoke(None, start)

        assert (model.billed == 2) is runs


def test_a_policy_sees_the_call_and_may_refuse_it() -> None:
    """A function `(Spend, Call) -> Breach | None` is asked before each call, with what the branch has spent."""
    model, seen = Scripted(), []

    def no_third(spend: Spend, call: Call) -> Breach | None:
        seen.append((spend.calls, call.node, call.model, call.worst.output_tokens))
        return Breach(budget="no third", kind="policy") if spend.calls >= 2 else None

    graph = one(lambda _: {"log": [model.invoke("q").content for _ in range(5)]}, no_third)
    graph.invoke({"log": []}, T)

    assert model.billed == 2
    assert [spent for spent, *_ in seen] == [0, 1, 2]
    assert seen[0][1:] == ("n", "gpt-4o-mini", 100)
    assert "no third" in Trip.of(graph.get_state(T)).reason


def test_a_model_without_a_price_trips_a_usd_budget() -> None:
    """A model that shows up at run time without a price is refused rather than free."""
    chosen: list[Scripted] = []
    graph = one(lambda _: {"log": [chosen[0].invoke("q").content]}, Budget(usd=1))
    chosen.append(Scripted(model_name="house-blend"))

    graph.invoke({"log": []}, T)

    assert chosen[0].billed == 0
    assert Trip.of(graph.get_state(T)).kind == "unpriced"


def test_a_model_without_a_price_is_fine_for_tokens() -> None:
    """A budget in tokens or calls needs no price."""
    model = Scripted(model_name="house-blend")
    graph = one(lambda _: {"log": [model.invoke("q").content]}, Budget(tokens=5_000, calls=5))

    assert graph.invoke({"log": []}, T) == {"log": ["ok"]}


def test_an_own_price_is_used() -> None:
    """A price book with the user's own price makes a house model count."""
    prices = PriceBook().add("house-blend", input_usd="1", output_usd="10")
    model, ledger = Scripted(model_name="house-blend"), MemoryLedger()

    one(lambda _: {"log": [model.invoke("q").content]}, Budget(usd=1), prices=prices, ledger=ledger).invoke(
        {"log": []}, T
    )

    assert ledger.total().nanousd == 1_000 * 1_000 + 100 * 10_000


# Warnings


def events(chunks: list[Any]) -> list[tuple[float, str]]:
    """Share and kind of each budget event."""
    return [(c["share"], c["event"]) for c in chunks if isinstance(c, dict) and c.get("type") == "budget"]


def test_warnings_are_streamed_once_as_they_are_crossed() -> None:
    """Each share of `warn_at` gives one event on the custom stream, when the spend crosses it."""
    model = Scripted()
    graph = one(
        lambda _: {"log": [model.invoke("q").content for _ in range(10)]},
        Budget(calls=10, warn_at=(0.3, 0.5, 1.0)),
    )

    chunks = list(graph.stream({"log": []}, T, stream_mode="custom"))

    assert events(chunks) == [(0.3, "warning"), (0.5, "warning"), (1.0, "warning")]


def test_a_warning_says_how_much() -> None:
    """The event names budget, node, spent, limit and remaining; USD as decimal strings."""
    graph = one(lambda _: {"log": [Scripted().invoke("q").content]}, Budget(usd="0.0004", warn_at=(0.5,)))

    (event,) = graph.stream({"log": []}, T, stream_mode="custom")

    assert event == {
        "type": "budget",
        "event": "warning",
        "budget": "usd=0.0004 per branch",
        "metric": "usd",
        "share": 0.5,
        "node": "n",
        "spent_usd": "0.00021",
        "limit_usd": "0.0004",
        "remaining_usd": "0.00019",
    }


def test_warnings_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each crossing gives one line in the log `graphguard`, with both numbers."""
    model = Scripted()
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in range(4)]}, Budget(calls=4, warn_at=(0.5,)))

    with caplog.at_level(logging.WARNING, "graphguard"):
        graph.invoke({"log": []}, T)

    assert [record.message for record in caplog.records] == [
        "budget calls=4 per branch: 2 of 4 calls spent (50 %) at node 'n'"
    ]


def test_parallel_calls_cross_a_share_once() -> None:
    """Lines beside each other cross each share once together."""
    model = Scripted()
    builder = StateGraph(Log)
    for name in "abcdefgh":
        builder.add_node(name, lambda _: {"log": [model.invoke("q").content]})
        builder.add_edge(START, name)
    graph = guard(builder, Budget(calls=8, warn_at=(0.25, 0.5, 0.75, 1)), ledger=MemoryLedger()).compile()

    shares = [share for share, _ in events(list(graph.stream({"log": []}, stream_mode="custom")))]

    assert sorted(shares) == [0.25, 0.5, 0.75, 1.0]


def test_without_a_share_there_is_no_warning() -> None:
    """`warn_at=()` is silent."""
    graph = one(lambda _: {"log": [Scripted().invoke("q").content]}, Budget(calls=1, warn_at=()))

    assert list(graph.stream({"log": []}, T, stream_mode="custom")) == []


# Beside other handlers


def test_the_meter_agrees_with_langchains_own() -> None:
    """Totals equal those of LangChain's usage handler for the same run."""
    model, ledger = Scripted(), MemoryLedger()
    graph = one(lambda _: {"log": [str(SYNC[way](model)) for way in SYNC]}, Budget(usd=9), ledger=ledger)

    with get_usage_metadata_callback() as theirs:
        graph.invoke({"log": []}, T)

    told = theirs.usage_metadata["gpt-4o-mini"]
    assert (told["input_tokens"], told["output_tokens"]) == (ledger.total().input_tokens, ledger.total().output_tokens)


def test_a_refusal_is_not_logged_as_a_broken_callback(caplog: pytest.LogCaptureFixture) -> None:
    """LangChain's line about an error in a callback is kept out of the log for refusals."""
    model = Scripted()
    graph = one(lambda _: {"log": [model.invoke("q").content for _ in "ab"]}, Budget(calls=1, warn_at=()))

    with caplog.at_level(logging.WARNING):
        graph.invoke({"log": []}, T)

    assert caplog.records == []
