"""`top_up` on threads that a real `langgraph dev` keeps, through both clients of the SDK."""

from __future__ import annotations

from pathlib import Path

import pytest
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk import get_client, get_sync_client

from graphguard import NothingToTopUp, atop_up, top_up
from tests.server.serving import dev_server

FILE = Path(__file__).with_name("graphs.py")
HI = {"messages": [{"role": "user", "content": "hi"}]}
pytestmark = pytest.mark.xdist_group("dev-server")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Give the address of a server that asks nobody who they are; it ends with the module."""
    graphs = {name: f"{FILE}:{name}" for name in ("sync_node", "inline", "agent")}
    with dev_server(tmp_path_factory.mktemp("server"), {"dependencies": ["."], "graphs": graphs}) as server:
        yield server.url


def thread(name: str) -> dict[str, object]:
    """Give the config of a thread."""
    return {"configurable": {"thread_id": name}}


@pytest.mark.parametrize("graph", ["sync_node", "inline"])
def test_the_sync_client_answers_the_question(url, graph):
    """A question that waits on the server is answered, and the run goes on there."""
    with get_sync_client(url=url) as client:
        name = client.threads.create()["thread_id"]
        client.runs.wait(name, graph, input=HI)

        output = top_up(client, thread(name), calls=100)

        state = client.threads.get_state(name)
    assert len(output["messages"]) == 12
    assert (state["values"]["spend"]["calls"], state["next"]) == (6, [])


async def test_the_async_client_goes_on_after_an_end(url):
    """A run that a trip ended goes on, and the closing message is gone."""
    async with get_client(url=url) as client:
        name = (await client.threads.create())["thread_id"]
        closed = await client.runs.wait(name, "agent", input=HI)

        await atop_up(client, thread(name), calls=2)

        state = await client.threads.get_state(name)
    assert closed["messages"][-1]["content"].startswith("I stopped here: budget exhausted")
    assert state["values"]["spend"]["calls"] == 5
    assert [m["content"] for m in state["values"]["messages"] if "I stopped here" in str(m["content"])] == [
        "I stopped here: budget exhausted at 'model': 5 of 5 calls spent."
    ]


def test_a_remote_graph_goes_on_too(url):
    """LangGraph's RemoteGraph is topped up like a graph of one's own."""
    with get_sync_client(url=url) as client:
        graph = RemoteGraph("sync_node", sync_client=client)
        config = thread(client.threads.create()["thread_id"])
        graph.invoke(HI, config)

        output = top_up(graph, config, calls=100)

    assert len(output["messages"]) == 12


async def test_each_client_has_its_function(url):
    """A blocking client is refused on an event loop, and a thread without a trip is told so."""
    with get_sync_client(url=url) as blocking, pytest.raises(NothingToTopUp, match=r"use get_client\(\)"):
        await atop_up(blocking, thread("t"), calls=1)
    async with get_client(url=url) as client:
        name = (await client.threads.create())["thread_id"]
        with pytest.raises(NothingToTopUp, match="not at a trip"):
            await atop_up(client, thread(name), calls=1)
