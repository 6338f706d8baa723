"""`backtest`: what another budget would have done, read from what was recorded."""

from __future__ import annotations

from datetime import timedelta

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from graphguard import Budget, HistoryUnavailable, InvalidBudget, Spend, abacktest, backtest, replay, trips
from tests.history.graphs import HI, chain, fan, guarded, nested, thread
from tests.scripted import NANOUSD_PER_CALL, Scripted

THREE_CALLS = f"{3 * NANOUSD_PER_CALL / 10**9:.9f}"


def outcome(graph, budget: Budget, config=None):
    """Give what one budget would have done."""
    return backtest(graph, config or thread(), budget).outcomes[0]


def test_it_says_where_and_what_would_have_been_saved_and_missed(saver):
    """A smaller budget's trip has its place; the calls after it are saved, and their nodes missed."""
    graph = guarded(chain(Scripted(), *"abcde"), saver)
    graph.invoke(HI, thread())

    told = outcome(graph, Budget(calls=3))

    (trip,) = told.trips
    assert (trip.node, trip.spent, trip.limit, trip.mode) == ("d", 3, 3, "backtest")
    assert (told.spent.calls, told.saved.calls, told.saved.nanousd) == (5, 2, 2 * NANOUSD_PER_CALL)
    assert told.missed == {"d": 1, "e": 1}
    assert told.stopped == ("t",)


def test_budgets_are_compared_side_by_side(saver):
    """Each budget is tried by itself, and said in a sentence."""
    graph = guarded(chain(Scripted(), *"abcde"), saver)
    graph.invoke(HI, thread())

    told = backtest(saver, thread(), Budget(usd=THREE_CALLS), Budget(calls=9), Budget(tokens=1_500))

    assert str(told).splitlines() == [
        "with $0.00063, 1 of 1 threads would have stopped, saving $0.00042",
        "with 9 calls, none of 1 threads would have stopped",
        "with 1,500 tokens, 1 of 1 threads would have stopped, saving $0.00084",
    ]


def test_no_model_is_called_and_no_node_runs(saver):
    """A backtest reads alone."""
    model = Scripted()
    graph = guarded(chain(model, *"abc"), saver)
    graph.invoke(HI, thread())
    kept = len(list(saver.list(thread())))

    outcome(graph, Budget(calls=1))

    assert model.billed == 3
    assert len(list(saver.list(thread()))) == kept


def test_a_whole_database_is_tried(saver):
    """Without a config, every thread is; those that no guard metered are told apart."""
    graph = guarded(chain(Scripted(), *"abc"), saver)
    for name in ("t1", "t2", "t3"):
        graph.invoke(HI, thread(name))
    guarded(chain(Scripted(), "a"), saver).invoke(HI, thread("short"))
    chain(Scripted(), "a").compile(checkpointer=saver).invoke(HI, thread("bare"))

    told = backtest(saver, None, Budget(calls=2))

    assert (told.outcomes[0].threads, sorted(told.outcomes[0].stopped)) == (4, ["t1", "t2", "t3"])
    assert told.unmetered == ("bare",)
    assert "1 thread was not metered" in str(told)


async def test_abacktest_says_the_same(asaver):
    """The async form tells the same, over one thread and over all."""
    graph = guarded(chain(Scripted(), *"abc"), asaver)
    await graph.ainvoke(HI, thread())

    one = await abacktest(graph, thread(), Budget(calls=2))
    every = await abacktest(asaver, None, Budget(calls=2))

    assert one.outcomes == every.outcomes
    assert one.outcomes[0].trips[0].node == "c"


def test_a_budget_per_run_begins_anew_with_each_input(saver):
    """A budget per run trips in each run that is too long, and in no other."""
    graph = guarded(chain(Scripted(), *"abc"), saver)
    for _ in range(3):
        graph.invoke(HI, thread())

    assert [trip.node for trip in outcome(graph, Budget(calls=2, per="run")).trips] == ["c"] * 3
    assert outcome(graph, Budget(calls=3, per="run")).trips == ()
    assert len(outcome(graph, Budget(calls=5)).trips) == 1


