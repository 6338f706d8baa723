"""Money that went missing or was overspent once, in small graphs of a kind that people write."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, RetryPolicy

from graphguard import Budget, BudgetExceeded, MemoryLedger, Spend, guard
from tests.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable

T: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ada"}}
GATES = ["node", "inline"]


def looping(node: object, steps: int, **how: Any) -> StateGraph:
    """A graph of one node `work` that runs until the conversation has so many messages."""
    builder = StateGraph(MessagesState)
    builder.add_node("work", node, **how)
    builder.add_edge(START, "work")
    builder.add_conditional_edges("work", lambda state: "work" if len(state["messages"]) < steps else END)
    return builder


def calling(model: Scripted) -> Callable[[MessagesState], MessagesState]:
    """A node that calls the model once."""
    return lambda _: {"messages": [model.invoke("q")]}


def inside(graph: Any, way: str) -> object:
    """A graph as a node, or a node that calls it."""

    def work(state: MessagesState) -> object:
        return graph.invoke(state)

    return graph if way == "node" else work


# A node that returns what LangGraph is to run


@pytest.fixture(params=["chain", "graph", "async"])
def returning(request: pytest.FixtureRequest) -> tuple[Scripted, object]:
    """A model, and a node that returns a runnable which calls it."""
    model = Scripted()
    chain = RunnableLambda(lambda state: state["messages"]) | model | RunnableLambda(lambda said: {"messages": [said]})
    inner = looping(calling(model), 2).compile()

    async def later(_: MessagesState) -> object:
        return chain

    return model, {"chain": lambda _: chain, "graph": lambda _: inner, "async": later}[request.param]


@pytest.mark.parametrize("gate", GATES)
def test_a_returned_runnable_is_held(gate: str, returning: tuple[Scripted, object]) -> None:
    """What a node returns for LangGraph to run spends from the budgets, and stops with them."""
    model, node = returning
    graph = guard(looping(node, 9), Budget(calls=3), gate=gate, nodes=["work"], ledger=MemoryLedger())
    compiled = graph.compile(checkpointer=InMemorySaver())
    asyncio.run(compiled.ainvoke({"messages": "q"}, T))
    assert (model.billed, Spend.of(compiled.get_state(T)).calls) == (3, 3)


@pytest.mark.parametrize("gate", GATES)
def test_a_returned_runnable_can_ask(gate: str, returning: tuple[Scripted, object]) -> None:
    """A trip inside of it is asked about as any other, and the answer goes on."""
    model, node = returning
    graph = guard(looping(node, 9), Budget(calls=3), gate=gate, nodes=["work"], on_trip="interrupt")
    compiled = graph.compile(checkpointer=InMemorySaver())
    assert "__interrupt__" in asyncio.run(compiled.ainvoke({"messages": "q"}, T))
    asyncio.run(compiled.ainvoke(Command(resume={"add_calls": 2}), T))
    assert (model.billed, Spend.of(compiled.get_state(T)).calls) == (5, 5)


def test_a_refused_returned_runnable_is_not_tried_again() -> None:
    """A retry policy of the node doesn't take the refusal for a failure."""
    model = Scripted()
    node = RunnableLambda(lambda _: {"messages": [model.invoke("q"), model.invoke("q")]})
    graph = guard(looping(lambda _: node, 9, retry_policy=RetryPolicy()), Budget(calls=1), ledger=MemoryLedger())
    assert graph.compile().invoke({"messages": "q"})["messages"][-1].content.startswith("I stopped here")
    assert model.billed == 1


# Task groups


def grouped(model: Scripted, calls: int) -> Callable[[MessagesState], Any]:
    """A node that calls the model so often at once, in a task group."""

    async def work(_: MessagesState) -> MessagesState:
        async with asyncio.TaskGroup() as group:
            said = [group.create_task(model.ainvoke("q")) for _ in range(calls)]
        return {"messages": [task.result() for task in said]}

    return work


async def test_a_refusal_in_a_task_group_ends_the_graph() -> None:
    """The exception group around a refusal is the refusal."""
    model = Scripted()
    graph = guard(looping(grouped(model, 4), 2), Budget(calls=3), ledger=MemoryLedger())
    compiled = graph.compile(checkpointer=InMemorySaver())
    done = await compiled.ainvoke({"messages": "q"}, T)
    assert done["messages"][-1].content.startswith("I stopped here")
    assert Spend.of(compiled.get_state(T)).calls == model.billed == 3


async def test_a_group_of_another_guards_refusals_reaches_it() -> None:
    """What an outer guard refused in a task group inside is raised as its refusal, and no retry takes it."""
    model, ledger = Scripted(), MemoryLedger()
    inner = guard(looping(grouped(model, 4), 2, retry_policy=RetryPolicy()), Budget(calls=9), ledger=ledger).compile()

    async def outside(state: MessagesState) -> MessagesState:
        return await inner.ainvoke(state)

    graph = guard(looping(outside, 2), Budget(calls=3, per="run"), ledger=ledger, on_trip="raise").compile()
    with pytest.raises(BudgetExceeded, match="3 of 3 calls"):
        await graph.ainvoke({"messages": "q"})
    assert model.billed == 3


