"""Finding the nodes that call a model, without being fooled by those that don't."""

from __future__ import annotations

import functools
import math
import operator
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware, before_model
from langchain.chat_models import init_chat_model
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent
from pydantic import BaseModel

from graphguard import Budget, MemoryLedger, NoModelNodes, guard, model_nodes
from graphguard.discovery import evidence, models_in
from tests.needs import SUMMARY_TRIGGERS, needs
from tests.scripted import Scripted

MODEL = Scripted()
HELD = {"deep": [{"model": Scripted()}]}
module = types.ModuleType("models_of_the_user")
module.shared = Scripted()  # type: ignore[attr-defined]


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


class Verdict(BaseModel):
    """A verdict."""

    good: bool = True


@dataclass
class Bound:
    """Something with a model inside."""

    model: Scripted = field(default_factory=Scripted)

    def work(self, _: Log) -> Log:
        return {"log": [self.model.invoke("q").content]}

    def __call__(self, state: Log) -> Log:
        return self.work(state)


class Slotted:
    """The same without a `__dict__`."""

    __slots__ = ("model",)

    def __init__(self) -> None:
        self.model = Scripted()

    def work(self, _: Log) -> Log:
        return {"log": [self.model.invoke("q").content]}


class OnTheClass:
    """A model as a class attribute."""

    model: ClassVar[Scripted] = Scripted()

    def work(self, _: Log) -> Log:
        return {"log": [self.model.invoke("q").content]}


def closure() -> Callable[..., Any]:
    """A model in a closure."""
    model = Scripted()
    return lambda _: {"log": [model.invoke("q").content]}


def nested_closure() -> Callable[..., Any]:
    """A model in a function within the node's function."""
    model = Scripted()

    def outer(state: Log) -> Log:
        def inner() -> Any:
            return model.invoke("q").content

        return {"log": [inner()]}

    return outer


def decorated() -> Callable[..., Any]:
    """A node under a decorator."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(state: Log) -> Any:
            return function(state)

        return wrapper

    return decorate(closure())


def of_global(state: Log) -> Log:
    """A model in a global."""
    return {"log": [MODEL.invoke("q").content]}


def of_global_container(state: Log) -> Log:
    """A model deep in a global container."""
    return {"log": [HELD["deep"][0]["model"].invoke("q").content]}


def of_module(state: Log) -> Log:
    """A model in another module."""
    return {"log": [module.shared.invoke("q").content]}


def through_another(state: Log) -> Log:
    """A node that calls another function that calls a model."""
    return of_global(state)


def by_default(state: Log, *, model: Scripted = MODEL) -> Log:
    """A model as a default argument."""
    return {"log": [model.invoke("q").content]}


def made_inside(state: Log) -> Log:
    """A model made while the node runs."""
    return {"log": [init_chat_model("gpt-4o-mini", model_provider="openai").invoke("q").content]}


def class_inside(state: Log) -> Log:
    """A model made of its class while the node runs."""
    return {"log": [ChatOpenAI(model="gpt-4o-mini").invoke("q").content]}


async def on_a_loop(state: Log) -> Log:
    """A coroutine with a model."""
    return {"log": [(await MODEL.ainvoke("q")).content]}


def given_model(model: Scripted, state: Log) -> Log:
    """A function that is given its model."""
    return {"log": [model.invoke("q").content]}


def calls_a_graph() -> Callable[..., Any]:
    """A node that runs another graph."""
    inner = StateGraph(Log).add_node("x", of_global).add_edge(START, "x").compile()
    return lambda state: {"log": inner.invoke(state)["log"]}


CALL_MODELS: dict[str, Any] = {
    "closure": closure(),
    "nested closure": nested_closure(),
    "decorated": decorated(),
    "global": of_global,
    "global container": of_global_container,
    "module attribute": of_module,
    "another function": through_another,
    "default": by_default,
    "async": on_a_loop,
    "partial": functools.partial(given_model, Scripted()),
    "partial of keyword": functools.partial(by_default, model=Scripted()),
    "bound method": Bound().work,
    "callable object": Bound(),
    "slots": Slotted().work,
    "class attribute": OnTheClass().work,
    "made by init_chat_model": made_inside,
    "made by a class": class_inside,
    "model itself": Scripted(),
    "plain llm": FakeListLLM(responses=["x"]),
    "bind": Scripted().bind(stop=["x"]),
    "bind_tools": Scripted().bind_tools([]),
    "with_config": Scripted().with_config(tags=["x"]),
    "with_retry": Scripted().with_retry(),
    "with_fallbacks": Scripted().with_fallbacks([Scripted()]),
    "with_structured_output": Scripted().with_structured_output(Verdict),
    "chain": ChatPromptTemplate.from_template("{x}") | Scripted() | StrOutputParser(),
    "parallel": RunnablePassthrough.assign(y=Scripted()),
    "branch": RunnableBranch((lambda _: True, Scripted()), RunnableLambda(lambda x: x)),
    "lambda of a runnable": RunnableLambda(closure()),
    "configurable": init_chat_model(configurable_fields="any"),
    "fake": GenericFakeChatModel(messages=iter([AIMessage("x")])),
    "calls a graph": calls_a_graph(),
}


@tool
def look(where: str = "") -> str:
    """Look, with a model's help."""
    return str(MODEL.invoke("q").content)


def plain(state: Log) -> Log:
    """A node without a model."""
    return {"log": [str(len(state["log"]))]}


def messages_only(state: Log) -> Log:
    """A node that makes messages by hand."""
    return {"log": [AIMessage("made by hand")]}