def test_forks_are_lines_of_their_own_for_a_branch_and_one_for_a_thread(saver):
    """A branch budget is counted on each fork by itself; a thread budget over all of them, in time."""
    graph = guarded(chain(Scripted(), *"abcd"), saver)
    graph.invoke(HI, thread())
    middle = next(s for s in graph.get_state_history(thread()) if Spend.of(s).calls == 2)
    graph.invoke(None, middle.config)

    branch, real = outcome(graph, Budget(calls=3)), outcome(graph, Budget(calls=5, per="thread"))

    assert [trip.node for trip in branch.trips] == ["d", "d"]
    assert branch.saved.calls == 2
    assert [(trip.node, trip.spent) for trip in real.trips] == [("d", 5)]
    assert real.saved.calls == 1


def test_a_node_can_be_counted_alone(saver):
    """A budget of a node counts what that node used."""
    graph = guarded(chain(Scripted(), *"abc"), saver)
    for _ in range(3):
        graph.invoke(HI, thread())

    (trip,) = outcome(graph, Budget(calls=2, node="b")).trips
    assert (trip.node, trip.spent) == ("b", 2)


def test_windows_follow_the_recorded_time(saver):
    """A window's budget counts what was recorded in it."""
    graph = guarded(chain(Scripted(), *"abc"), saver)
    graph.invoke(HI, thread())

    assert outcome(graph, Budget(calls=2, per="thread", every=timedelta(days=3650))).saved.calls == 1


def test_a_trip_in_a_subgraph_names_its_node(saver):
    """The step of a subgraph is told apart into the steps inside."""
    graph = guarded(nested(Scripted()), saver)
    graph.invoke(HI, thread())

    (trip,) = outcome(graph, Budget(calls=3)).trips
    assert (trip.node, trip.spent) == ("z", 3)
    assert trip.ns.startswith("s:")


def test_nodes_side_by_side_are_named_together():
    """Which of several nodes comes last is chance: the trip names one, and the others beside it."""
    graph = guarded(fan(Scripted()), InMemorySaver())
    graph.invoke(HI, thread())

    (trip,) = outcome(graph, Budget(calls=3)).trips
    assert trip.node in {"u", "v", "w"}
    assert "which ran beside it" in trip.reason
    assert outcome(graph, Budget(calls=3)).saved.calls == 3


def test_what_was_refused_counts_with_what_it_needed(saver):
    """A recorded refusal says what the call would have needed, so the same budget trips in the same place."""
    budget = Budget(usd="0.0005")
    graph = guarded(chain(Scripted(max_tokens=500), *"abcd"), saver, budget, gate="inline")
    graph.invoke(HI, thread())
    had = next(trips(graph, thread()))

    (would,) = outcome(graph, budget).trips

    assert (would.node, would.spent, would.needed) == (had.node, had.spent, had.needed)


def test_a_found_trip_can_be_replayed(saver):
    """What a backtest found leads to the checkpoint before it."""
    graph = guarded(chain(Scripted(), *"abcd"), saver)
    graph.invoke(HI, thread())
    (would,) = outcome(graph, Budget(calls=2)).trips

    replay(graph, would, Budget(calls=2))

    assert (next(trips(graph, thread())).node, next(trips(graph, thread())).spent) == ("c", 2)


def test_a_history_of_final_checkpoints_is_tried_as_far_as_it_goes(tmp_path):
    """With durability="exit", a run is one step, and the saved share is of the whole run."""
    with SqliteSaver.from_conn_string(str(tmp_path / "c.sqlite")) as saver:
        graph = guarded(chain(Scripted(), *"abcd"), saver)
        graph.invoke(HI, thread(), durability="exit")

        told = outcome(graph, Budget(calls=3))

    assert (told.spent.calls, told.saved.calls) == (4, 1)


@pytest.mark.parametrize(
    ("budgets", "problem"),
    [
        ((), "no budget to try"),
        ((Budget(calls=1, model="gpt-5"),), "leave out model="),
        ((Budget(calls=1, per="user_id"),), "which checkpoints don't tell"),
        ((len,), "policies can't be tried"),
    ],
)
def test_what_cannot_be_tried_is_said(saver, budgets, problem):
    """Misuse is found before anything is read."""
    with pytest.raises(InvalidBudget, match=problem):
        backtest(saver, None, *budgets)


def test_an_unknown_thread_is_said(saver):
    """A thread that is not there is no thread without trips."""
    with pytest.raises(HistoryUnavailable, match="no checkpoint of a thread"):
        backtest(saver, thread("no"), Budget(calls=1))
