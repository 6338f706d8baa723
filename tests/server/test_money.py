"""Real money on a real `langgraph dev`: whatever the server does to runs and threads, what was billed stays spent."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk import get_client

from graphguard import Budget, SqliteLedger, Trip, charge, guard
from tests.server.provider import PATIENCE, Provider
from tests.server.serving import dev_server

FILE = Path(__file__).with_name("money_graphs.py")
GRAPHS = ("of_thread", "of_team", "of_assistant", "raising", "of_run", "asking", "paying", "two_steps")
CONFIG = {
    "dependencies": ["."],
    "graphs": {name: f"{FILE}:{name}" for name in GRAPHS},
    "webhooks": {"url": {"disable_loopback": False, "require_https": False}},  # it is received on this machine
}
pytestmark = [pytest.mark.xdist_group("dev-server"), pytest.mark.timeout(240)]


def say(text):
    """Give an input."""
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A provider, a ledger file, and a server that has both; they end with the module."""
    folder = tmp_path_factory.mktemp("money")
    ledger = folder / "ledger.sqlite"
    with Provider() as provider:
        env = {"TEST_LEDGER": str(ledger), "TEST_PROVIDER": provider.url, "CRON_SCHEDULER_SLEEP_TIME": "1"}
        with (
            dev_server(folder, CONFIG, jobs=10, **env) as server,
            SqliteLedger(ledger) as reader,
        ):
            yield SimpleNamespace(provider=provider, url=server.url, ledger=reader, env=env)


@pytest.fixture
async def client(world):
    """The SDK's client, closed after the test."""
    async with get_client(url=world.url) as client:
        yield client


async def new_thread(client):
    """Give the id of a new thread."""
    return (await client.threads.create())["thread_id"]


async def in_flight(world, client, thread, graph, prompt):
    """Start a run, and give it when its call is with the provider."""
    run = await client.runs.create(thread, graph, input=say(prompt))
    await asyncio.to_thread(world.provider.until, lambda provider: prompt in provider.billed)
    return run["run_id"]


async def settled(world, holds):
    """Wait until the ledger's holds are settled, or charged when their lease is over, and something holds."""
    for _ in range(PATIENCE * 5):
        if holds() and not world.ledger.open_holds():
            return
        await asyncio.sleep(0.2)  # another process settles
        world.ledger.sweep()
    pytest.fail(f"open holds: {world.ledger.open_holds()}")


@pytest.mark.parametrize("strategy", ["reject", "enqueue", "interrupt", "rollback"])
async def test_b113_double_texting_refunds_nothing(world, client, strategy):
    """Whatever becomes of the first of two runs on a thread, its call stays spent, and the budget holds on."""
    thread, prompt = await new_thread(client), f"wait {strategy}"
    first = await in_flight(world, client, thread, "of_thread", prompt)

    second = client.runs.create(thread, "of_thread", input=say("second"), multitask_strategy=strategy)
    if strategy == "reject":
        with pytest.raises(Exception, match="already running"):
            await second
    else:
        second = await second
    if strategy in ("reject", "enqueue"):
        world.provider.release(prompt)
        await client.runs.join(thread, first)
    if strategy != "reject":
        await client.runs.join(thread, second["run_id"])
    runs = {run["run_id"]: run["status"] for run in await client.runs.list(thread)}
    state = (await client.threads.get_state(thread))["values"]
    third = await client.runs.wait(thread, "of_thread", input=say("third"))
    fourth = await client.runs.wait(thread, "of_thread", input=say("fourth"))

    said = [message["content"] for message in state["messages"] if message["type"] == "human"]
    assert (
        said
        == {
            "reject": [prompt],
            "enqueue": [prompt, "second"],
            "interrupt": [prompt, "second"],
            "rollback": ["second"],
        }[strategy]
    )
    assert runs.get(first) == {"interrupt": "interrupted", "rollback": None}.get(strategy, "success")
    assert world.ledger.total(thread=thread).calls == 2
    stopped = [answer["messages"][-1]["content"].startswith("I stopped here") for answer in (third, fourth)]
    assert stopped == [strategy != "reject", True]


async def test_b113_an_interrupted_run_is_not_a_tripped_one(world, client):
    """A thread whose run was cancelled has the status interrupted, and no trip, no question and its spend."""
    thread = await new_thread(client)
    run = await in_flight(world, client, thread, "asking", "wait cancelled")

    await client.runs.cancel(thread, run, wait=True)
    told = await client.threads.get(thread)
    state = await client.threads.get_state(thread)

    assert told["status"] == "interrupted"
    assert (told["interrupts"], state["interrupts"], Trip.of(state["values"])) == ({}, [], None)
    assert world.ledger.total(thread=thread).calls == 1


