"""Shapes of many agents: as tools, as nodes, handed over to, supervised, routed to, and deep ones."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, NotRequired

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentState, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from tests.laws.agents import HI, TOOL_USE, adding
from tests.laws.shapes import Trail, call, nodes, shape
from tests.scripted import tool_call


def _several(*names: str) -> AIMessage:
    """Give an answer that asks for several tools at once."""
    calls = [{"name": name, "args": {}, "id": f"c{at}", "type": "tool_call"} for at, name in enumerate(names)]
    return AIMessage("", tool_calls=calls)


def _asking(name: str, agent: Any) -> BaseTool:
    """Give a tool that asks an agent."""

    @tool(name)
    def ask() -> str:
        """Ask a specialist."""
        return str(agent.invoke(HI)["messages"][-1].content)

    return ask


@shape("model", given=HI, script=(tool_call("calendar"), *TOOL_USE, "booked"))
def agent_as_tool(bench):
    calendar = create_agent(bench.model, [adding(bench.log)])
    return create_agent(bench.model, [_asking("calendar", calendar)])


@shape("model", given=HI, script=(_several("calendar", "mail"), "seen to", "seen to", "all done"))
def agents_as_tools_beside_each_other(bench):
    return create_agent(bench.model, [_asking(name, create_agent(bench.model)) for name in ("calendar", "mail")])


class Support(AgentState):
    step: NotRequired[str]


@shape("model", given=HI, script=(tool_call("go_on"), tool_call("go_on"), "solved"))
def hand_over_within_an_agent(bench):
    log = bench.log

    @tool
    def go_on(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Go on to the next step."""
        log.add("go_on")
        told = ToolMessage("on", tool_call_id=tool_call_id, name="go_on")
        return Command(update={"step": "next", "messages": [told]})

    @wrap_model_call
    def by_step(request: Any, handler: Any) -> Any:
        return handler(request.override(system_prompt=f"step {request.state.get('step')}"))

    async def aby_step(_: Any, request: Any, handler: Any) -> Any:
        return await handler(request.override(system_prompt=f"step {request.state.get('step')}"))

    type(by_step).awrap_model_call = aby_step
    return create_agent(bench.model, [go_on], middleware=[by_step], state_schema=Support)


@shape("model", given=HI, script=(tool_call("load_skill"), *TOOL_USE))
def agent_with_skills(bench):
    log = bench.log

    @tool
    def load_skill(name: str = "adding") -> str:
        """Load what is known about a task."""
        log.add("load_skill")
        return "use the tool add"

    return create_agent(bench.model, [load_skill, adding(bench.log)])


def _to_sales(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    told = ToolMessage("handed over", tool_call_id=tool_call_id, name="to_sales")
    return Command(goto="sales", graph=Command.PARENT, update={"messages": [told]})


@shape("support:model", "sales:model", given=HI, script=(tool_call("to_sales"), "sold"))
def hand_over_between_agents(bench):
    to_sales = tool("to_sales", description="Hand over to sales.")(_to_sales)
    builder = StateGraph(AgentState)
    builder.add_node("support", create_agent(bench.model, [to_sales]), destinations=("sales", END))
    builder.add_node("sales", create_agent(bench.model))
    builder.add_edge(START, "support")
    return builder


@shape("adder", "supervisor:agent", given=HI, script=(tool_call("transfer_to_adder"), *TOOL_USE, "told"))
def supervisor(bench):
    create_supervisor = pytest.importorskip("langgraph_supervisor").create_supervisor
    adder = create_agent(bench.model, [adding(bench.log)], name="adder")
    return create_supervisor([adder], model=bench.model).compile()


@shape("ada:model", "bob:model", given=HI, script=(tool_call("transfer_to_bob"), *TOOL_USE))
def swarm(bench):
    swarms = pytest.importorskip("langgraph_swarm")
    ada = create_agent(bench.model, [swarms.create_handoff_tool(agent_name="bob")], name="ada")
    bob = create_agent(bench.model, [adding(bench.log)], name="bob")
    return swarms.create_swarm([ada, bob], default_active_agent="ada").compile()


class Routed(TypedDict):
    query: str
    found: Annotated[list[str], operator.add]
    answer: str


@shape("classify", "source", "synthesise", given={"query": "hi", "found": []})
def router(bench):
    model, log, agent = bench.model, bench.log, create_agent(bench.model)

    def classify(state: Routed) -> Command[Literal["source"]]:
        log.add("classify")
        query = str(model.invoke(state["query"]).content)
        return Command(goto=[Send("source", {"query": name}) for name in ("a", "b", "c")], update={"query": query})

    def source(state: Routed) -> dict[str, list[str]]:
        log.add("source")
        return {"found": [str(agent.invoke({"messages": [HumanMessage(state["query"])]})["messages"][-1].content)]}

    def synthesise(state: Routed) -> dict[str, str]:
        log.add("synthesise")
        return {"answer": str(model.invoke(" ".join(state["found"])).content)}

    builder = StateGraph(Routed)
    for node in (classify, source, synthesise):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "classify")
    builder.add_edge("source", "synthesise")
    return builder


