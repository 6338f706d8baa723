"""The table of graph shapes that the laws are tested over: a new shape is one more decorated function."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

import functools
import operator
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal
from uuid import uuid4

from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, StreamWriter, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from graphguard import Budget, guard
from tests.laws.random_graphs import Log
from tests.scripted import Scripted, Streaming, tool_call


@dataclass
class Bench:
    """What one build of a shape works with: a scripted model of its own, and a log of node runs."""

    model: Scripted
    log: Log = field(default_factory=Log)


Graph = StateGraph | CompiledStateGraph


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    Attributes:
        name: What the tests call it.
        build: Makes the bare builder, or the bare compiled graph, on a bench.
        models: Its model nodes, those of graphs inside as `outer:inner`.
        given: The input.
        script: What the model answers.
        resumes: Answers to the user's own interrupts, in order.
        options: Arguments of `compile`.
        modes: How it can be run.
        skewed: Whether a gate node changes what it does, so that only auto and inline are transparent.
        keyed: Whether its state has keys; a state that is one value has no place to show graphguard's fields.
    """

    name: str
    build: Callable[[Bench], Graph]
    models: tuple[str, ...]
    given: object
    _: KW_ONLY
    script: tuple[object, ...] = ("all is well",)
    resumes: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    modes: tuple[str, ...] = ("sync", "async")
    skewed: bool = False
    keyed: bool = True

    def bench(self) -> Bench:
        """Give a fresh bench."""
        return Bench(Streaming(script=list(self.script)))

    def bare(self, bench: Bench, saver: BaseCheckpointSaver[str] | None = None) -> CompiledStateGraph:
        """Give the graph as it is without a guard."""
        return self._compiled(self.build(bench), saver)

    def guarded(
        self, bench: Bench, *budgets: Budget, saver: BaseCheckpointSaver[str] | None = None, **options: Any
    ) -> CompiledStateGraph:
        """Give the guarded graph."""
        return self._compiled(guard(self.build(bench), *budgets, **options), saver)

    def _compiled(self, graph: Graph, saver: BaseCheckpointSaver[str] | None) -> CompiledStateGraph:
        if isinstance(graph, StateGraph):
            return graph.compile(checkpointer=saver, **self.options)
        graph.checkpointer = saver
        return graph


SHAPES: dict[str, Shape] = {}


def shape(*models: str, given: object = None, **told: Any) -> Callable[[Callable[[Bench], Graph]], None]:
    """Put a shape into the table."""

    def put(build: Callable[[Bench], Graph]) -> None:
        SHAPES[build.__name__] = Shape(build.__name__, build, models, {"trail": []} if given is None else given, **told)

    return put


class Trail(TypedDict):
    trail: Annotated[list[str], operator.add]


def step(bench: Bench, name: str) -> Callable[[Any], dict[str, list[str]]]:
    """Give a node that calls nothing."""
    log = bench.log  # never the bench itself: it holds the model, and discovery would see it

    def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        return {"trail": [name]}

    return run


def call(bench: Bench, name: str) -> Callable[[Any], dict[str, list[str]]]:
    """Give a node that calls the model once."""
    model, log = bench.model, bench.log

    def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        return {"trail": [f"{name}: {model.invoke('hi').content}"]}

    return run


def acall(bench: Bench, name: str) -> Callable[[Any], Awaitable[dict[str, list[str]]]]:
    """Give an async node that calls the model once."""
    model, log = bench.model, bench.log

    async def run(state: Any) -> dict[str, list[str]]:
        log.add(name)
        answer = await model.ainvoke("hi")
        return {"trail": [f"{name}: {answer.content}"]}

    return run


def chain(bench: Bench, *names: str, schema: Any = Trail, **options: Any) -> StateGraph:
    """Give a row of nodes; those whose names begin with `model` call the model."""
    builder = StateGraph(schema, **options)
    for name in names:
        builder.add_node(name, call(bench, name) if name.startswith("model") else step(bench, name))
    for start, end in zip((START, *names), (*names, END), strict=True):
        builder.add_edge(start, end)
    return builder


