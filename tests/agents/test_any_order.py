"""LangChain's own middleware in any order, under a guard or with budget middleware anywhere among it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from graphguard import Budget, MemoryLedger, Spend, guard
from graphguard.middleware import BudgetMiddleware
from tests.laws.agents import adding
from tests.laws.builtin import APPROVED, EVERYTHING, SIX, everything
from tests.laws.shapes import Bench
from tests.laws.watching import CONFIG, plain
from tests.needs import SUMMARY_TRIGGERS, needs
from tests.scripted import Scripted

SEEDS = range(10)


def run(seed: int, how: str, ledger: MemoryLedger) -> tuple[Scripted, Any]:
    """Run an agent with all of the middleware shuffled, a person's approval included."""
    on = Bench(Scripted(script=list(EVERYTHING)))
    shuffle = random.Random(seed)
    middleware = everything(on)
    shuffle.shuffle(middleware)
    budget = Budget(calls=99)
    if how == "middleware":
        middleware.insert(shuffle.randint(0, len(middleware)), BudgetMiddleware(budget, ledger=ledger))
    graph = create_agent(on.model, [adding(on.log)], middleware=middleware, checkpointer=InMemorySaver())
    graph = guard(graph, budget, ledger=ledger) if how == "guard" else graph
    graph.invoke(SIX, CONFIG)
    while graph.get_state(CONFIG).next:
        graph.invoke(Command(resume=APPROVED[0]), CONFIG)
    return on.model, graph.get_state(CONFIG)


@needs(*SUMMARY_TRIGGERS)
@pytest.mark.parametrize("how", ["guard", "middleware"])
@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_does_what_it_did_and_counts_every_call(seed, how):
    """The conversation is that of the agent without a budget, and each billed call is charged once."""
    ledger = MemoryLedger()
    _, bare = run(seed, "bare", MemoryLedger())

    model, state = run(seed, how, ledger)

    assert plain(state.values["messages"]) == plain(bare.values["messages"])
    assert ledger.total().calls == Spend.of(state).calls == model.billed
    assert ledger.open_holds() == ()
