"""Law 4: with an output cap no budget is ever exceeded; without one by one call per branch at most, and it is told."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from concurrent.futures import wait
from typing import Annotated, Any

import pytest
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, Spend, Trip, guard
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG
from tests.scripted import NANOUSD_PER_CALL, Scripted

MANY = 8
PROMPT = "x" * 1_100
"""A prompt whose bytes bound its scripted 1,000 tokens, so that a hold is never below what a call costs."""


class Parts(TypedDict):
    parts: Annotated[list[str], operator.add]
    n: int


def _loop(model: Scripted) -> StateGraph:
    def ask(state: Parts) -> dict[str, Any]:
        return {"parts": [str(model.invoke(PROMPT).content)]}

    builder = StateGraph(Parts)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", lambda s: "ask" if len(s["parts"]) < MANY else "__end__", ["ask", "__end__"])
    return builder


def _sends(model: Scripted) -> StateGraph:
    def ask(state: Parts) -> dict[str, Any]:
        return {"parts": [str(model.invoke(PROMPT).content)]}

    builder = StateGraph(Parts)
    builder.add_node("ask", ask)
    builder.add_conditional_edges(START, lambda _: [Send("ask", {"n": n}) for n in range(MANY)], ["ask"])
    return builder


def _one(ask: Callable[..., object], ask_async: Callable[..., object] | None = None) -> StateGraph:
    builder = StateGraph(Parts)
    builder.add_node("ask", ask_async or ask)
    builder.add_edge(START, "ask")
    return builder


def _batch(model: Scripted) -> StateGraph:
    return _one(lambda _: {"parts": [str(m.content) for m in model.batch([PROMPT] * MANY)]})


def _threads(model: Scripted) -> StateGraph:
    def ask(state: Parts) -> dict[str, Any]:
        with ContextThreadPoolExecutor(max_workers=4) as pool:
            answers = [pool.submit(model.invoke, PROMPT) for _ in range(MANY)]
            wait(answers)
        return {"parts": [str(answer.result().content) for answer in answers]}

    return _one(ask)


def _abatch(model: Scripted) -> StateGraph:
    async def ask(state: Parts) -> dict[str, Any]:
        return {"parts": [str(m.content) for m in await model.abatch([PROMPT] * MANY)]}

    return _one(ask)


def _gather(model: Scripted) -> StateGraph:
    async def ask(state: Parts) -> dict[str, Any]:
        answers = await asyncio.gather(*(model.ainvoke(PROMPT) for _ in range(MANY)))
        return {"parts": [str(answer.content) for answer in answers]}

    return _one(ask)


def _asends(model: Scripted) -> StateGraph:
    async def ask(state: Parts) -> dict[str, Any]:
        return {"parts": [str((await model.ainvoke(PROMPT)).content)]}

    builder = StateGraph(Parts)
    builder.add_node("ask", ask)
    builder.add_conditional_edges(START, lambda _: [Send("ask", {"n": n}) for n in range(MANY)], ["ask"])
    return builder


SYNC = {"loop": _loop, "sends": _sends, "batch": _batch, "threads": _threads}
ASYNC = {"abatch": _abatch, "gather": _gather, "asends": _asends}
ALL = {**SYNC, **ASYNC}
over_all = pytest.mark.parametrize("name", list(ALL))
over_places = pytest.mark.parametrize("per", ["branch", "run", "thread", "user_id"])
ADA = {**CONFIG, "configurable": {**CONFIG["configurable"], "user_id": "ada"}}


async def _run(name: str, model: Scripted, *budgets: Budget, **options: Any) -> tuple[MemoryLedger, Any]:
    ledger = MemoryLedger(wait=5)
    graph = guard(ALL[name](model), *budgets, ledger=ledger, **options).compile(checkpointer=InMemorySaver())
    given = {"parts": [], "n": 0}
    if name in SYNC:
        graph.invoke(given, ADA)
    else:
        await graph.ainvoke(given, ADA)
    return ledger, graph.get_state(CONFIG)


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 7])
@over_places
@over_all
async def test_calls_stay_within_their_limit(name, per, calls):
    """Of eight calls that want to run, however they are made, exactly as many run as are paid for."""
    model = Scripted()

    ledger, state = await _run(name, model, Budget(calls=calls, per=per, warn_at=()))

    assert model.billed == ledger.total().calls == Spend.of(state).calls == calls
    assert ledger.open_holds() == ()
    assert Trip.of(state) is not None


@pytest.mark.parametrize("share", [0.6, 1.0, 2.5, 4.0, 6.9])
@over_places
@over_all
async def test_money_stays_within_its_limit(name, per, share):
    """What was billed is never above the USD limit, which lies anywhere between the prices of whole calls."""
    model = Scripted()
    limit = int(NANOUSD_PER_CALL * share)

    ledger, state = await _run(name, model, Budget(usd=f"{limit / 1e9:.9f}", per=per, warn_at=()))

    assert model.billed * NANOUSD_PER_CALL <= limit
    assert ledger.total().nanousd == Spend.of(state).nanousd == model.billed * NANOUSD_PER_CALL
    assert ledger.open_holds() == ()
    assert Trip.of(state) is not None


@pytest.mark.parametrize("metric", ["tokens", "input_tokens", "output_tokens"])
@over_all
async def test_tokens_stay_within_their_limit(name, metric):
    """The same holds for tokens of each kind."""
    model = Scripted()
    limit = {"tokens": 3_500, "input_tokens": 3_300, "output_tokens": 350}[metric]

    ledger, state = await _run(name, model, Budget(**{metric: limit}, warn_at=()))

    assert 1 <= model.billed <= 3
    assert ledger.total().amount(metric) == Spend.of(state).amount(metric) <= limit


@pytest.mark.parametrize("mode", ["end", "raise"])
@over_all
async def test_limit_holds_however_it_is_acted_on(name, mode):
    """With on_trip="raise" no more is billed than with "end"."""
    model = Scripted()

    try:
        await _run(name, model, Budget(calls=3, warn_at=()), on_trip=mode)
    except GraphBubbleUp:
        assert mode == "raise"

    assert model.billed == 3


@over_all
async def test_uncapped_calls_overshoot_by_one_call_a_branch_at_most(name):
    """Without an output cap a branch may end above its limit, by no more than its last call, and the trip says so."""
    model = Scripted(max_tokens=None)
    limit = 2 * NANOUSD_PER_CALL + NANOUSD_PER_CALL // 2

    ledger, state = await _run(name, model, Budget(usd=f"{limit / 1e9:.9f}", warn_at=()))

    branches = 1 if name == "loop" else MANY
    assert ledger.total().nanousd <= limit + branches * NANOUSD_PER_CALL
    assert ledger.total().calls == model.billed
    trip = Trip.of(state)
    if trip is not None and trip.needed:  # a gate that finds all money gone says nothing of the next call
        assert not trip.capped


def test_threads_of_one_budget_share_it():
    """Eight runs of one thread id at the same time, on one ledger, never spend more than the thread's budget."""
    model, ledger = Scripted(), MemoryLedger(wait=5)
    graph = guard(_loop(model), Budget(calls=5, per="thread", warn_at=()), ledger=ledger).compile()

    with ContextThreadPoolExecutor(max_workers=4) as pool:
        wait([pool.submit(graph.invoke, {"parts": [], "n": 0}, CONFIG) for _ in range(MANY)])

    assert model.billed == ledger.total().calls == 5


LIMITS = [(shape, calls) for shape in SHAPES.values() for calls in (1, 2) if not shape.resumes]


@pytest.mark.parametrize(("gate", "per"), [("auto", "branch"), ("inline", "branch"), ("auto", "user_id")])
@pytest.mark.parametrize(("shape", "calls"), LIMITS, ids=[f"{shape.name}-{calls}" for shape, calls in LIMITS])
async def test_every_shape_keeps_its_limit(shape, calls, gate, per):
    """Whatever the shape, as many calls are billed as the bare graph makes, or as the budget allows if that is less."""
    bench, other = shape.bench(), shape.bench()
    await shape.bare(bench, InMemorySaver()).ainvoke(shape.given, CONFIG)

    budget = Budget(calls=calls, per=per, warn_at=())
    graph = shape.guarded(other, budget, saver=InMemorySaver(), gate=gate, ledger=MemoryLedger())
    await graph.ainvoke(shape.given, ADA)

    assert other.model.billed == min(calls, bench.model.billed)
    tripped = Trip.of(await graph.aget_state(CONFIG)) is not None
    assert tripped == (calls < bench.model.billed) or not shape.keyed
