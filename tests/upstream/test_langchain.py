"""What metering.py and usage.py rely on in LangChain; when an upgrade changes it, the test says so by name."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.callbacks.manager import _ahandle_event_for_handler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config, run_in_executor, var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.errors import GraphBubbleUp
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from tests.needs import PROFILES, needs
from tests.scripted import Scripted, Streaming, tool_call


class Refused(GraphBubbleUp, RuntimeError):
    """Stands for graphguard's BudgetExceeded."""


class Hears(BaseCallbackHandler):
    """A handler that notes each model call, and refuses those after the first `allowed`."""

    raise_error = True
    run_inline = True

    def __init__(self, allowed: int = 10**6) -> None:
        self.allowed = allowed
        self.started: list[dict[str, Any]] = []
        self.ended: list[Any] = []
        self.usage: list[dict[str, Any]] = []
        self.failed: list[BaseException] = []
        self.lock = threading.Lock()

    def on_chat_model_start(self, _: Any, messages: Any, **kwargs: Any) -> None:
        with self.lock:
            if len(self.started) >= self.allowed:
                raise Refused
            self.started.append({**kwargs, "messages": messages})

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ended.append(response)
        usage = getattr(response.generations[0][0].message, "usage_metadata", None)
        self.usage.append(dict(usage or {}))  # a copy: LangChain's cache changes the message that it keeps

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.failed.append(error)


hook: ContextVar[Hears | None] = ContextVar("upstream_hook", default=None)
register_configure_hook(hook, inheritable=False)


@pytest.fixture
def hears():
    """Give a handler that is attached to every run of the test's context."""
    handler = Hears()
    token = hook.set(handler)
    yield handler
    hook.reset(token)


# Fact 5: how a handler gets to a call


def test_5_callbacks_of_a_wrapper_do_not_reach_a_call_without_config():
    """Callbacks that a node's wrapper puts in its config don't reach a model that is called without one."""
    model, handler = Scripted(), Hears()

    def node(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [model.invoke("hi")]}

    def wrapped(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return node(state, {**config, "callbacks": [handler]})

    StateGraph(MessagesState).add_node("a", wrapped).add_edge(START, "a").compile().invoke({"messages": []})

    assert model.billed == 1
    assert handler.started == []


@pytest.mark.parametrize("way", ["invoke", "stream", "batch", "structured", "bound"])
def test_5_configure_hook_reaches_every_call(way, hears):
    """A handler in a ContextVar that is registered as a configure hook hears of calls made without any config."""

    class Answer(BaseModel):
        """An answer."""

        text: str

    model = Streaming(script=[tool_call("Answer", text="x")] if way == "structured" else ["ok"])
    if way == "invoke":
        model.invoke("hi")
    elif way == "stream":
        list(model.stream("hi"))
    elif way == "batch":
        model.batch(["hi", "ho"])
    elif way == "bound":
        model.bind_tools([Answer]).invoke("hi")
    else:
        (RunnableLambda(lambda text: text) | model.with_structured_output(Answer, include_raw=True)).invoke("hi")

    assert len(hears.started) == (2 if way == "batch" else 1)


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_5_configure_hook_reaches_every_async_call(way, hears):
    """The same for async calls."""
    model = Streaming()
    if way == "ainvoke":
        await model.ainvoke("hi")
    elif way == "astream":
        assert [chunk async for chunk in model.astream("hi")]
    else:
        await model.abatch(["hi", "ho"])

    assert len(hears.started) == (2 if way == "abatch" else 1)


def test_5_hook_reaches_nodes_graphs_and_edges(hears):
    """Calls in a node, in a graph called from a node, and in a conditional edge are heard."""
    model = Scripted()
    inner = StateGraph(MessagesState).add_node("i", lambda _: {"messages": [model.invoke("inner")]})
    inner = inner.add_edge(START, "i").compile()

    def node(state: MessagesState) -> dict[str, Any]:
        inner.invoke({"messages": []})
        return {"messages": [model.invoke("node")]}

    def edge(state: MessagesState) -> str:
        model.invoke("edge")
        return "__end__"

    builder = StateGraph(MessagesState).add_node("a", node).add_edge(START, "a").add_conditional_edges("a", edge)
    builder.compile().invoke({"messages": []})

    assert len(hears.started) == 3


def test_5_raw_thread_does_not_copy_the_context(hears):
    """A raw Thread or pool begins in an empty context, unless it is given a copy; then its calls are heard."""
    model = Scripted()
    context = copy_context()
    for target in (lambda: model.invoke("hi"), lambda: context.run(model.invoke, "hi")):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model.invoke, "hi").result()

    assert model.billed == 3
    assert len(hears.started) == 1


async def test_5_tasks_and_executors_copy_the_context(hears):
    """Asyncio tasks, `to_thread` and LangChain's `run_in_executor` copy the context, so calls in them are heard."""
    model = Scripted()

    await asyncio.create_task(model.ainvoke("hi"))
    await asyncio.to_thread(model.invoke, "hi")
    await run_in_executor(None, model.invoke, "hi")

    assert len(hears.started) == 3


