"""Rows B35–B40, B44, B68, B116 and B123: histories, replays, updates, durability, deleted and requeued threads."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from graphguard import (
    Budget,
    BudgetExceeded,
    HistoryUnavailable,
    MemoryLedger,
    Spend,
    Trip,
    model_nodes,
    replay,
    top_up,
    trips,
)
from graphguard.history import steps
from tests.history.graphs import HI, chain, guarded, nested, thread
from tests.scripted import Scripted

DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])
GATES = pytest.mark.parametrize("gate", ["node", "inline"])


def test_b35_each_checkpoint_tells_its_spend_and_its_trip(saver):
    """Every checkpoint of LangGraph's own history is a step, with the spend that its state tells."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    told = {step.checkpoint: step for step in steps(graph, thread())}
    for snapshot in graph.get_state_history(thread()):
        step = told.pop(snapshot.config["configurable"]["checkpoint_id"])
        assert step.spend == Spend.of(snapshot)
        assert step.trip == Trip.of(snapshot.values)
        assert (step.number, step.source) == (snapshot.metadata["step"], snapshot.metadata["source"])
    assert not told


@GATES
def test_b36_a_replay_agrees_and_real_money_is_counted_apart(saver, ledger, gate):
    """The same limit trips again, a higher one passes; the ledger has what all attempts cost."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2), gate=gate, ledger=ledger)
    graph.invoke(HI, thread())
    trip = next(trips(graph, thread()))

    replay(graph, trip)
    again = Trip.of(graph.get_state(thread()))
    replay(graph, trip, Budget(calls=3))

    assert (again.reason, again.spent) == (trip.reason, trip.spent)
    assert Trip.of(graph.get_state(thread())) is None
    assert Spend.of(graph.get_state(thread())).calls == ledger.total(thread="t").calls == 3


@GATES
def test_b37_an_update_of_the_limits_goes_on(saver, gate):
    """`update_state` with a raised limit resumes a thread whose run raised, and the trip before says so."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=1), gate=gate, on_trip="raise")
    with pytest.raises(BudgetExceeded) as caught:
        graph.invoke(HI, thread())

    graph.update_state(thread(), {"spend": {"limits": {caught.value.trip.budget: {"calls": 3}}}}, as_node="a")
    graph.invoke(None, thread())

    assert Spend.of(graph.get_state(thread())).calls == 3
    assert any("calls=1 per branch" in step.raised for step in steps(graph, thread()))


@DURABILITIES
@pytest.mark.parametrize("mode", ["end", "interrupt"])
def test_b38_trips_work_in_every_durability(saver, durability, mode):
    """The trip is told, and the thread goes on from it, whichever checkpoints are kept."""
    model = Scripted()
    graph = guarded(chain(model, "a", "b", "c"), saver, Budget(calls=2), on_trip=mode)
    graph.invoke(HI, thread(), durability=durability)

    assert [trip.node for trip in trips(graph, thread())] == ["c"]
    top_up(graph, thread(), calls=5)

    assert model.billed == Spend.of(graph.get_state(thread())).calls == 3


def test_b39_what_was_paid_before_a_stop_is_not_charged_again(saver, ledger):
    """A run that goes on after an exception charges only what it calls."""
    graph = guarded(chain(Scripted(), *"abcd"), saver, Budget(calls=2), on_trip="raise", ledger=ledger)
    with pytest.raises(BudgetExceeded):
        graph.invoke(HI, thread())
    with pytest.raises(BudgetExceeded):
        graph.invoke(None, thread())

    top_up(graph, thread(), calls=2)

    assert ledger.total(thread="t").calls == Spend.of(graph.get_state(thread())).calls == 4


def test_b40_the_same_checkpoint_leads_the_same_way(saver):
    """Decisions look at recorded values alone: replays of one trip end alike, however much was spent meanwhile."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2))
    graph.invoke(HI, thread())
    trip = next(trips(graph, thread()))

    ended = []
    for _ in range(3):
        replay(graph, trip)
        ended.append(Trip.of(graph.get_state(thread())).progress)
        graph.invoke(HI, thread("elsewhere"))

    assert ended == [trip.progress] * 3


def test_b44_a_deleted_thread_has_no_history_and_its_money_stays(saver):
    """After `delete_thread` the branch begins at nothing, and the thread's real budget is as spent as before."""
    ledger, budgets = MemoryLedger(), (Budget(calls=2), Budget(calls=3, per="thread"))
    graph = guarded(chain(Scripted(), "a", "b"), saver, *budgets, ledger=ledger)
    graph.invoke(HI, thread())

    saver.delete_thread("t")
    with pytest.raises(HistoryUnavailable):
        next(trips(graph, thread()))
    graph.invoke(HI, thread())

    assert Spend.of(graph.get_state(thread())).calls == 1
    assert next(trips(graph, thread())).budget == "calls=3 per thread"


def test_b68_a_subgraphs_spend_is_the_parents(saver):
    """Once a subgraph has ended, its spend is in the parent's step, with no need of the subgraph's state."""
    graph = guarded(nested(Scripted()), saver)
    graph.invoke(HI, thread())

    top = [step for step in steps(graph, thread()) if not step.ns and step.added.calls]
    assert [(step.nodes, step.added.calls) for step in top] == [(("s",), 3), (("a",), 1)]


def test_b116_a_requeued_run_goes_on_from_its_checkpoint(saver, ledger):
    """A run that another worker takes over charges no committed step again, and its trip is one."""
    model = Scripted(script=["ok", ConnectionResetError("worker lost"), "ok"])
    graph = guarded(chain(model, "a", "b", "c"), saver, Budget(calls=3), ledger=ledger)
    with pytest.raises(ConnectionResetError):
        graph.invoke(HI, thread())

    taken_over = guarded(chain(model, "a", "b", "c"), saver, Budget(calls=3), ledger=ledger)
    taken_over.invoke(None, thread())

    assert ledger.total(thread="t", node="a").calls == 1
    assert len(list(trips(taken_over, thread()))) <= 1


@GATES
@pytest.mark.parametrize("with_writes", [True, False])
def test_b123_the_same_guard_reads_a_cloned_thread(saver, gate, with_writes):
    """A thread that was copied to another database replays under the same guard, even without its tasks' writes."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), gate=gate)
    graph.invoke(HI, thread())
    clone = InMemorySaver()
    for saved in reversed(list(saver.list(thread()))):
        config = saved.parent_config or {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        put = clone.put(config, saved.checkpoint, saved.metadata, saved.checkpoint["channel_versions"])
        for task in {task for task, _, _ in saved.pending_writes if with_writes}:
            clone.put_writes(
                put, [(channel, value) for own, channel, value in saved.pending_writes if own == task], task
            )
    same = guarded(chain(Scripted(), "a", "b"), clone, Budget(calls=1), gate=gate)

    replay(same, next(trips(same, thread())), Budget(calls=2))

    assert same.get_state(thread()).next == ()
    assert {node.gate for node in model_nodes(same).values()} == {gate}
