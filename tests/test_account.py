"""`charge()` and `remaining()` inside nodes: what LangChain does not see, and what is left."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from graphguard import (
    Budget,
    BudgetExceeded,
    Charge,
    MemoryLedger,
    Remaining,
    Spend,
    Trip,
    UnknownPrice,
    charge,
    guard,
    remaining,
)
from tests.scripted import NANOUSD_PER_CALL, Scripted

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
ANSWER = {
    "model": "gpt-4o-mini-2024-07-18",
    "usage": {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100},
}


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def one(node: Callable[..., Any], *budgets: Budget, **options: Any) -> Any:
    """A graph of one guarded node."""
    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    options = {"ledger": MemoryLedger(), "nodes": ["n"], **options}
    return guard(builder, *budgets, **options).compile(checkpointer=InMemorySaver())


def ask(node: Callable[[], Any], *budgets: Budget, **options: Any) -> Any:
    """What a node gets when it asks."""
    told: list[Any] = []
    one(lambda _: told.append(node()) or {"log": []}, *budgets, **options).invoke({"log": []}, T)
    return told[0]


@pytest.mark.parametrize("usd", ["0.03", 0.03, Decimal("0.03")], ids=repr)
def test_charge_counts_an_amount(usd: Any) -> None:
    """A paid tool's price counts in the ledger and in the state, as money and not as a model call."""
    ledger = MemoryLedger()
    graph = one(lambda _: {"log": [str(charge(usd=usd).usd)]}, Budget(usd=1), ledger=ledger)

    assert graph.invoke({"log": []}, T) == {"log": ["0.03"]}
    assert ledger.total() == Spend.of(graph.get_state(T)) == Spend(nanousd=30_000_000)


@pytest.mark.parametrize("shape", ["dict", "object"])
def test_charge_prices_a_raw_answer(shape: str) -> None:
    """A provider's own answer, as a dict or an SDK object, is priced as a model call."""
    answer: Any = ANSWER
    if shape == "object":
        answer = SimpleNamespace(model=ANSWER["model"], usage=SimpleNamespace(**ANSWER["usage"]))  # type: ignore[arg-type]

    made: Charge = ask(lambda: charge(answer), Budget(usd=1))

    assert (made.nanousd, made.calls) == (NANOUSD_PER_CALL, 1)
    assert (made.input_tokens, made.output_tokens) == (1_000, 100)
    assert (made.node, made.thread) == ("n", "t")


def test_charge_takes_the_users_price() -> None:
    """An amount given with an answer is its price; the answer still tells the tokens."""
    made: Charge = ask(lambda: charge(ANSWER, usd="0.5", model="mine"), Budget(usd=1))

    assert (made.usd, made.input_tokens, made.model) == (Decimal("0.5"), 1_000, "mine")


def test_charge_is_never_refused_but_the_next_call_is() -> None:
    """Money that was spent already is counted beyond the limit; what follows is refused."""
    model = Scripted()

    def node(state: Log) -> Log:
        charge(usd=2)
        return {"log": [str(model.invoke("q").content)]}

    graph = one(node, Budget(usd=1))

    graph.invoke({"log": []}, T)

    assert model.billed == 0
    assert Spend.of(graph.get_state(T)).usd == 2
    assert Trip.of(graph.get_state(T)).spent_usd == 2


def test_charge_counts_once_after_a_trip_and_a_raise() -> None:
    """What a stopped node charged stays charged; run again after the approval, it charges again."""
    model, ledger = Scripted(), MemoryLedger()

    def node(state: Log) -> Log:
        charge(usd="0.6")
        return {"log": [str(model.invoke("q").content)]}

    graph = one(node, Budget(usd="0.5"), ledger=ledger, on_trip="interrupt")
    graph.invoke({"log": []}, T)
    assert ledger.total().usd == Decimal("0.6")

    graph.invoke(Command(resume=5), T)

    assert ledger.total() == Spend.of(graph.get_state(T))
    assert ledger.total().nanousd == 1_200_000_000 + NANOUSD_PER_CALL


def test_charge_counts_in_the_nodes_and_models_budgets() -> None:
    """Budgets with `node=` and `model=` count charges of their node and model."""
    budgets = [Budget(usd=1, node="n"), Budget(usd=1, model="gpt-4o-mini"), Budget(usd=1, model="other")]

    def node() -> list[Decimal | None]:
        charge(usd="0.25", model="gpt-4o-mini")
        return [remaining(model="gpt-4o-mini").usd, remaining(model="other").usd]

    assert ask(node, *budgets) == [Decimal("0.75"), Decimal("0.75")]
    assert ask(node, *budgets[1:]) == [Decimal("0.75"), Decimal(1)]


def test_charge_without_a_price_is_an_error_and_a_breach() -> None:
    """An answer of a model without a price raises, and a USD budget counts as breached from then on."""
    model = Scripted()

    def node(state: Log) -> Log:
        with pytest.raises(UnknownPrice, match="house-blend"):
            charge({**ANSWER, "model": "house-blend"})
        return {"log": [str(model.invoke("q").content)]}

    graph = one(node, Budget(usd=1))

    graph.invoke({"log": []}, T)

    assert model.billed == 0
    assert Trip.of(graph.get_state(T)).kind == "unpriced"