@shape("rewrite", "ask", given={"trail": []}, script=("rewritten", *TOOL_USE))
def agent_called_in_a_workflow(bench):
    agent, log = create_agent(bench.model, [adding(bench.log)]), bench.log

    def ask(state: Trail) -> dict[str, list[str]]:
        log.add("ask")
        return {"trail": [str(agent.invoke(HI)["messages"][-1].content)]}

    builder = nodes(bench, "retrieve", edges="^>rewrite rewrite>retrieve retrieve>ask")
    builder.add_node("rewrite", call(bench, "rewrite"))
    builder.add_node("ask", ask)
    return builder


@shape("generate", "evaluate", script=("a joke", "not funny", "a better joke", "funny"))
def evaluator_and_optimiser(bench):
    builder = nodes(bench, edges="")
    builder.add_node("generate", call(bench, "generate"))
    builder.add_node("evaluate", call(bench, "evaluate"))
    builder.add_edge(START, "generate")
    builder.add_edge("generate", "evaluate")
    log = bench.log

    def accepted(state: Trail) -> str:
        log.add("accepted?")
        return END if state["trail"][-1] == "evaluate: funny" or len(state["trail"]) > 5 else "generate"

    builder.add_conditional_edges("evaluate", accepted, ["generate", END])
    return builder


# Deep agents


def _deep(*args: Any, **options: Any) -> Any:
    return pytest.importorskip("deepagents").create_deep_agent(*args, **options)


HELP = {"description": "Add.", "subagent_type": "adder"}


@shape("model", given=HI, script=(tool_call("task", **HELP), *TOOL_USE, "told"))
def deep_agent_with_declared_subagent(bench):
    adder = {"name": "adder", "description": "Adds.", "system_prompt": "Add.", "tools": [adding(bench.log)]}
    return _deep(bench.model, subagents=[adder])


@shape("model", given=HI, script=(tool_call("task", **HELP), *TOOL_USE, "told"))
def deep_agent_with_compiled_subagent(bench):
    adder = create_agent(bench.model, [adding(bench.log)])
    return _deep(bench.model, subagents=[{"name": "adder", "description": "Adds.", "runnable": adder}])


@shape(
    "model",
    given=HI,
    script=(tool_call("task", description="Add.", subagent_type="general-purpose"), *TOOL_USE, "told"),
)
def deep_agent_with_general_purpose_subagent(bench):
    return _deep(bench.model, [adding(bench.log)])


@shape("model", given=HI, script=TOOL_USE, resumes=({"decisions": [{"type": "approve"}]},))
def deep_agent_with_human(bench):
    return _deep(bench.model, [adding(bench.log)], interrupt_on={"add": True})


@shape(
    "model",
    given=HI,
    script=(tool_call("task", **HELP), *TOOL_USE, "told"),
    resumes=({"decisions": [{"type": "approve"}]},),
)
def deep_subagent_with_human(bench):
    adder = {"name": "adder", "description": "Adds.", "system_prompt": "Add.", "tools": [adding(bench.log)]}
    return _deep(bench.model, subagents=[{**adder, "interrupt_on": {"add": True}}])
