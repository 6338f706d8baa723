"""`BudgetMiddleware` in `create_agent`: the budgets, trips and totals of `guard`, through the agent's own hooks."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    LLMToolEmulator,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
    ToolRetryMiddleware,
    after_agent,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from graphguard import (
    Breach,
    Budget,
    BudgetExceeded,
    InvalidBudget,
    MemoryLedger,
    Spend,
    SqliteLedger,
    StateConflict,
    Trip,
    UnknownPrice,
    guard,
    model_nodes,
    to,
    top_up,
)
from graphguard.middleware import BudgetMiddleware
from tests.conftest import thread
from tests.laws.builtin import retrying
from tests.laws.watching import plain
from tests.needs import SUMMARY_TRIGGERS, needs
from tests.recorded.server import Answer, RecordedServer
from tests.scripted import NANOUSD_PER_CALL, Scripted, tool_call

CONFIG = {**thread("t"), "recursion_limit": 60}
HI = {"messages": [HumanMessage("x" * 1_100)]}  # its bytes bound the scripted 1,000 tokens
LOOP = (tool_call("add"),)
over_modes = pytest.mark.parametrize("mode", ["sync", "async"])


@tool
def add(a: int = 1, b: int = 2) -> int:
    """Add."""
    return a + b


class Agent:
    """An agent with budget middleware, its model, and what is known of its runs."""

    def __init__(
        self,
        *budgets: Any,
        script: Any = LOOP,
        beside: Any = (),
        before: Any = (),
        tools: Any = (add,),
        agent: Any = None,
        **options: Any,
    ) -> None:
        self.model = Scripted(script=list(script))
        self.ledger = MemoryLedger()
        self.ended: list[str] = []
        ended = self.ended

        @after_agent
        def bye(state: Any, runtime: Any) -> None:
            ended.append("bye")

        self.middleware = BudgetMiddleware(*budgets, ledger=self.ledger, **options)
        around = [part(self.model) for part in before], [part(self.model) for part in beside]
        self.graph = create_agent(
            self.model,
            list(tools),
            middleware=[*around[0], self.middleware, *around[1], bye],
            checkpointer=InMemorySaver(),
            **(agent or {}),
        )

    async def run(self, mode: str, given: Any = HI) -> dict[str, Any]:
        return self.graph.invoke(given, CONFIG) if mode == "sync" else await self.graph.ainvoke(given, CONFIG)

    @property
    def state(self) -> Any:
        return self.graph.get_state(CONFIG)

    @property
    def spend(self) -> Spend:
        return Spend.of(self.state)

    @property
    def trip(self) -> Trip:
        trip = Trip.of(self.state)
        assert trip is not None
        return trip

    @property
    def last(self) -> str:
        return str(self.state.values["messages"][-1].content)

    def counted_once(self) -> bool:
        calls = self.model.billed
        return self.ledger.total().calls == self.spend.calls == calls and self.ledger.open_holds() == ()


# The same as `guard`

BUDGETS = [
    Budget(calls=3, warn_at=()),
    Budget(calls=3, per="run", warn_at=()),
    Budget(calls=3, per="thread", warn_at=()),
    Budget(tokens=3_500, warn_at=()),
    Budget(usd=f"{2.5 * NANOUSD_PER_CALL / 1e9:.9f}", warn_at=()),
    Budget(calls=2, node="model", warn_at=()),
    Budget(calls=2, model="gpt-4o-mini", warn_at=()),
]
SAID = ("budget", "metric", "limit", "spent", "held", "needed", "kind", "mode", "capped", "node", "model", "reason")


@over_modes
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.key)
async def test_same_trip_totals_and_conversation_as_guard(budget, mode):
    """Run twice on one thread, it makes the calls, says the words and leaves the trip that `guard` does."""
    ours = Agent(budget)
    model, ledger = Scripted(script=list(LOOP)), MemoryLedger()
    bare = create_agent(model, [add], checkpointer=InMemorySaver())
    guarded = guard(bare, budget, ledger=ledger, gate="inline")

    for _ in range(2):
        await ours.run(mode)
        guarded.invoke(HI, CONFIG)

    state = guarded.get_state(CONFIG)
    trip = Trip.of(state)
    assert plain(ours.state.values["messages"]) == plain(state.values["messages"])
    assert {name: getattr(ours.trip, name) for name in SAID} == {name: getattr(trip, name) for name in SAID}
    assert (ours.spend, ours.ledger.total()) == (Spend.of(state), ledger.total())
    assert Spend.of_run(ours.state) == Spend.of_run(state)
    assert ours.counted_once()


@over_modes
async def test_nothing_of_ours_is_in_the_output(mode):
    """The agent returns what it returned without."""
    assert set(await Agent(Budget(calls=2)).run(mode)) == {"messages"}


def test_a_policy_of_the_users_own_ends_the_agent():
    """A function is asked before each call, and the agent ends when it says so."""
    agent = Agent(lambda spend, call: Breach(budget="enough", note="enough is enough") if spend.calls == 2 else None)

    agent.graph.invoke(HI, CONFIG)

    assert agent.model.billed == 2
    assert "enough is enough" in agent.last


@over_modes
async def test_a_thread_goes_on_after_a_top_up(mode):
    """`top_up` raises the limit, takes the closing words out and goes on."""
    agent = Agent(Budget(calls=3), script=[*LOOP * 4, "done"])
    await agent.run(mode)

    top_up(agent.graph, CONFIG, calls=10)

    assert agent.last == "done"
    assert agent.counted_once()


# What a trip does


@over_modes
@pytest.mark.parametrize("budget", [Budget(calls=2), Budget(usd=f"{NANOUSD_PER_CALL / 1e9:.9f}")], ids=str)
async def test_hooks_after_the_agent_run_at_a_trip(budget, mode):
    """Whether the gate stops the agent or a call is refused, `after_agent` hooks run and the conversation is closed."""
    agent = Agent(budget)

    await agent.run(mode)

    assert agent.ended == ["bye"]
    assert agent.last == f"I stopped here: {agent.trip.reason}."
    assert agent.counted_once()


@over_modes
async def test_a_person_is_asked_and_no_call_is_paid_twice(mode):
    """In interrupt mode the agent waits before its model; an answer raises the limit and it goes on."""
    agent = Agent(Budget(calls=2), script=[*LOOP * 3, "done"], on_trip="interrupt")

    asked = await agent.run(mode)
    assert asked["__interrupt__"][0].value["kind"] == "graphguard.budget"
    assert agent.state.next == ("BudgetMiddleware.before_model",)
    await agent.run(mode, Command(resume={"new_limit_calls": 9}))

    assert agent.last == "done"
    assert agent.model.billed == 4
    assert agent.counted_once()
    assert agent.trip.answer == "raised"


@over_modes
@pytest.mark.parametrize("answer", ["approve", "nonsense"])
async def test_a_refused_call_is_asked_about_in_the_model_node(answer, mode):
    """Where only the call's own worst case doesn't fit, its node asks, again after a bad answer, and pays once."""
    agent = Agent(Budget(usd="0.0005"), script=["done"], on_trip="interrupt")

    await agent.run(mode)
    assert agent.state.next == ("model",)
    await agent.run(mode, Command(resume=answer))
    if answer == "nonsense":
        assert "error" in agent.state.interrupts[0].value
        await agent.run(mode, Command(resume=0.01))

    assert agent.last == "done"
    assert agent.model.billed == 1
    assert agent.counted_once()


@over_modes
async def test_a_person_who_says_stop_ends_the_agent(mode):
    """A rejected question closes the conversation through the `after_agent` hooks."""
    agent = Agent(Budget(calls=2), on_trip="interrupt")

    await agent.run(mode)
    await agent.run(mode, Command(resume="stop"))

    assert agent.model.billed == 2
    assert agent.ended == ["bye"]
    assert agent.last.startswith("I stopped here")
    assert agent.trip.answer == "stopped"


@over_modes
async def test_raise_raises_from_where_it_can_go_on(mode):
    """With on_trip="raise" the exception carries the trip, and the thread waits before the model."""
    agent = Agent(Budget(calls=2), on_trip="raise")

    with pytest.raises(BudgetExceeded) as caught:
        await agent.run(mode)

    assert caught.value.trip.spent == 2
    assert agent.state.next == ("BudgetMiddleware.before_model",)
    assert agent.counted_once()


class Sum(BaseModel):
    """What came out."""

    total: int


@pytest.mark.parametrize("tools", [(), (add,)], ids=["alone", "with tools"])
@pytest.mark.parametrize("budget", [Budget(calls=4), Budget(usd="0.001")], ids=str)
def test_endless_mending_of_structured_output_is_stopped(budget, tools):
    """An answer that never fits its schema is asked for again until the budget is used up, and not once more."""
    wrong = tool_call("Sum", total="many")
    agent = Agent(budget, script=[wrong], tools=tools, agent={"response_format": ToolStrategy(Sum)})

    agent.graph.invoke(HI, CONFIG)

    assert 1 <= agent.model.billed <= 4
    assert agent.ended == ["bye"]
    assert agent.counted_once()
    assert agent.last.startswith("I stopped here")


# Beside other middleware


def _summary(model: Scripted) -> AgentMiddleware[Any, Any]:
    return SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 2))


def _judge(model: Scripted) -> AgentMiddleware[Any, Any]:
    class Judge(AgentMiddleware):
        def after_agent(self, state: Any, runtime: Any) -> None:
            model.invoke("is it safe?")

        async def aafter_agent(self, state: Any, runtime: Any) -> None:
            await model.ainvoke("is it safe?")

    return Judge()


def _emulator(model: Scripted) -> AgentMiddleware[Any, Any]:
    return LLMToolEmulator(model=model)


SCRIPTS = {
    _summary: ["a summary", tool_call("add"), "another summary", "done"],
    _judge: [tool_call("add"), "done", "SAFE"],
    _emulator: [tool_call("add"), "3", "done"],
}


@needs(*SUMMARY_TRIGGERS)
@over_modes
@pytest.mark.parametrize("place", ["before", "beside"])
@pytest.mark.parametrize("other", [_summary, _judge, _emulator])
async def test_calls_of_other_middleware_count(other, place, mode):
    """What other middleware asks a model, in hooks of its own or around tools, is charged once, whatever the order."""
    agent = Agent(Budget(calls=50), script=SCRIPTS[other], **{place: [other]})

    await agent.run(mode, {"messages": [HumanMessage(f"hi {n}") for n in range(5 if other is _summary else 1)]})
    told = agent.ledger.total().calls
    assert told == agent.model.billed >= 3
    await agent.run(mode)

    assert agent.counted_once() or (other, place) == (_judge, "before")  # comes last, and is told by the next run
    assert agent.ledger.total().calls == agent.model.billed


@needs(*SUMMARY_TRIGGERS)
@over_modes
async def test_a_refused_call_of_other_middleware_raises(mode):
    """A summary that there is no room for is not sent; nothing around it could end the agent, so it raises."""
    agent = Agent(Budget(usd="0.0001"), beside=[Eager])

    with pytest.raises(BudgetExceeded):
        await agent.run(mode)

    assert agent.model.billed == 0
    assert agent.ledger.open_holds() == ()


class Eager(AgentMiddleware):
    """Asks the model before the agent does."""

    def __init__(self, model: Scripted) -> None:
        super().__init__()
        self.model = model

    def before_agent(self, state: Any, runtime: Any) -> None:
        self.model.invoke("x" * 2_000)

    async def abefore_agent(self, state: Any, runtime: Any) -> None:
        await self.model.ainvoke("x" * 2_000)


def _retries(model: Scripted) -> AgentMiddleware[Any, Any]:
    return retrying()


def _falls_back(model: Scripted) -> AgentMiddleware[Any, Any]:
    return ModelFallbackMiddleware(model)


@over_modes
@pytest.mark.parametrize("place", ["before", "beside"])
@pytest.mark.parametrize("other", [_retries, _falls_back])
async def test_each_attempt_counts_and_a_refusal_is_not_one(other, place, mode):
    """Retries and fallbacks are charged attempt by attempt, and a refused call is neither repeated nor replaced."""
    agent = Agent(Budget(calls=3), script=[ValueError("a slip"), *LOOP * 9], **{place: [other]})

    await agent.run(mode)

    assert agent.model.billed == 3
    assert agent.counted_once()
    assert agent.last.startswith("I stopped here")


class Twice(AgentMiddleware):
    """Asks the model twice and takes the second answer."""

    def __init__(self, _: Any) -> None:
        super().__init__()

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        handler(request)
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        await handler(request)
        return await handler(request)


class Never(Twice):
    """Answers by itself."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return AIMessage("by myself")

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return AIMessage("by myself")


