"""What people do with a guarded graph on `langgraph dev`, through the real SDK."""

from __future__ import annotations

from pathlib import Path

import pytest
from langgraph_sdk import get_client

from tests.server.serving import dev_server

FILE = Path(__file__).with_name("graphs.py")
OF_ACCOUNTS = ("of_organization", "of_user", "of_team", "of_assistant", "of_manager", "of_plan", "adjusted")
GRAPHS = ("sync_node", "async_node", "inline", "raising", "agent", *OF_ACCOUNTS)
HI = {"messages": [{"role": "user", "content": "hi"}]}
pytestmark = pytest.mark.xdist_group("dev-server")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server in a folder of its own, on a free port of this machine; it ends with the module."""
    config = {
        "dependencies": ["."],
        "graphs": {name: f"{FILE}:{name}" for name in GRAPHS},
        "auth": {"path": f"{FILE}:auth"},
        "http": {"configurable_headers": {"include": ["x-organization-id"]}},
    }
    with dev_server(tmp_path_factory.mktemp("server"), config) as server:
        yield server.url


@pytest.fixture
async def client(url):
    """The SDK's client, closed after the test."""
    async with get_client(url=url) as client:
        yield client


@pytest.mark.parametrize("graph", ["sync_node", "async_node", "inline"])
async def test_a_person_raises_the_budget_on_the_server(client, graph):
    """Without a checkpointer of its own the graph asks, hears a bad answer, an approval and an amount, and ends."""
    thread = (await client.threads.create())["thread_id"]

    asked = await client.runs.wait(thread, graph, input=HI)
    again = await client.runs.wait(thread, graph, command={"resume": "nonsense"})
    approved = await client.runs.wait(thread, graph, command={"resume": {"decisions": [{"type": "approve"}]}})
    ended = await client.runs.wait(thread, graph, command={"resume": 100})
    state = await client.threads.get_state(thread)

    assert asked["__interrupt__"][0]["value"]["action_requests"][0]["name"] == "Budget exhausted: 2 of 2 calls"
    assert again["__interrupt__"][0]["value"]["error"] == "'nonsense' is not a number"
    assert approved["__interrupt__"][0]["value"]["action_requests"][0]["name"] == "Budget exhausted: 4 of 4 calls"
    assert "__interrupt__" not in ended
    assert len(ended["messages"]) == 12
    assert state["values"]["spend"]["calls"] == 6


async def test_a_client_reads_why_a_run_was_refused(client):
    """With on_trip="raise" the client is told the reason, not that an internal error occurred."""
    thread = (await client.threads.create())["thread_id"]

    with pytest.raises(Exception, match=r"budget exhausted at 'agent': \$0\.00 of \$0\.00001 spent"):
        await client.runs.wait(thread, "raising", input=HI)


async def test_an_agent_ends_with_a_closing_message_and_streams_warnings(client):
    """A guarded create_agent ends at its budget on the server; its warnings and its trip reach the custom stream."""
    chunks = [chunk async for chunk in client.runs.stream(None, "agent", input=HI, stream_mode=["updates", "custom"])]

    events = [chunk.data for chunk in chunks if chunk.event == "custom"]
    updates = [chunk.data for chunk in chunks if chunk.event == "updates"]
    assert [(event["event"], event["spent"]) for event in events] == [("warning", 2), ("warning", 3), ("trip", 3)]
    assert updates[-1]["model.budget"]["messages"][-1]["content"] == (
        "I stopped here: budget exhausted at 'model': 3 of 3 calls spent."
    )
    assert sum("model" in update for update in updates) == 3


async def calls_of(client, graph, headers=None, **more):
    """Run a graph on a thread of its own, and count the calls it made."""
    thread = (await client.threads.create(headers=headers))["thread_id"]
    await client.runs.wait(thread, graph, input=HI, headers=headers, **more)
    return (await client.threads.get_state(thread, headers=headers))["values"]["spend"].get("calls", 0)


@pytest.mark.parametrize(("graph", "header"), [("of_organization", "x-organization-id"), ("of_user", "x-name")])
async def test_b119_who_was_authenticated_and_a_header_are_keys(client, graph, header):
    """All threads of an organization, by its header, and of an authenticated user share a budget."""
    made = [await calls_of(client, graph, {header: name}) for name in ("acme", "acme", "other")]

    assert made == [3, 0, 3]


async def test_b119_a_run_without_the_header_makes_no_call(client):
    """A client that leaves the header out is told what is missing."""
    thread = (await client.threads.create())["thread_id"]

    with pytest.raises(Exception, match=r"a budget per .x-organization-id. can.t be kept: the run has no"):
        await client.runs.wait(thread, "of_organization", input=HI)


async def test_b112_two_assistants_share_by_their_context(client):
    """What an assistant's context says is a key: assistants of one team share its budget."""
    made = []
    for team in ("red", "red", "blue"):
        assistant = await client.assistants.create("of_team", context={"team": team})
        made.append(await calls_of(client, assistant["assistant_id"]))

    assert made == [3, 0, 3]


@pytest.mark.parametrize("graph", ["of_assistant", "of_manager"])
async def test_b110_b112_two_assistants_have_budgets_of_their_own(client, graph):
    """A graph's factory, an async context manager too, takes the limit from the assistant's settings."""
    made = []
    for calls in (1, 4):
        assistant = await client.assistants.create(graph, context={"max_calls": calls})
        made.append(await calls_of(client, assistant["assistant_id"]))

    assert made == [1, 4]


async def test_b119_who_was_authenticated_may_have_a_plan(client):
    """A factory's budget is what the server's own code says of the user."""
    assert [await calls_of(client, "of_plan", {"x-name": name}) for name in ("vera", "otto")] == [4, 1]


async def test_b119_a_limit_of_the_authenticated_user_is_not_for_clients_to_change(client):
    """A setting counts for users without one of their own; with one, nothing that a client sends does."""
    more = {"context": {"max_calls": 3}}
    forged = {"context": {"max_calls": 3, "langgraph_auth_user": {"identity": "vera", "max_calls": 8}}}
    made = [
        await calls_of(client, "adjusted", {"x-name": name}, **settings)
        for name, settings in [("otto", {}), ("otto", more), ("otto", forged), ("vera", more), ("vera", forged)]
    ]

    assert made == [2, 3, 3, 5, 5]


async def test_b111_a_run_without_a_thread_keeps_its_budget(client):
    """A run on no thread ends at its budget like any other."""
    ended = await client.runs.wait(None, "of_organization", input=HI, headers={"x-organization-id": "alone"})

    assert "3 of 3 calls spent by x-organization-id 'alone'" in ended["messages"][-1]["content"]
