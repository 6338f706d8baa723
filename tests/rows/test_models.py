"""Rows B84, B85, B87-B91 and B95: which model answered, what it used, and how it is called and tested."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from pydantic import BaseModel

from graphguard import Budget, MemoryLedger, Spend, Trip, charge, guard
from tests.scripted import NANOUSD_PER_CALL, Scripted, tool_call

T: RunnableConfig = {"configurable": {"thread_id": "t"}}


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def one(node: Any, *budgets: Budget, **options: Any) -> Any:
    """A graph of one guarded node."""
    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    options = {"ledger": MemoryLedger(), "nodes": ["n"], **options}
    return guard(builder, *budgets, **options).compile(checkpointer=InMemorySaver())


def answer(text: str = "ok", model: str = "gpt-4o-mini", **usage: Any) -> AIMessage:
    """An answer with usage of its own, by a model of that name."""
    counts = {"input_tokens": 1_000, "output_tokens": 100, "total_tokens": 1_100, **usage}
    return AIMessage(text, usage_metadata=counts, response_metadata={"model_name": model})


def test_b84_the_price_is_that_of_the_model_that_answered() -> None:
    """A router's answer is priced by the model it names, not by the one that was asked."""
    ledger = MemoryLedger()
    model = Scripted(script=[answer(model="gpt-4o-2024-08-06"), answer(model="gpt-4o-mini-2024-07-18")])

    one(lambda _: {"log": [len(model.batch(["q"])), len(model.batch(["q"]))]}, Budget(usd=1), ledger=ledger).invoke(
        {"log": []}, T
    )

    assert [(c.model, c.nanousd) for c in ledger.charges()] == [
        ("gpt-4o-2024-08-06", 3_500_000),
        ("gpt-4o-mini-2024-07-18", NANOUSD_PER_CALL),
    ]


def test_b84_middleware_may_change_the_model() -> None:
    """A model put in by middleware at run time is held and priced as itself."""
    ledger, dear, cheap = MemoryLedger(), Scripted(model_name="gpt-4o"), Scripted()

    class Cheaper(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model=cheap))

    agent = guard(create_agent(dear, [], middleware=[Cheaper()]), Budget(usd=1), ledger=ledger)

    agent.invoke({"messages": [HumanMessage("hi")]})

    assert (dear.billed, cheap.billed) == (0, 1)
    assert [c.model for c in ledger.charges()] == ["gpt-4o-mini"]


def test_b85_a_configurable_model_is_priced_as_configured() -> None:
    """A model chosen by `config["configurable"]` is priced by what was chosen."""
    ledger = MemoryLedger()
    model = Scripted().configurable_fields(model_name=ConfigurableField(id="model"))
    graph = one(lambda _, config: {"log": [model.invoke("q", config).content]}, Budget(usd=1), ledger=ledger)

    for name in ("gpt-4o-mini", "gpt-4o"):
        graph.invoke({"log": []}, {"configurable": {"thread_id": name, "model": name}})

    assert [(c.model, c.nanousd) for c in ledger.charges()] == [("gpt-4o-mini", 210_000), ("gpt-4o", 3_500_000)]


def test_b85_alternatives_are_counted_by_their_own_budgets() -> None:
    """A budget for one model refuses that one and leaves its alternative alone."""
    dear, cheap = Scripted(model_name="gpt-4o"), Scripted()
    model = dear.configurable_alternatives(ConfigurableField(id="tier"), default_key="dear", cheap=cheap)
    graph = one(lambda _, config: {"log": [model.invoke("q", config).content]}, Budget(calls=1, model="gpt-4o"))

    for tier in ("dear", "dear", "cheap", "cheap"):
        graph.invoke({"log": []}, {"configurable": {"thread_id": "t", "tier": tier}})

    assert (dear.billed, cheap.billed) == (1, 2)


class Verdict(BaseModel):
    """A verdict."""

    good: bool = True


@pytest.mark.parametrize("include_raw", [False, True])
def test_b87_structured_output_is_metered(*, include_raw: bool) -> None:
    """The parsed object has no usage; the call is charged with the usage the model told."""
    ledger = MemoryLedger()
    model = Scripted(script=[tool_call("Verdict", good=False)])
    structured = model.with_structured_output(Verdict, include_raw=include_raw)

    out = one(lambda _: {"log": [bool(structured.invoke("q"))]}, Budget(usd=1), ledger=ledger).invoke({"log": []}, T)

    assert out == {"log": [True]}
    assert ledger.total() == Spend(nanousd=NANOUSD_PER_CALL, input_tokens=1_000, output_tokens=100, calls=1)


