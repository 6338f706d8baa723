"""The call counts that LangChain's docs give for four ways to build with many agents, told by the guard.

Source: the performance comparison on the page "Multi-agent" of LangChain's docs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, Spend, guard
from tests.conftest import thread
from tests.scripted import Scripted

CONFIG = thread("t")
HI = {"messages": [HumanMessage("hi")]}


def asks(*names: str) -> AIMessage:
    """Give an answer that calls these tools, side by side."""
    calls = [{"name": name, "args": {}, "id": f"c{at}", "type": "tool_call"} for at, name in enumerate(names)]
    return AIMessage("", tool_calls=calls)


@tool
def buy_coffee() -> str:
    """Buy a coffee."""
    return "bought"


@tool
def look_up() -> str:
    """Look something up in a language's documentation."""
    return "found"


@dataclass
class Team:
    """A graph of agents, and all models that they have."""

    models: list[Scripted] = field(default_factory=list)
    graph: Any = None

    def model(self, *script: Any) -> Scripted:
        """Give one more model."""
        self.models.append(Scripted(script=list(script)))
        return self.models[-1]

    @property
    def billed(self) -> int:
        """Calls that providers would bill."""
        return sum(model.billed for model in self.models)


def subagents(*turns: Sequence[str], specialist: Sequence[Any]) -> Team:
    """Give a main agent that asks specialists, side by side where it asks several at once."""
    team = Team()
    names = sorted({name for turn in turns for name in turn})

    def asking(name: str) -> BaseTool:
        agent = create_agent(team.model(*specialist), [buy_coffee])

        @tool(name)
        def ask() -> str:
            """Ask a specialist."""
            return str(agent.invoke(HI)["messages"][-1].content)

        return ask

    tools = [asking(name) for name in names]
    script = [part for turn in turns for part in (asks(*turn), "done")]
    team.graph = create_agent(team.model(*script), tools)
    return team


class Step(AgentState):
    step: NotRequired[str]


class ByStep(AgentMiddleware):
    """Chooses the prompt by the step that was handed over to."""

    state_schema = Step

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(system_prompt=str(request.state.get("step"))))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(system_prompt=str(request.state.get("step"))))


@tool
def hand_over(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Hand over to the next specialist."""
    told = ToolMessage("handed over", tool_call_id=tool_call_id, name="hand_over")
    return Command(update={"step": "next", "messages": [told]})


def handoffs(*script: Any) -> Team:
    """Give an agent that becomes another one when it hands over."""
    team = Team()
    team.graph = create_agent(team.model(*script), [hand_over, buy_coffee, look_up], middleware=[ByStep()])
    return team


@tool
def load_skill() -> str:
    """Load what is known about a task."""
    return "much"


def skills(*script: Any) -> Team:
    """Give one agent that loads what it needs to know."""
    team = Team()
    team.graph = create_agent(team.model(*script), [load_skill, buy_coffee, look_up])
    return team


class Routed(TypedDict):
    messages: list[Any]
    found: Annotated[list[str], operator.add]


def router(*, to: int, specialist: Sequence[Any], synthesise: bool) -> Team:
    """Give a graph that classifies with a model, asks specialists side by side, and puts together what they found."""
    team = Team()
    classifier, last = team.model("coffee"), team.model("all in all")
    agents = [create_agent(team.model(*specialist), [buy_coffee]) for _ in range(to)]

    def classify(state: Routed) -> dict[str, Any]:
        classifier.invoke("where to?")
        return {}

    def ask(state: Any) -> dict[str, Any]:
        return {"found": [str(agents[state["n"]].invoke(HI)["messages"][-1].content)]}

    def tell(state: Routed) -> dict[str, Any]:
        return {"found": [str(last.invoke(str(state["found"])).content) if synthesise else "done"]}

    builder = StateGraph(Routed)
    for node in (classify, ask, tell):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "classify")
    builder.add_conditional_edges("classify", lambda _: [Send("ask", {"n": n}) for n in range(to)], ["ask"])
    builder.add_edge("ask", "tell")
    team.graph = builder.compile()
    return team


BUYS = (asks("buy_coffee"), "bought")
THREE = ("js", "py", "rs")
TEAMS: dict[str, tuple[Callable[[], Team], list[int]]] = {
    "subagents, one shot": (lambda: subagents(("coffee",), specialist=BUYS), [4]),
    "handoffs, one shot": (lambda: handoffs(asks("hand_over"), *BUYS), [3]),
    "skills, one shot": (lambda: skills(asks("load_skill"), *BUYS), [3]),
    "router, one shot": (lambda: router(to=1, specialist=BUYS, synthesise=False), [3]),
    "subagents, repeated": (lambda: subagents(("coffee",), ("coffee",), specialist=BUYS * 2), [4, 8]),
    "handoffs, repeated": (lambda: handoffs(asks("hand_over"), *BUYS, *BUYS), [3, 5]),
    "skills, repeated": (lambda: skills(asks("load_skill"), *BUYS, *BUYS), [3, 5]),
    "router, repeated": (lambda: router(to=1, specialist=BUYS * 2, synthesise=False), [3, 6]),
    "subagents, three domains": (lambda: subagents(THREE, specialist=["found"]), [5]),
    "handoffs, three domains": (
        lambda: handoffs(*[asks("hand_over"), asks("look_up")] * 3, "compared"),
        [7],
    ),
    "skills, three domains": (lambda: skills(asks(*["load_skill"] * 3), asks(*["look_up"] * 3), "compared"), [3]),
    "router, three domains": (lambda: router(to=3, specialist=["found"], synthesise=True), [5]),
}
over_teams = pytest.mark.parametrize("name", list(TEAMS))


@over_teams
def test_the_guard_tells_the_counts_of_the_docs(name):
    """After each turn, the thread's spend is the number of calls that the docs give, and what was billed."""
    build, totals = TEAMS[name]
    team, ledger = build(), MemoryLedger()
    team.graph.checkpointer = InMemorySaver()
    graph = guard(team.graph, Budget(calls=99), ledger=ledger)

    for total in totals:
        graph.invoke(HI, CONFIG)

        assert Spend.of(graph.get_state(CONFIG)).calls == team.billed == ledger.total().calls == total


@over_teams
def test_one_call_less_is_one_call_less(name):
    """With a budget for one call less than a turn needs, exactly that many are made."""
    build, (total, *_) = TEAMS[name]
    team, ledger = build(), MemoryLedger(wait=5)
    team.graph.checkpointer = InMemorySaver()
    graph = guard(team.graph, Budget(calls=total - 1), ledger=ledger)

    graph.invoke(HI, CONFIG)

    assert team.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == total - 1
    assert ledger.open_holds() == ()
