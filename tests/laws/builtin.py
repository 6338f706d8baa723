"""Shapes of `create_agent` with each of LangChain's own middleware, alone and together."""

# ruff: noqa: D103 - a shape's name says what it is

from __future__ import annotations

from typing import Any

import langchain.agents.middleware as middlewares
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    after_agent,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.laws.agents import HI, TOOL_USE, adding
from tests.laws.shapes import Bench, shape
from tests.needs import MODEL_RETRIES, SUMMARY_TRIGGERS, skip_without
from tests.scripted import Scripted, tool_call

APPROVED = ({"decisions": [{"type": "approve"}]},)
SIX = {"messages": [HumanMessage(f"hi {n}") for n in range(6)]}


def retrying() -> AgentMiddleware[Any, Any]:
    """Give what calls a model again that failed."""
    skip_without(*MODEL_RETRIES)
    return middlewares.ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)


def agent(bench: Bench, *middleware: AgentMiddleware[Any, Any], **options: Any) -> Any:
    """Give an agent that adds."""
    options = {"model": bench.model, "tools": [adding(bench.log)], **options}
    return create_agent(middleware=list(middleware), **options)


@shape("model", given=HI, script=(tool_call("add"),))
def agent_with_call_limit(bench):
    return agent(bench, ModelCallLimitMiddleware(run_limit=3))


@shape("model", given=HI, script=(tool_call("add"), tool_call("add"), "done"))
def agent_with_tool_limit(bench):
    return agent(bench, ToolCallLimitMiddleware(run_limit=1))


@shape("model", given=HI, script=("done",), unbilled=1)
def agent_with_fallback(bench):
    broken = Scripted(script=[ConnectionRefusedError("nobody there")])
    return agent(bench, ModelFallbackMiddleware(bench.model), model=broken)


@shape("model", given=HI, script=(ValueError("a slip"), *TOOL_USE))
def agent_with_model_retry(bench):
    return agent(bench, retrying())


@shape("model", given=HI, script=(tool_call("fail"), "done"))
def agent_with_tool_retry(bench):
    failures, log = [ValueError("a slip")], bench.log

    @tool
    def fail() -> str:
        """Fail once."""
        log.add("fail")
        if failures:
            raise failures.pop()
        return "well"

    return agent(bench, ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False), tools=[fail])


CHOICE = tool_call("ToolSelectionResponse", tools=["add"])


@shape("model", given=HI, script=(CHOICE, tool_call("add"), CHOICE, "done") * 20)
def agent_that_selects_tools(bench):
    return agent(bench, LLMToolSelectorMiddleware(model=bench.model))


@shape("model", "tools", given=HI, script=(tool_call("add"), "3 and no more", "done"))
def agent_that_emulates_tools(bench):
    return agent(bench, LLMToolEmulator(model=bench.model))


@shape("model", given=HI, script=(tool_call("add"), tool_call("add"), tool_call("add"), "done"))
def agent_that_edits_context(bench):
    return agent(bench, ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=10, keep=1)]))


@shape(
    "model", given=HI, script=(tool_call("write_todos", todos=[{"content": "add", "status": "in_progress"}]), "done")
)
def agent_with_todos(bench):
    return agent(bench, TodoListMiddleware())


@shape("model", given={"messages": [HumanMessage("write to a@b.org")]}, script=TOOL_USE)
def agent_that_hides_addresses(bench):
    return agent(bench, PIIMiddleware("email", apply_to_output=True))


@shape("model", given=HI, script=TOOL_USE)
def agent_with_a_model_chosen_by_the_call(bench):
    class Chooser(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model=bench.model))

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(model=bench.model))

    return agent(bench, Chooser(), model=Scripted(script=[AssertionError("nobody asks this one")]))


@shape("Judge.after_agent", "model", given=HI, script=(*TOOL_USE, "SAFE"))
def agent_with_a_judge_at_its_end(bench):
    model = bench.model

    @after_agent(name="Judge")
    def judge(state: Any, runtime: Any) -> dict[str, Any]:
        return {"messages": [model.invoke("is it safe?")]}

    return agent(bench, judge)


class Sum(BaseModel):
    """What came out."""

    total: int


@shape("model", given=HI, script=(tool_call("Sum", total="many"), tool_call("Sum", total=3)))
def agent_that_mends_its_structured_output(bench):
    return agent(bench, response_format=ToolStrategy(Sum))


@shape("model", given=HI, script=(tool_call("Sum", total="many"), tool_call("Sum", total=3)))
def agent_that_only_gives_structured_output(bench):
    return agent(bench, response_format=ToolStrategy(Sum), tools=[])


def everything(bench: Bench) -> list[AgentMiddleware[Any, Any]]:
    """Give one of each middleware that changes what an agent does, those that ask the model included."""
    return [
        ModelCallLimitMiddleware(run_limit=9),
        ToolCallLimitMiddleware(run_limit=9),
        ModelFallbackMiddleware(bench.model),
        retrying(),
        SummarizationMiddleware(bench.model, trigger=("messages", 6), keep=("messages", 2)),
        LLMToolSelectorMiddleware(model=bench.model),
        HumanInTheLoopMiddleware(interrupt_on={"add": True}),
        ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=10)]),
        TodoListMiddleware(),
        PIIMiddleware("email"),
        ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False),
    ]


EVERYTHING = ("a summary", CHOICE, tool_call("add"), CHOICE, "done")


@shape("SummarizationMiddleware.before_model", "model", given=SIX, script=EVERYTHING, resumes=APPROVED)
def agent_with_everything(bench):
    skip_without(*SUMMARY_TRIGGERS)
    return agent(bench, *everything(bench))


@shape("SummarizationMiddleware.before_model", "model", given=SIX, script=EVERYTHING, resumes=APPROVED)
def agent_with_everything_the_other_way_round(bench):
    skip_without(*SUMMARY_TRIGGERS)
    return agent(bench, *reversed(everything(bench)))
