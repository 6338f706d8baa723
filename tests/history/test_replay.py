"""`replay`: again from before a trip, as a fork."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from graphguard import (
    Budget,
    BudgetExceeded,
    HistoryUnavailable,
    MemoryLedger,
    Spend,
    Trip,
    UnknownNode,
    areplay,
    replay,
    trips,
)
from tests.history.graphs import HI, chain, fan, guarded, nested, thread
from tests.needs import TASK_IDS_OF_REPLAYS, needs
from tests.scripted import Scripted

BOTH = pytest.mark.parametrize("gate", ["node", "inline"])
KINDS = pytest.mark.parametrize("shape", [nested, fan])


@KINDS
@pytest.mark.parametrize("mode", ["end", "interrupt"])
def test_the_same_budget_trips_again(saver, shape, mode):
    """Replayed with the graph's own budget, the first trip happens again, over the same amounts."""
    graph = guarded(shape(Scripted()), saver, Budget(calls=2), on_trip=mode)
    graph.invoke(HI, thread())
    before = list(trips(graph, thread()))

    replay(graph, before[-1])

    again = [trip for trip in trips(graph, thread()) if trip.at not in {old.at for old in before}][-1]
    assert (again.budget, again.spent, again.limit) == (before[-1].budget, before[-1].spent, before[-1].limit)


@KINDS
@pytest.mark.parametrize("mode", ["end", "interrupt"])
def test_a_larger_budget_ends_the_run(saver, shape, mode):
    """Replayed with enough, the thread ends as it does without a budget, and its spend is the branch's."""
    model = Scripted()
    bare = shape(model).compile().invoke(HI)
    graph = guarded(shape(model), saver, Budget(calls=2), on_trip=mode)
    graph.invoke(HI, thread())

    ended = replay(graph, list(trips(graph, thread()))[-1], Budget(calls=50))

    assert len(ended["messages"]) == len(bare["messages"])
    assert graph.get_state(thread()).next == ()
    assert Spend.of(graph.get_state(thread())).calls == len(bare["messages"]) - 1


@BOTH
@pytest.mark.parametrize("answer", [5, False])
def test_an_answered_trip_asks_anew(saver, gate, answer):
    """A replay doesn't hear what was answered before: it asks, and the new answer counts."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=1), gate=gate, on_trip="interrupt")
    graph.invoke(HI, thread())
    graph.invoke(Command(resume=answer), thread())
    first = list(trips(graph, thread()))[-1]

    asked = replay(graph, first)["__interrupt__"]
    graph.invoke(Command(resume=2), thread())

    assert len(asked) == 1
    assert [(trip.node, trip.outcome) for trip in trips(graph, thread())][:2] == [
        ("c", "waits for an answer"),
        ("b", "raised to 2 calls"),
    ]


@needs(*TASK_IDS_OF_REPLAYS)
@pytest.mark.parametrize("shape", [lambda model: chain(model, "a", "b", "c"), fan, nested])
def test_langgraphs_own_replay_asks_anew_too(saver, shape):
    """A run that LangGraph itself replays from before an answered trip doesn't know the limit it was raised to."""
    graph = guarded(shape(Scripted()), saver, Budget(calls=2), gate="inline", on_trip="interrupt")
    graph.invoke(HI, thread())
    graph.invoke(Command(resume=50), thread())

    asked = graph.invoke(None, list(trips(graph, thread()))[-1].config)["__interrupt__"]

    assert [question.value["trip"]["limit"] for question in asked] == [2]


@BOTH
def test_the_fork_begins_with_what_was_spent_there_and_real_money_stays(saver, gate):
    """A fork's branch spend starts at the fork point; what the thread really spent never goes back."""
    ledger = MemoryLedger()
    graph = guarded(
        chain(Scripted(), "a", "b", "c"),
        saver,
        Budget(calls=2),
        Budget(calls=4, per="thread"),
        gate=gate,
        ledger=ledger,
    )
    graph.invoke(HI, thread())
    first = next(trips(graph, thread()))
    middle = next(s for s in graph.get_state_history(thread()) if Spend.of(s).calls == 1 and s.next == ("b",))
    graph.invoke(None, middle.config)

    replay(graph, first, Budget(calls=9), Budget(calls=4, per="thread"))
    replay(graph, first, Budget(calls=9), Budget(calls=4, per="thread"))

    assert Spend.of(graph.get_state(thread())).calls == 2
    assert Trip.of(graph.get_state(thread())).budget == "calls=4 per thread"
    assert ledger.total(thread="t").calls == 4


