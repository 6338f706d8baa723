"""`guard` around an `@entrypoint`: held call by call, told once, tripping by exception or question."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import EphemeralValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import CachePolicy, Command, RetryPolicy, interrupt
from typing_extensions import TypedDict

from graphguard import (
    Budget,
    BudgetExceeded,
    InvalidBudget,
    MemoryLedger,
    NotGuardable,
    Spend,
    Trip,
    UnknownNode,
    UnknownPrice,
    guard,
    model_nodes,
    remaining,
    to,
    top_up,
)
from tests.conftest import thread
from tests.scripted import Scripted

CONFIG = thread("t")
over_modes = pytest.mark.parametrize("mode", ["sync", "async"])


def flow(model: Scripted, mode: str, saver: Any = None, *, tasks: int = 3, ask: bool = False, **options: Any) -> Any:
    """Give a workflow of some tasks side by side, one call of its own, and a count of its runs in `previous`."""
    if mode == "sync":

        @task(**options)
        def say(n: int) -> str:
            return str(model.invoke(f"{n}").content)

        @entrypoint(checkpointer=saver)
        def story(given: str, *, previous: int | None = None) -> Any:
            told = [part.result() for part in [say(n) for n in range(tasks)]]
            if ask:
                told.append(interrupt("well?"))
            told.append(str(model.invoke("the end").content))
            return entrypoint.final(value=(previous, told), save=(previous or 0) + 1)

        return story

    @task(**options)
    async def asay(n: int) -> str:
        return str((await model.ainvoke(f"{n}")).content)

    @entrypoint(checkpointer=saver)
    async def astory(given: str, *, previous: int | None = None) -> Any:
        told = [await part for part in [asay(n) for n in range(tasks)]]
        if ask:
            told.append(interrupt("well?"))
        told.append(str((await model.ainvoke("the end")).content))
        return entrypoint.final(value=(previous, told), save=(previous or 0) + 1)

    return astory


async def run(graph: Any, mode: str, given: Any = "go") -> Any:
    """Run it once."""
    return graph.invoke(given, CONFIG) if mode == "sync" else await graph.ainvoke(given, CONFIG)


def state(saver: Any) -> dict[str, Any]:
    """Give what the thread's latest checkpoint holds."""
    return dict(saver.get_tuple(CONFIG).checkpoint["channel_values"])


@over_modes
async def test_outputs_and_previous_stay(mode):
    """With room for all calls, results, `previous`, streams and the type are those of the bare workflow."""
    seen = []
    for guarded in (False, True):
        graph = flow(Scripted(), mode, InMemorySaver())
        graph = guard(graph, Budget(calls=99), ledger=MemoryLedger()) if guarded else graph
        outputs = [await run(graph, mode) for _ in range(2)]
        streamed = [chunk async for chunk in graph.astream("go", CONFIG, stream_mode=["updates", "values"])]
        assert type(graph) is Pregel
        seen.append((outputs, streamed, (await graph.aget_state(CONFIG)).values))

    assert seen[0] == seen[1]
    assert [previous for previous, _ in seen[0][0]] == [None, 1]


@over_modes
async def test_every_call_is_told_once(mode):
    """Calls of the workflow and of its tasks are each charged once, to the ledger and to the thread's checkpoints."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()
    graph = guard(flow(model, mode, saver), Budget(calls=99), ledger=ledger)

    for runs in (1, 2):
        await run(graph, mode)

        assert model.billed == ledger.total().calls == Spend.of(state(saver)).calls == 4 * runs
        assert Spend.of_run(state(saver)).calls == 4


@over_modes
@pytest.mark.parametrize("on_trip", ["end", "raise"])
@pytest.mark.parametrize("per", ["branch", "run", "thread"])
async def test_it_raises_before_a_call_too_many(per, on_trip, mode):
    """No more calls are made than are paid for, tasks side by side included, and the exception says why."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger(wait=5)
    graph = guard(flow(model, mode, saver, tasks=6), Budget(calls=4, per=per), on_trip=on_trip, ledger=ledger)

    with pytest.raises(BudgetExceeded, match="4 of 4 calls") as caught:
        await run(graph, mode)

    assert caught.value.trip.budget == f"calls=4 per {per}"
    assert model.billed == ledger.total().calls == 4
    assert ledger.open_holds() == ()


@over_modes
async def test_a_run_budget_begins_anew_with_each_input(mode):
    """A budget per run has room again at the next input; one per branch has not."""
    saver, model = InMemorySaver(), Scripted()
    graph = guard(flow(model, mode, saver), Budget(calls=4, per="run"), Budget(calls=11), ledger=MemoryLedger())

    await run(graph, mode)
    await run(graph, mode)
    with pytest.raises(BudgetExceeded, match="11 of 11"):
        await run(graph, mode)

    assert model.billed == 11


