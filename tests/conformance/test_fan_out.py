"""Guarded graphs that fan out to more branches than their budget pays for, on each ledger."""

from __future__ import annotations

import operator
from typing import Annotated

import pytest
from blockbuster import blockbuster_ctx
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, SqliteLedger, guard
from tests.conftest import thread
from tests.scripted import NANOUSD_PER_CALL, Scripted

BRANCHES = 64
PAID = 10
PROMPT = "x" * 1_100
"""A prompt whose bytes bound its scripted 1,000 tokens, so that no call costs more than its hold."""

USD = f"{(PAID + 1) * NANOUSD_PER_CALL / 1e9 - 1e-9:.9f}"
"""Pays for that many calls: a hold is less than twice what a call costs, and for one more too little is left."""


class Answers(TypedDict):
    answers: Annotated[list[str], operator.add]


def fan_out(model: Scripted) -> StateGraph:
    """Build a graph that asks in 64 branches of one superstep, each in a thread or task of its own."""

    def ask(_: object):
        return {"answers": [model.invoke(PROMPT).content]}

    async def aask(_: object):
        return {"answers": [(await model.ainvoke(PROMPT)).content]}

    builder = StateGraph(Answers)
    builder.add_node("sync", ask)
    builder.add_node("async", aask)
    builder.add_conditional_edges(START, lambda state: [Send(state["answers"][0], {})] * BRANCHES, ["sync", "async"])
    return builder


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request, tmp_path):
    """Give an empty ledger of each kind."""
    if request.param == "memory":
        yield MemoryLedger(wait=60)
        return
    opening = request.getfixturevalue("postgres_opening") if request.param == "postgres" else None
    with opening(wait=60) if opening else SqliteLedger(tmp_path / "ledger.sqlite", wait=60) as opened:
        yield opened


def check(model, ledger):
    """Look that exactly the calls that fit were made, and that the ledger knows them."""
    assert model.billed == PAID
    assert (ledger.total().calls, ledger.total().nanousd) == (PAID, PAID * NANOUSD_PER_CALL)
    assert ledger.open_holds() == ()


@pytest.mark.parametrize("limits", [{"calls": PAID}, {"usd": USD}])
def test_64_branches_in_threads(ledger, limits):
    """Of 64 branches in threads exactly as many call the model as the budget pays for, and nothing stays held."""
    model = Scripted()
    graph = guard(fan_out(model), Budget(**limits, per="thread"), ledger=ledger).compile()

    graph.invoke({"answers": ["sync"]}, {**thread("t"), "max_concurrency": 16})

    check(model, ledger)


@pytest.mark.parametrize("limits", [{"calls": PAID}, {"usd": USD}])
async def test_64_branches_on_an_event_loop(ledger, limits):
    """The same for tasks on one event loop, which nothing in graphguard blocks meanwhile."""
    model = Scripted()
    graph = guard(fan_out(model), Budget(**limits, per="thread"), ledger=ledger).compile()

    with blockbuster_ctx("graphguard"):
        await graph.ainvoke({"answers": ["async"]}, thread("t"))

    check(model, ledger)
