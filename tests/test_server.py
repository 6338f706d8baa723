"""Limits as settings, without a server: what `adjustable` makes of a run's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from graphguard import Budget, InvalidBudget, MemoryLedger, NotGuardable, guard
from graphguard.server import adjustable
from tests.scripted import Scripted

HI = {"messages": "hi"}


@dataclass
class Who:
    name: str = "nobody"


def endless(context: type | None = None) -> StateGraph[Any, Any, Any, Any]:
    """Give a graph that calls without end."""
    model = Scripted()
    builder = StateGraph(MessagesState, context_schema=context)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "agent")
    return builder


def calls(make, **configurable):
    """Run the graph of a config, and count its calls."""
    graph = make({"configurable": configurable})
    return len(graph.invoke(HI, {"configurable": configurable})["messages"]) - 2  # a question, and the closing message


@pytest.mark.parametrize("value", [2, "2", 2.0, " 2 "], ids=repr)
def test_a_run_chooses_its_limit(value):
    """A whole number counts, also as text and with a point, as forms send them."""
    assert calls(adjustable(endless(), max_calls=Budget(calls=5)), max_calls=value) == 2


@pytest.mark.parametrize("config", [{}, {"max_calls": None}])
def test_without_a_setting_the_budgets_own_limit_counts(config):
    """Nothing, and None, leave the limit as it is."""
    assert calls(adjustable(endless(), max_calls=Budget(calls=5)), **config) == 5


@pytest.mark.parametrize("user", [{"identity": "ada", "max_calls": 3}, type("User", (), {"max_calls": 3})()])
def test_what_the_server_says_of_the_user_counts_first(user):
    """A limit of the authenticated user is not for the client to change."""
    make = adjustable(endless(), max_calls=Budget(calls=5))

    assert calls(make, max_calls=9, langgraph_auth_user=user) == 3


def test_the_graphs_own_budgets_stay():
    """A fixed budget is kept beside every setting, in the graph's own ledger."""
    ledger = MemoryLedger()
    make = adjustable(guard(endless(), Budget(calls=4), ledger=ledger), max_calls=Budget(calls=2))

    assert calls(make, max_calls=100) == 4
    assert ledger.total().calls == 4


def test_an_answered_question_counts_under_the_same_settings():
    """Who raised a limit raised it for runs with the setting that it was raised from; with another, that one counts."""
    make = adjustable(guard(endless(), on_trip="interrupt", ledger=MemoryLedger()), max_calls=Budget(calls=20))
    saver = InMemorySaver()

    def asked(given, max_calls):
        graph = make({"configurable": {"max_calls": max_calls}}).copy({"checkpointer": saver})  # as servers do
        answer = graph.invoke(given, {"configurable": {"thread_id": "1"}})
        return answer["__interrupt__"][0].value["action_requests"][0]["name"]

    assert asked(HI, 2) == "Budget exhausted: 2 of 2 calls"
    assert asked(Command(resume={"new_limit_calls": 3}), 2) == "Budget exhausted: 3 of 3 calls"
    assert asked(Command(resume={"new_limit_calls": 5}), 4) == "Budget exhausted: 4 of 4 calls"


def test_equal_settings_share_a_graph():
    """Runs with the same limits use one graph, others another."""
    make = adjustable(endless(), max_usd=Budget(usd=1))
    one, same, other = (make({"configurable": {"max_usd": usd}}) for usd in (2, "2", 3))

    assert one is same
    assert one is not other


@pytest.mark.parametrize("value", ["lots", -1, 0, True, "2.5", 2.5, [], {"calls": 2}, float("nan")], ids=repr)
def test_nonsense_is_refused_by_name(value):
    """A setting that can't be a limit raises before anything runs, and the error names it."""
    make = adjustable(endless(), max_calls=Budget(calls=5))

    with pytest.raises(InvalidBudget, match="its assistant's setting 'max_calls' can't be a limit: calls"):
        make({"configurable": {"max_calls": value}})


def test_nonsense_does_not_keep_anybody_from_looking():
    """Who only reads a thread gets the graph, whatever its run was set to."""
    make = adjustable(endless(), max_calls=Budget(calls=5))

    assert make({"configurable": {"max_calls": "lots", "__is_for_execution__": False}}).nodes


def test_forms_show_the_users_context_and_the_settings():
    """Who looks sees both; who runs has the context as its class was written."""
    make = adjustable(endless(Who), max_usd=Budget(usd="0.50", per="user_id", every="day"))
    looked, run = (make({"configurable": {"__is_for_execution__": runs}}) for runs in (False, True))

    shown = looked.get_context_jsonschema()
    assert list(shown["properties"]) == ["name", "max_usd"]
    assert shown["properties"]["max_usd"]["default"] == 0.5
    assert shown["properties"]["max_usd"]["description"] == "USD per user_id, every day; $0.50 if left out."
    assert list(run.get_context_jsonschema()["properties"]) == ["name"]
    assert run.context_schema is looked.context_schema is Who


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (Budget(usd=1, calls=2), "one limit"),
        (Budget(usd=1, node="agent"), "only some calls"),
        (Budget(usd=1, model="gpt-4o"), "only some calls"),
        (Budget(usd=1, keep="0.10"), "keep something"),
        (5, "one limit"),
    ],
)
def test_a_setting_is_one_limit_of_all_calls(budget, why):
    """What would begin anew with each other amount, or has no one amount, is refused when the graph is made."""
    with pytest.raises(InvalidBudget, match=why):
        adjustable(endless(), most=budget)


def test_a_setting_does_not_hide_the_users_own():
    """A name that the graph's context has is refused."""
    with pytest.raises(InvalidBudget, match="own context has a field 'name'"):
        adjustable(endless(Who), name=Budget(usd=1))


def test_what_is_no_graph_is_refused():
    """Only graphs have limits."""
    with pytest.raises(NotGuardable):
        adjustable(len, max_usd=Budget(usd=1))


def test_the_graph_passed_in_is_not_changed():
    """The graph can go on to be used without a guard."""
    bare = endless(Who).compile()
    adjustable(bare, max_usd=Budget(usd=1))

    assert list(bare.nodes) == ["__start__", "agent"]
    assert list(bare.get_context_jsonschema()["properties"]) == ["name"]