def nodes(bench: Bench, *names: str, edges: str = "") -> StateGraph:
    """Give nodes as `chain` does, with edges such as `"^>a a>b b>$"`."""
    builder = StateGraph(Trail)
    for name in names:
        builder.add_node(name, call(bench, name) if name.startswith("model") else step(bench, name))
    for edge in edges.split():
        start, _, end = edge.partition(">")
        builder.add_edge(START if start == "^" else start, END if end == "$" else end)
    return builder


# Edges


@shape("model")
def plain_chain(bench):
    return chain(bench, "before", "model", "after")


@shape("model")
def plain_loop(bench):
    builder = nodes(bench, "model", "check", edges="^>model model>check")
    builder.add_conditional_edges("check", lambda state: "model" if len(state["trail"]) < 6 else END, ["model", END])
    return builder


@shape("model_a", "model_b", skewed=True)
def several_entries(bench):
    return nodes(bench, "model_a", "model_b", "c", "d", edges="^>model_a ^>model_b ^>c model_a>d model_b>d c>d")


@shape("model_a", "model_b")
def conditional_entry(bench):
    builder = nodes(bench, "model_a", "model_b", "d", edges="model_a>d model_b>d")
    builder.add_conditional_edges(START, lambda _: "model_b")
    return builder


@shape("model")
def branch_with_map(bench):
    builder = nodes(bench, "a", "model", "b", edges="^>a")
    builder.add_conditional_edges("a", lambda _: "yes", {"yes": "model", "no": "b"})
    return builder


@shape("model")
def branch_without_map(bench):
    builder = nodes(bench, "a", "model", "b", edges="^>a model>b")
    builder.add_conditional_edges("a", lambda _: "model")
    return builder


@shape("model", skewed=True)
def branch_to_several(bench):
    builder = nodes(bench, "a", "model", "b", "d", edges="^>a model>d b>d")
    builder.add_conditional_edges("a", lambda _: ["model", "b"])
    return builder


@shape("model", skewed=True)
def fan_out_one_model(bench):
    return nodes(bench, "a", "model", "c", "d", edges="^>a a>model a>c model>d c>d")


@shape("model_b", "model_c")
def fan_out_two_models(bench):
    return nodes(bench, "a", "model_b", "model_c", "d", edges="^>a a>model_b a>model_c model_b>d model_c>d")


@shape("model", skewed=True)
def uneven_fan_out(bench):
    return nodes(bench, "a", "b", "c", "c2", "model", "d", edges="^>a a>b a>c c>c2 b>model model>d c2>d")


@shape("model")
def list_join_into_model(bench):
    builder = nodes(bench, "a", "b", "c", "model", edges="^>a a>b a>c")
    builder.add_edge(["b", "c"], "model")
    return builder


@shape("model", skewed=True)
def list_join_behind_model(bench):
    builder = nodes(bench, "a", "model", "c", "c2", "d", edges="^>a a>model a>c c>c2")
    builder.add_edge(["model", "c2"], "d")
    return builder


@shape("model")
def deferred_model(bench):
    builder = nodes(bench, "a", "b", "c", "c2", edges="^>a a>b a>c c>c2")
    builder.add_node("model", call(bench, "model"), defer=True)
    builder.add_edge("b", "model")
    builder.add_edge("c2", "model")
    return builder


@shape("model", skewed=True)
def deferred_behind_model(bench):
    builder = nodes(bench, "a", "model", "c", edges="^>a a>model a>c")
    builder.add_node("end", step(bench, "end"), defer=True)
    builder.add_edge("model", "end")
    builder.add_edge("c", "end")
    return builder


# Commands


@shape("model")
def command_annotated(bench):
    log = bench.log

    def a(state: Trail) -> Command[Literal["model"]]:
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "b", edges="model>b")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model")
def command_unannotated(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "b", edges="model>b")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", skewed=True)
def command_to_several(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto=["model", "c"], update={"trail": ["a"]})

    builder = nodes(bench, "model", "c", "d", edges="model>d c>d")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", skewed=True)
def command_beside_static_edge(bench):
    log = bench.log

    def a(state: Trail):
        log.add("a")
        return Command(goto="model", update={"trail": ["a"]})

    builder = nodes(bench, "model", "c", "d", edges="a>c model>d c>d")
    builder.add_node("a", a)
    builder.add_edge(START, "a")
    return builder


