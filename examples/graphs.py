"""Guarded graphs for `langgraph dev`, which `langgraph.json` names: start it with `make dev`.

Their models are scripted and loop as runaway agents do, so nothing needs a key. `GRAPHGUARD_MODEL=openai:gpt-4o-mini`,
or any `provider:model` of LangChain's, takes a real one. What they spend is kept in the SQLite file or PostgreSQL
database that `GRAPHGUARD_LEDGER` says; without it, in the server's memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepagents import create_deep_agent
from langchain.agents import create_agent
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from graphguard import Budget, SqliteLedger, guard
from graphguard.demo.models import live_model
from graphguard.demo.scripted import RunawayModel
from graphguard.demo.shop import Shop, shop_tools
from graphguard.server import adjustable

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    from graphguard import Ledger

RULES = "You are the support agent of a small shop. Find out with the tools what happened, then answer the customer."


def ledger_of(place: str | None) -> Ledger | None:
    """The ledger at a PostgreSQL address or in a file; None is one in memory."""
    if place is None:
        return None
    if not place.startswith(("postgres://", "postgresql://")):
        return SqliteLedger(place)
    from graphguard.ledger import PostgresLedger  # noqa: PLC0415 - an extra

    ledger = PostgresLedger(place)
    ledger.setup()
    return ledger


name = os.environ.get("GRAPHGUARD_MODEL")
model: BaseChatModel = live_model(name) if name else RunawayModel()
tools = shop_tools(Shop())
model_with_tools = model.bind_tools(tools)
ledger = ledger_of(os.environ.get("GRAPHGUARD_LEDGER"))


@dataclass
class Customer:
    """Whom a run is for; an assistant's or a run's context."""

    user_id: str = "anonymous"
    plan: Literal["free", "pro"] = "free"


def answer(state: MessagesState) -> dict[str, object]:
    """Ask the model what to do next."""
    return {"messages": [model_with_tools.invoke([("system", RULES), *state["messages"]])]}


builder = StateGraph(MessagesState, context_schema=Customer)
builder.add_node("agent", answer)
builder.add_node("tools", ToolNode(tools))
builder.add_edge(START, "agent")
builder.add_conditional_edges("agent", tools_condition)
builder.add_edge("tools", "agent")

# A graph written by hand, which asks a person when five cents are spent.
support = guard(builder, Budget(usd="0.05"), on_trip="interrupt", ledger=ledger)

# An agent with settings that each assistant and run may choose; what an assistant costs a day is fixed.
agent = adjustable(
    guard(
        create_agent(model, tools, system_prompt=RULES),
        Budget(usd=1, per="assistant_id", every="day"),
        ledger=ledger,
    ),
    max_usd=Budget(usd="0.10", per="run"),
    max_calls=Budget(calls=20, per="run"),
)

# A deep agent; its subagents' calls count too.
researcher = guard(
    create_deep_agent(model, tools, system_prompt=RULES), Budget(usd="0.25", calls=10, per="run"), ledger=ledger
)

DAILY_USD = {"free": "0.05", "pro": "0.20"}


def of_user(config: RunnableConfig) -> CompiledStateGraph[MessagesState, Customer, MessagesState, MessagesState]:
    """A day's budget for each user, as large as the plan that the server's `authenticate` or the context tells."""
    configurable = config.get("configurable", {})
    user = configurable.get("langgraph_auth_user")
    told = configurable.get("plan") if user is None else getattr(user, "plan", None)
    usd = DAILY_USD.get(str(told), DAILY_USD["free"])
    key = "user_id" if user is None else "langgraph_auth_user"
    return guard(builder, Budget(usd=usd, per=key, every="day"), ledger=ledger).compile()
