"""Shapes of agents: `create_agent` with tools and middleware, and prebuilt agents."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    SummarizationMiddleware,
    after_model,
    before_model,
    wrap_model_call,
)
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent

from tests.laws.random_graphs import Log
from tests.laws.shapes import Bench, shape
from tests.needs import SUMMARY_TRIGGERS, skip_without
from tests.scripted import tool_call

HI = {"messages": [HumanMessage("hi")]}
TOOL_USE = (tool_call("add", a=1, b=2), "done")


def adding(log: Log) -> BaseTool:
    """Give a tool that adds."""

    @tool
    def add(a: int = 1, b: int = 2) -> int:
        """Add."""
        log.add("add")
        return a + b

    return add


def _agent(bench: Bench, *middleware: AgentMiddleware[Any, Any]) -> Any:
    return create_agent(bench.model, [adding(bench.log)], middleware=list(middleware))


@shape("model", given=HI, script=TOOL_USE)
def agent_with_tool(bench):
    return _agent(bench)


@shape("model", given=HI, script=("done",))
def agent_without_tools(bench):
    return create_agent(bench.model)


@shape("model", given=HI, script=TOOL_USE)
def agent_with_middleware(bench):
    log = bench.log

    @before_model
    def looks(state: Any, runtime: Any) -> None:
        log.add("looks")

    @after_model
    def checks(state: Any, runtime: Any) -> None:
        log.add("checks")

    @wrap_model_call
    def wraps(request: Any, handler: Any) -> Any:
        log.add("wraps")
        return handler(request)

    @wrap_model_call
    async def awraps(request: Any, handler: Any) -> Any:
        log.add("awraps")
        return await handler(request)

    wraps.awrap_model_call = awraps.awrap_model_call
    return _agent(bench, looks, checks, wraps)


@shape("SummarizationMiddleware.before_model", "model", given={"messages": [HumanMessage(f"hi {n}") for n in range(6)]})
def agent_that_summarises(bench):
    skip_without(*SUMMARY_TRIGGERS)
    return _agent(bench, SummarizationMiddleware(bench.model, trigger=("messages", 4), keep=("messages", 2)))


@shape("model", given=HI, script=TOOL_USE, resumes=({"decisions": [{"type": "approve"}]},))
def agent_with_human(bench):
    return _agent(bench, HumanInTheLoopMiddleware(interrupt_on={"add": True}))


@shape("agent", given=HI, script=TOOL_USE)
def react_agent(bench):
    return create_react_agent(bench.model, [adding(bench.log)], checkpointer=InMemorySaver())