@shape("model", "model_2")
def command_from_model(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail) -> Command[Literal["model_2"]]:
        log.add("model")
        return Command(goto="model_2", update={"trail": [str(model.invoke("hi").content)]})

    builder = nodes(bench, "model_2")
    builder.add_node("model", ask)
    builder.add_edge(START, "model")
    return builder


@shape("sub:model", "model_end")
def command_to_parent(bench):
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        return Command(graph=Command.PARENT, goto="model_end", update={"trail": [str(model.invoke("hi").content)]})

    inner = StateGraph(Trail)
    inner.add_node("model", ask)
    inner.add_edge(START, "model")
    builder = nodes(bench, "model_end", edges="^>sub")
    builder.add_node("sub", inner.compile(), destinations=("model_end",))
    return builder


# Sends


@shape("model", skewed=True)
def send_map_reduce(bench):
    builder = nodes(bench, "a", "model", "reduce", edges="^>a model>reduce")
    builder.add_conditional_edges("a", lambda _: [Send("model", {"trail": []})] * 3, ["model"])
    return builder


@shape("model")
def send_to_workers_then_model(bench):
    builder = nodes(bench, "a", "worker", "model", edges="^>a worker>model")
    builder.add_conditional_edges("a", lambda _: [Send("worker", {"trail": []})] * 3, ["worker"])
    return builder


@shape("model", skewed=True)
def send_to_workers_that_command(bench):
    log = bench.log

    def worker(state: Any):
        log.add("worker")
        return Command(goto=state["to"], update={"trail": ["worker"]})

    builder = nodes(bench, "a", "model", "c", "d", edges="^>a model>d c>d")
    builder.add_node("worker", worker)
    builder.add_conditional_edges("a", lambda _: [Send("worker", {"to": to}) for to in ("model", "c")], ["worker"])
    return builder


@shape("model", skewed=True)
def send_beside_edge(bench):
    builder = nodes(bench, "a", "model", "c", "d", edges="^>a a>c model>d c>d")
    builder.add_conditional_edges("a", lambda _: [Send("model", {"trail": []})], ["model"])
    return builder


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


@shape("model")
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


# Model calls outside of nodes' own functions


@shape("sub:model")
def subgraph_with_shared_keys(bench):
    builder = nodes(bench, "a", "b", edges="^>a a>sub sub>b")
    builder.add_node("sub", chain(bench, "inner", "model").compile())
    return builder


@shape("sub:model", skewed=True)
def subgraph_beside_node(bench):
    builder = nodes(bench, "a", "c", "d", edges="^>a a>sub a>c sub>d c>d")
    builder.add_node("sub", chain(bench, "inner", "model").compile())
    return builder


@shape("sub:model", "reduce_by_model")
def send_to_subgraphs(bench):
    builder = nodes(bench, "a", edges="^>a sub>reduce_by_model")
    builder.add_node("sub", chain(bench, "inner", "model").compile())
    builder.add_node("reduce_by_model", call(bench, "reduce_by_model"))
    builder.add_conditional_edges("a", lambda _: [Send("sub", {"trail": []})] * 3, ["sub"])
    return builder


class Own(TypedDict):
    own: str


@shape("outer")
def subgraph_called_in_function(bench):
    model, log = bench.model, bench.log

    def ask(state: Own):
        log.add("model")
        return {"own": str(model.invoke(state["own"]).content)}

    inner = StateGraph(Own)
    inner.add_node("model", ask)
    inner.add_edge(START, "model")
    compiled = inner.compile()

    def outer(state: Trail):
        log.add("outer")
        return {"trail": [compiled.invoke({"own": "hi"})["own"]]}

    builder = nodes(bench, "b", edges="^>outer outer>b")
    builder.add_node("outer", outer)
    return builder


@shape("model")
def call_in_conditional_edge(bench):
    model, log = bench.model, bench.log

    def choose(state: Trail) -> str:
        log.add("edge")
        return "b" if model.invoke("which?").content else END

    builder = nodes(bench, "model", "b", edges="^>model")
    builder.add_conditional_edges("model", choose, ["b", END])
    return builder