def test_b87_an_answer_that_does_not_parse_is_charged() -> None:
    """A call whose answer can't be parsed was billed, and is charged once."""
    ledger = MemoryLedger()
    structured = Scripted(script=[tool_call("Verdict", good="neither")]).with_structured_output(Verdict)
    graph = one(lambda _: {"log": [structured.invoke("q")]}, Budget(usd=1), ledger=ledger)

    with pytest.raises(ValueError, match="good"):
        graph.invoke({"log": []}, T)

    assert ledger.total().calls == 1


def test_b88_totals_agree_with_langchains_handler_and_count_sub_agents() -> None:
    """For one run the ledger, the state and LangChain's handler agree, calls of a sub-agent in a tool included."""
    ledger, inner = MemoryLedger(), Scripted(script=["from the sub-agent"])
    sub = create_agent(inner, [])

    @tool
    def delegate(task: str = "") -> str:
        """Give the task to a sub-agent."""
        return str(sub.invoke({"messages": [HumanMessage(task)]})["messages"][-1].content)

    outer = Scripted(script=[tool_call("delegate"), "done"])
    agent = guard(create_agent(outer, [delegate], checkpointer=InMemorySaver()), Budget(calls=9), ledger=ledger)
    theirs = UsageMetadataCallbackHandler()

    agent.invoke({"messages": [HumanMessage("hi")]}, {**T, "callbacks": [theirs]})

    told = theirs.usage_metadata["gpt-4o-mini"]
    spent = ledger.total()
    assert (told["input_tokens"], told["output_tokens"]) == (spent.input_tokens, spent.output_tokens)
    assert spent == Spend.of(agent.get_state(T))
    assert spent.calls == outer.billed + inner.billed == 3


def test_b88_a_budget_stops_a_sub_agent() -> None:
    """A sub-agent called in a tool spends the same money, and stops where it ends."""
    inner = Scripted(script=[tool_call("look")])

    @tool
    def look(where: str = "") -> str:
        """Look somewhere."""
        return "seen"

    sub = create_agent(inner, [look])

    @tool
    def delegate(task: str = "") -> str:
        """Give the task to a sub-agent that never finishes."""
        return str(sub.invoke({"messages": [HumanMessage(task)]})["messages"][-1].content)

    outer = Scripted(script=[tool_call("delegate", "c1"), "done"])
    agent = guard(create_agent(outer, [delegate]), Budget(calls=6), ledger=MemoryLedger())

    out = agent.invoke({"messages": [HumanMessage("hi")]})

    assert outer.billed + inner.billed == 6
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "ai"]
    assert "6 of 6 calls spent" in out["messages"][-1].content


def test_b89_cached_input_costs_less_and_writing_the_cache_more() -> None:
    """Tokens read from the provider's cache cost its price for that; written ones cost the premium."""
    ledger = MemoryLedger()
    script = [
        answer(model="claude-sonnet-4-5"),
        answer(model="claude-sonnet-4-5", input_token_details={"cache_read": 1_000}),
        answer(model="claude-sonnet-4-5", input_token_details={"cache_creation": 1_000}),
    ]
    model = Scripted(script=script, model_name="claude-sonnet-4-5")

    one(lambda _: {"log": [model.invoke("q").content for _ in script]}, Budget(usd=1), ledger=ledger).invoke(
        {"log": []}, T
    )

    plain, read, written = (charge.nanousd for charge in ledger.charges())
    # $3 a million in, $0.30 read, $3.75 written for five minutes; 100 tokens out at $15.
    assert (plain, read, written) == (4_500_000, 1_800_000, 5_250_000)


def test_b90_reasoning_is_counted_once() -> None:
    """Reasoning tokens are part of the output and are not billed on top of it."""
    ledger = MemoryLedger()
    model = Scripted(script=[answer(output_token_details={"reasoning": 90})])

    one(lambda _: {"log": [model.invoke("q").content]}, Budget(usd=1), ledger=ledger).invoke({"log": []}, T)

    assert ledger.total() == Spend(nanousd=NANOUSD_PER_CALL, input_tokens=1_000, output_tokens=100, calls=1)


def test_b90_fees_of_server_tools_can_be_added() -> None:
    """A fee that the usage doesn't show is added by `charge()`, and counts in the budget."""
    ledger, model = MemoryLedger(), Scripted()

    def node(state: Log) -> Log:
        text = str(model.invoke("q").content)
        charge(usd="0.01")
        return {"log": [text]}

    graph = one(node, Budget(usd="0.0101"), ledger=ledger)
    for _ in "ab":
        graph.invoke({"log": []}, T)

    assert ledger.total().nanousd == 10_000_000 + NANOUSD_PER_CALL
    assert Trip.of(graph.get_state(T)) is not None


