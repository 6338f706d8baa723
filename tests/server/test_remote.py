"""Row B118: graphs on a real `langgraph dev`, called as `RemoteGraph` by a guarded graph of this process."""

from __future__ import annotations

import operator
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteException, RemoteGraph
from langgraph_sdk import get_client, get_sync_client
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, Spend, Trip, UnknownPrice, guard, model_nodes
from graphguard.remote import counted
from tests.server.serving import dev_server

FILE = Path(__file__).with_name("remote_graphs.py")
GRAPHS = ("two_calls", "untold", "unpriced", "failing", "asking", "silent")
HI = {"messages": [("user", "hi")]}
pytestmark = [pytest.mark.xdist_group("dev-server"), pytest.mark.timeout(240)]


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server; it ends with the module."""
    config = {"dependencies": ["."], "graphs": {name: f"{FILE}:{name}" for name in GRAPHS}}
    with dev_server(tmp_path_factory.mktemp("remote"), config) as server:
        yield server.url


@pytest.fixture
def sync(url):
    """What gives a remote graph for sync runs."""
    with get_sync_client(url=url) as client:
        yield lambda name: RemoteGraph(name, sync_client=client)


def thread() -> Any:
    """Give the config of a new thread; the server wants a UUID."""
    return {"configurable": {"thread_id": str(uuid.uuid4())}}


def looping(remote: RemoteGraph) -> StateGraph:
    """A remote graph as a node that runs again and again."""
    return StateGraph(MessagesState).add_node("there", remote).add_edge(START, "there").add_edge("there", "there")


def once(remote: object, state: Any = MessagesState) -> StateGraph:
    """A node that runs once."""
    return StateGraph(state).add_node("there", remote).add_edge(START, "there")


def test_b118_a_remote_graph_is_a_model_node(sync):
    """A `RemoteGraph` that is a node is found, and so is one that a node's function calls."""
    remote = sync("two_calls")
    builder = once(remote).add_node("fn", lambda state: {"messages": remote.invoke(state)["messages"]})

    assert {name: node.found for name, node in model_nodes(builder).items()} == {
        "there": "runs the graph 'two_calls' on a server",
        "fn": "runs the graph 'two_calls' on a server",
    }


def test_b118_a_remote_node_is_charged_what_came_back(sync, ledger):
    """Each message that comes back is charged once, though each round gives all that was said before again."""
    graph = guard(looping(sync("two_calls")), Budget(calls=5), ledger=ledger).compile(checkpointer=InMemorySaver())
    config = thread()

    answer = graph.invoke(HI, config)

    # A round begins while there is room, and is two calls: what happens there is for the guard there to stop.
    assert [m.content for m in answer["messages"][1:-1]] == ["ok"] * 6
    assert ledger.total() == Spend(nanousd=6 * 210_000, input_tokens=6_000, output_tokens=600, calls=6)
    assert Spend.of(graph.get_state(config)).calls == 6
    assert Trip.of(graph.get_state(config)).spent == 6


async def test_b118_the_same_on_an_event_loop(url, ledger):
    """Async, and with its events read, a remote node is charged as it is in sync."""
    async with get_client(url=url) as client:
        graph = guard(looping(RemoteGraph("two_calls", client=client)), Budget(calls=4), ledger=ledger).compile()
        await graph.ainvoke(HI)
        async for _ in graph.astream_events(HI, version="v2"):
            pass

    assert ledger.total().calls == 8


def test_b118_a_thread_that_the_server_remembers_is_charged_once(sync, ledger):
    """Called with one question at a time, a thread on the server gives all earlier answers again: they cost nothing."""
    remote, config = counted(sync("two_calls")), thread()

    def fn(state):
        return {"messages": remote.invoke({"messages": ["more"]}, config)["messages"][-1:]}

    graph = guard(once(fn), Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())
    for _ in range(3):
        graph.invoke(HI, config)

    assert ledger.total().calls == 6


def test_b118_a_declared_cost_never_overshoots(sync, ledger):
    """With its cost declared, a run is held before it is sent: on a budget for two runs and a half, two are made."""
    remote = counted(sync("silent"), usd="0.02")
    builder = StateGraph(Log).add_node("there", remote).add_edge(START, "there").add_edge("there", "there")
    graph = guard(builder, Budget(usd="0.05"), ledger=ledger).compile()

    assert graph.invoke({"log": []})["log"].count("said") >= 2
    assert ledger.total().usd == Decimal("0.04")
    assert not ledger.open_holds()


def test_b118_usage_that_was_not_told_is_estimated(sync, ledger):
    """Messages without usage are charged by their size, and marked."""
    graph = guard(once(sync("untold")), Budget(usd=1), ledger=ledger).compile()

    graph.invoke(HI)

    (charge,) = ledger.charges()
    assert charge.estimated
    assert charge.nanousd > 0


@pytest.mark.parametrize(("name", "state", "given"), [("unpriced", MessagesState, HI), ("silent", Log, {"log": []})])
def test_b118_what_has_no_price_is_never_free(sync, ledger, name, state, given):
    """Under a USD budget, an answer that tells no price stops the graph; under others it is one call."""
    with pytest.raises(UnknownPrice):
        guard(once(sync(name), state), Budget(usd=1), ledger=ledger).compile().invoke(given)
    guard(once(sync(name), state), Budget(calls=1), ledger=ledger).compile().invoke(given)

    assert ledger.total().calls == 2


@pytest.mark.parametrize(("usd", "spent"), [(None, "0"), ("0.02", "0.02")])
def test_b118_a_run_that_fails_is_charged(sync, ledger, usd, spent):
    """What a run that failed has cost nobody tells: it is a call, at its declared cost."""
    with pytest.raises(RemoteException):
        guard(once(counted(sync("failing"), usd=usd)), Budget(usd=1), ledger=ledger).compile().invoke(HI)

    assert (ledger.total().calls, ledger.total().usd) == (1, Decimal(spent))
    assert not ledger.open_holds()


def test_b118_a_run_that_waits_for_a_person_holds_nothing(sync, ledger):
    """The remote graph's own question reaches the parent's user, and holds nothing meanwhile."""
    graph = guard(once(sync("asking")), Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())

    asked = graph.invoke(HI, thread())["__interrupt__"]

    assert [question.value for question in asked] == ["well?"]
    assert not ledger.open_holds()


def test_b118_outside_a_guarded_node_nothing_changes(sync):
    """Without a guard around it, and after `with_config`, a counted remote graph answers as it did."""
    remote = counted(sync("two_calls"), usd="0.02")

    assert len(remote.with_config(tags=["mine"]).invoke(HI)["messages"]) == 3


def test_b118_its_settings_stay_through_copies(sync):
    """`with_config` keeps the declared cost."""
    ledger = MemoryLedger()
    remote = counted(sync("two_calls"), usd="0.02").with_config(tags=["mine"])

    guard(once(remote), Budget(usd=1), ledger=ledger).compile().invoke(HI)

    assert ledger.total().usd == Decimal("0.02")


@pytest.mark.parametrize("usd", ["-1", "much", float("nan")])
def test_b118_an_amount_is_checked_at_once(usd):
    """What is not an amount is refused when it is declared."""
    with pytest.raises(ValueError, match="usd must be an amount of at least 0"):
        counted(RemoteGraph("agent", url="http://127.0.0.1:1"), usd=usd)