@over_modes
async def test_a_person_is_asked_and_finished_tasks_are_not_paid_again(mode):
    """In interrupt mode the workflow waits; after the answer only what is missing is called."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger(wait=5)
    graph = guard(flow(model, mode, saver), Budget(calls=2), on_trip="interrupt", ledger=ledger)

    asked = await run(graph, mode)
    assert asked["__interrupt__"][0].value["kind"] == "graphguard.budget"
    assert model.billed == 2
    _, told = await run(graph, mode, Command(resume={"new_limit_calls": 9}))

    assert told == ["ok"] * 4
    assert model.billed == ledger.total().calls == Spend.of(state(saver)).calls == 4


def test_top_up_answers_the_question():
    """`top_up` works as on any graph that asks."""
    saver, model = InMemorySaver(), Scripted()
    graph = guard(flow(model, "sync", saver), Budget(calls=2), on_trip="interrupt", ledger=MemoryLedger(wait=5))
    graph.invoke("go", CONFIG)
    trip = Trip.of(graph.get_state(CONFIG))
    assert trip is not None
    assert trip.spent == 2

    top_up(graph, CONFIG, calls=5)

    assert model.billed == 4


def test_a_person_who_says_stop_gets_the_exception():
    """A rejected question ends the run with the trip as its exception."""
    saver, model = InMemorySaver(), Scripted()
    graph = guard(flow(model, "sync", saver), Budget(calls=2), on_trip="interrupt", ledger=MemoryLedger(wait=5))
    graph.invoke("go", CONFIG)

    with pytest.raises(BudgetExceeded) as caught:
        graph.invoke(Command(resume="stop"), CONFIG)

    assert caught.value.trip.answer == "stopped"
    assert model.billed == 2


@over_modes
@pytest.mark.parametrize("process", ["the same", "another"])
async def test_tasks_are_charged_once_across_the_users_own_question(process, mode):
    """A workflow that asks a person itself goes on, here or in another process, without charging its tasks again."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()
    graph = guard(flow(model, mode, saver, ask=True), Budget(calls=4), ledger=ledger)

    await run(graph, mode)
    assert model.billed == 3
    if process == "another":  # which has seen nothing of this, and no ledger either
        ledger = MemoryLedger()
        graph = guard(flow(model, mode, saver, ask=True), Budget(calls=4), ledger=ledger)
    _, told = await run(graph, mode, Command(resume="yes"))

    assert told == ["ok", "ok", "ok", "yes", "ok"]
    assert model.billed == Spend.of(state(saver)).calls == 4


@over_modes
@pytest.mark.parametrize("per", ["branch", "run", "thread"])
@pytest.mark.parametrize("narrowed", [False, True])
async def test_another_process_knows_what_the_finished_tasks_spent(narrowed, per, mode):
    """With nothing but the checkpoints to go by, a workflow that goes on has no room that its tasks used up."""
    saver, model, budget = (
        InMemorySaver(),
        Scripted(),
        Budget(calls=3, per=per, model="gpt-4o-mini" if narrowed else None),
    )
    await run(guard(flow(model, mode, saver, ask=True), budget, ledger=MemoryLedger()), mode)

    with pytest.raises(BudgetExceeded, match="3 of 3"):
        await run(guard(flow(model, mode, saver, ask=True), budget, ledger=MemoryLedger()), mode, Command(resume="yes"))

    assert model.billed == 3


@over_modes
async def test_a_replay_charges_what_it_pays(mode):
    """Run again from the checkpoint before it, a workflow's tasks are called again, and charged again in the ledger."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()
    graph = guard(flow(model, mode, saver), Budget(calls=99), ledger=ledger)
    await run(graph, mode)
    first = [snapshot async for snapshot in graph.aget_state_history(CONFIG)][-1]

    if mode == "sync":
        graph.invoke(None, first.config)
    else:
        await graph.ainvoke(None, first.config)

    assert model.billed == ledger.total().calls
    assert Spend.of(state(saver)).calls == 4


@over_modes
async def test_each_attempt_of_a_retried_task_counts(mode):
    """A task that pays, fails and is tried again is charged for both attempts."""
    saver, ledger = InMemorySaver(), MemoryLedger()
    model = Scripted(script=[ValueError("a slip"), "ok"])
    policy = RetryPolicy(initial_interval=0.001, jitter=False, retry_on=ValueError)
    graph = guard(flow(model, mode, saver, tasks=1, retry_policy=policy), Budget(calls=9), ledger=ledger)

    await run(graph, mode)

    assert model.billed == ledger.total().calls == Spend.of(state(saver)).calls == 3


def test_a_cached_task_costs_nothing():
    """A result that comes out of a task's cache charges nothing, in this run or the next."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()

    @task(cache_policy=CachePolicy())
    def say(n: int) -> str:
        return str(model.invoke(f"{n}").content)

    @entrypoint(checkpointer=saver, cache=InMemoryCache())
    def story(given: str) -> list[str]:
        return [say(1).result(), say(1).result()]

    graph = guard(story, Budget(calls=9), ledger=ledger)
    for _ in range(2):
        graph.invoke("go", CONFIG)

    assert Spend.of(state(saver)).calls == ledger.total().calls == model.billed