@over_modes
@pytest.mark.parametrize("place", ["before", "beside"])
@pytest.mark.parametrize(("other", "calls"), [(Twice, 2), (Never, 0)])
async def test_each_call_of_a_handler_counts(other, calls, place, mode):
    """However often other middleware calls the model for one answer, so often it is charged."""
    agent = Agent(Budget(calls=9), script=["done"], **{place: [other]})

    await agent.run(mode)

    assert agent.model.billed == calls
    assert agent.counted_once()


def _tool_retries(_: Scripted) -> AgentMiddleware[Any, Any]:
    return ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)


@over_modes
@pytest.mark.parametrize("place", ["before", "beside"])
async def test_a_refusal_in_a_tool_is_not_tried_again(place, mode):
    """A tool whose subagent is refused is not run again by middleware that retries tools."""
    inner = Scripted(script=["found"])
    tools = [_subagent(inner)[mode]]
    agent = Agent(Budget(calls=1), script=[_asks(mode), "done"], tools=tools, **{place: [_tool_retries]})

    await agent.run(mode)

    assert (agent.model.billed, inner.billed) == (1, 0)
    assert agent.last.startswith("I stopped here")


# Subagents


def _subagent(model: Scripted, *middleware: Any) -> Any:
    inner = create_agent(model, middleware=list(middleware))

    @tool
    def ask() -> str:
        """Ask a specialist."""
        return str(inner.invoke(HI)["messages"][-1].content)

    @tool
    async def aask() -> str:
        """Ask a specialist."""
        return str((await inner.ainvoke(HI))["messages"][-1].content)

    return {"sync": ask, "async": aask}


