"""`top_up`: more money, and on, whatever the trip did."""

from __future__ import annotations

import contextlib

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from graphguard import Budget, BudgetExceeded, NothingToTopUp, Spend, atop_up, replay, top_up, trips
from tests.history.graphs import HI, chain, fan, guarded, nested, thread
from tests.scripted import Scripted

MODES = pytest.mark.parametrize("mode", ["end", "interrupt", "raise"])
GATES = pytest.mark.parametrize("gate", ["auto", "inline"])


def tripped(graph):
    """Run the graph until its budget stops it."""
    with contextlib.suppress(BudgetExceeded):
        graph.invoke(HI, thread())
    return graph


@MODES
@GATES
@pytest.mark.parametrize(("shape", "calls"), [(fan, 6), (lambda model: chain(model, *"abcd"), 4)])
def test_it_goes_on_after_every_kind_of_trip(saver, shape, calls, mode, gate):
    """One waiting gate or many, Sends and joins: all calls are made, each once."""
    model = Scripted()
    graph = tripped(guarded(shape(model), saver, Budget(calls=2), on_trip=mode, gate=gate))

    output = top_up(graph, thread(), calls=20)

    assert model.billed == calls
    assert len(output["messages"]) == calls + 1
    assert graph.get_state(thread()).next == ()


@MODES
def test_it_goes_on_in_a_subgraph(saver, mode):
    """A subgraph goes on too; one whose run had ended starts over."""
    model = Scripted()
    graph = tripped(guarded(nested(model), saver, Budget(calls=2), on_trip=mode))

    top_up(graph, thread(), calls=20)

    assert model.billed == (5 if mode == "end" else 4)
    assert graph.get_state(thread()).next == ()


@MODES
async def test_atop_up_does_the_same(asaver, mode):
    """The async form makes all calls as well."""
    model = Scripted()
    graph = guarded(fan(model), asaver, Budget(calls=2), on_trip=mode)
    with contextlib.suppress(BudgetExceeded):
        await graph.ainvoke(HI, thread())

    await atop_up(graph, thread(), calls=20)

    assert model.billed == 6


@MODES
def test_it_may_trip_and_be_topped_up_again(saver, mode):
    """Each time the raised limit is reached, more can be added."""
    model = Scripted()
    graph = tripped(guarded(chain(model, *"abcd"), saver, Budget(calls=1), on_trip=mode))

    for _ in range(3):
        with contextlib.suppress(BudgetExceeded):
            top_up(graph, thread(), calls=1)

    assert model.billed == 4
    assert graph.get_state(thread()).next == ()


@pytest.mark.parametrize("per", ["branch", "run", "thread"])
@MODES
def test_budgets_of_every_place_are_raised(saver, ledger, per, mode):
    """Branch, run and thread budgets go on alike."""
    model = Scripted()
    graph = tripped(guarded(chain(model, *"abc"), saver, Budget(calls=1, per=per), on_trip=mode, ledger=ledger))

    top_up(graph, thread(), calls=9)

    assert model.billed == 3


def test_it_raises_the_tightest_limit_of_a_graph_that_raises(saver):
    """Of several budgets of the metric, the one with the least room is raised."""
    model = Scripted()
    budgets = (Budget(calls=2), Budget(calls=9, per="run"), Budget(usd=1))
    graph = tripped(guarded(chain(model, *"abcd"), saver, *budgets, on_trip="raise"))

    top_up(graph, thread(), calls=5)

    assert model.billed == 4


def test_usd_may_be_given_as_text_or_number(saver):
    """USD are added to the limit that was in force."""
    graph = tripped(guarded(chain(Scripted(), *"abcd"), saver, Budget(usd="0.0003"), gate="inline"))

    top_up(graph, thread(), usd="0.50")

    assert next(trips(graph, thread())).outcome == "raised to $0.5003"


