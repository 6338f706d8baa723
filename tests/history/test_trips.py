"""`trips` and `steps`: what a thread's checkpoints tell."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from graphguard import Budget, HistoryUnavailable, Spend, Trip, atrips, replay, trips
from graphguard.history import asteps, steps
from tests.history.graphs import HI, chain, fan, guarded, nested, thread
from tests.needs import TASK_IDS_OF_REPLAYS, needs
from tests.scripted import Scripted

GATES = pytest.mark.parametrize("gate", ["node", "inline"])


class Own(TypedDict):
    """A state with fields of the user's own under graphguard's names."""

    spend: Any
    trip: Any


def told(graph) -> list[tuple[str | None, str]]:
    """Give node and outcome of each trip of the thread, newest first."""
    return [(trip.node, trip.outcome) for trip in trips(graph, thread())]


@GATES
def test_a_trip_that_ended_the_run_is_told(saver, gate):
    """A trip tells budget, amounts, node, mode and the checkpoint before the refused call."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2), gate=gate)
    graph.invoke(HI, thread())

    (trip,) = trips(graph, thread())
    assert (trip.budget, trip.metric, trip.limit, trip.spent) == ("calls=2 per branch", "calls", 2, 2)
    assert (trip.node, trip.mode, trip.answer, trip.outcome) == ("c", "end", None, "not answered")
    assert Spend.of(graph.get_state(trip.config)).calls == 2
    assert graph.get_state(trip.config).next == (("c.budget",) if gate == "node" else ("c",))


@GATES
def test_a_question_is_told_with_its_answer(saver, gate):
    """A waiting question, a raised limit and a stop are told as such, newest first."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=1), gate=gate, on_trip="interrupt")
    graph.invoke(HI, thread())
    waiting = told(graph)
    graph.invoke(Command(resume=2), thread())
    raised = told(graph)
    graph.invoke(Command(resume=False), thread())

    assert waiting == [("b", "waits for an answer")]
    assert raised == [("c", "waits for an answer"), ("b", "raised to 2 calls")]
    assert told(graph) == [("c", "stopped"), ("b", "raised to 2 calls")]


def test_amounts_in_usd_are_told(saver):
    """A trip over USD tells limit, spend and what the call would have cost, and the limit it was raised to."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(usd="0.0003"), gate="inline", on_trip="interrupt")
    graph.invoke(HI, thread())
    graph.invoke(Command(resume=1), thread())

    (trip,) = trips(graph, thread())
    assert (str(trip.limit_usd), str(trip.spent_usd)) == ("0.0003", "0.00021")
    assert trip.needed > 0
    assert trip.outcome == "raised to $1.00"


@GATES
def test_every_task_that_tripped_side_by_side_is_told(gate):
    """Of several tasks that one superstep's trip ended, each is told."""
    graph = guarded(fan(Scripted()), InMemorySaver(), Budget(calls=2), gate=gate if gate == "inline" else "auto")
    graph.invoke(HI, thread())

    found = list(trips(graph, thread()))
    assert sorted(str(trip.node) for trip in found) == ["end", "u", "v", "w"]
    assert len({trip.at for trip in found}) == 2


@pytest.mark.parametrize("mode", ["end", "interrupt"])
def test_a_trip_in_a_subgraph_is_told_once(saver, mode):
    """A subgraph's trip names its namespace, and the top graph's checkpoint around it."""
    graph = guarded(nested(Scripted()), saver, Budget(calls=2), on_trip=mode)
    graph.invoke(HI, thread())

    (trip,) = trips(graph, thread())
    assert trip.ns.startswith("s:")
    assert trip.node == "y"
    assert graph.get_state(trip.config).next == ("s",)


def test_trips_of_all_forks_are_told(saver):
    """Each fork's trips are told, and an answer in one of them counts for that one alone."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2), on_trip="interrupt")
    graph.invoke(HI, thread())
    replay(graph, next(trips(graph, thread())))
    graph.invoke(Command(resume=5), thread())
    replay(graph, list(trips(graph, thread()))[-1])

    assert told(graph) == [("c", "waits for an answer"), ("c", "raised to 5 calls"), ("c", "waits for an answer")]


@needs(*TASK_IDS_OF_REPLAYS)
def test_an_answer_in_langgraphs_own_replay_counts_there_alone(saver):
    """A run that LangGraph itself replays from before a trip is a fork too, whose answer is not the first one's."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2), on_trip="interrupt")
    graph.invoke(HI, thread())
    graph.invoke(None, next(trips(graph, thread())).config)
    graph.invoke(Command(resume=5), thread())

    assert told(graph) == [("c", "raised to 5 calls"), ("c", "waits for an answer")]