def _asks(mode: str, *, times: int = 1) -> AIMessage:
    name = "ask" if mode == "sync" else "aask"
    calls = [{"name": name, "args": {}, "id": f"c{n}", "type": "tool_call"} for n in range(times)]
    return AIMessage("", tool_calls=calls)


@over_modes
@pytest.mark.parametrize("times", [1, 4])
async def test_subagents_spend_the_agents_budget(times, mode):
    """Calls of agents in tools count; one that is refused answers its tool call, and the agent ends."""
    inner = Scripted(script=["found"])
    agent = Agent(Budget(calls=2), script=[_asks(mode, times=times)], tools=[_subagent(inner)[mode]])

    await agent.run(mode)

    assert (agent.model.billed, inner.billed) == (1, 1)
    assert agent.spend.calls == agent.ledger.total().calls == 2
    assert agent.ended == ["bye"]
    asked = {call["id"] for message in agent.state.values["messages"] for call in getattr(message, "tool_calls", ())}
    answered = {getattr(message, "tool_call_id", None) for message in agent.state.values["messages"]}
    assert asked <= answered


@over_modes
async def test_an_agent_ends_after_a_refusal_though_there_is_room_for_less(mode):
    """A subagent's call that is too large ends the agent, which could have gone on with a smaller one."""
    inner = Scripted(script=["found"], max_tokens=100_000)
    agent = Agent(Budget(usd="0.01"), script=[_asks(mode), "done"], tools=[_subagent(inner)[mode]])

    await agent.run(mode)

    assert (agent.model.billed, inner.billed) == (1, 0)
    assert agent.ended == ["bye"]
    assert agent.last == f"I stopped here: {agent.trip.reason}."