def test_5_hook_that_is_not_inheritable_is_not_passed_on(hears):
    """A hook with `inheritable=False` is attached to each run by its context, and never twice by its parent."""
    model = Scripted()

    RunnableLambda(lambda text: RunnableLambda(model.invoke).invoke(text)).invoke("hi")

    assert len(hears.started) == 1


def test_5_config_of_the_context_is_in_a_variable():
    """`var_child_runnable_config` holds the config that calls without one are made with."""
    token = var_child_runnable_config.set({"tags": ["mine"]})
    try:
        assert ensure_config()["tags"] == ["mine"]
    finally:
        var_child_runnable_config.reset(token)


# Facts 6, 28: a handler that refuses


@pytest.mark.parametrize("way", ["invoke", "stream", "batch"])
def test_6_sync_handler_that_raises_stops_the_call(way, hears):
    """With `raise_error`, an exception in `on_chat_model_start` stops the call before it is sent."""
    model, hears.allowed = Streaming(), 0

    with pytest.raises(Refused):
        {"invoke": model.invoke, "stream": lambda x: list(model.stream(x)), "batch": lambda x: model.batch([x])}[way](
            "x"
        )
    assert model.billed == 0


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_6_sync_handler_that_raises_stops_the_async_call(way, hears):
    """The same for async calls: the sync handler is called there too."""
    model, hears.allowed = Streaming(), 0

    async def astream(text: str) -> list[Any]:
        return [chunk async for chunk in model.astream(text)]

    async def abatch(text: str) -> list[Any]:
        return await model.abatch([text])

    with pytest.raises(Refused):
        await {"ainvoke": model.ainvoke, "astream": astream, "abatch": abatch}[way]("x")
    assert model.billed == 0


def test_6_async_handler_cannot_stop_a_sync_call():
    """What a coroutine method raises is lost in sync calls: the call is sent."""

    class Async(AsyncCallbackHandler):
        raise_error = True

        async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            raise Refused

    model = Scripted()

    model.invoke("hi", {"callbacks": [Async()]})

    assert model.billed == 1


class Which(BaseCallbackHandler):
    """Notes from where its method was looked up, and whether LangChain awaited what it returned."""

    raise_error = True
    run_inline = True

    def __init__(self) -> None:
        self.looked_up: list[bool] = []
        self.awaited = 0

    @property
    def on_chat_model_start(self) -> Any:
        """A coroutine for the async dispatcher, a plain function for the other."""
        from_async = sys._getframe(1).f_code is _ahandle_event_for_handler.__code__  # noqa: SLF001 - the fact itself
        self.looked_up.append(from_async)

        async def coroutine(*_: Any, **__: Any) -> None:
            self.awaited += 1

        return coroutine if from_async else lambda *_, **__: None


async def test_6_async_dispatcher_looks_the_method_up_in_its_own_frame():
    """`_ahandle_event_for_handler` itself gets the method, and awaits it if it is a coroutine function."""
    handler = Which()

    await Scripted().ainvoke("hi", {"callbacks": [handler]})

    assert handler.looked_up
    assert all(handler.looked_up)
    assert handler.awaited == 1


def test_6_sync_dispatcher_looks_the_method_up_elsewhere():
    """In sync calls the method is looked up from another frame, and called."""
    handler = Which()

    Scripted().invoke("hi", {"callbacks": [handler]})

    assert handler.looked_up
    assert not any(handler.looked_up)
    assert handler.awaited == 0


async def test_6_inline_handlers_come_first_and_one_by_one():
    """`run_inline` handlers run before all others, in the task that calls: nothing is lost in an executor."""
    threads: list[str] = []

    class Inline(BaseCallbackHandler):
        raise_error = True
        run_inline = True

        def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            threads.append(threading.current_thread().name)

    await Scripted().ainvoke("hi", {"callbacks": [Inline()]})

    assert threads == [threading.main_thread().name]


def test_6_refused_call_never_ends(hears):
    """For a call that its handler refused, neither `on_llm_end` nor `on_llm_error` comes."""
    hears.allowed = 0

    with pytest.raises(Refused):
        Scripted().invoke("hi")

    assert hears.ended == hears.failed == []


async def test_28_sibling_of_a_refused_call_goes_on_after_the_refusal(hears):
    """In `abatch` the refusal of one call is raised while an admitted one is still on its way, and that is billed."""
    model, hears.allowed = Scripted(), 1

    with pytest.raises(Refused):
        await model.abatch(["a", "b", "c"])
    at_once = (len(hears.started), len(hears.ended))
    while not hears.ended:  # noqa: ASYNC110 - it only needs a turn of the loop
        await asyncio.sleep(0)

    assert at_once == (1, 0)
    assert model.billed == 1


def test_7_fallbacks_try_again_after_a_refusal(hears):
    """`with_fallbacks` and `with_retry` take a RuntimeError for a failure: a refused call is tried again, unsent."""
    first, second, hears.allowed = Scripted(), Scripted(), 0

    with pytest.raises(Refused):
        first.with_fallbacks([second]).invoke("hi")
    with pytest.raises(Refused):
        first.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("hi")

    assert first.billed == second.billed == 0


