"""What takes a recorded agent run through a guarded agent, and what brute force says must happen to it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from graphguard import Budget, MemoryLedger, Spend, Trip, guard
from tests.recorded.agent_runs import OUTPUT_CAP, tools
from tests.recorded.oracle import bill
from tests.recorded.worst_case import worst_cases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langgraph.graph.state import CompiledStateGraph
    from langgraph.types import StateSnapshot

    from tests.recorded.agent_runs import AgentRun
    from tests.recorded.oracle import Json
    from tests.recorded.server import Lane, RecordedServer

ASKED_FOR = "gpt-4o"
BUDGETS = 10
THREAD = {"configurable": {"thread_id": "1"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One run as brute force sees it: nano-USD for each call.

    Attributes:
        costs: What it costs.
        worst: The most that it can cost, as far as can be known before.
    """

    costs: tuple[int, ...]
    worst: tuple[int, ...]

    @property
    def total(self) -> int:
        """What the whole run costs."""
        return sum(self.costs)

    @property
    def needed(self) -> int:
        """The smallest budget that stops none of its calls."""
        return max(map(self.edge, range(len(self.costs))))

    @property
    def edges(self) -> list[int]:
        """The calls that need more than any before them, so that some budget stops the run just there."""
        needs = [self.edge(call) for call in range(len(self.costs))]
        return [call for call, need in enumerate(needs) if need > max(needs[:call], default=0)]

    def edge(self, call: int) -> int:
        """The smallest budget that has room for a call when it comes."""
        return self.spent_before(call) + self.worst[call]

    def spent_before(self, call: int) -> int:
        """What the calls before this one cost."""
        return sum(self.costs[:call])

    def stops_at(self, limit: int) -> int | None:
        """The first call that does not fit under the limit any more; None when all do."""
        calls = range(len(self.costs))
        return next((call for call in calls if self.edge(call) > limit), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one guarded run ended.

    Attributes:
        made: How many calls the server answered.
        billed: What they cost, by their raw bodies, in nano-USD.
        spent: What the state says was spent.
        charged: What the ledger says was spent.
        trip: Why it stopped; None when it did not.
        holds: Calls for which room is still set aside.
    """

    made: int
    billed: int
    spent: int
    charged: int
    trip: Trip | None
    holds: int


class Bench:
    """What runs the agents: the server, and HTTP clients that all agents share."""

    def __init__(self, server: RecordedServer) -> None:
        """Take the server."""
        self.server = server
        self.http = httpx.Client(verify=False)  # noqa: S501 - plain HTTP; loading certificates takes 30 ms
        self.ahttp = httpx.AsyncClient(verify=False)  # noqa: S501 - likewise; each event loop gets one of its own
        self.asked: dict[str, list[Json]] = {}

    def agent(self, run: AgentRun, lane: Lane) -> CompiledStateGraph:
        """Give an unguarded agent whose model answers what was recorded."""
        model = ChatOpenAI(
            model=ASKED_FOR,
            max_tokens=OUTPUT_CAP,
            base_url=f"{lane.url}/v1",
            api_key="x",
            max_retries=0,
            http_client=self.http,
            http_async_client=self.ahttp,
        )
        return create_agent(model, tools(run), system_prompt=run.system, checkpointer=InMemorySaver())

    def requests(self, run: AgentRun) -> list[Json]:
        """Give what an unguarded run of it asks the server, in order; it is run once."""
        if run.id not in self.asked:
            lane = self.server.lane(run.answers)
            agent = self.agent(run, lane)
            for text in run.inputs:
                agent.invoke({"messages": [HumanMessage(text)]}, THREAD)
            assert not lane.unanswered
            self.asked[run.id] = [one.request for one in lane.billed]
        return self.asked[run.id]

    def walk(self, run: AgentRun) -> Walk:
        """Work out what a run costs and can cost."""
        return Walk(costs=run.costs, worst=tuple(worst_cases(self.requests(run), run.calls, ASKED_FOR)))

    def outcome(self, run: AgentRun, limit: int) -> Outcome:
        """Run it on a budget, until it trips or is through."""
        lane, ledger = self.server.lane(run.answers), MemoryLedger()
        graph = guard(self.agent(run, lane), budget(limit), ledger=ledger)
        for text in run.inputs:
            graph.invoke({"messages": [HumanMessage(text)]}, THREAD)
            if Trip.of(graph.get_state(THREAD)):
                break
        return seen(lane, ledger, graph.get_state(THREAD))

    async def aoutcome(self, run: AgentRun, limit: int) -> Outcome:
        """Do the same on an event loop."""
        lane, ledger = self.server.lane(run.answers), MemoryLedger()
        graph = guard(self.agent(run, lane), budget(limit), ledger=ledger)
        for text in run.inputs:
            await graph.ainvoke({"messages": [HumanMessage(text)]}, THREAD)
            if Trip.of(await graph.aget_state(THREAD)):
                break
        return seen(lane, ledger, await graph.aget_state(THREAD))

    async def aoutcomes(self, run: AgentRun, limits: Sequence[int]) -> list[Outcome]:
        """Run it on all budgets side by side."""
        async with httpx.AsyncClient(verify=False) as self.ahttp:  # noqa: S501 - see `http`
            return await asyncio.gather(*(self.aoutcome(run, limit) for limit in limits))


def budget(limit: int) -> Budget:
    """Give a budget of so many nano-USD."""
    return Budget(usd=Decimal(limit).scaleb(-9))


def seen(lane: Lane, ledger: MemoryLedger, state: StateSnapshot) -> Outcome:
    """Give an outcome, as the server, the ledger and the state saw it."""
    bills = [bill("openai", json.loads(one.answer.body), ASKED_FOR) for one in lane.billed]
    return Outcome(
        made=len(bills) + len(lane.unanswered),
        billed=sum(one.nanousd or 0 for one in bills if one),
        spent=Spend.of(state).nanousd,
        charged=ledger.total().nanousd,
        trip=Trip.of(state),
        holds=len(ledger.open_holds()),
    )


def spread(walk: Walk) -> list[int]:
    """Give ten budgets for a run.

    The first is too small for its first call. Seven go in even steps from what that call needs to what the whole run
    needs. The last two are the edge of a call in its middle: just enough for it, and one nano-USD less.
    """
    first, whole = walk.worst[0], walk.needed
    steps = BUDGETS - 4
    edge = walk.edge(walk.edges[len(walk.edges) // 2])
    return [first // 2, *(first + (whole - first) * step // steps for step in range(steps + 1)), edge, edge - 1]