def test_b91_a_batch_of_n_is_n_charges() -> None:
    """`batch` with a concurrency limit charges each of its calls, and stops where the budget ends."""
    ledger, model = MemoryLedger(), Scripted()
    graph = one(
        lambda _: {"log": [len(model.batch(["q"] * 7, {"max_concurrency": 3}))]}, Budget(calls=7), ledger=ledger
    )

    assert graph.invoke({"log": []}, T) == {"log": [7]}
    assert ledger.total().calls == model.billed == 7


def test_b91_a_batch_over_budget_never_overshoots() -> None:
    """Of a batch that is too large, exactly what the budget allows is sent."""
    ledger, model = MemoryLedger(), Scripted()

    one(lambda _: {"log": [len(model.batch(["q"] * 9))]}, Budget(calls=4), ledger=ledger).invoke({"log": []}, T)

    assert ledger.total().calls == model.billed == 4
    assert ledger.open_holds() == ()


def test_b91_a_rate_limiter_is_asked_once_a_call() -> None:
    """A shared rate limiter is asked by every call that is sent, as in the bare graph."""

    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

    limiter = Counting(requests_per_second=1_000)
    model = Scripted(rate_limiter=limiter)

    one(lambda _: {"log": [model.invoke("q").content for _ in "abc"]}, Budget(calls=9)).invoke({"log": []}, T)

    assert limiter.asked == model.billed == 3


def test_b95_langchains_fake_model_is_metered() -> None:
    """`GenericFakeChatModel` tells no usage and no name: its calls count, and its tokens are estimated."""
    ledger = MemoryLedger()
    model = GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two"), AIMessage("three")]))
    agent = guard(create_agent(model, [], checkpointer=InMemorySaver()), Budget(calls=2, tokens=9_999), ledger=ledger)

    for _ in range(3):
        out = agent.invoke({"messages": [HumanMessage("hi")]}, T)

    assert "2 of 2 calls spent" in out["messages"][-1].content
    assert ledger.total().calls == ledger.total().estimated == 2
    assert ledger.total().output_tokens > 0


def test_b95_a_fake_model_without_a_price_is_refused_by_a_usd_budget() -> None:
    """A model that tells no name has no price, so a USD budget stops it rather than taking it for free."""
    model = GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two")]))
    graph = one(lambda _: {"log": [model.invoke("q").content, model.invoke("q").content]}, Budget(usd=1))

    graph.invoke({"log": []}, T)

    assert Trip.of(graph.get_state(T)).kind == "unpriced"


def test_b95_a_node_can_be_called_by_hand() -> None:
    """`graph.nodes["n"].invoke(state)` runs the guarded node alone, and needs no checkpointer."""
    ledger, model = MemoryLedger(), Scripted()
    graph = one(lambda _: {"log": [str(model.invoke("q").content)]}, Budget(calls=5), ledger=ledger)

    assert graph.nodes["n"].invoke({"log": []}) == {"log": ["ok"]}
    assert ledger.total().calls == 1


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_b95_parts_of_a_graph_run_from_a_made_up_state(gate: str) -> None:
    """`update_state(as_node=...)` and `interrupt_after` run a part of the guarded graph as of the bare one."""
    builder = StateGraph(Log)
    for before, name in zip([START, *"abc"], "abcd", strict=True):
        builder.add_node(name, lambda _, name=name: {"log": [name + str(Scripted().invoke("q").content)]})
        builder.add_edge(before, name)
    guarded = guard(builder, Budget(calls=9), gate=gate, nodes=list("abcd"), ledger=MemoryLedger())

    for graph in (builder.compile(checkpointer=InMemorySaver()), guarded.compile(checkpointer=InMemorySaver())):
        graph.update_state(T, {"log": ["given"]}, as_node="a")
        out = graph.invoke(None, T, interrupt_after="c")
        assert out == {"log": ["given", "bok", "cok"]}


def test_b95_a_scripted_run_can_be_resumed_offline() -> None:
    """A budget question can be tested without network, server or key."""
    model = GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two")]))
    agent = guard(
        create_agent(model, [], checkpointer=InMemorySaver()),
        Budget(calls=1),
        on_trip="interrupt",
        ledger=MemoryLedger(),
    )
    agent.invoke({"messages": [HumanMessage("hi")]}, T)

    assert agent.invoke({"messages": [HumanMessage("again")]}, T)["__interrupt__"]
    assert agent.invoke(Command(resume=True), T)["messages"][-1].content == "two"