def test_6_dispatcher_logs_what_a_handler_raises(hears, caplog):
    """Each refusal is logged as an error of a callback, by this logger and with the handler's class as an argument."""
    hears.allowed = 0

    with pytest.raises(Refused):
        Scripted().invoke("hi")

    record = next(r for r in caplog.records if r.name == "langchain_core.callbacks.manager")
    assert record.args[0] == "Hears"
    assert "Refused" in str(record.args[-1])


# What a handler is told


def test_start_tells_model_provider_and_cap(hears):
    """`on_chat_model_start` is given `ls_model_name`, `ls_provider` and `ls_max_tokens` in its metadata."""
    Scripted(max_tokens=50).invoke("hi")

    metadata = hears.started[0]["metadata"]
    assert (metadata["ls_model_name"], metadata["ls_provider"], metadata["ls_max_tokens"]) == (
        "gpt-4o-mini",
        "openai",
        50,
    )


def test_start_tells_tools_and_call_arguments(hears):
    """`invocation_params` has the tools, and the arguments of this one call."""
    tools = [{"type": "function", "function": {"name": "search"}}]
    Scripted().bind(tools=tools).invoke("hi", max_tokens=7)

    params = hears.started[0]["invocation_params"]
    assert params["tools"] == tools
    assert params["max_tokens"] == 7


def test_start_and_end_share_a_run_id(hears):
    """Each call has a run id of its own, the same at its start and its end."""
    ends: list[Any] = []
    hears.on_llm_end = lambda _, **kwargs: ends.append(kwargs["run_id"])
    Scripted().batch(["a", "b"])

    assert sorted(start["run_id"] for start in hears.started) == sorted(ends)
    assert len(set(ends)) == 2


def test_19_streams_end_with_a_message_that_carries_usage(hears):
    """The end of a stream gives the chunks put together, usage and model name included."""
    list(Streaming(script=["one two three"]).stream("hi"))

    message = hears.ended[0].generations[0][0].message
    assert message.usage_metadata["input_tokens"] == 1_000
    assert message.response_metadata["model_name"] == "gpt-4o-mini"


def test_19_closed_stream_is_an_error_of_the_call(hears):
    """A generator that its reader closes early ends with `on_llm_error`, and no usage."""
    stream = Streaming(script=["one two three"]).stream("hi")
    next(stream)
    stream.close()

    assert [type(error) for error in hears.failed] == [GeneratorExit]
    assert hears.ended == []


def test_19_structured_output_returns_no_message(hears):
    """`with_structured_output` returns the parsed object only; the callback still gets message and usage."""

    class Answer(BaseModel):
        """An answer."""

        text: str

    parsed = Scripted(script=[tool_call("Answer", text="x")]).with_structured_output(Answer).invoke("hi")

    assert parsed == Answer(text="x")
    assert hears.ended[0].generations[0][0].message.usage_metadata["output_tokens"] == 100


@pytest.fixture
def llm_cache():
    """Give LangChain a cache for the time of a test."""
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(before)


def test_19_cached_answer_says_that_it_cost_nothing(hears, llm_cache):
    """An answer out of LangChain's cache starts and ends like a call, with its old usage and `total_cost` 0."""
    model = Scripted(script=["one", "two"])

    model.invoke("hi")
    model.invoke("hi")

    first, second = hears.usage
    assert model.billed == 1
    assert len(hears.started) == 2
    assert "total_cost" not in first
    assert second == {**first, "total_cost": 0}


def test_19_streams_are_not_answered_from_the_cache(hears, llm_cache):
    """A stream is sent again, whatever the cache knows, and billed again."""
    model = Streaming(script=["one", "two"])

    list(model.stream("hi"))
    list(model.stream("hi"))

    assert model.billed == 2
    assert "total_cost" not in hears.usage[1]


def test_models_tell_their_names_before_a_call():
    """`_get_ls_params()` tells a model's name and provider without calling it, for prices at guard time."""
    params = Scripted()._get_ls_params()  # noqa: SLF001 - the fact itself

    assert (params["ls_model_name"], params["ls_provider"]) == ("gpt-4o-mini", "openai")
    assert hasattr(BaseLanguageModel, "invoke")


@needs(*PROFILES)
def test_profile_of_a_model_is_a_mapping():
    """A chat model's `profile` is None or a mapping, in which `max_output_tokens` is its output cap."""
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - this test only

    profile = ChatOpenAI(model="gpt-4o-mini", api_key="unused").profile

    assert profile["max_output_tokens"] > 0
    assert Scripted().profile is None


def test_messages_keep_what_graphguard_adds():
    """A message's `additional_kwargs` survive a copy and a dump, so that a closing message can carry its trip."""
    message = AIMessage("x", additional_kwargs={"graphguard": {"budget": "b"}})

    assert AIMessage.model_validate(message.model_dump()).additional_kwargs == message.additional_kwargs
