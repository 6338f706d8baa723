"""Facts of LangGraph 22 and 23: green suites prove nothing, so gate decisions are counted against model-node runs."""

from __future__ import annotations

from collections import Counter

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from graphguard import Budget, MemoryLedger
from graphguard.scope import Scope
from tests.laws.table import SHAPES
from tests.laws.watching import CONFIG, awatch

GATES = ("auto", "inline", "node")
over_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
over_gates = pytest.mark.parametrize("gate", GATES)


@pytest.fixture
def decisions(monkeypatch):
    """Give the count of gate decisions by the node they were about; each is still made as ever."""
    counted: Counter[str] = Counter()
    decide, adecide = Scope.breach, Scope.abreach

    def counting(scope: Scope):
        counted[scope.task.node.removesuffix(".budget")] += 1
        return decide(scope)

    async def acounting(scope: Scope):
        counted[scope.task.node.removesuffix(".budget")] += 1
        return await adecide(scope)

    monkeypatch.setattr(Scope, "breach", counting)
    monkeypatch.setattr(Scope, "abreach", acounting)
    return counted


@over_gates
@over_shapes
async def test_no_model_node_runs_undecided(shape, gate, decisions):
    """For every task of a model node, a gate has decided; its later attempts are held call by call."""
    graph = shape.guarded(shape.bench(), Budget(usd=1000), saver=InMemorySaver(), gate=gate)

    seen = await awatch(graph, shape.given, shape.resumes)

    for name in shape.models:
        inner = name.rpartition(":")[2]
        runs = len(seen.tasks.get(name, ()))
        if shape.name == "cached_model":
            runs = 1  # the others are answered from the cache, without any code
        assert decisions[inner] >= runs, name
    assert decisions


@over_gates
@over_shapes
async def test_every_call_is_asked_about_and_charged(shape, gate):
    """A policy is asked before every billed call, and the ledger holds a charge for each."""
    bench, ledger, asked = shape.bench(), MemoryLedger(), []
    graph = shape.guarded(bench, lambda _, call: asked.append(call.id), saver=InMemorySaver(), gate=gate, ledger=ledger)

    await awatch(graph, shape.given, shape.resumes)

    charged = [charge.id for charge in ledger.charges()]
    assert len(charged) == bench.model.billed
    assert set(charged) <= set(asked)
    assert len(set(asked)) == len(asked)
    assert len(asked) == bench.model.billed + shape.unbilled


@pytest.mark.parametrize("gate", ["auto", "node"])
@pytest.mark.parametrize("name", ["plain_chain", "plain_loop", "agent_with_tool"])
def test_replays_and_forks_pass_a_gate(name, gate):
    """From whichever checkpoint of a spent budget a thread is run again, no further call is billed."""
    shape = SHAPES[name]
    bench, budget = shape.bench(), Budget(calls=1, per="thread", warn_at=())
    graph = shape.guarded(bench, budget, saver=InMemorySaver(), gate=gate, ledger=MemoryLedger())
    graph.invoke(shape.given, CONFIG)

    for snapshot in list(graph.get_state_history(CONFIG)):
        graph.invoke(None, snapshot.config)
        graph.invoke(None, graph.update_state(snapshot.config, None, as_node="__copy__"))

    assert bench.model.billed == 1