@over_modes
@pytest.mark.parametrize("times", [1, 4])
async def test_refused_subagents_ask_once(times, mode):
    """However many subagents are refused beside each other, a person is asked once, and all go on with the answer."""
    inner = Scripted(script=["found"])
    tools = [_subagent(inner)[mode]]
    agent = Agent(Budget(calls=1), script=[_asks(mode, times=times), "done"], tools=tools, on_trip="interrupt")

    asked = await agent.run(mode)
    assert len(asked["__interrupt__"]) == 1
    assert agent.state.next == ("tools",) * times
    await agent.run(mode, Command(resume=9))

    assert agent.last == "done"
    assert (agent.model.billed, inner.billed) == (2, times)
    assert agent.spend.calls == agent.ledger.total().calls == 2 + times


@over_modes
async def test_a_subagent_with_the_same_middleware_spends_one_budget(mode):
    """The same object in an agent and in its subagent is one budget, that of the outer run."""
    ledger, inner, outer = MemoryLedger(), Scripted(script=["found"]), Scripted(script=[_asks(mode)])
    shared = BudgetMiddleware(Budget(calls=5), ledger=ledger)
    ask = _subagent(inner, shared)[mode]
    graph = create_agent(outer, [ask], middleware=[shared], checkpointer=InMemorySaver())

    await graph.ainvoke(HI, CONFIG) if mode == "async" else graph.invoke(HI, CONFIG)

    assert outer.billed + inner.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 5


