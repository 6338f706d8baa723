"""Shapes by what a model node is, and by the policies that it has."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

import functools
from typing import Annotated
from uuid import uuid4

from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, RetryPolicy, StreamWriter
from pydantic import BaseModel

from tests.laws.random_graphs import Log
from tests.laws.shapes import Trail, acall, call, nodes, shape
from tests.needs import NODE_ATTEMPTS, NODE_ERROR_HANDLERS, NODE_TIMEOUTS, skip_without
from tests.scripted import Scripted, tool_call

# Policies of nodes


@shape("model")
def retried_model(bench):
    model, log, failures = bench.model, bench.log, [ConnectionError("once"), ConnectionError("twice")]

    def ask(state: Trail):
        log.add("model")
        answer = model.invoke("hi").content
        if failures:
            raise failures.pop()
        return {"trail": [str(answer)]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", ask, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
    return builder


@shape("model", options={"cache": InMemoryCache()})
def cached_model(bench):
    builder = nodes(bench, "check", edges="^>model model>check")
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return {"trail": [str(model.invoke("hi").content)]}

    key = uuid4().hex  # the cache outlives the bench
    builder.add_node("model", ask, cache_policy=CachePolicy(key_func=lambda _: key))
    builder.add_conditional_edges("check", lambda state: "model" if len(state["trail"]) < 4 else END, ["model", END])
    return builder


@shape("model", modes=("async",))
def model_with_timeout(bench):
    skip_without(*NODE_TIMEOUTS)
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", acall(bench, "model"), timeout=20)
    return builder


@shape("model", modes=("async",))
def async_only(bench):
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", acall(bench, "model"))
    return builder


@shape("model")
def handled_error(bench):
    skip_without(*NODE_ERROR_HANDLERS)
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        model.invoke("hi")
        raise ValueError("a fault of the node's own")

    def handle(state: Trail):
        log.add("handler")
        return Command(goto="b", update={"trail": ["handled"]})

    builder = nodes(bench, "b", edges="^>model")
    builder.add_node("model", ask, error_handler=handle)
    return builder


# What a node can be


@shape("model", given={"messages": [HumanMessage("hi")]})
def chat_model_as_node(bench):
    log = bench.log

    def after(state: MessagesState):
        log.add("b")

    builder = StateGraph(MessagesState)
    builder.add_node(
        "model", RunnableLambda(lambda state: state["messages"]) | bench.model | (lambda m: {"messages": m})
    )
    builder.add_node("b", after)
    builder.add_edge(START, "model")
    builder.add_edge("model", "b")
    return builder


@shape("model", given=[HumanMessage("hi")], keyed=False)
def bare_chat_model(bench):
    builder = StateGraph(Annotated[list, add_messages])
    builder.add_node("model", bench.model)
    builder.add_edge(START, "model")
    return builder


@shape("model", unbilled=1)
def model_with_fallback(bench):
    broken, model, log = Scripted(script=[ConnectionRefusedError("nobody there")]), bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return {"trail": [str(broken.with_fallbacks([model]).invoke("hi").content)]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", ask)
    return builder


@shape("model")
def prompt_chain_as_node(bench):
    prompt = ChatPromptTemplate.from_template("{trail}")
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", prompt | bench.model | RunnableLambda(lambda m: {"trail": [m.content]}))
    return builder


@shape("model")
def runnable_lambda(bench):
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", RunnableLambda(call(bench, "model"), acall(bench, "model")))
    return builder


class Asking:
    """A node that is an object."""

    def __init__(self, model: Scripted, log: Log) -> None:
        self.model = model
        self.log = log

    def __call__(self, _state: Trail) -> dict[str, list[str]]:
        self.log.add("model")
        return {"trail": [str(self.model.invoke("hi").content)]}

    def ask(self, state: Trail) -> dict[str, list[str]]:
        return self(state)


@shape("model")
def callable_object(bench):
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", Asking(bench.model, bench.log))
    return builder


@shape("model")
def bound_method(bench):
    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", Asking(bench.model, bench.log).ask)
    return builder


@shape("model")
def partial_function(bench):
    def ask(model: Scripted, log: Log, state: Trail):
        log.add("model")
        return {"trail": [str(model.invoke("hi").content)]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", functools.partial(ask, bench.model, bench.log))
    return builder


@shape("model", options={"store": InMemoryStore()})
def node_with_injected_arguments(bench):
    skip_without(*NODE_ATTEMPTS)
    model, log = bench.model, bench.log

    def ask(state: Trail, config: RunnableConfig, *, writer: StreamWriter, store: BaseStore, runtime: Runtime[None]):
        log.add("model")
        store.put(("laws",), "asked", {"by": config["metadata"]["langgraph_node"]})
        writer({"about to": "ask"})
        answer = model.invoke("hi", config, stop=["."]).content
        get_stream_writer()({"asked": runtime.execution_info.node_attempt})
        return {"trail": [str(answer), str(store.get(("laws",), "asked").value)]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", ask)
    return builder


class Verdict(BaseModel):
    """What is found."""

    good: bool = True


@shape("model", script=(tool_call("Verdict", good=True),))
def structured_output(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return {"trail": [repr(model.with_structured_output(Verdict).invoke("hi"))]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", ask)
    return builder


@shape("model")
def batch_in_node(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return {"trail": [str(m.content) for m in model.batch(["a", "b", "c"])]}

    builder = nodes(bench, "b", edges="^>model model>b")
    builder.add_node("model", ask)
    return builder
