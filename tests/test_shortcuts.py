"""Shortcuts on the way of every model call give what the long way gives."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from graphguard import Budget, MemoryLedger, guard
from graphguard.bounds import input_bytes
from graphguard.listed import listed_usd, plain_rates
from graphguard.spend import Spend, usd_text
from graphguard.usage import Usage
from tests.scripted import Scripted, tool_call


def _plain_usages(seed: str) -> list[Usage]:
    chance = random.Random(seed)
    sent, received = chance.randrange(300_000), chance.randrange(50_000)
    return [
        Usage(input_tokens=sent, output_tokens=received),
        Usage(
            input_tokens=sent,
            output_tokens=received,
            cache_read_tokens=chance.randrange(sent + 1),
            reasoning_tokens=chance.randrange(received + 1),
        ),
    ]


def test_rates_asked_for_once_price_every_listed_model_as_the_list_does():
    """For each listed model without steps in its price, the kept rates give the list's own price to the last digit."""
    now = datetime.now(UTC)
    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            listed = model.get_prices(now)
            rates = plain_rates(listed)
            for usage in _plain_usages(f"{provider.id}/{model.id}") if rates else ():
                compared += 1
                assert rates.usd(usage) == listed_usd(listed, usage)
    assert compared > 1_000


@given(st.integers(-(10**15), 10**15))
def test_amounts_survive_the_state_to_the_last_nano_usd(nanousd):
    """An amount written to the state is read back as the same, and reads as the decimal it is."""
    assert Spend.of({"usd": usd_text(nanousd)}).nanousd == nanousd
    assert Decimal(usd_text(nanousd)) == Decimal(nanousd).scaleb(-9)


@pytest.mark.parametrize("text", ["1", "1.", ".5", "0.0000000019", "1e3", "-1.5", " 1", "+2", "٣"])
def test_amounts_that_people_write_are_read_as_decimals(text):
    """What people may write into the field counts as Python's decimals read it, whole nano-USD of it."""
    assert Spend.of({"usd": text}).nanousd == int(Decimal(text).scaleb(9))


def _grown(state: MessagesState) -> dict[str, list[BaseMessage]]:
    """Grow the arguments of the last answer in place, as a person's edit of a tool call does."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    last.tool_calls[0]["args"]["query"] = "x" * 50_000
    return {"messages": [ToolMessage("found", tool_call_id="c1")]}


def test_a_message_changed_in_place_is_seen():
    """A tool call that grew after it was answered is not taken for the one whose tokens the last call told."""
    model = Scripted(script=[tool_call("search", query="short"), "done"], usage=(100, 10))
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("search", _grown)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", lambda state: "search" if state["messages"][-1].tool_calls else END)
    graph.add_edge("search", "agent")
    guarded = guard(graph, Budget(input_tokens=5_000), ledger=MemoryLedger()).compile()

    result = guarded.invoke({"messages": [HumanMessage("look it up")]})

    assert sum(input_bytes(result["messages"][:3])) > 50_000
    assert model.billed == 1