async def test_a_cancelled_call_is_in_the_state_after_the_next_run(world, client):
    """What a cancelled run spent counts in the branch as soon as anything runs again on the thread."""
    thread = await new_thread(client)
    run = await in_flight(world, client, thread, "asking", "wait for nothing")
    await client.runs.cancel(thread, run, wait=True)

    asked = await client.runs.wait(thread, "asking", input=say("go on"))

    state = await client.threads.get_state(thread)
    assert asked["__interrupt__"][0]["value"]["action_requests"][0]["name"] == "Budget exhausted: 2 of 2 calls"
    assert state["values"]["spend"]["calls"] == 2
    assert world.ledger.total(thread=thread).calls == 2


async def test_b114_a_deleted_thread_comes_back_without_a_refill(world, client):
    """A thread that is deleted, as its TTL does, and made again under its id, has spent what it had."""
    thread = await new_thread(client)
    for _ in range(2):
        await client.runs.wait(thread, "of_thread", input=say("hi"))

    await client.threads.delete(thread)
    await client.threads.create(thread_id=thread)
    again = await client.runs.wait(thread, "of_thread", input=say("hi"))

    assert "2 of 2 calls spent" in again["messages"][-1]["content"]
    assert world.ledger.total(thread=thread).calls == 2


async def test_b114_no_thread_holds_a_teams_budget(world, client):
    """The money of a key is spent, whatever becomes of the threads that spent it."""
    made = []
    for _ in range(7):
        thread = await new_thread(client)
        await client.runs.wait(thread, "of_team", input=say("of the brief"), context={"team": "brief"})
        await client.threads.delete(thread)
        made.append(world.provider.billed.count("of the brief"))

    assert made == [1, 2, 3, 4, 5, 5, 5]


async def test_b111_threads_remember_and_runs_without_one_have_a_run_to_spend(client):
    """A thread's budget goes on in its next run; a run on no thread keeps its run's budget, each anew."""
    thread = await new_thread(client)
    on_thread = [await client.runs.wait(thread, "of_thread", input=say("hi")) for _ in range(3)]
    on_none = [await client.runs.wait(None, "of_run", input=say("hi")) for _ in range(2)]

    assert [answer["messages"][-1]["content"][:6] for answer in on_thread] == ["Hm.", "Hm.", "I stop"]
    assert [len(answer["messages"]) for answer in on_none] == [4, 4]  # a question, two answers, the end


async def test_b111_nobody_can_be_asked_without_a_thread(client):
    """Where a run on no thread would ask, the client is told that it needs a thread."""
    with pytest.raises(Exception, match=r"needs a checkpointer.* or on a server run it on a thread"):
        await client.runs.wait(None, "asking", input=say("hi"))


async def test_b112_an_assistants_own_id_is_a_key(client):
    """Two assistants of one graph have a budget each, shared by all their threads."""
    made = []
    assistants = [(await client.assistants.create("of_assistant"))["assistant_id"] for _ in range(2)]
    for assistant in (assistants[0], assistants[0], assistants[1]):
        thread = await new_thread(client)
        answer = await client.runs.wait(thread, assistant, input=say("hi"))
        made.append(sum(m["content"] == "Hm." for m in answer["messages"]))

    assert made == [3, 0, 3]


@pytest.mark.parametrize(("kept", "graph"), [("keep", "of_assistant"), ("delete", "raising")])
async def test_b115_scheduled_runs_tell_their_webhook_of_the_trip(world, client, kept, graph):
    """Runs by schedule say in status and webhook why they stopped; threads that are deleted after them refill nothing.

    The server tells the values of a thread that is kept; of one that is deleted only an error, so that graph raises.
    """
    assistant = (await client.assistants.create(graph))["assistant_id"]

    def told(provider):
        return [hook for hook in provider.hooks if hook["assistant_id"] == assistant]

    cron = await client.crons.create(
        assistant,
        schedule="* * * * * *",  # each second
        input=say(f"by schedule, {kept}"),
        webhook=f"{world.provider.url}/hook",
        on_run_completed=kept,
    )
    try:
        await asyncio.to_thread(world.provider.until, lambda provider: len(told(provider)) >= 3)
    finally:
        await client.crons.delete(cron["cron_id"])

    for hook in told(world.provider):
        if kept == "keep":
            assert (hook["status"], Trip.of(hook["values"]).progress) == ("success", "3 of 3 calls spent")
        else:
            assert (hook["status"], hook["error"]["error"]) == ("error", "BudgetExceeded")
            assert "3 of 3 calls spent by assistant_id" in hook["error"]["message"]
    assert world.provider.billed.count(f"by schedule, {kept}") == 3


