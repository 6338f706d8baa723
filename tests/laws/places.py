"""Shapes by where calls are made: subgraphs, edges, tools; by the state's schema; and with people in them."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Annotated

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from tests.laws.shapes import Bench, Trail, call, chain, nodes, shape
from tests.scripted import tool_call

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


@shape("one:two:three:model", "model_end")
def subgraphs_three_deep(bench):
    inside = chain(bench, "inner", "model")
    for name in ("three", "two", "one"):
        around = nodes(bench, f"before_{name}", f"after_{name}", edges=f"^>before_{name} {name}>after_{name}")
        around.add_node(name, inside.compile())
        around.add_edge(f"before_{name}", name)
        inside = around
    inside.add_node("model_end", call(bench, "model_end"))
    inside.add_edge("after_one", "model_end")
    return inside


@shape("sub:model")
def subgraph_with_memory_of_its_own(bench):
    builder = nodes(bench, "a", "b", edges="^>a a>sub sub>b")
    builder.add_node("sub", chain(bench, "inner", "model").compile(checkpointer=True))
    return builder


@shape("sub:model")
def subgraph_without_memory(bench):
    builder = nodes(bench, "a", "b", edges="^>a a>sub sub>b")
    builder.add_node("sub", chain(bench, "inner", "model").compile(checkpointer=False))
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
