"""What people do with a guarded graph on `langgraph dev`, through the real SDK."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from langgraph_sdk import get_client

GRAPHS = ("sync_node", "async_node", "inline", "raising", "agent")
HI = {"messages": [{"role": "user", "content": "hi"}]}
pytestmark = pytest.mark.xdist_group("dev-server")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server in a folder of its own, on a free port of this machine; it ends with the module."""
    folder = tmp_path_factory.mktemp("server")
    graphs = {name: f"{Path(__file__).with_name('graphs.py')}:{name}" for name in GRAPHS}
    (folder / "langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser", "--no-reload"]
    log = (folder / "log").open("w")
    env = {**os.environ, "LANGSMITH_TRACING": "false"}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=folder, stdout=log, stderr=log, env=env
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 90
        while True:
            try:
                httpx.get(f"{address}/ok").raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"langgraph dev did not start:\n{(folder / 'log').read_text()[-3000:]}")
                time.sleep(0.2)  # the server says nowhere else that it is ready
        yield address
        assert "BlockingError" not in (folder / "log").read_text()
    finally:
        server.terminate()
        server.wait(20)
        log.close()


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
    """A guarded create_agent ends at its budget on the server, and its warnings reach the custom stream."""
    chunks = [chunk async for chunk in client.runs.stream(None, "agent", input=HI, stream_mode=["updates", "custom"])]

    events = [chunk.data for chunk in chunks if chunk.event == "custom"]
    updates = [chunk.data for chunk in chunks if chunk.event == "updates"]
    assert [event["share"] for event in events] == [0.5, 0.95]
    assert updates[-1]["model.budget"]["messages"][-1]["content"] == (
        "I stopped here: budget exhausted at 'model': 3 of 3 calls spent."
    )
    assert sum("model" in update for update in updates) == 3