async def test_a_group_with_an_error_of_the_users_stays_one() -> None:
    """A task group that failed for another reason too is raised as it is."""

    async def fails() -> None:
        msg = "theirs"
        raise LookupError(msg)

    model = Scripted()

    async def work(_: MessagesState) -> None:
        said = await asyncio.gather(model.ainvoke("q"), model.ainvoke("q"), fails(), return_exceptions=True)
        msg = "both"
        raise ExceptionGroup(msg, [error for error in said if isinstance(error, Exception)])

    graph = guard(looping(work, 2), Budget(calls=1), ledger=MemoryLedger()).compile()
    with pytest.raises(ExceptionGroup, match="both") as raised:
        await graph.ainvoke({"messages": "q"})
    assert raised.value.subgroup(LookupError) is not None


# Commands for the graph around


@pytest.mark.parametrize("way", ["node", "call"])
@pytest.mark.parametrize("gate", GATES)
def test_a_command_for_the_parent_brings_its_charges(gate: str, way: str) -> None:
    """What a graph inside spent before it handed over to its parent is in the state, also if the run ends there."""
    model = Scripted()

    def over(_: MessagesState) -> Command[str]:
        return Command(graph=Command.PARENT, goto=END, update={"messages": [model.invoke("q")]})

    builder = StateGraph(MessagesState)
    builder.add_node("over", over, destinations=())
    builder.add_edge(START, "over")
    inner = builder.compile()
    graph = guard(looping(inside(inner, way), 2), Budget(calls=3), gate=gate)
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"messages": "q"}, T)
    assert Spend.of(compiled.get_state(T)).calls == model.billed == 1


# Guards in guards


def team(model: Scripted, inner: object) -> StateGraph:
    """A node that calls a model, and then an agent."""
    builder = StateGraph(MessagesState)
    builder.add_node("own", calling(model))
    builder.add_node("agent", inner)
    builder.add_edge(START, "own")
    builder.add_edge("own", "agent")
    return builder


@pytest.mark.parametrize("way", ["node", "call"])
@pytest.mark.parametrize("chosen", [True, False])
def test_a_guarded_agent_inside_spends_from_the_outer_ledger(way: str, chosen: bool) -> None:
    """Calls in a guarded graph inside are held in the ledger of the guard around, whatever its own one is."""
    model, ledger = Scripted(), MemoryLedger()
    inner = guard(looping(calling(model), 8), Budget(calls=9), ledger=MemoryLedger() if chosen else None).compile()
    outer = team(model, inside(inner, way))
    graph = guard(outer, Budget(calls=4, per="user_id"), ledger=ledger).compile(checkpointer=InMemorySaver())
    graph.invoke({"messages": "q"}, T)
    assert ledger.total(scope="user_id:ada").calls == model.billed == 4


@pytest.mark.xfail(
    strict=True,
    reason="the outer guard was given no ledger and the inner one was: what the outer one's own nodes spend is held "
    "in one, and what happens inside in the other; one ledger would have to be chosen for the whole run",
)
def test_an_outer_guard_without_a_ledger_keeps_its_budget() -> None:
    """A guard that was given no ledger keeps its budget around one that was."""
    model, user = Scripted(), uuid.uuid4().hex
    inner = guard(looping(calling(model), 8), Budget(calls=9), ledger=MemoryLedger()).compile()
    graph = guard(team(model, inner), Budget(calls=4, per="user_id")).compile()
    graph.invoke({"messages": "q"}, {"configurable": {"user_id": user}})
    assert model.billed == 4


@pytest.mark.xfail(
    strict=True,
    reason="a call is held in one ledger, that of the outermost guard which was given any; to keep both, it would "
    "have to be held in each, under rules for two ledgers on the same file",
)
def test_both_ledgers_know_a_call_in_both_guards() -> None:
    """A user's budget in an inner guard's ledger counts what the user spends in there, also inside another guard."""
    model, ledger = Scripted(), MemoryLedger()
    inner = guard(looping(calling(model), 4), Budget(calls=9, per="user_id"), ledger=ledger).compile()
    guard(team(model, inner), Budget(calls=9), ledger=MemoryLedger()).compile().invoke({"messages": "q"}, T)
    assert ledger.total(scope="user_id:ada").calls == model.billed - 1


def test_equal_budgets_of_two_guards_are_told_apart() -> None:
    """A refusal for an outer guard's budget is for that guard, also if the inner one has an equal budget."""
    model, ledger, after = Scripted(), MemoryLedger(), []
    inner = guard(looping(calling(model), 99), Budget(calls=3), ledger=ledger).compile()
    builder = team(model, lambda _: inner.invoke({"messages": "q"}))
    builder.add_node("after", lambda _: after.append(True))
    builder.add_edge("agent", "after")
    graph = guard(builder, Budget(calls=3), ledger=ledger, on_trip="raise").compile()
    with pytest.raises(BudgetExceeded):
        graph.invoke({"messages": "q"})
    assert (model.billed, after) == (3, [])