async def test_b109_what_nodes_tell_does_not_block_the_loop(world, client):
    """An async node tells a fee and asks what is left in a thread, with a ledger on disk."""
    thread = await new_thread(client)

    answer = await client.runs.wait(thread, "paying", input=say("hi"))

    assert [message["content"] for message in answer["messages"]] == ["hi", "0.04 left", "Hm."]
    assert world.ledger.total(thread=thread).usd == Decimal("0.01021")


async def test_b118_calls_of_a_graph_on_a_server_are_counted_by_their_messages(world, client, ledger):
    """A node that runs a graph elsewhere charges the usage of the messages that came back, and has its budget."""
    remote = RemoteGraph("of_run", client=client)

    async def ask(state: MessagesState):
        answer = await remote.ainvoke(say("over there"))
        answers = [AIMessage.model_validate(m) for m in answer["messages"] if m.get("usage_metadata")]
        for message in answers:
            charge(message)
        return {"messages": answers}

    builder = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "ask")
    graph = guard(builder, Budget(calls=4), nodes=["ask"], ledger=ledger).compile()

    answer = await graph.ainvoke(say("hi"))

    assert [message.content for message in answer["messages"][1:-1]] == ["Hm."] * 4
    assert (ledger.total().calls, ledger.total().usd) == (4, Decimal("0.00084"))
    assert world.provider.billed.count("over there") == 4


@pytest.fixture
def others(world, tmp_path):
    """What starts more servers on the same ledger, with checkpoints of their own that outlive them."""
    config = {**CONFIG, "checkpointer": {"path": f"{FILE}:checkpoints"}}
    env = {**world.env, "TEST_CHECKPOINTS": str(tmp_path / "checkpoints.sqlite")}

    def start(name, **more):
        folder = tmp_path / name
        folder.mkdir()
        return dev_server(folder, config, jobs=10, **env, **more)

    return start


async def test_b116_b117_b128_servers_share_a_ledger_and_one_that_is_killed_loses_nothing(world, client, others):
    """Two servers admit together what fits; one is killed in a call, and the next goes on from its last step.

    A question that the killed one asked is answered at the next.

    The second server traces, to a LangSmith that is not there and without a key, and has an event loop for each of
    its workers, which changes nothing.
    """
    nowhere = {"LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": "http://127.0.0.1:9", "BG_JOB_ISOLATED_LOOPS": "true"}
    with others("second", **nowhere) as second:
        async with get_client(url=second.url) as another:
            runs = [
                each.runs.wait(None, "of_team", input=say("for both"), context={"team": "both"})
                for each in (client, another) * 6
            ]
            answers = await asyncio.gather(*runs)
            waiting = await new_thread(another)
            await another.runs.wait(waiting, "asking", input=say("ask"))
            thread = await new_thread(another)
            # Each step's checkpoint is written before the next begins; else a kill may lose the last one.
            await another.runs.create(thread, "two_steps", input=say("begin"), durability="sync")
            late = "wait for the second of begin"
            await asyncio.to_thread(world.provider.until, lambda provider: late in provider.billed)
            before = world.ledger.total(thread=thread)
            held = [hold.call for hold in world.ledger.open_holds()]
        second.kill()

    with others("third") as third:
        world.provider.release(late)
        async with get_client(url=third.url) as another:
            await another.threads.create(thread_id=thread, if_exists="do_nothing")
            ended = await another.runs.wait(thread, "two_steps", input=None)
            state = await another.threads.get_state(thread)
            await another.threads.create(thread_id=waiting, if_exists="do_nothing")
            asked = await another.runs.wait(waiting, "asking", command={"resume": 3})

    assert asked["__interrupt__"][0]["value"]["action_requests"][0]["name"] == "Budget exhausted: 3 of 3 calls"
    assert world.provider.billed.count("ask") == 3
    assert world.provider.billed.count("for both") == 5
    assert sum(answer["messages"][-1]["content"] == "Hm." for answer in answers) == 5
    assert (before.calls, [call.thread for call in held]) == (1, [thread])
    assert [message["content"] for message in ended["messages"]] == ["begin", "Hm.", "Hm."]
    assert (world.provider.billed.count("begin"), world.provider.billed.count(late)) == (1, 2)
    await settled(world, lambda: world.ledger.total(thread=thread).calls == 3)
    assert state["values"]["spend"]["calls"] >= 2