def test_a_users_own_question_keeps_waiting(saver):
    """Only questions about money are answered; another interrupt of the same superstep still waits."""
    model = Scripted()
    builder = chain(model, "a", "b")
    builder.add_node("ask", lambda state: {"messages": [interrupt("sure?")]})
    builder.add_edge("a", "ask")
    graph = tripped(guarded(builder, saver, Budget(calls=1), on_trip="interrupt"))

    top_up(graph, thread(), calls=5)

    assert model.billed == 2
    assert [question.value for question in graph.get_state(thread()).interrupts] == ["sure?"]


@pytest.mark.parametrize("mode", ["end", "interrupt"])
def test_the_wrong_metric_is_said(saver, mode):
    """An amount of another metric names the one that ran out."""
    graph = tripped(guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), on_trip=mode))

    with pytest.raises(NothingToTopUp, match="1 of 1 calls spent; pass calls= to raise that limit"):
        top_up(graph, thread(), usd=1)


def test_the_wrong_metric_of_a_graph_that_raises_is_said(saver):
    """A graph that raises has no trip in its state; its budgets tell what can be added."""
    graph = tripped(guarded(chain(Scripted(), "a", "b"), saver, Budget(calls=1), on_trip="raise"))

    with pytest.raises(NothingToTopUp, match="pass calls="):
        top_up(graph, thread(), usd=1)


@pytest.mark.parametrize("amount", [0, -1, "much", float("nan"), True])
def test_what_is_no_amount_is_said(saver, amount):
    """Nothing, less than nothing, and what is no number can't be added."""
    graph = tripped(guarded(chain(Scripted(), "a", "b"), saver, Budget(usd="0.0003"), gate="inline"))

    with pytest.raises(NothingToTopUp, match="is no amount to add; pass a positive number"):
        top_up(graph, thread(), usd=amount)


def test_a_thread_that_is_at_no_trip_is_said(saver):
    """A thread that ended by itself has nothing to top up, and one that went on neither."""
    graph = guarded(chain(Scripted(), "a"), saver, Budget(calls=1))
    graph.invoke(HI, thread())

    with pytest.raises(NothingToTopUp, match="the thread is not at a trip"):
        top_up(graph, thread(), calls=1)


def test_a_final_checkpoint_is_enough(saver):
    """With durability="exit", the state's own trip says where to go on."""
    model = Scripted()
    graph = guarded(chain(model, *"abc"), saver, Budget(calls=1))
    graph.invoke(HI, thread(), durability="exit")

    top_up(graph, thread(), calls=9)

    assert model.billed == 3
    assert Spend.of(graph.get_state(thread())).calls == 3


def test_a_loop_goes_on_where_it_stopped(saver):
    """In a loop, the node that was stopped runs once, and what is after it once."""
    model = Scripted()
    builder = StateGraph(MessagesState)
    builder.add_node("a", chain(model, "a").nodes["a"].runnable)
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", lambda state: "a" if len(state["messages"]) < 7 else "__end__", ["a", "__end__"])
    graph = tripped(guarded(builder, saver, Budget(calls=2)))

    top_up(graph, thread(), calls=20)

    assert model.billed == 6


def test_after_a_replay_the_graphs_own_limit_is_raised(saver):
    """A trip over a budget that was only the replay's is gone on from with the graph's own budget raised."""
    model = Scripted()
    graph = tripped(guarded(chain(model, *"abcdef"), saver, Budget(calls=2)))
    replay(graph, next(trips(graph, thread())), Budget(calls=4))

    top_up(graph, thread(), calls=9)

    assert graph.get_state(thread()).next == ()
    assert Spend.of(graph.get_state(thread())).calls == 6


def test_clients_are_told_apart():
    """A client of the wrong kind is sent to the other function."""
    from langgraph_sdk import get_client, get_sync_client  # noqa: PLC0415 - slow to load

    with pytest.raises(NothingToTopUp, match=r"await atop_up\(client"):
        top_up(get_client(url="http://127.0.0.1:9"), thread(), usd=1)
    assert type(get_sync_client(url="http://127.0.0.1:9")).__name__ == "SyncLangGraphClient"
