"""Approvals of tools and questions about budgets in one run: each is asked and answered on its own."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from graphguard import Budget, MemoryLedger, Spend, guard
from graphguard.middleware import BudgetMiddleware
from tests.conftest import thread
from tests.laws.agents import adding
from tests.laws.random_graphs import Log
from tests.scripted import Scripted, tool_call

CONFIG = thread("t")
HI = {"messages": [HumanMessage("hi")]}
APPROVE = {"decisions": [{"type": "approve"}]}
over_modes = pytest.mark.parametrize("mode", ["sync", "async"])


def kinds_of(state: Any) -> list[str]:
    """Give who asks: the budget, or the approval of a tool."""
    asked = [question.value for question in state.interrupts]
    return ["budget" if value.get("kind") == "graphguard.budget" else "tool" for value in asked]


async def through(graph: Any, mode: str) -> list[str]:
    """Run a graph through all of its questions, saying yes to each; who asked, in order."""
    asked: list[str] = []
    given: Any = HI
    for _ in range(20):
        if mode == "sync":
            graph.invoke(given, CONFIG)
        else:
            await graph.ainvoke(given, CONFIG)
        state = graph.get_state(CONFIG)
        if not state.interrupts:
            return asked
        asked += kinds_of(state)
        given = Command(resume=APPROVE)  # both kinds of question take it
    return asked


def human() -> HumanInTheLoopMiddleware:
    """Give what asks before the tool is run."""
    return HumanInTheLoopMiddleware(interrupt_on={"add": True})


def by_guard(model: Scripted, ledger: MemoryLedger, budget: Budget, gate: str) -> Any:
    """Give an agent under a guard."""
    bare = create_agent(model, [adding(Log())], middleware=[human()], checkpointer=InMemorySaver())
    return guard(bare, budget, on_trip="interrupt", ledger=ledger, gate=gate)


def by_middleware(model: Scripted, ledger: MemoryLedger, budget: Budget, gate: str) -> Any:
    """Give an agent with budget middleware, before or after the human's."""
    own = BudgetMiddleware(budget, on_trip="interrupt", ledger=ledger)
    middleware = [own, human()] if gate == "auto" else [human(), own]
    return create_agent(model, [adding(Log())], middleware=middleware, checkpointer=InMemorySaver())


def deep(model: Scripted, ledger: MemoryLedger, budget: Budget, gate: str) -> Any:
    """Give a deep agent under a guard."""
    create_deep_agent = pytest.importorskip("deepagents").create_deep_agent
    bare = create_deep_agent(model, [adding(Log())], interrupt_on={"add": True}, checkpointer=InMemorySaver())
    return guard(bare, budget, on_trip="interrupt", ledger=ledger, gate=gate)


@over_modes
@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("build", [by_guard, by_middleware, deep])
async def test_approvals_and_budgets_take_turns(build, gate, mode):
    """Each tool is approved, the budget is raised twice, and every call is made and charged once."""
    model, ledger = Scripted(script=[tool_call("add", call_id=f"c{n}") for n in range(3)] + ["done"]), MemoryLedger()
    graph = build(model, ledger, Budget(calls=1), gate)

    asked = await through(graph, mode)

    assert asked == ["tool", "budget", "tool", "budget", "tool"]  # from 1 to 2 to 4 calls
    state = graph.get_state(CONFIG)
    assert state.values["messages"][-1].content == "done"
    assert model.billed == ledger.total().calls == Spend.of(state).calls == 4


@over_modes
@pytest.mark.parametrize("gate", ["auto", "inline"])
async def test_a_deep_subagents_approvals_and_the_budget_take_turns(gate, mode):
    """A subagent's own approvals surface beside the budget's questions, and nothing is paid twice."""
    ledger = MemoryLedger()
    asks = tool_call("task", call_id="t", description="Add.", subagent_type="adder")
    model = Scripted(script=[asks, tool_call("add", call_id="a"), tool_call("add", call_id="b"), "3", "told"])
    adder = {"name": "adder", "description": "Adds.", "system_prompt": "Add.", "tools": [adding(Log())]}
    create_deep_agent = pytest.importorskip("deepagents").create_deep_agent
    subagents = [{**adder, "interrupt_on": {"add": True}}]
    bare = create_deep_agent(model, subagents=subagents, checkpointer=InMemorySaver())
    graph = guard(bare, Budget(calls=2), on_trip="interrupt", ledger=ledger, gate=gate)

    asked = await through(graph, mode)

    assert asked.count("tool") == 2
    assert asked.count("budget") == 2  # from 2 to 4 to 8 calls
    state = graph.get_state(CONFIG)
    assert state.values["messages"][-1].content == "told"
    assert model.billed == ledger.total().calls == Spend.of(state).calls