@over_modes
async def test_a_subagent_with_a_budget_of_its_own_ends_alone(mode):
    """A tighter budget in the subagent ends the subagent; the agent around it goes on."""
    ledger, inner, outer = MemoryLedger(), Scripted(script=list(LOOP)), Scripted(script=[_asks(mode), "done"])
    own = BudgetMiddleware(Budget(calls=2), ledger=ledger)
    sub = create_agent(inner, [add], middleware=[own])

    @tool
    def ask() -> str:
        """Ask a specialist."""
        return str(sub.invoke(HI)["messages"][-1].content)

    @tool
    async def aask() -> str:
        """Ask a specialist."""
        return str((await sub.ainvoke(HI))["messages"][-1].content)

    around = BudgetMiddleware(Budget(calls=9), ledger=ledger)
    graph = create_agent(outer, [ask, aask], middleware=[around], checkpointer=InMemorySaver())
    await graph.ainvoke(HI, CONFIG) if mode == "async" else graph.invoke(HI, CONFIG)

    state = graph.get_state(CONFIG)
    assert (outer.billed, inner.billed, ledger.total().calls, Spend.of(state).calls) == (2, 2, 4, 4)
    assert Trip.of(state) is None
    assert "2 of 2 calls" in state.values["messages"][2].content


@over_modes
@pytest.mark.parametrize("calls", [2, 3, 99])
async def test_deep_agents_take_it_too(calls, mode):
    """In a deep agent it counts the general-purpose subagent's calls, and ends the agent when they are used up."""
    ledger = MemoryLedger()
    asked = tool_call("task", description="Add.", subagent_type="general-purpose")
    model = Scripted(script=[asked, tool_call("add"), "3", "told"])
    budget = BudgetMiddleware(Budget(calls=calls), ledger=ledger)
    create_deep_agent = pytest.importorskip("deepagents").create_deep_agent
    graph = create_deep_agent(model, [add], middleware=[budget], checkpointer=InMemorySaver())

    await graph.ainvoke(HI, CONFIG) if mode == "async" else graph.invoke(HI, CONFIG)

    state = graph.get_state(CONFIG)
    assert model.billed == ledger.total().calls == Spend.of(state).calls == min(calls, 4)
    assert (Trip.of(state) is None) is (calls == 99)