def test_a_new_input_answers_nothing(saver):
    """A trip whose run was left behind stays unanswered when a later run's limit is raised."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), on_trip="interrupt")
    graph.invoke(HI, thread())
    graph.invoke(HI, thread())
    graph.invoke(Command(resume=9), thread())

    assert told(graph) == [("a", "raised to 9 calls"), ("b", "waits for an answer")]


def test_a_history_of_final_checkpoints_tells_its_trips(saver):
    """With durability="exit" the trip is told, and that its checkpoint was not kept."""
    graph = guarded(chain(Scripted(), "a", "b", "c"), saver, Budget(calls=2))
    graph.invoke(HI, thread(), durability="exit")

    (trip,) = trips(graph, thread())
    assert (trip.node, trip.kept, trip.root) == ("c", False, None)
    with pytest.raises(HistoryUnavailable, match=r"was not kept, as with durability='exit'; top_up\(\) goes on"):
        replay(graph, trip)


async def test_the_async_forms_tell_the_same(asaver):
    """`atrips` and `asteps` tell what `trips` and `steps` tell."""
    graph = guarded(nested(Scripted()), asaver, Budget(calls=2))
    await graph.ainvoke(HI, thread())

    assert [trip.node async for trip in atrips(graph, thread())] == ["y"]
    made = [step async for step in asteps(graph, thread())]
    assert sum(step.added.calls for step in made if not step.ns) == 2
    if isinstance(asaver, InMemorySaver):
        assert made == list(steps(graph, thread()))


def test_a_checkpointer_will_do_instead_of_the_graph(saver):
    """`trips` reads the same from a checkpointer alone."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    assert list(trips(saver, thread())) == list(trips(graph, thread()))


def test_a_graph_may_run_while_its_trips_are_read(saver):
    """Nothing is locked between two trips, so that each can be replayed as it comes."""
    graph = guarded(chain(Scripted(), *"abcdefgh"), saver, Budget(calls=1), on_trip="interrupt")
    graph.invoke(HI, thread())
    for limit in range(2, 6):
        graph.invoke(Command(resume=limit), thread())

    for trip in itertools.islice(trips(graph, thread()), 3):
        replay(graph, trip, Budget(calls=100))

    assert graph.get_state(thread()).next == ()


def test_steps_tell_who_ran_and_what_it_cost(saver):
    """Each step names its nodes, what it added and the branch's spend; shares tell what each task did."""
    graph = guarded(fan(Scripted()), saver, gate="inline")
    graph.invoke(HI, thread())

    made = {step.nodes: step for step in steps(graph, thread()) if step.nodes}
    assert [step.added.calls for step in reversed(made.values())] == [1, 4, 1]
    (beside,) = [step for nodes, step in made.items() if len(nodes) > 1]
    assert sorted(beside.nodes) == ["u", "v", "w"]
    assert [share.calls for share in beside.shares] == [1, 1, 1, 1]
    assert beside.spend.calls == 5


def test_forks_of_forks_add_only_their_own(saver):
    """The branch's spend is right in each fork, and what all steps added is what was billed."""
    model = Scripted()
    graph = guarded(chain(model, *"abcd"), saver, Budget(calls=3))
    graph.invoke(HI, thread())
    (first,) = trips(graph, thread())
    replay(graph, first, Budget(calls=4))
    middle = next(s for s in graph.get_state_history(thread()) if Spend.of(s).calls == 2)
    graph.invoke(None, middle.config)
    replay(graph, next(trips(graph, thread())), Budget(calls=9))

    made = list(steps(graph, thread()))
    assert sum(step.added.calls for step in made) == model.billed == 6
    assert all(step.spend.calls <= 4 for step in made)
    assert Spend.of(graph.get_state(thread())).calls == 4


def test_an_unknown_thread_is_said(saver):
    """A thread without any checkpoint is named, and what to look at."""
    graph = guarded(chain(Scripted(), "a"), saver, Budget(calls=1))

    with pytest.raises(HistoryUnavailable, match=r"no checkpoint of a thread 'no' is there; look at its name"):
        next(trips(graph, thread("no")))


def test_a_thread_without_trips_has_none(saver):
    """A thread that no budget stopped has no trips."""
    graph = guarded(chain(Scripted(), "a"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    assert list(trips(graph, thread())) == []


def test_a_graph_without_a_checkpointer_is_said():
    """Without a checkpointer there is no history, and the error says what to do."""
    graph = guarded(chain(Scripted(), "a"), None, Budget(calls=1))

    with pytest.raises(HistoryUnavailable, match=r"compile it with checkpointer=\.\.\."):
        next(trips(graph, thread()))


def test_a_config_without_a_thread_is_said():
    """A config that names no thread is shown as it is."""
    with pytest.raises(HistoryUnavailable, match=r"the config names no thread"):
        next(trips(InMemorySaver(), {"configurable": {}}))


def test_states_of_other_graphs_are_let_be(saver):
    """A thread whose graph keeps something else in a field `spend` or `trip` has no trips and no spend."""
    builder = StateGraph(Own)
    builder.add_node("a", lambda state: {"spend": {"usd": "much"}, "trip": "to Rome"})
    builder.add_edge(START, "a")
    builder.compile(checkpointer=saver).invoke({"spend": 1, "trip": None}, thread())

    assert list(trips(saver, thread())) == []
    assert {step.spend for step in steps(saver, thread())} == {Spend()}


def test_a_past_trip_is_a_trip(saver):
    """What `trips` gives has all that `Trip.of` the state has."""
    graph = guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    now, past = Trip.of(graph.get_state(thread())), next(trips(graph, thread()))
    assert isinstance(past, Trip)
    assert {**now.to_state()}.items() <= past.to_state().items()