def mathematics(state: Log) -> Log:
    """A node that uses modules."""
    return {"log": [math.sqrt(2), sys.version]}


def checks_the_type(state: Log) -> Log:
    """A node that knows message types."""
    return {"log": [isinstance(state["log"][0], AIMessage)]}


class Settings:
    """An object of the user's without a model."""

    def __init__(self) -> None:
        self.name, self.sizes, self.me = "x", {"a": [1, 2]}, self

    def work(self, _: Log) -> Log:
        return {"log": [self.name]}


CALL_NONE: dict[str, Any] = {
    "plain": plain,
    "lambda": lambda _: {"log": ["x"]},
    "messages": messages_only,
    "modules": mathematics,
    "types": checks_the_type,
    "builtin": len,
    "method": Settings().work,
    "partial": functools.partial(plain),
    "runnable": RunnableLambda(plain),
    "passthrough": RunnablePassthrough(),
    "prompt": ChatPromptTemplate.from_template("{x}"),
    "parser": StrOutputParser(),
    "tool node": ToolNode([look]),
}


@pytest.mark.parametrize("node", CALL_MODELS)
def test_a_node_that_calls_a_model_is_found(node: str) -> None:
    """However the model is reached, it is found, and the reason is said in words."""
    assert evidence(CALL_MODELS[node])


@pytest.mark.parametrize("node", CALL_MODELS)
def test_it_is_found_in_a_graph_too(node: str) -> None:
    """The same node in a builder and in a compiled graph is shown with a gate."""
    builder = StateGraph(Log).add_node("n", CALL_MODELS[node]).add_edge(START, "n")

    assert "n" in model_nodes(builder)
    assert model_nodes(builder).keys() == model_nodes(builder.compile()).keys()


@pytest.mark.parametrize("node", CALL_NONE)
def test_a_node_that_calls_none_is_left_alone(node: str) -> None:
    """Plain functions, tool nodes, prompts and parsers are not taken for model nodes."""
    assert evidence(CALL_NONE[node]) is None


def test_a_graph_without_models_says_what_to_do() -> None:
    """A budget on a graph in which no model is seen is an error that names the nodes and `nodes=`."""
    builder = StateGraph(Log).add_node("n", plain).add_edge(START, "n")

    with pytest.raises(NoModelNodes, match=r"\['n'\].*nodes="):
        guard(builder, Budget(calls=1))


def test_metering_needs_no_models() -> None:
    """Without a budget, a graph without models is guarded as any other."""
    graph = guard(StateGraph(Log).add_node("n", plain).add_edge(START, "n")).compile()

    assert graph.invoke({"log": []}) == {"log": ["0"]}


def test_models_are_found_once_each() -> None:
    """A model that is reached in two ways is one model."""
    model = Scripted()

    def node(state: Log, m: Scripted = model) -> Log:
        return {"log": [m.invoke("q"), model.invoke("q")]}

    assert list(models_in(node)) == [model]


def test_cycles_end() -> None:
    """Objects that hold each other are walked once."""
    ring: list[Any] = []
    ring.append({"ring": ring})

    def node(state: Log) -> Log:
        return {"log": [len(ring)]}

    assert evidence(node) is None


def test_create_agent_has_its_model_node() -> None:
    """`create_agent`'s `model` is found, its `tools` are not."""
    assert list(model_nodes(create_agent(Scripted(), [look]))) == ["model"]


def test_the_prebuilt_agent_has_its_agent_node() -> None:
    """The prebuilt agent's `agent` is found, its `tools` are not."""
    assert list(model_nodes(create_react_agent(Scripted(), [look]))) == ["agent"]


@needs(*SUMMARY_TRIGGERS)
def test_middleware_with_a_model_is_found() -> None:
    """Middleware that calls a model of its own before or after the agent's is a model node too."""
    summary = SummarizationMiddleware(Scripted(), trigger=("messages", 5))

    @before_model
    def harmless(state: Any, runtime: Any) -> None:
        return None

    found = model_nodes(create_agent(Scripted(), [look], middleware=[summary, harmless]))

    assert set(found) == {"model", "SummarizationMiddleware.before_model"}


def test_middleware_around_the_model_is_the_models_own() -> None:
    """Middleware that wraps the model call adds no node."""

    class Wrapping(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request)

    assert list(model_nodes(create_agent(Scripted(), [], middleware=[Wrapping()]))) == ["model"]


def test_graphs_inside_are_shown_with_their_own_nodes() -> None:
    """A graph that is a node is shown as such, and its model nodes as `outer:inner`."""
    inner = StateGraph(MessagesState).add_node("x", lambda _: MODEL.invoke("q")).add_edge(START, "x").compile()
    builder = StateGraph(MessagesState).add_node("sub", inner).add_node("agent", create_agent(Scripted(), [look]))
    builder.add_edge(START, "sub").add_edge("sub", "agent")

    found = model_nodes(guard(builder, Budget(calls=1), ledger=MemoryLedger()).compile())

    assert set(found) == {"sub", "sub:x", "agent", "agent:model"}
    assert found["sub"].gate == found["agent"].gate == "inside"


def test_nodes_named_by_the_user_are_taken_at_their_word() -> None:
    """With `nodes=`, exactly those nodes are gated."""
    builder = StateGraph(Log).add_node("n", plain).add_node("m", of_global).add_edge(START, "n").add_edge("n", "m")
    graph = guard(builder, Budget(calls=1), nodes=["n"], ledger=MemoryLedger()).compile()

    assert list(model_nodes(graph)) == ["n"]
    assert model_nodes(graph)["n"].found == "named by nodes="
