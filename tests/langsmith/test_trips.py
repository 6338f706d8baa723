"""What LangSmith holds of a guarded graph: its trips, on the runs' own last writes, and what its calls cost."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from contextlib import suppress
from decimal import Decimal

import langsmith as sdk
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langsmith import traceable, tracing_context

from graphguard import Budget, BudgetExceeded, MemoryLedger, PriceBook, SqliteLedger, charge, guard, to
from graphguard.langsmith import AgentBudgetError, RecursiveTraceGuard, guarded_traceable
from tests.scripted import NANOUSD_PER_CALL, Scripted, Streaming

ONE_CALL = Decimal(NANOUSD_PER_CALL) / 10**9


def two_nodes(model: Scripted, *, asynchronous: bool) -> StateGraph:
    """Give a graph of two nodes that each call the model."""

    def node(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    for name in ("plan", "write"):
        builder.add_node(name, anode if asynchronous else node)
    builder.add_edge(START, "plan")
    builder.add_edge("plan", "write")
    return builder


def run(builder: StateGraph, traced, *budgets: Budget, asynchronous: bool, **options: object) -> MemoryLedger:
    """Run a guarded graph once, traced; give its ledger."""
    ledger = MemoryLedger(wait=0)
    graph = guard(builder, *budgets, nodes=["plan", "write"], ledger=ledger, **options)
    graph = graph.compile(checkpointer=InMemorySaver(), name="agent")
    config = {"configurable": {"thread_id": "t1", "user_id": "ada"}}
    given = {"messages": [("user", "a secret question")]}
    with traced():
        try:
            asyncio.run(graph.ainvoke(given, config)) if asynchronous else graph.invoke(given, config)
        except BudgetExceeded:
            assert options.get("on_trip") == "raise"
    return ledger


def tripped(store, name: str) -> dict[str, object]:
    """Give the metadata of the latest run of a name, which must be tagged and ended."""
    found = store.named(name)[-1]
    assert "runguard_trip" in found["tags"]
    assert found["end_time"]
    return found["extra"]["metadata"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    "case",
    [
        ("end", "node", "write.budget"),
        ("end", "inline", "write"),
        ("interrupt", "node", "write.budget"),
        ("raise", "inline", "write"),
    ],
    ids="-".join,
)
def test_a_trip_at_a_gate_is_on_its_run_and_on_the_root(langsmith, traced, case, asynchronous):
    """Both runs end with the tag, both numbers, the node, and the thread; no prompt is in any metadata."""
    on_trip, gate, leaf = case
    builder = two_nodes(Scripted(), asynchronous=asynchronous)

    run(builder, traced, Budget(calls=1), asynchronous=asynchronous, on_trip=on_trip, gate=gate)

    for name in (leaf, "agent"):
        told = tripped(langsmith.store, name)
        assert told["runguard_trip"] == "budget exhausted at 'write': 1 of 1 calls spent"
        assert (told["runguard_label"], told["runguard_limit"], told["runguard_spent"]) == ("write", 1, 1)
        assert (told["runguard_mode"], told["thread_id"]) == (on_trip, "t1")
    assert all("secret" not in json.dumps(one["extra"]["metadata"]) for one in langsmith.store.runs.values())
    tagged = [one["name"] for one in langsmith.store.runs.values() if "runguard_trip" in one["tags"]]
    assert sorted(tagged) == sorted(["agent", leaf])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_refused_call_ends_as_an_error_of_its_own(langsmith, traced, asynchronous):
    """LangChain begins the run of a call before anybody can refuse it; it is ended, and not left pending for ever."""
    builder = two_nodes(Scripted(), asynchronous=asynchronous)

    run(builder, traced, Budget(usd="0.00025"), asynchronous=asynchronous)

    refused = langsmith.store.named("Scripted")[-1]
    assert tripped(langsmith.store, "Scripted")["runguard_spent"] == "0.00021"
    assert refused["error"].startswith("BudgetExceeded")
    assert not refused.get("outputs")
    assert all(one.get("end_time") for one in langsmith.store.runs.values())
    assert [bool(one.get("error")) for one in langsmith.store.named("agent")] == [False]


@pytest.mark.parametrize("between", [0, 2])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_trip_under_traced_functions_is_on_their_root(langsmith, traced, between, asynchronous):
    """A graph called from traced functions is in their trace, whose root is told, however far away it is."""
    builder = two_nodes(Scripted(), asynchronous=asynchronous)
    graph = guard(builder, Budget(calls=1), nodes=["plan", "write"]).compile(name="agent")

    @traceable
    def request(depth: int) -> None:
        if depth < between:
            request(depth + 1)
        else:
            graph.invoke({"messages": [("user", "q")]})

    @traceable(name="request")
    async def arequest(depth: int) -> None:
        if depth < between:
            await arequest(depth + 1)
        else:
            await graph.ainvoke({"messages": [("user", "q")]})

    with traced():
        asyncio.run(arequest(0)) if asynchronous else request(0)

    root, *others = langsmith.store.named("request")
    assert root["tags"] == ["runguard_trip"]
    assert len(others) == between
    tripped(langsmith.store, "write.budget")


def test_a_trip_that_leads_to_a_node_is_told_once(langsmith, traced):
    """With on_trip=to(...), the graph goes on, and its root still says what happened."""
    builder = two_nodes(Scripted(), asynchronous=False)
    builder.add_node("summary", lambda state: {"messages": [AIMessage("short")]})
    builder.add_edge("write", END)

    run(builder, traced, Budget(calls=1), asynchronous=False, on_trip=to("summary"))

    assert tripped(langsmith.store, "agent")["runguard_mode"] == "to:summary"


def test_without_a_trip_there_is_no_tag(langsmith, traced):
    """Runs within their budget are tagged with nothing."""
    run(two_nodes(Scripted(), asynchronous=False), traced, Budget(calls=5), asynchronous=False)

    assert not any("runguard_trip" in one["tags"] for one in langsmith.store.runs.values())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", [Scripted, Streaming], ids=["invoke", "stream"])
def test_langsmiths_total_is_the_ledgers(langsmith, client, traced, asynchronous, kind):
    """The cost of each call is what the meter charged, so the root's total is what the ledger says."""
    langsmith.store.prices["gpt-4o-mini"] = (99.0, 99.0)  # the server's own, which must not count
    ledger = run(two_nodes(kind(), asynchronous=asynchronous), traced, Budget(calls=5), asynchronous=asynchronous)

    (total,) = [one.total_cost for one in query(client, is_root=True)]
    assert Decimal(str(total)) == ledger.total().usd == 2 * ONE_CALL