@pytest.mark.parametrize("usd", [-1, "x", float("nan"), float("inf"), True and "-0.01"], ids=repr)
def test_charge_takes_no_nonsense(usd: Any) -> None:
    """Negative, infinite and unreadable amounts are a ValueError and charge nothing."""
    ledger = MemoryLedger()

    def node() -> None:
        with pytest.raises(ValueError, match="usd must be an amount"):
            charge(usd=usd)

    ask(node, Budget(usd=1), ledger=ledger)

    assert ledger.charges() == ()


@pytest.mark.parametrize("response", [None, {}, {"text": "hi"}, "hi"], ids=repr)
def test_charge_needs_something_to_charge(response: Any) -> None:
    """An answer without usage is an error that says what to pass."""

    def node() -> None:
        with pytest.raises(ValueError, match="pass usd="):
            charge(response)

    ask(node, Budget(usd=1))


def test_charge_outside_a_guarded_node_says_so() -> None:
    """Outside of a guarded node, charging is an error that says where it belongs."""
    with pytest.raises(RuntimeError, match="inside one of its nodes"):
        charge(usd=1)


def test_charge_may_cross_a_share() -> None:
    """A charge emits the warnings that its amount crosses."""
    graph = one(lambda _: {"log": [charge(usd="0.6").id]}, Budget(usd=1, warn_at=(0.5,)))

    (event,) = graph.stream({"log": []}, T, stream_mode="custom")

    assert event["spent_usd"] == "0.6"


async def test_charge_in_async_nodes_and_threads() -> None:
    """It counts from async code and from threads that carry the context."""
    ledger = MemoryLedger()

    async def node(state: Log) -> Log:
        charge(usd="0.1")
        await asyncio.to_thread(charge, usd="0.2")
        return {"log": []}

    await one(node, Budget(usd=1), ledger=ledger).ainvoke({"log": []}, T)

    assert ledger.total().usd == Decimal("0.3")


def test_remaining_says_what_each_budget_leaves() -> None:
    """By metric, the least that any budget around the node leaves; None where nothing limits it."""
    left = ask(remaining, Budget(usd=3, calls=5), Budget(usd=1, tokens=700), Budget(calls=9, per="thread"))

    assert left == Remaining(usd=Decimal(1), tokens=700, calls=5)


def test_remaining_goes_down_with_each_call() -> None:
    """Within one node, each call made is taken off."""
    model = Scripted()

    def node() -> list[Any]:
        told = [remaining()]
        model.invoke("q")
        return [*told, remaining()]

    before, after = ask(node, Budget(usd=1, calls=3, input_tokens=5_000, output_tokens=500))

    assert before == Remaining(usd=Decimal(1), calls=3, input_tokens=5_000, output_tokens=500)
    assert after == Remaining(usd=Decimal("0.99979"), calls=2, input_tokens=4_000, output_tokens=400)


def test_remaining_takes_running_calls_off() -> None:
    """What calls that are running hold is not left."""
    left: list[int | None] = []
    model = Scripted(before=lambda: left.append(remaining().calls))

    ask(lambda: model.invoke("q"), Budget(calls=3))

    assert left == [2]


def test_remaining_knows_the_raised_limit() -> None:
    """After an approval, what is left counts from the raised limit."""
    model, told = Scripted(), []

    def node(state: Log) -> Log:
        told.append(remaining().calls)
        return {"log": [str(model.invoke("q").content) for _ in "ab"]}

    graph = one(node, Budget(calls=1), on_trip="interrupt", gate="inline")
    graph.invoke({"log": []}, T)

    graph.invoke(Command(resume=10), T)

    assert told == [1, 9]


def test_remaining_never_goes_below_zero() -> None:
    """Overdrawn is nothing left, not less."""

    def node() -> Remaining:
        charge(usd=5)
        return remaining()

    assert ask(node, Budget(usd=1)).usd == 0


def test_remaining_outside_a_guarded_node_is_all_none() -> None:
    """Where nothing limits, nothing is said."""
    assert remaining() == Remaining()


def test_a_node_may_choose_a_cheaper_model() -> None:
    """With what is left known beforehand, a node goes on with a cheaper model instead of tripping."""
    dear, cheap = Scripted(model_name="gpt-4o", script=["dear"]), Scripted(script=["cheap"])

    def node(state: Log) -> Log:
        model = dear if (remaining().usd or 0) > Decimal("0.01") else cheap
        return {"log": [str(model.invoke("q").content)]}

    # gpt-4o: $0.0035 a call.
    graph = one(node, Budget(usd="0.0165"))
    out: dict[str, Any] = {}
    for _ in "abc":
        out = graph.invoke({"log": []}, T)

    assert out == {"log": ["dear", "dear", "cheap"]}
    assert Trip.of(graph.get_state(T)) is None


def test_a_refusal_says_how_much_was_needed() -> None:
    """The exception that a node may catch carries the amounts."""
    model = Scripted(model_name="gpt-4o", max_tokens=10_000)

    def node() -> Trip:
        with pytest.raises(BudgetExceeded) as caught:
            model.invoke("q")
        return caught.value.trip

    trip = ask(node, Budget(usd="0.01"))

    assert trip.needed > trip.limit == 10_000_000