# Together with `guard`


@over_modes
@pytest.mark.parametrize("on_trip", ["end", "interrupt"])
@pytest.mark.parametrize(("own", "around"), [(2, 9), (9, 2)])
async def test_a_call_counts_once_under_a_guard(own, around, on_trip, mode):
    """Around an agent with budgets of its own, a guard adds its budgets; each call is charged once, to its ledger."""
    agent, ledger = Agent(Budget(calls=own), script=[*LOOP * 3, "done"], on_trip=on_trip), MemoryLedger()
    agent.graph = guard(agent.graph, Budget(calls=around), on_trip=on_trip, ledger=ledger)
    agent.ledger = ledger

    await agent.run(mode)
    assert agent.model.billed == 2
    assert agent.counted_once()
    if on_trip == "interrupt":
        await agent.run(mode, Command(resume=9))
        assert agent.last == "done"
        assert agent.counted_once()


def test_a_guard_finds_no_model_in_the_middleware():
    """Cheaper models that the middleware holds don't make model nodes of its hooks."""
    cheap = Scripted(model_name="gpt-4.1-nano")
    agent = create_agent(Scripted(), [add], middleware=[BudgetMiddleware(Budget(calls=2), downgrade={0.5: cheap})])

    assert set(model_nodes(guard(agent, Budget(calls=3)))) == {"model"}


# What only middleware can do


@over_modes
async def test_a_cheaper_model_answers_from_a_share_of_the_budget_on(mode):
    """With most of a budget used, calls go to the cheaper model and are charged at its price."""
    cheap = Scripted(model_name="gpt-4.1-nano", script=["cheaply done"])
    agent = Agent(Budget(calls=10), downgrade={0.3: cheap, 0.9: Scripted(model_name="gpt-5-nano")})

    await agent.run(mode)

    assert (agent.model.billed, cheap.billed) == (3, 1)
    assert agent.last == "cheaply done"
    assert {charge.model for charge in agent.ledger.charges()} == {"gpt-4o-mini", "gpt-4.1-nano"}


@over_modes
async def test_a_call_is_told_what_is_left(mode):
    """With `tell_model` each request ends with a note that the conversation doesn't keep."""
    seen: list[str] = []

    class Listening(Scripted):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(str(messages[-1].content))
            return super()._generate(messages)

        async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            return self._generate(messages)

    told = BudgetMiddleware(Budget(calls=3, usd=1), ledger=MemoryLedger(), tell_model=True)
    graph = create_agent(Listening(script=[*LOOP, "done"]), [add], middleware=[told])
    out = graph.invoke(HI) if mode == "sync" else await graph.ainvoke(HI)

    assert seen == [
        "[Budget left for this task, this call included: $1.00, 3 calls.]",
        "[Budget left for this task, this call included: $0.9998, 2 calls.]",
    ]
    assert not any("Budget left" in str(message.content) for message in out["messages"])


@pytest.fixture(scope="module")
def server():
    """Give a server that answers as OpenAI does."""
    with RecordedServer() as running:
        yield running


def _completion() -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    return Answer.of(
        {"id": "1", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [choice], "usage": usage}
    )