def test_a_replay_can_be_streamed(saver):
    """With stream_mode, the chunks come as the graph makes them."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    chunks = replay(graph, next(trips(graph, thread())), Budget(calls=9), stream_mode="updates")

    assert [name for chunk in chunks for name in chunk if not name.endswith(".budget")] == ["b", "c"]


async def test_areplay_does_the_same(asaver):
    """`areplay` ends the run as well, and streams when asked to."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), asaver, Budget(calls=1))
    await graph.ainvoke(HI, thread())
    trip = [trip async for trip in _atrips(graph)][-1]

    ended = await areplay(graph, trip, Budget(calls=9))
    chunks = [chunk async for chunk in await areplay(graph, trip, Budget(calls=9), stream_mode="updates")]

    assert len(ended["messages"]) == 4
    assert [name for chunk in chunks for name in chunk if not name.endswith(".budget")] == ["b", "c"]


def _atrips(graph):
    from graphguard import atrips  # noqa: PLC0415 - for the one test on an event loop

    return atrips(graph, thread())


def test_tasks_that_a_command_started_are_replayed(saver):
    """A trip in a task that a client's Command led to is replayed, though no checkpoint says what led there."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=2))
    graph.invoke(HI, thread())
    graph.invoke(Command(goto="b"), thread())

    ended = replay(graph, next(trips(graph, thread())), Budget(calls=9))

    assert len(ended["messages"]) == 4
    assert graph.get_state(thread()).next == ()


def test_a_graph_that_raises_raises_again(saver):
    """In the mode "raise", a replay with too little raises as an invoke does."""
    ending = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    ending.invoke(HI, thread())
    raising = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), on_trip="raise")

    with pytest.raises(BudgetExceeded, match="1 of 1 calls spent"):
        replay(raising, next(trips(ending, thread())))


def test_a_graph_without_the_node_is_said(saver):
    """A graph that lost the node is told so, with the nodes it has."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())
    other = guarded(chain(Scripted(), "a", "c"), saver, Budget(calls=1))

    with pytest.raises(UnknownNode, match=r"no node 'b'; it has \['a', 'c'\]"):
        replay(other, next(trips(graph, thread())), Budget(calls=9))


def test_a_graph_with_other_gates_is_said(saver):
    """Gates in other places mean that nothing would run from there, and the error says so."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), gate="node")
    graph.invoke(HI, thread())
    other = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), gate="inline")

    with pytest.raises(HistoryUnavailable, match="the same nodes, and gates in the same places"):
        replay(other, next(trips(graph, thread())))


def test_a_trip_of_another_checkpointer_is_said(saver):
    """A checkpoint that is not there is not made up."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())
    other = guarded(chain(Scripted(), "a", "b"), InMemorySaver(), Budget(calls=1))

    with pytest.raises(HistoryUnavailable, match="is not there any more"):
        replay(other, next(trips(graph, thread())))


def test_a_trip_of_a_state_is_not_enough(saver):
    """A trip that doesn't know its thread is sent to `trips`."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    with pytest.raises(HistoryUnavailable, match=r"take it from trips\(graph, config\)"):
        replay(graph, Trip.of(graph.get_state(thread())))


def test_the_graph_keeps_its_own_budget(saver):
    """A replay with other budgets leaves the graph as it was."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())
    replay(graph, next(trips(graph, thread())), Budget(calls=9))

    graph.invoke(HI, thread("other"))

    assert Trip.of(graph.get_state(thread("other"))).budget == "calls=1 per branch"
