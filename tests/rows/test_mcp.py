"""Row B94: tools of a real MCP server, and interceptors around their calls that jump, pay and call models."""

from __future__ import annotations

from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from graphguard import Budget, Spend, Trip, charge, guard
from tests.scripted import Scripted, tool_call

pytest.importorskip("langchain_mcp_adapters")

from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

T: Any = {"configurable": {"thread_id": "t"}}
HI: Any = {"messages": [("user", "hi")]}


@asynccontextmanager
async def tools(*interceptors: Any) -> Any:
    """Give the tools of an MCP server in this process, with these around their calls."""
    server = FastMCP("search")

    @server.tool()
    def look(q: str) -> str:
        """Look something up."""
        return f"nothing about {q}"

    async with create_connected_server_and_client_session(server) as session:
        yield await load_mcp_tools(session, tool_interceptors=list(interceptors))


def graph(model: Scripted, found: list[Any]) -> StateGraph:
    """A model that calls a tool in each turn, and a summary by the same model that only a jump leads to."""

    async def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.bind_tools(found).ainvoke(state["messages"])]}

    async def summary(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_node("tools", ToolNode(found))
    builder.add_node("summary", summary)
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    builder.add_edge("tools", "agent")
    return builder


def calling() -> Scripted:
    """A model that asks for the tool in each of its answers."""
    return Scripted(script=[tool_call("look", f"c{at}", q="x") for at in range(20)])


async def test_b94_tools_of_a_server_run_as_ever(ledger):
    """With an MCP tool in each turn, three turns of a budget are made and charged, and the history can go on."""
    async with tools() as found:
        guarded = guard(graph(calling(), found), Budget(calls=3), ledger=ledger).compile(checkpointer=InMemorySaver())

        answer = await guarded.ainvoke(HI, T)

    assert [m.type for m in answer["messages"]] == ["human", *["ai", "tool"] * 3, "ai"]
    assert ledger.total().calls == Spend.of(guarded.get_state(T)).calls == 3


async def test_b94_a_jump_to_the_end_keeps_the_ledger(ledger):
    """An interceptor that ends the graph leaves what was spent in the ledger and in the state, and no trip."""

    async def stop(request: Any, handler: Any) -> Command[str]:
        return Command(goto="__end__")

    model = calling()
    async with tools(stop) as found:
        builder = graph(model, found)
        builder.edges.discard(("tools", "agent"))
        guarded = guard(builder, Budget(calls=9), ledger=ledger).compile(checkpointer=InMemorySaver())

        await guarded.ainvoke(HI, T)

    state = guarded.get_state(T)
    assert model.billed == ledger.total().calls == Spend.of(state).calls == 1
    assert Trip.of(state) is None


@pytest.mark.parametrize("gate", ["auto", "inline", "node"])
@pytest.mark.parametrize(("calls", "billed"), [(1, 1), (2, 2), (9, 2)])
async def test_b94_a_jump_cannot_skip_the_guard(ledger, gate, calls, billed):
    """A model node that an interceptor jumps to is called only if the budget has room for it."""

    async def jump(request: Any, handler: Any) -> Command[str]:
        return Command(goto="summary")

    model = calling()
    async with tools(jump) as found:
        builder = graph(model, found)
        builder.edges.discard(("tools", "agent"))
        options = {"gate": gate, "ledger": ledger}
        guarded = guard(builder, Budget(calls=calls), **options).compile(checkpointer=InMemorySaver())

        await guarded.ainvoke(HI, T)

    assert model.billed == ledger.total().calls == billed
    assert (Trip.of(guarded.get_state(T)) is not None) == (calls == 1)


async def test_b94_what_an_interceptor_pays_counts(ledger):
    """A fee that an interceptor charges, and a model that it calls, are charged to the run."""
    judge = Scripted()

    async def judged(request: Any, handler: Any) -> Any:
        await judge.ainvoke(str(request.args))
        charge(usd="0.005")
        return await handler(request)

    async with tools(judged) as found:
        await guard(graph(calling(), found), Budget(calls=4), ledger=ledger).compile().ainvoke(HI)

    assert judge.billed == 2
    assert ledger.total().calls == 4
    assert ledger.total().usd == Decimal("0.01") + 4 * Decimal("0.00021")


async def test_b94_a_refusal_in_an_interceptor_is_no_tool_error(ledger):
    """A call that is refused inside an interceptor ends the graph, and is not told to the model as a failed tool."""
    judge = Scripted()

    async def judged(request: Any, handler: Any) -> Any:
        await judge.ainvoke(str(request.args))
        return await handler(request)

    model = calling()
    async with tools(judged) as found:
        guarded = guard(graph(model, found), Budget(calls=1), ledger=ledger).compile(checkpointer=InMemorySaver())
        answer = await guarded.ainvoke(HI, T)

    assert (model.billed, judge.billed) == (1, 0)
    assert Trip.of(guarded.get_state(T)).node == "tools"
    assert "1 of 1 calls spent" in answer["messages"][-1].content