def query(client: sdk.Client, **asked: object) -> list[sdk.types.Run]:
    """Give the runs of the last day that a query finds, with the cost of what is below them."""
    project = str(client.read_project(project_name="tests").id)
    with sdk.Langsmith(base_url=client.api_url, api_key="key-of-the-tests") as api:
        return list(
            api.runs.query(
                project_ids=[project],
                selects=["NAME", "TOTAL_COST", "TAGS", "METADATA"],
                min_start_time=dt.datetime.now(dt.UTC) - dt.timedelta(days=1),
                include_subtree_usage=True,
                **asked,
            )
        )


def test_own_prices_are_what_langsmith_shows(langsmith, client, traced):
    """A model that only the user's price book knows has its cost in LangSmith too, split into input and output."""
    prices = PriceBook().add("house-model", input_usd="1.00", output_usd="10.00")

    ledger = run(
        two_nodes(Scripted(model_name="house-model"), asynchronous=False),
        traced,
        Budget(calls=5),
        asynchronous=False,
        prices=prices,
    )

    usage = langsmith.store.named("Scripted")[0]["extra"]["metadata"]["usage_metadata"]
    assert (usage["input_cost"], usage["output_cost"], usage["total_cost"]) == (0.001, 0.001, 0.002)
    assert usage["input_tokens"] == 1_000
    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd


def test_an_estimate_is_told_and_marked(langsmith, client, traced):
    """A provider that says nothing of its usage leaves no cost of its own; the estimate is there, marked as one."""
    ledger = run(two_nodes(Scripted(usage=None), asynchronous=False), traced, Budget(calls=5), asynchronous=False)

    assert langsmith.store.named("Scripted")[0]["extra"]["metadata"]["runguard_estimated"] is True
    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd


def test_a_cached_answer_costs_nothing(langsmith, client, traced):
    """An answer out of LangChain's cache repeats its usage; LangSmith is told that it was free."""
    langsmith.store.prices["gpt-4o-mini"] = (1.0, 1.0)
    model = Scripted(cache=InMemoryCache())

    @traceable
    def request() -> None:
        graph.invoke({"messages": [("user", "q")]})
        graph.invoke({"messages": [("user", "q")]})

    builder = StateGraph(MessagesState)
    builder.add_node("plan", lambda state: {"messages": [model.invoke("the same")]})
    builder.add_edge(START, "plan")
    ledger = MemoryLedger()
    graph = guard(builder, Budget(calls=5), nodes=["plan"], ledger=ledger).compile()
    with traced():
        request()

    assert model.billed == 1
    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd == ONE_CALL


