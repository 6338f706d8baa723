"""The graphs that `langgraph.json` names, on a real `langgraph dev`: as a user starts them, and as Studio sees them."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from langgraph_sdk import get_client

from graphguard import Spend
from tests.server.serving import dev_server

ROOT = Path(__file__).resolve().parents[2]
HI = {"messages": [{"role": "user", "content": "Where is the refund for order 1042?"}]}
pytestmark = [pytest.mark.xdist_group("dev-server"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server as `make dev` starts it, in a copy of the folder; it ends with the module."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(ROOT / "langgraph.json", folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    with dev_server(folder, folder / "langgraph.json", GRAPHGUARD_LEDGER=str(folder / "ledger.sqlite")) as server:
        yield server.url


@pytest.fixture
async def client(url):
    """The SDK's client, closed after the test."""
    async with get_client(url=url) as client:
        yield client


def calls(answer):
    """Count the model's answers, closing messages not counted."""
    ours = [m for m in answer["messages"] if m["type"] == "ai" and "graphguard" not in m["additional_kwargs"]]
    return len(ours)


async def schemas_of(client, graph):
    """Give what Studio's forms are made from."""
    (found,) = await client.assistants.search(graph_id=graph, metadata={"created_by": "system"})
    return await client.assistants.get_schemas(found["assistant_id"])


async def test_b107_a_graph_written_by_hand_asks_and_goes_on(client):
    """`support` asks at five cents, and goes on after an approval."""
    thread = (await client.threads.create())["thread_id"]

    asked = await client.runs.wait(thread, "support", input=HI)
    again = await client.runs.wait(thread, "support", command={"resume": "approve"})

    assert asked["__interrupt__"][0]["value"]["limit_usd"] == "0.05"
    assert calls(again) > calls(asked) > 0


async def test_b107_a_deep_agent_ends_at_its_cap(client):
    """`researcher` makes ten calls."""
    assert calls(await client.runs.wait(None, "researcher", input=HI)) == 10


async def test_b110_b112_assistants_and_runs_choose_their_limits(client):
    """`agent` has the limit of its assistant; one that a run says counts before it; both may be text."""
    chatty = await client.assistants.create("agent", context={"max_calls": 4})
    terse = await client.assistants.create("agent", config={"configurable": {"max_calls": "2"}})
    made = [
        calls(await client.runs.wait(None, assistant["assistant_id"], input=HI, **more))
        for assistant, more in [
            (chatty, {}),
            (terse, {}),
            (chatty, {"context": {"max_calls": 3}}),
            (terse, {"config": {"configurable": {"max_calls": 1}}}),
        ]
    ]

    assert made == [4, 2, 3, 1]


async def test_b110_nonsense_is_told_and_the_thread_stays_readable(client):
    """A run with a setting that can't be a limit says why; the thread can be read, and the next run goes on."""
    thread = (await client.threads.create())["thread_id"]

    with pytest.raises(Exception, match=r"setting 'max_usd' can't be a limit: usd must be a positive amount"):
        await client.runs.wait(thread, "agent", input=HI, context={"max_usd": -1})
    state = await client.threads.get_state(thread)
    ended = await client.runs.wait(thread, "agent", input=HI, context={"max_calls": 1})

    assert state["next"] == []
    assert calls(ended) == 1


async def test_b119_users_have_their_plans_day(client):
    """`of_user` counts each user's day in all threads; the plan says how much it is."""
    spent = {}
    for user, plan in [("ada", "free"), ("ada", "free"), ("bob", "pro")]:
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "of_user", input=HI, context={"user_id": user, "plan": plan})
        state = (await client.threads.get_state(thread))["values"]
        spent.setdefault(user, []).append(Spend.of(state).usd)

    assert 0 < sum(spent["ada"]) <= Decimal("0.05") < spent["bob"][0] <= Decimal("0.20")
    assert spent["ada"][1] < spent["ada"][0]


async def test_b122_studio_shows_the_settings_at_the_gate(client):
    """A form for the agent's assistants has its settings, with what counts without them, at the gate's node."""
    schemas = await schemas_of(client, "agent")

    assert schemas["context_schema"]["properties"]["max_calls"] == {
        "title": "Max calls",
        "description": "Calls per run; 20 calls if left out.",
        "type": "integer",
        "exclusiveMinimum": 0,
        "default": 20,
        "langgraph_nodes": ["model.budget"],
    }


async def test_b121_studio_shows_gates_and_keeps_chat_mode(client):
    """The gate and the question are nodes in the drawing; input and output stay a conversation's."""
    assistant = (await client.assistants.search(graph_id="support"))[0]["assistant_id"]
    drawn = await client.assistants.get_graph(assistant)
    schemas = await schemas_of(client, "support")

    assert {"agent", "agent.budget", "budget.review"} <= {node["id"] for node in drawn["nodes"]}
    assert set(schemas["input_schema"]["properties"]) == set(schemas["output_schema"]["properties"]) == {"messages"}
    assert {"messages", "spend", "trip"} <= set(schemas["state_schema"]["properties"])
    assert set(schemas["context_schema"]["properties"]) == {"user_id", "plan"}


async def test_b121_an_edited_state_raises_the_limit_and_running_again_goes_on(client):
    """What Studio does: edit `spend` where a trip was near, which forks, and run again from there."""
    thread = (await client.threads.create())["thread_id"]
    asked = await client.runs.wait(thread, "support", input=HI)
    budget = asked["__interrupt__"][0]["value"]["trip"]["budget"]
    before = next(s for s in await client.threads.get_history(thread) if s["next"] == ["agent.budget"])

    raised = {"spend": {"limits": {budget: {"usd": "0.09"}}}}
    await client.threads.update_state(thread, raised, checkpoint=before["checkpoint"])
    again = await client.runs.wait(thread, "support", input=None)

    assert calls(again) > calls(asked)
    assert again["__interrupt__"][0]["value"]["limit_usd"] == "0.09"
