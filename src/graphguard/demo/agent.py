"""The demo's graphs: an agent in a shop, and one that replays a recorded run. Plain LangGraph both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from graphguard.demo.scripted import RecordedModel, count_tokens
from graphguard.demo.shop import Shop, shop_tools

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from graphguard.demo.recordings import RecordedRun

__all__ = ["TASK", "Scene", "recorded_scene", "shop_scene"]

TASK = "Mira Okafor asks where the refund for her order 1042 is. Find it."
"""What the shop's agent is asked to do."""

RULES = (
    "You are the support agent of a small shop. Use the tools to find out what happened, and answer the "
    "customer's question from what they say, with dates and amounts. Check what you find before you answer. "
    "Orders and refunds are in the same database; refunds carry the order number they were booked on."
)

OUTPUT_CAP = 512
"""The output cap of a recorded model, in tokens, unless the recording holds a longer answer."""


@dataclass(frozen=True)
class Scene:
    """A graph and what it is given: all that a run needs besides a budget.

    Attributes:
        name: What the run is called.
        graph: The graph, not yet guarded and not yet compiled.
        messages: What the run begins with.
    """

    name: str
    graph: StateGraph[MessagesState]
    messages: tuple[BaseMessage, ...]


def shop_scene(model: BaseChatModel) -> Scene:
    """Give the shop's agent: the usual loop of a model node and a `ToolNode` over a real database.

    Args:
        model: The chat model that drives it, scripted or live.
    """
    tools = shop_tools(Shop())
    model_with_tools = model.bind_tools(tools)

    def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
        """Ask the model what to do next."""
        return {"messages": [model_with_tools.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return Scene(name="shop", graph=graph, messages=(SystemMessage(RULES), HumanMessage(TASK)))


def recorded_scene(run: RecordedRun) -> Scene:
    """Give a graph that replays one recorded run: its model's answers, its tools' answers, its user's turns.

    Args:
        run: The recorded run. What stands before the model's first answer is the graph's input.
    """
    script = run.messages
    first = next(place for place, message in enumerate(script) if isinstance(message, AIMessage))
    longest = max(count_tokens([message]) for message in script if isinstance(message, AIMessage))
    model = RecordedModel(model_name=run.model, script=script, max_tokens=max(OUTPUT_CAP, longest))

    def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
        """Ask the model, which gives its recorded answer."""
        return {"messages": [model.invoke(state["messages"])]}

    def recorded(state: MessagesState) -> dict[str, list[BaseMessage]]:
        """Give what the tools or the user said next in the recording."""
        return {"messages": [script[len(state["messages"])]]}

    def whose_turn(state: MessagesState) -> str:
        """Name the node that speaks next in the recording."""
        place = len(state["messages"])
        if place >= len(script):
            return END
        speaker = script[place].type
        return {"ai": "agent", "tool": "tools"}.get(speaker, "user")

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", recorded)
    graph.add_node("user", recorded)
    graph.add_edge(START, "agent")
    for node in ("agent", "tools", "user"):
        graph.add_conditional_edges(node, whose_turn, ["agent", "tools", "user", END])
    return Scene(name=run.name, graph=graph, messages=script[:first])