@pytest.mark.parametrize("nested", [False, True], ids=["in the node", "in a traceable"])
def test_a_charge_is_on_the_run_that_made_it(langsmith, client, traced, nested):
    """A paid tool's cost is in LangSmith's total, on the innermost run at hand."""

    def pay() -> None:
        charge(usd="0.01")
        charge(usd="0.02")

    def node(state: MessagesState) -> dict[str, list[AIMessage]]:
        (traceable(name="search")(pay) if nested else pay)()
        return {"messages": []}

    builder = StateGraph(MessagesState)
    builder.add_node("plan", node)
    builder.add_edge(START, "plan")
    ledger = MemoryLedger()
    graph = guard(builder, Budget(usd=1), nodes=["plan"], ledger=ledger).compile()
    with traced():
        graph.invoke({"messages": [("user", "q")]})

    payer = langsmith.store.named("search" if nested else "plan")[0]
    assert payer["extra"]["metadata"]["usage_metadata"]["total_cost"] == 0.03
    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd == Decimal("0.03")


def test_all_trips_of_the_last_day_are_one_query(langsmith, client, traced):
    """The documented query finds the tagged roots, and nothing that ran within its budget."""
    for calls in (1, 5):
        run(two_nodes(Scripted(), asynchronous=False), traced, Budget(calls=calls), asynchronous=False)

    (found,) = query(client, filter='has(tags, "runguard_trip")', is_root=True)

    assert found.name == "agent"
    assert found.metadata["runguard_label"] == "write"


@pytest.mark.parametrize("situation", ["429", "500", "slow", "sampled out", "off"])
def test_tracing_changes_nothing_about_the_budget(langsmith, situation):
    """With the server refusing, failing or slow, with nothing sampled and with tracing off, the same calls are made."""
    model, ledger = Scripted(), MemoryLedger()
    graph = guard(
        two_nodes(model, asynchronous=False), Budget(calls=1), nodes=["plan", "write"], ledger=ledger
    ).compile()
    langsmith.latency = 0.2 if situation == "slow" else 0.0
    if situation.isdigit():
        langsmith.fail(int(situation), "/runs")
    client = langsmith.client(tracing_sampling_rate=0.0 if situation == "sampled out" else None)

    with tracing_context(enabled=situation != "off", client=client):
        end = graph.invoke({"messages": [("user", "q")]})
    langsmith.latency = 0.0

    assert (model.billed, ledger.total().calls, len(end["messages"])) == (1, 1, 3)


def test_a_durable_ledger_and_tracing_agree(langsmith, client, traced, tmp_path):
    """The total is the same with money kept in a file."""
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    graph = guard(two_nodes(Scripted(), asynchronous=False), Budget(calls=5), nodes=["plan", "write"], ledger=ledger)
    with traced():
        graph.compile().invoke({"messages": [("user", "q")]})

    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_call_that_failed_costs_in_langsmith_what_it_costs_here(langsmith, client, traced, asynchronous):
    """A call that may have been billed is charged at its worst case, and so it is in LangSmith's total."""
    model = Scripted(script=["fine", RuntimeError("the line went dead")])
    builder = two_nodes(model, asynchronous=asynchronous)
    ledger = MemoryLedger()
    graph = guard(builder, Budget(usd=1), nodes=["plan", "write"], ledger=ledger).compile()
    given = {"messages": [("user", "q")]}

    with traced(), pytest.raises(RuntimeError, match="dead"):
        asyncio.run(graph.ainvoke(given)) if asynchronous else graph.invoke(given)

    assert ledger.total().calls == 2
    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd


def test_the_money_of_a_guarded_function_is_langsmiths_total(langsmith, client, traced):
    """Models called outside of any graph, under a guard with max_usd, cost in LangSmith what the guard has counted."""
    model, ledger = Scripted(), MemoryLedger(wait=0)
    usd = Decimal(3 * NANOUSD_PER_CALL) / 10**9
    turns = RecursiveTraceGuard(max_usd=usd, ledger=ledger)

    @guarded_traceable(turns, name="turn")
    def turn() -> str:
        model.invoke("x" * 1_000)
        return turn()

    with traced(), suppress(AgentBudgetError):
        turn()

    assert Decimal(str(query(client, is_root=True)[0].total_cost)) == ledger.total().usd <= usd
    assert all(one.get("end_time") for one in langsmith.store.runs.values())
    assert tripped(langsmith.store, "Scripted")["runguard_metric"] == "usd"