@shape("model", given={"messages": [HumanMessage("hi")]}, script=(tool_call("look"), "seen", "done"))
def call_in_tool(bench):
    model, log = bench.model, bench.log

    @tool
    def look() -> str:
        """Look."""
        log.add("look")
        return str(model.invoke("look").content)

    def ask(state: MessagesState):
        log.add("model")
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", ask)
    builder.add_node("tools", ToolNode([look]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])
    builder.add_edge("tools", "model")
    return builder


# Schemas


@dataclass
class Data:
    trail: Annotated[list[str], operator.add] = field(default_factory=list)


@shape("model")
def dataclass_state(bench):
    return chain(bench, "before", "model", "after", schema=Data)


class Checked(BaseModel):
    trail: Annotated[list[str], operator.add] = []


@shape("model")
def pydantic_state(bench):
    return chain(bench, "before", "model", "after", schema=Checked)


@shape("model", given=["hi"], keyed=False)
def root_state(bench):
    model, log = bench.model, bench.log

    def ask(state: list[str]) -> list[str]:
        log.add("model")
        return [str(model.invoke(state).content)]

    def after(state: list[str]) -> list[str]:
        log.add("b")
        return ["b"]

    builder = StateGraph(Annotated[list, operator.add])
    builder.add_node("model", ask)
    builder.add_node("b", after)
    builder.add_edge(START, "model")
    builder.add_edge("model", "b")
    return builder


class Asked(TypedDict):
    question: str


class Told(TypedDict):
    answer: str


class Whole(Asked, Told):
    trail: Annotated[list[str], operator.add]


class Private(TypedDict):
    note: str


@shape("model", given={"question": "why?"})
def input_output_private_schemas(bench):
    model, log = bench.model, bench.log

    def ask(state: Asked) -> Private:
        log.add("model")
        return {"note": str(model.invoke(state["question"]).content)}

    def tell(state: Private) -> Told:
        log.add("tell")
        return {"answer": state["note"]}

    builder = StateGraph(Whole, input_schema=Asked, output_schema=Told)
    builder.add_node("model", ask)
    builder.add_node("tell", tell)
    builder.add_edge(START, "model")
    builder.add_edge("model", "tell")
    return builder


# The user's own interrupts


def _asking(bench: Bench, *, before: int, after: int) -> StateGraph:
    model, log = bench.model, bench.log

    def ask(state: Trail):
        log.add("model")
        first = [interrupt(f"before {n}") for n in range(before)]
        answer = model.invoke("hi").content
        last = [interrupt(f"after {n}") for n in range(after)]
        return {"trail": [f"{first} {answer} {last}"]}

    builder = nodes(bench, "a", "b", edges="^>a a>model model>b")
    builder.add_node("model", ask)
    return builder


@shape("model", resumes=("yes",))
def interrupt_before_call(bench):
    return _asking(bench, before=1, after=0)


@shape("model", resumes=("yes",))
def interrupt_after_call(bench):
    return _asking(bench, before=0, after=1)


@shape("model", resumes=("one", "two"))
def two_interrupts(bench):
    return _asking(bench, before=1, after=1)


@shape("model", resumes=("one", "two", "three"))
def three_interrupts(bench):
    return _asking(bench, before=2, after=1)


@shape("sub:model", resumes=("one", "two"))
def interrupts_in_subgraph(bench):
    builder = nodes(bench, "b", edges="^>sub sub>b")
    builder.add_node("sub", _asking(bench, before=1, after=1).compile())
    return builder


@shape("model", resumes=("one",), skewed=True)
def interrupt_beside_model(bench):
    log = bench.log

    def person(state: Trail):
        log.add("person")
        return {"trail": [interrupt("may I?")]}

    builder = nodes(bench, "a", "model", "d", edges="^>a a>model a>person model>d person>d")
    builder.add_node("person", person)
    return builder


@shape("model", resumes=(None,), options={"interrupt_before": ["model"]}, skewed=True)
def breakpoint_before(bench):
    return chain(bench, "a", "model", "b")


@shape("model", resumes=(None,), options={"interrupt_after": ["a"]}, skewed=True)
def breakpoint_after(bench):
    return chain(bench, "a", "model", "b")