def test_tasks_started_by_tasks_count():
    """A task within a task has its own door, and the workflow's budget."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()

    @task
    def inner() -> str:
        return str(model.invoke("in").content)

    @task
    def outer() -> str:
        return inner().result() + str(model.invoke("out").content)

    @entrypoint(checkpointer=saver)
    def story(given: str) -> Any:
        return outer().result(), remaining().calls

    graph = guard(story, Budget(calls=9), ledger=ledger)

    assert graph.invoke("go", CONFIG) == ("okok", 7)
    assert model.billed == ledger.total().calls == Spend.of(state(saver)).calls == 2


def test_budgets_can_be_narrowed_to_a_task():
    """`Budget(node=...)` may name a task."""
    saver, model = InMemorySaver(), Scripted()
    graph = guard(flow(model, "sync", saver), Budget(calls=2, node="say"), ledger=MemoryLedger())

    with pytest.raises(BudgetExceeded, match="2 of 2 calls"):
        graph.invoke("go", CONFIG)


def test_state_lives_in_a_sqlite_file(tmp_path):
    """The two fields are plain JSON, so any checkpointer keeps them."""
    with SqliteSaver.from_conn_string(str(tmp_path / "c.sqlite")) as saver:
        graph = guard(flow(Scripted(), "sync", saver), Budget(calls=9), ledger=MemoryLedger())
        graph.invoke("go", CONFIG)

        assert Spend.of(state(saver)).calls == 4


def test_guards_compose_and_leave_the_workflow_alone():
    """A guard around a guard counts once and keeps both budgets; the workflow given stays as it was."""
    saver, model, ledger = InMemorySaver(), Scripted(), MemoryLedger()
    bare = flow(model, "sync", saver)
    nodes, channels = dict(bare.nodes), dict(bare.channels)
    graph = guard(guard(bare, Budget(calls=5), ledger=ledger), Budget(calls=9))

    graph.invoke("go", CONFIG)
    assert ledger.total().calls == Spend.of(state(saver)).calls == 4
    with pytest.raises(BudgetExceeded, match="5 of 5"):
        graph.invoke("go", CONFIG)

    assert (bare.nodes, bare.channels) == (nodes, channels)
    assert model.billed == 5


def test_a_workflow_in_a_node_of_a_guarded_graph_counts_once():
    """Called in a node, a guarded workflow spends its own budget and the graph's."""
    model, ledger = Scripted(), MemoryLedger()
    inner = guard(flow(model, "sync"), Budget(calls=9), ledger=ledger)

    class Told(TypedDict):
        told: list[str]

    builder = StateGraph(Told)
    builder.add_node("ask", lambda _: {"told": inner.invoke("go")[1]})
    builder.add_edge(START, "ask")
    graph = guard(builder, Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())
    graph.invoke({"told": []}, CONFIG)

    assert model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 4


def test_model_nodes_shows_the_workflow():
    """There is no gate in a workflow, and that is said."""
    shown = model_nodes(flow(Scripted(), "sync"))

    assert {(node.gate, node.found) for node in shown.values()} == {("inside", "is an @entrypoint")}


@pytest.mark.parametrize(
    ("options", "error"), [({"on_trip": to("x")}, InvalidBudget), ({"nodes": ["x"]}, UnknownNode)], ids=["to", "nodes"]
)
def test_misuse_is_found_when_it_is_guarded(options, error):
    """What a workflow can't have is said at once."""
    with pytest.raises(error):
        guard(flow(Scripted(), "sync"), Budget(calls=2), **options)


def test_unknown_price_is_found_where_it_can_be_seen():
    """A USD budget and a model without a price, called by the workflow itself, don't go together."""
    with pytest.raises(UnknownPrice):
        guard(flow(Scripted(model_name="nobody-knows-me"), "sync"), Budget(usd=1))


def test_a_raw_pregel_is_still_a_type_error():
    """Only what `@entrypoint` made is taken."""
    node = NodeBuilder().subscribe_only("a").do(lambda x: x).write_to("b")

    raw = Pregel(
        nodes={"n": node},
        channels={"a": EphemeralValue(str), "b": EphemeralValue(str)},
        input_channels=["a"],
        output_channels=["b"],
    )

    with pytest.raises(NotGuardable, match="@entrypoint"):
        guard(raw, Budget(calls=1))
