"""Law 9: a budget is kept the same with tracing on, off or its server down, and no event loop is blocked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from langchain_core.tracers.langchain import LangChainTracer
from langgraph.checkpoint.memory import InMemorySaver
from langsmith import Client

from graphguard import Budget, MemoryLedger
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG, awatch, watch

NOBODY = "http://127.0.0.1:9"
"""A port on which nothing listens."""

ONE_CALL = Budget(calls=1, warn_at=())
TRACED = ["plain_loop", "fan_out_two_models", "agent_with_tool", "subgraph_with_shared_keys", "send_map_reduce"]


@pytest.fixture
def tracer() -> Iterator[LangChainTracer]:
    """Give a tracer whose server is down, and which keeps no thread waiting for it."""
    client = Client(NOBODY, api_key="none", auto_batch_tracing=False, timeout_ms=200, retry_config=_once(), info={})
    yield LangChainTracer(project_name="down", client=client)
    client.cleanup()


def _once():
    from urllib3.util import Retry  # noqa: PLC0415 - what LangSmith's client takes, and a dependency of its own

    return Retry(total=0)


def _kept(name: str, gate: str, **config: object) -> tuple[object, ...]:
    shape, ledger = SHAPES[name], MemoryLedger()
    bench = shape.bench()
    graph = shape.guarded(bench, ONE_CALL, saver=InMemorySaver(), gate=gate, ledger=ledger)
    output = graph.invoke(shape.given, {**CONFIG, **config})
    state = graph.get_state(CONFIG).values
    # Which of several siblings came too late is up to the threads.
    trip = {name: state["trip"].get(name) for name in ("budget", "metric", "spent", "limit", "kind", "capped")}
    return bench.model.billed, ledger.total(), trip, len(output["messages" if "messages" in output else "trail"])


@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("name", TRACED)
def test_budget_is_kept_whatever_happens_to_traces(name, gate, tracer):
    """With a tracer whose server is down, a budget trips where and as it does without any tracer."""
    assert _kept(name, gate, callbacks=[tracer]) == _kept(name, gate)


@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("name", TRACED)
def test_tracing_by_environment_changes_nothing(name, gate, tracer, monkeypatch):
    """With LANGSMITH_TRACING on against a closed port, a budget trips as with tracing off."""
    import langsmith.run_trees  # noqa: PLC0415 - its client is replaced by one that gives up at once
    from langsmith.utils import get_env_var  # noqa: PLC0415 - remembers what it read

    expected = _kept(name, gate)
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", NOBODY)
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    monkeypatch.setattr(langsmith.run_trees, "_CLIENT", tracer.client)
    get_env_var.cache_clear()
    try:
        traced = _kept(name, gate)
    finally:
        monkeypatch.undo()
        get_env_var.cache_clear()

    assert traced == expected


@pytest.fixture
def unblocked() -> Iterator[BlockBuster]:
    """Make any blocking call on an event loop an error."""
    with blockbuster_ctx() as found:
        yield found


BLOCKFREE = [shape for shape in SHAPES.values() if not shape.resumes and "async" in shape.modes]


@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("budget", [Budget(usd=1000), ONE_CALL], ids=["rich", "tripping"])
@pytest.mark.parametrize("shape", BLOCKFREE, ids=[shape.name for shape in BLOCKFREE])
async def test_no_event_loop_is_blocked(shape, budget, gate, unblocked):
    """Guarded runs on an event loop make no blocking call, whether a budget trips or not."""
    unblocked.deactivate()
    shape.build(shape.bench())  # the first deep agent of a process reads files
    unblocked.activate()
    graph = shape.guarded(shape.bench(), budget, saver=InMemorySaver(), gate=gate, ledger=MemoryLedger())

    await awatch(graph, shape.given)


def test_nothing_asks_the_network(monkeypatch):
    """Guarding and running need no connection to anywhere."""
    import socket  # noqa: PLC0415 - only to take it away

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("somebody wanted to connect")

    monkeypatch.setattr(socket.socket, "connect", refused)
    shape = SHAPES["agent_with_tool"]

    seen = watch(shape.guarded(shape.bench(), Budget(usd=1000), saver=InMemorySaver()), shape.given)

    assert seen.nodes["model"] == 2