@over_modes
@pytest.mark.parametrize(
    ("budget", "cap"),
    [
        (Budget(usd="0.002"), "lowered"),  # room for a few thousand tokens of output
        (Budget(output_tokens=700), 700),
        (Budget(usd=1), 16_000),  # as the model was made
        (Budget(output_tokens=99), None),  # less than is worth asking for, so the call is refused
    ],
    ids=lambda value: getattr(value, "key", str(value)),
)
async def test_a_call_is_shortened_to_what_is_left(budget, cap, mode, server):
    """With `min_output_tokens` the cap that a real client sends fits the budget, or the call isn't sent."""
    lane, ledger = server.lane([_completion()]), MemoryLedger()
    model = ChatOpenAI(model="gpt-4o-mini", base_url=f"{lane.url}/v1", api_key="none", max_tokens=16_000)
    fitting = BudgetMiddleware(budget, ledger=ledger, min_output_tokens=100)
    graph = create_agent(model, [add], system_prompt="Add.", middleware=[fitting])

    out = graph.invoke(HI) if mode == "sync" else await graph.ainvoke(HI)

    sent = [billed.request["max_completion_tokens"] for billed in lane.billed]
    if cap == "lowered":
        assert 1_000 < sent[0] < 4_000
        assert ledger.total().usd < budget.usd
    else:
        assert sent == ([] if cap is None else [cap])
    assert (out["messages"][-1].content == "done") is (cap is not None)


async def test_a_ledger_in_a_file_never_blocks_the_event_loop(tmp_path):
    """With every option on, and other middleware's calls beside, an async run makes no blocking call."""
    model, cheap = Scripted(script=[*LOOP * 9]), Scripted(model_name="gpt-4.1-nano", script=[*LOOP * 9])
    with SqliteLedger(str(tmp_path / "ledger.sqlite")) as ledger:
        options = {"downgrade": {0.5: cheap}, "min_output_tokens": 10, "tell_model": True}
        budget = BudgetMiddleware(Budget(calls=6), ledger=ledger, **options)
        graph = create_agent(model, [add], middleware=[budget, Eager(cheap)], checkpointer=InMemorySaver())
        with blockbuster_ctx():
            await graph.ainvoke(HI, CONFIG)

        assert ledger.total().calls == model.billed + cheap.billed == 6


# Misuse


@pytest.mark.parametrize(
    ("budgets", "options", "problem"),
    [
        (["0.50"], {}, "expected Budget"),
        ([], {"on_trip": "explode"}, "on_trip must be"),
        ([], {"on_trip": to("summary")}, "it knows no nodes"),
        ([], {"downgrade": {80: "openai:gpt-5-nano"}}, "shares of the budget from 0 to 1"),
        ([], {"downgrade": {0.8: 7}}, "takes names such as"),
        ([], {"downgrade": "openai:gpt-5-nano"}, "must be a dict"),
        ([], {"min_output_tokens": 0}, "whole number of at least 1"),
    ],
)
def test_misuse_is_found_when_the_middleware_is_made(budgets, options, problem):
    """What can't be kept is said before an agent is made."""
    with pytest.raises(InvalidBudget, match=problem):
        BudgetMiddleware(*budgets, **options)


@pytest.mark.parametrize("field", ["spend", "trip"])
def test_a_state_that_uses_our_names_is_refused(field):
    """An agent whose own state has one of the two fields is told so at its first run, before any call."""

    class Own(AgentState):
        pass

    Own.__annotations__[field] = float
    model = Scripted()
    graph = create_agent(model, state_schema=Own, middleware=[BudgetMiddleware(Budget(calls=1))])

    with pytest.raises(StateConflict, match=field):
        graph.invoke(HI)

    assert model.billed == 0


def test_cheaper_model_without_a_price_is_found_when_the_middleware_is_made():
    """A USD budget needs the price of every model that the middleware may choose."""
    with pytest.raises(UnknownPrice, match="nobody-knows-me"):
        BudgetMiddleware(Budget(usd=1), downgrade={0.8: Scripted(model_name="nobody-knows-me")})


def test_without_langchain_the_import_says_what_to_install():
    """LangChain is an extra, and its absence is explained."""
    code = "import sys; sys.modules['langchain'] = None; import graphguard; import graphguard.middleware"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "pip install 'graphguard[langchain]'" in done.stderr