# What a call may send, and what it may have cost


def test_blocks_that_change_in_place_are_counted_anew() -> None:
    """A message whose content blocks grew since the last call is not taken for the one that was sent then."""
    message = HumanMessage([{"type": "text", "text": "short"}])
    model = Scripted(usage=(1_000, 10), max_tokens=10)

    def work(_: MessagesState) -> MessagesState:
        answer = model.invoke([message])
        message.content.append({"type": "text", "text": "long " * 20_000})
        return {"messages": [answer]}

    guard(looping(work, 5), Budget(input_tokens=10_000), ledger=MemoryLedger()).compile().invoke({"messages": "q"})
    assert model.billed == 1


def test_other_tools_of_the_same_size_are_counted_anew() -> None:
    """What a provider told of a prompt says nothing of one with other tools, even if these are as long."""
    model = Scripted(usage=(3_000, 10), max_tokens=10)
    texts = iter(["a" * 40_000, "b" * 40_000])

    def work(_: MessagesState) -> MessagesState:
        tool = {"type": "function", "function": {"name": "t", "description": next(texts), "parameters": {}}}
        return {"messages": [model.bind_tools([tool]).invoke("q")]}

    graph = guard(looping(work, 3), Budget(input_tokens=43_000), ledger=MemoryLedger()).compile()
    graph.invoke({"messages": "q"})
    assert model.billed == 1


@pytest.mark.parametrize(
    "bound",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": "b" * 9_000}}}}},
        {"text": {"format": {"type": "json_schema", "schema": {"properties": {"a": "b" * 9_000}}}}},
        {"generation_config": {"response_schema": {"properties": {"a": "b" * 9_000}}}},
    ],
)
def test_the_schema_of_an_answer_is_held(bound: dict[str, object]) -> None:
    """What the answer must look like is sent and billed as input, so it counts before the call."""
    model = Scripted(usage=(5_000, 10), max_tokens=10)
    graph = looping(lambda _: {"messages": [model.invoke("q", **bound)]}, 2)
    guard(graph, Budget(input_tokens=4_000), ledger=MemoryLedger()).compile().invoke({"messages": "q"})
    assert model.billed == 0


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_call_made_while_another_failure_is_handled_is_charged(way: str) -> None:
    """A fallback called in an `except` block is charged if it may have been billed, whatever the first one raised."""

    class RateLimited(Exception):
        status_code = 429

    first, second = Scripted(script=[RateLimited()]), Scripted(script=[TimeoutError()])
    ledger = MemoryLedger()

    def work(_: MessagesState) -> None:
        try:
            first.invoke("q")
        except RateLimited:
            with pytest.raises(TimeoutError):
                second.invoke("q")

    async def awork(_: MessagesState) -> None:
        try:
            await first.ainvoke("q")
        except RateLimited:
            with pytest.raises(TimeoutError):
                await second.ainvoke("q")

    graph = guard(looping(work if way == "sync" else awork, 0), Budget(calls=5), ledger=ledger).compile()
    await graph.ainvoke({"messages": "q"}, T)
    assert ledger.total(thread="t").calls == 1


@pytest.mark.xfail(
    strict=True,
    reason="LangChain starts all prompts of a batch one after the other and sends them together: a refusal of the "
    "third leaves the holds of the first two, which are charged when the node ends though nothing was sent",
)
def test_a_batch_that_was_never_sent_costs_nothing() -> None:
    """A batch of a plain LLM that is refused as a whole is not charged for the prompts that had room."""
    ledger, model = MemoryLedger(), FakeListLLM(responses=["a"])

    def work(_: MessagesState) -> None:
        with pytest.raises(BudgetExceeded):
            model.batch(["q"] * 4)

    guard(looping(work, 0), Budget(calls=2), ledger=ledger).compile().invoke({"messages": "q"}, T)
    assert ledger.total(thread="t").calls == 0


@pytest.mark.xfail(
    strict=True,
    reason="what a node leaves running goes on with the state of the superstep that started it, so a branch or run "
    "budget doesn't see what later supersteps spend; budgets per thread or key do",
)
async def test_what_a_node_leaves_running_spends_from_the_same_budget() -> None:
    """A task that a node starts and doesn't wait for can't spend more than the budget has by then."""
    model, gone_on, left = Scripted(), asyncio.Event(), []

    async def background() -> None:
        await gone_on.wait()
        for _ in range(3):
            await model.ainvoke("q")

    async def work(state: MessagesState) -> MessagesState:
        if len(state["messages"]) == 1:
            left.append(asyncio.create_task(background()))
        answer = await model.ainvoke("q")
        if len(state["messages"]) == 4:
            gone_on.set()
            await asyncio.wait(left)
        return {"messages": [answer]}

    await guard(looping(work, 9), Budget(calls=4), ledger=MemoryLedger()).compile().ainvoke({"messages": "q"})
    assert model.billed == 4
