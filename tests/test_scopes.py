"""Real budgets: per thread and per key, with windows and kept amounts, and never refilled by time travel."""

from __future__ import annotations

import asyncio
import enum
import operator
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from graphguard import (
    Budget,
    BudgetExceeded,
    GraphguardError,
    InvalidBudget,
    MemoryLedger,
    MissingKey,
    Remaining,
    SqliteLedger,
    Trip,
    charge,
    guard,
    remaining,
    to,
    top_up,
)
from graphguard.accounts import account_name, account_text, window_of
from graphguard.testing import Clock
from tests.conftest import thread
from tests.scripted import Scripted, tool_call

DAY, HOUR = 86_400, 3_600
Opening = Callable[..., MemoryLedger | SqliteLedger]


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


@dataclass
class Desk:
    """A loop of so many model calls, and how to run it."""

    ledger: Any
    is_async: bool = False
    turns: int = 10
    model: Scripted = field(default_factory=Scripted)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> Any:
        """Give a node that makes one call, in a sync and an async version."""
        model = self.model

        def answer(_: Log) -> Log:
            return {"log": [str(model.invoke("q").content)]}

        async def aanswer(_: Log) -> Log:
            return {"log": [str((await model.ainvoke("q")).content)]}

        return RunnableLambda(answer, aanswer)

    def graph(self, *budgets: Budget, **options: Any) -> Any:
        """Give the guarded graph, which ends after `turns` calls, or at a budget."""
        turns = self.turns
        builder = StateGraph(Log)
        builder.add_node("agent", self.node).add_node("summary", self.node).add_edge(START, "agent")
        builder.add_conditional_edges(
            "agent", lambda s: "agent" if len(s["log"]) < turns else "__end__", ["agent", "__end__"]
        )
        told = {"ledger": self.ledger, "nodes": ["agent", "summary"], **self.options, **options}
        return guard(builder, *budgets, **told).compile(checkpointer=InMemorySaver())

    async def run(self, graph: Any, config: Any, given: Any = None, **more: Any) -> Any:
        """Run it once, and give its output."""
        given = {"log": []} if given is None else given
        if self.is_async:
            return await graph.ainvoke(given, config, **more)
        return await asyncio.to_thread(graph.invoke, given, config, **more)

    async def calls(self, graph: Any, config: Any, given: Any = None, **more: Any) -> int:
        """Run it once, and count the calls that the provider bills for it."""
        before = self.model.billed
        await self.run(graph, config, given, **more)
        return self.model.billed - before

    async def calls_from(self, graph: Any, config: Any) -> int:
        """Go on from a checkpoint, and count the calls."""
        before = self.model.billed
        await (graph.ainvoke(None, config) if self.is_async else asyncio.to_thread(graph.invoke, None, config))
        return self.model.billed - before


@pytest.fixture(params=["memory", "sqlite"])
def opening(request: pytest.FixtureRequest, tmp_path: Any) -> Opening:
    """Give what opens the test's accounts; those in memory are opened once."""
    memory: list[MemoryLedger] = []

    def opens(**options: Any) -> MemoryLedger | SqliteLedger:
        if request.param == "sqlite":
            return SqliteLedger(tmp_path / "ledger.sqlite", **options)
        memory.append(memory[0] if memory else MemoryLedger(**options))
        return memory[0]

    return opens


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def desk(request: pytest.FixtureRequest, opening: Opening) -> Desk:
    """Give a desk over each ledger, sync and async."""
    return Desk(opening(), is_async=request.param)


def user(name: object, thread_id: str = "t", **more: object) -> Any:
    """Give the config of one user's thread."""
    return thread(thread_id, user_id=name, **more)


# Keys


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_threads_of_one_user_share_a_budget(desk, gate):
    """Four calls of a user's five are made in one thread, so the user's other thread has one left."""
    graph = desk.graph(Budget(calls=5, per="user_id"), gate=gate)
    desk.turns = 4
    first = desk.graph(Budget(calls=5, per="user_id"), gate=gate)

    assert await desk.calls(first, user("ada", "t1")) == 4
    assert await desk.calls(graph, user("ada", "t2")) == 1
    assert desk.ledger.total(scope="user_id:ada").calls == 5


async def test_users_do_not_share_a_budget(desk):
    """What one user spent is no business of another's."""
    graph = desk.graph(Budget(calls=3, per="user_id"))

    assert [await desk.calls(graph, user(name, name)) for name in ("ada", "bob", "ada")] == [3, 3, 0]


async def test_two_graphs_share_a_users_budget(desk):
    """The ledger's account counts, not the graph: a key's budget in two graphs is one budget."""
    budget = Budget(calls=3, per="user_id")
    one, other = desk.graph(budget), desk.graph(budget, Budget(calls=100))

    assert [await desk.calls(graph, user("ada")) for graph in (one, other)] == [3, 0]


async def test_a_trip_says_whose_budget_it_was(desk):
    """The trip names the account, and its reason is one sentence for people."""
    graph = desk.graph(Budget(calls=2, per="user_id"))
    await desk.run(graph, user("ada"))
    trip = Trip.of(graph.get_state(user("ada")))

    assert trip is not None
    assert trip.account == "user_id:ada"
    assert trip.reason == "budget exhausted at 'agent': 2 of 2 calls spent by user_id 'ada'"
    assert Trip.of(trip.to_state()) == trip


@pytest.mark.parametrize(
    ("budget", "used"),
    [("user_id:ada", 2), ("tenant:acme", 3), ("thread:t2", 4), ("user_id:ada|2025-06-15", 5)],
)
async def test_nested_budgets_are_held_in_all_or_none(opening, budget, used):
    """Of budgets per user, tenant, thread and day, the tightest stops the call, and no other is charged for it."""
    clock = Clock()
    desk = Desk(opening(clock=clock))
    limits = {"user_id:ada": 9, "tenant:acme": 9, "thread:t2": 9, "user_id:ada|2025-06-15": 9, budget: used}
    graph = desk.graph(
        Budget(calls=limits["user_id:ada"], per="user_id"),
        Budget(calls=limits["tenant:acme"], per="tenant"),
        Budget(calls=limits["thread:t2"], per="thread"),
        Budget(calls=limits["user_id:ada|2025-06-15"], per="user_id", every="day"),
    )

    assert await desk.calls(graph, user("ada", "t2", tenant="acme")) == used
    assert {desk.ledger.total(scope=scope).calls for scope in limits} == {used}
    assert desk.ledger.open_holds() == ()


async def test_each_nested_budget_is_shared_by_its_own(desk):
    """Ada and Bob share the tenant's budget, not each other's; Eve's tenant has one of its own."""
    graph = desk.graph(Budget(calls=3, per="user_id"), Budget(calls=5, per="tenant"))
    runs = [("ada", "acme"), ("bob", "acme"), ("eve", "other"), ("bob", "other")]

    made = [await desk.calls(graph, user(name, f"{name}@{firm}", tenant=firm)) for name, firm in runs]

    assert made == [3, 2, 3, 1]


@pytest.mark.parametrize("branches", [8, 24])
async def test_branches_that_start_together_share_a_key(desk, branches):
    """Branches that start together on a key's budget make exactly the calls that fit, and leave no hold."""
    builder = StateGraph(Log).add_node("work", desk.node)
    builder.add_conditional_edges(START, lambda _: [Send("work", {}) for _ in range(branches)], ["work"])
    budgets = (Budget(calls=5, per="user_id"), Budget(calls=100, per="tenant"))
    graph = guard(builder, *budgets, ledger=desk.ledger, nodes=["work"]).compile()

    await desk.run(graph, user("ada", tenant="acme"))

    assert desk.model.billed == 5
    assert desk.ledger.total(scope="tenant:acme").calls == 5
    assert desk.ledger.open_holds() == ()


@dataclass
class OfDataclass:
    user_id: object


class OfPydantic(BaseModel):
    user_id: str


class Plan(enum.Enum):
    PRO = "pro"


@pytest.mark.parametrize(
    "context",
    [{"user_id": "ada"}, OfDataclass("ada"), OfPydantic(user_id="ada"), SimpleNamespace(user_id="ada")],
    ids=["dict", "dataclass", "pydantic", "attributes"],
)
async def test_key_in_the_context(desk, context):
    """The context may carry the key, in whatever shape the graph's context has; it is the same account."""
    graph = desk.graph(Budget(calls=3, per="user_id"))
    await desk.run(graph, thread("t1"), context=context)

    assert await desk.calls(graph, user("ada", "t2")) == 0
    assert desk.ledger.total(scope="user_id:ada").calls == 3


async def test_the_config_comes_before_the_context(desk):
    """Servers write who was authenticated into the config, so a context can't name somebody else."""
    graph = desk.graph(Budget(calls=2, per="user_id"))
    await desk.run(graph, user("ada"), context={"user_id": "bob"})

    assert desk.ledger.total(scope="user_id:ada").calls == 2
    assert desk.ledger.total(scope="user_id:bob").calls == 0


@pytest.mark.parametrize(
    ("key", "value", "account"),
    [
        ("langgraph_auth_user", {"identity": "ada", "permissions": []}, "langgraph_auth_user:ada"),
        ("langgraph_auth_user", SimpleNamespace(identity="ada"), "langgraph_auth_user:ada"),
        ("x-organization-id", "acme", "x-organization-id:acme"),
        ("user_id", 7, "user_id:7"),
        ("user_id", uuid.UUID(int=7), "user_id:00000000-0000-0000-0000-000000000007"),
        ("plan", Plan.PRO, "plan:pro"),
        ("user_id", "Åsa 李", "user_id:Åsa 李"),
        ("branches", "x", "branches:x"),
    ],
)
async def test_what_names_an_account(key, value, account, desk):
    """A user as servers tell it, a header, a number, a UUID and an enum's member each name an account."""
    graph = desk.graph(Budget(calls=2, per=key))
    await desk.run(graph, thread("t", **{key: value}))

    assert desk.ledger.total(scope=account).calls == 2


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_a_run_without_the_key(desk, gate):
    """A run that doesn't say whose money it spends makes no call; the error names the key and where to put it."""
    graph = desk.graph(Budget(calls=2, per="user_id"), gate=gate)

    with pytest.raises(MissingKey, match=r"no 'user_id' in config\['configurable'\], which has \['thread_id'\].*pass"):
        await desk.run(graph, thread("t"))
    assert desk.model.billed == 0
    assert desk.ledger.open_holds() == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ({"identity": ""}, "is empty"),
        (["ada"], "is a list"),
        ({"name": "ada"}, "is a dict"),
        (True, "is a bool"),
        (1.5, "is a float"),
        ("x" * 201, "has 201 characters; use an id of at most 200"),
    ],
    ids=repr,
)
async def test_a_value_that_names_nobody(desk, value, problem):
    """A value that can't name an account makes no call either, and its text is not in the error."""
    graph = desk.graph(Budget(calls=2, per="user_id"))

    with pytest.raises(MissingKey, match=f"a budget per 'user_id' can't be kept: its value {problem}"):
        await desk.run(graph, user(value))
    assert desk.model.billed == 0


def test_missing_key_is_what_it_should_be():
    """The error is ours and a LookupError, and survives pickle."""
    error = MissingKey("user_id", "its value is empty")

    assert isinstance(error, GraphguardError)
    assert isinstance(error, LookupError)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled on the same line
    assert (str(copied), copied.key, copied.problem) == (str(error), error.key, error.problem)


def test_a_missing_key_is_not_taken_for_a_failing_node():
    """Neither a retry policy nor an error handler of the graph gets a missing key."""
    model, handled = Scripted(), []
    builder = StateGraph(Log)
    builder.add_node(
        "agent",
        lambda _: {"log": [str(model.invoke("q").content)]},
        retry_policy=RetryPolicy(max_attempts=3, initial_interval=0, jitter=False, retry_on=Exception),
        error_handler=lambda state: handled.append(1) or {},
    )
    graph = guard(builder.add_edge(START, "agent"), Budget(calls=2, per="user_id"), gate="inline").compile()

    with pytest.raises(MissingKey):
        graph.invoke({"log": []})
    assert (model.billed, handled) == (0, [])


@pytest.mark.parametrize("place", ["ungated node", "tool", "edge", "subgraph", "subgraph with a config of its own"])
async def test_the_key_holds_wherever_a_call_is_made(desk, place):
    """A call in a tool, an edge or a graph inside counts for the user of the run around it."""
    model = desk.model

    @tool
    def look_up(what: str) -> str:
        """Look something up."""
        return str(model.invoke(what).content)

    def node(_: Log) -> Log:
        return {"log": [str(model.invoke("q").content)]}

    inner = StateGraph(Log).add_node("inner", node).add_edge(START, "inner").compile()
    nodes: dict[str, Any] = {
        "ungated node": node,
        "tool": lambda _: {"log": [look_up.invoke({"what": "x"})]},
        "edge": lambda _: {"log": []},
        "subgraph": inner,
        "subgraph with a config of its own": lambda _: inner.invoke({"log": []}, thread("other", user_id="bob")),
    }
    builder = StateGraph(Log).add_node("outer", nodes[place]).add_node("other", lambda _: {}).add_edge(START, "outer")
    if place == "edge":
        builder.add_conditional_edges(
            "outer", lambda _: "__end__" if model.invoke("q") else "other", ["other", "__end__"]
        )
    graph = guard(builder, Budget(calls=3, per="user_id"), ledger=desk.ledger, nodes=["other"], on_trip="raise")
    compiled = graph.compile(checkpointer=InMemorySaver())

    for at in range(3):
        await desk.run(compiled, user("ada", str(at)))
    with pytest.raises(BudgetExceeded):
        await desk.run(compiled, user("ada", "4"))
    assert desk.ledger.total(scope="user_id:ada").calls == 3


def test_a_budget_for_one_node_per_user():
    """A narrowed budget of a key has an account of its own, and the state carries nothing for it."""
    desk = Desk(MemoryLedger())
    budget = Budget(calls=2, per="user_id", node="agent")
    graph = desk.graph(budget)
    graph.invoke({"log": []}, user("ada"))

    assert desk.model.billed == 2
    assert desk.ledger.total(scope=f"user_id:ada|{budget.key}").calls == 2
    assert "by" not in graph.get_state(user("ada")).values["spend"]


async def test_a_name_cannot_spend_anothers_budget(opening):
    """A user whose name looks like another's account of a day has an account of their own."""
    desk = Desk(opening(clock=Clock()))
    daily, forever = Budget(calls=3, per="user_id", every="day"), Budget(calls=9, per="user_id")
    await desk.run(desk.graph(forever), user("ada|2025-06-15"))

    assert await desk.calls(desk.graph(daily), user("ada", "t2")) == 3


NAMES = st.text(":|%7Ca\0\ud800é", min_size=1, max_size=4)
WINDOWS = st.sampled_from(["", "2025-06-15", "2025-06", "every 60 s 1"])


@example(("a", "b:c", ""), ("a:b", "c", ""))
@example(("a", "b|2025-06", ""), ("a", "b", "2025-06"))
@example(("a", "b%7C", ""), ("a", "b|", ""))
@given(st.tuples(NAMES, NAMES, WINDOWS), st.tuples(NAMES, NAMES, WINDOWS))
def test_accounts_are_told_apart(told, other):
    """Two accounts share a name only if place, value and window are the same, and any database can store it."""
    one, two = (account_name(place, value, window=window) for place, value, window in (told, other))

    assert (one == two) == (told == other)
    assert "\0" not in one
    assert one.encode()


# Windows


def at(*when: int) -> float:
    """Give a moment of UTC in seconds since the epoch."""
    return datetime(*when, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("every", "moments"),
    [
        ("day", [(2026, 11, 20), (2026, 11, 20, 23, 59, 59), (2026, 11, 21), (2026, 12, 20)]),
        ("month", [(2026, 11, 1), (2026, 11, 30, 23, 59, 59), (2026, 12, 1), (2027, 11, 1)]),
        (timedelta(hours=1), [(2026, 11, 20, 9), (2026, 11, 20, 9, 59, 59), (2026, 11, 20, 10), (2026, 11, 21, 9)]),
    ],
    ids=["day", "month", "hour"],
)
@pytest.mark.parametrize("per", ["user_id", "thread"])
async def test_a_new_window_refills_and_an_old_one_does_not(opening, every, moments, per):
    """A window has the budget once, and the next one anew; a clock that goes back finds the old one spent."""
    clock = Clock()
    desk = Desk(opening(clock=clock))
    graph = desk.graph(Budget(calls=3, per=per, every=every))
    made = []
    for moment in [*moments, moments[0]]:
        clock.now = at(*moment)
        made.append(await desk.calls(graph, user("ada")))

    assert made == [3, 0, 3, 3, 0]
    assert (
        desk.ledger.total(
            scope=account_name(per, "ada" if per == "user_id" else "t", window=window_of(every, clock.now))
        ).calls
        == 3
    )


def test_names_of_windows():
    """A window's name is its date, or how long it is and its number since 1970."""
    assert window_of("day", at(2026, 11, 20, 23, 59, 59)) == "2026-11-20"
    assert window_of("month", at(2026, 12, 31, 23, 59, 59)) == "2026-12"
    assert window_of(timedelta(hours=1), at(1970, 1, 1, 1)) == "every 3600 s 1"
    assert window_of(timedelta(hours=1), at(1969, 12, 31, 23)) == "every 3600 s -1"


@pytest.mark.parametrize(
    ("every", "text"),
    [
        ("day", "user_id 'ada' on 2026-11-20"),
        ("month", "user_id 'ada' in 2026-11"),
        (timedelta(hours=6), "user_id 'ada' since 2026-11-20 18:00:00 UTC"),
        (None, "user_id 'ada'"),
    ],
)
def test_accounts_as_people_read_them(every, text):
    """An account is told in words, with its window."""
    window = window_of(every, at(2026, 11, 20, 19, 31)) if every else ""

    assert account_text(account_name("user_id", "ada", window=window)) == text


async def test_the_window_is_fixed_when_the_hold_is_made(opening):
    """A call that settles after midnight counts on the day on which it was held, and the next one on the new day."""
    clock = Clock()
    clock.now = at(2026, 11, 20, 23, 59, 59)

    def past_midnight() -> None:
        clock.now = at(2026, 11, 21, 0, 0, 1)

    desk = Desk(opening(clock=clock), turns=2, model=Scripted(before=past_midnight))
    await desk.run(desk.graph(Budget(calls=5, per="user_id", every="day")), user("ada"))

    made = [desk.ledger.total(scope=f"user_id:ada|2026-11-{day}").calls for day in (20, 21)]
    assert made == [1, 1]


async def test_the_window_moves_on_within_a_node(opening):
    """Two calls of one node, before and after midnight, count on their own days."""
    clock, model = Clock(), Scripted()
    clock.now = at(2026, 11, 20, 23)
    ledger = opening(clock=clock)

    def node(_: Log) -> Log:
        made = [remaining().calls]
        for _ in range(2):
            model.invoke("q")
        made.append(remaining().calls)
        clock.now += 2 * HOUR
        made.append(remaining().calls)
        model.invoke("q")
        charge(usd="0.01")
        return {"log": [str(made)]}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    graph = guard(builder, Budget(calls=2, per="thread", every="day"), ledger=ledger, nodes=["n"]).compile(
        checkpointer=InMemorySaver()
    )

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["[2, 0, 2]"]}
    assert ledger.total(scope="thread:t|2026-11-20").calls == 2
    assert ledger.total(scope="thread:t|2026-11-21").usd > 0.01


async def test_a_threads_state_is_no_floor_of_a_window(opening):
    """What the thread spent on other days, which its state remembers, does not count today."""
    clock = Clock()
    desk = Desk(opening(clock=clock))
    graph = desk.graph(
        Budget(calls=3, per="thread", every="day"), Budget(calls=3, per="thread", every="day", node="agent")
    )

    made = []
    for _ in range(3):
        made.append(await desk.calls(graph, thread("t")))
        clock.now += DAY
    assert made == [3, 3, 3]


async def test_a_window_warns_once(opening, caplog):
    """Each share of a window's budget is told once in the window, and again in the next one."""
    clock = Clock()
    desk = Desk(opening(clock=clock), turns=3)
    graph = desk.graph(Budget(calls=4, per="user_id", every="day", warn_at=(0.5, 1)))

    def told(thread_id: str) -> list[tuple[float, str]]:
        stream = graph.stream({"log": []}, user("ada", thread_id), stream_mode="custom")
        return [(event["share"], event["account"]) for event in stream if event["event"] == "warning"]

    today = "user_id:ada|2025-06-15"
    assert (told("t1"), told("t2"), told("t3")) == ([(0.5, today)], [(1.0, today)], [])
    clock.now += DAY
    assert told("t4") == [(0.5, "user_id:ada|2025-06-16")]
    assert "4 of 4 calls spent by user_id 'ada' on 2025-06-15 (100 %)" in caplog.text


# Nothing refills real money


@pytest.mark.parametrize("per", ["user_id", "thread"])
@pytest.mark.parametrize("every", [None, "day"])
async def test_deleting_a_thread_refills_nothing(desk, per, every):
    """A thread that is deleted and begun anew has spent what it had spent."""
    graph = desk.graph(Budget(calls=3, per=per, every=every))
    assert await desk.calls(graph, user("ada")) == 3
    graph.checkpointer.delete_thread("t")

    assert await desk.calls(graph, user("ada")) == 0


@pytest.mark.parametrize("per", ["user_id", "thread"])
@pytest.mark.parametrize("every", [None, "day"])
async def test_time_travel_refills_nothing(desk, per, every):
    """A replay from the first checkpoint, and a fork of it, find real money spent; the branch's is not."""
    graph = desk.graph(Budget(calls=3, per=per, every=every), Budget(calls=100))
    await desk.run(graph, user("ada"))
    first = [s for s in graph.get_state_history(user("ada")) if s.next][-2]
    fork = graph.update_state(first.config, {"log": ["forked"]}, as_node="__start__")
    configs = [{"configurable": {**config["configurable"], "user_id": "ada"}} for config in (first.config, fork)]

    assert [await desk.calls_from(graph, config) for config in configs] == [0, 0]


@pytest.mark.parametrize("per", ["user_id", "thread"])
@pytest.mark.parametrize("every", [None, "day"])
async def test_a_new_ledger_on_the_file_knows_everything(tmp_path, per, every):
    """A ledger object opened later on the same file, over an empty checkpointer, refills nothing either."""
    path, made = tmp_path / "ledger.sqlite", []
    for _ in range(3):
        with SqliteLedger(path, clock=Clock()) as ledger:
            desk = Desk(ledger, turns=2)
            made.append(await desk.calls(desk.graph(Budget(calls=3, per=per, every=every)), user("ada")))

    assert made == [2, 1, 0]


async def test_a_ledger_in_memory_forgets_no_account():
    """However many runs come between, a user's account stays; only those of single supersteps go."""
    ledger = MemoryLedger(keep=5)
    desk = Desk(ledger, turns=3)
    graph = desk.graph(Budget(calls=3, per="user_id"), Budget(calls=100))
    await desk.run(graph, user("ada"))
    for n in range(20):
        await desk.run(graph, user(f"bob{n}", f"t{n}"))

    assert await desk.calls(graph, user("ada", "t0")) == 0


# Raised limits


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_a_raise_is_for_the_thread_it_was_approved_in(desk, gate):
    """An approval lets this thread go on; the user's other threads still meet the limit."""
    graph = desk.graph(Budget(calls=2, per="user_id"), on_trip="interrupt", gate=gate)
    await desk.run(graph, user("ada", "t1"))

    assert await desk.calls(graph, user("ada", "t1"), Command(resume={"new_limit_calls": 5})) == 3
    assert await desk.calls(graph, user("ada", "t2")) == 0


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_a_raise_is_for_the_user_it_was_approved_for(desk, gate):
    """Another user who goes on in the same thread doesn't have the raised limit."""
    graph = desk.graph(Budget(calls=2, per="user_id"), on_trip="interrupt", gate=gate)
    await desk.run(graph, user("ada"))
    await desk.run(graph, user("ada"), Command(resume={"new_limit_calls": 4}))

    assert await desk.calls(graph, user("bob"), {"log": []}) == 2


@pytest.mark.parametrize("per", ["user_id", "thread"])
@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_a_raise_is_for_its_window(opening, gate, per):
    """What was approved for today is gone tomorrow."""
    clock = Clock()
    desk = Desk(opening(clock=clock))
    graph = desk.graph(Budget(calls=2, per=per, every="day"), on_trip="interrupt", gate=gate)
    await desk.run(graph, user("ada"))
    assert await desk.calls(graph, user("ada"), Command(resume={"new_limit_calls": 5})) == 3
    clock.now += DAY

    assert await desk.calls(graph, user("ada"), {"log": []}) == 2


async def test_top_up_of_a_day(opening):
    """`top_up` raises the day's limit of this thread, and the run goes on from the trip."""
    clock = Clock()
    desk = Desk(opening(clock=clock))
    graph = desk.graph(Budget(calls=2, per="user_id", every="day"))
    await desk.run(graph, user("ada"))

    top_up(graph, user("ada"), calls=3)
    assert desk.model.billed == 5
    trip = Trip.of(graph.get_state(user("ada")))
    assert trip is not None
    assert trip.reason == "budget exhausted at 'agent': 5 of 5 calls spent by user_id 'ada' on 2025-06-15"
    clock.now += DAY
    assert await desk.calls(graph, user("ada"), {"log": []}) == 2


async def test_a_key_named_like_a_run_is_no_run(desk):
    """The raise of a budget whose key begins with `run` holds for the thread's next run too."""
    desk.turns = 4
    graph = desk.graph(Budget(calls=2, per="runner"))
    await desk.run(graph, thread("t", runner="ada"))
    await asyncio.to_thread(top_up, graph, thread("t", runner="ada"), calls=8)
    assert desk.model.billed == 4

    assert await desk.calls(graph, thread("t", runner="ada"), {"log": []}) == 1


async def test_parallel_branches_hear_one_answer(desk):
    """Branches that trip together over a user's budget ask once, and all of them hear the answer."""
    model = desk.model
    builder = StateGraph(Log)
    for name in "abcd":
        builder.add_node(name, lambda _: {"log": [str(model.invoke("q").content)]})
        builder.add_edge(START, name)
    budget = Budget(calls=2, per="user_id", every="day")
    graph = guard(builder, budget, ledger=desk.ledger, on_trip="interrupt").compile(checkpointer=InMemorySaver())
    await desk.run(graph, user("ada"))
    assert len({interrupt.id for interrupt in graph.get_state(user("ada")).interrupts}) == 1

    await desk.run(graph, user("ada"), Command(resume={"new_limit_calls": 4}))
    assert model.billed == 4
    assert graph.get_state(user("ada")).next == ()


async def test_a_raise_is_heard_beside_a_users_own_question(desk):
    """After the gate's question was answered, one of the user's code is asked and answered without the gate."""
    model = desk.model

    def work(state: Any) -> Log:
        told = interrupt("really?") if state["x"] == 2 else None
        return {"log": [f"{state['x']}{told}{model.invoke('q').content}"]}

    builder = StateGraph(Log).add_node("first", lambda _: {"log": [str(model.invoke("q").content)]})
    builder.add_node("work", work).add_edge(START, "first")
    builder.add_conditional_edges("first", lambda _: [Send("work", {"x": x}) for x in range(3)], ["work"])
    graph = guard(builder, Budget(calls=1, per="user_id", every="day"), ledger=desk.ledger, on_trip="interrupt")
    compiled = graph.compile(checkpointer=InMemorySaver())
    for told in ({"log": []}, Command(resume=10)):
        asked = await desk.run(compiled, user("ada"), told)
    assert asked["__interrupt__"][0].value == "really?"

    out = await desk.run(compiled, user("ada"), Command(resume="no"))
    assert out == {"log": ["ok", "0Noneok", "1Noneok", "2nook"]}


async def test_a_raise_holds_for_the_attempts_that_follow(desk):
    """A node that fails after the approval is resumed without asking again."""
    model, fails = desk.model, [True]

    def shaky(_: Log) -> Log:
        text = str(model.invoke("q").content)
        if fails:
            fails.pop()
            raise ConnectionError
        return {"log": [text]}

    builder = StateGraph(Log).add_node("first", lambda _: {"log": [str(model.invoke("q").content)]})
    builder.add_node("shaky", shaky).add_edge(START, "first").add_edge("first", "shaky")
    graph = guard(builder, Budget(calls=1, per="user_id"), ledger=desk.ledger, on_trip="interrupt", gate="inline")
    compiled = graph.compile(checkpointer=InMemorySaver())
    await desk.run(compiled, user("ada"))
    with pytest.raises(ConnectionError):
        await desk.run(compiled, user("ada"), Command(resume=9))

    await desk.calls_from(compiled, user("ada"))
    assert compiled.get_state(user("ada")).values["log"] == ["ok", "ok"]


async def test_raises_of_many_days_stay_few(opening):
    """A thread that is topped up each day keeps the latest raises only, so its state stays small."""
    clock = Clock()
    desk = Desk(opening(clock=clock), turns=1_000)
    graph = desk.graph(Budget(calls=1, per="user_id", every="day"), Budget(calls=1_000))
    for _ in range(20):
        await desk.run(graph, user("ada"), {"log": []})
        await asyncio.to_thread(top_up, graph, user("ada"), calls=1)
        clock.now += DAY

    limits = graph.get_state(user("ada")).values["spend"]["limits"]
    assert len(limits) == 12
    assert next(reversed(limits)).endswith(window_of("day", clock.now - DAY))


# What is left


async def test_remaining_of_a_users_day(opening):
    """In a node, what is left of the tightest budget counts what the user's other threads spent today."""
    clock, left = Clock(), []
    desk = Desk(opening(clock=clock), turns=2)
    budget = Budget(calls=5, tokens=1_000_000, per="user_id", every="day")
    await desk.run(desk.graph(budget), user("ada", "t1"))

    def node(_: Log) -> Log:
        left.append(remaining())
        return {"log": []}

    builder = StateGraph(Log).add_node("n", node).add_edge(START, "n")
    await desk.run(guard(builder, budget, ledger=desk.ledger, nodes=["n"]).compile(), user("ada", "t2"))

    assert left == [Remaining(calls=3, tokens=1_000_000 - 2 * 1_100)]


# Kept for one node


def agent_and_summary(desk: Desk, *budgets: Budget, summary: Any = None, **options: Any) -> Any:
    """Give an agent that never ends, and a summary where it goes on when the budget trips."""
    builder = StateGraph(Log)
    builder.add_node("agent", desk.node).add_node("summary", summary or desk.node)
    builder.add_edge(START, "agent").add_edge("agent", "agent")
    told = {"ledger": desk.ledger, "on_trip": to("summary"), "nodes": ["agent", "summary"], **options}
    return guard(builder, *budgets, **told).compile(checkpointer=InMemorySaver())


PER = [{"per": "branch"}, {"per": "run"}, {"per": "thread"}, {"per": "user_id"}, {"per": "user_id", "every": "day"}]


@pytest.mark.parametrize("per", PER, ids=lambda per: " ".join(per.values()))
@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_what_is_kept_pays_for_the_summary(desk, per, gate):
    """With one call kept, the agent makes three of four calls, and the summary the last one."""
    graph = agent_and_summary(desk, Budget(calls=4, keep=1, **per), gate=gate)
    state = await desk.run(graph, user("ada"))

    assert desk.model.billed == 4
    assert len(state["log"]) == 4


@pytest.mark.parametrize("gate", ["node", "inline"])
async def test_without_keep_nothing_is_left_for_the_summary(desk, gate):
    """Without anything kept, the agent makes all four calls, and the summary none."""
    graph = agent_and_summary(desk, Budget(calls=4), gate=gate)
    state = await desk.run(graph, user("ada"))

    assert desk.model.billed == 4
    assert len(state["log"]) == 4
    trip = Trip.of(graph.get_state(user("ada")))
    assert trip is not None
    assert trip.node == "summary"


def test_usd_is_kept_to_the_cent():
    """With USD, the agent stops short of what is kept, and the summary's worst case fits into that."""
    desk = Desk(MemoryLedger(), model=Scripted(usage=(10, 100)))
    graph = agent_and_summary(desk, Budget(usd="0.001", keep="0.0002"))
    graph.invoke({"log": []}, user("ada"))

    charges = desk.ledger.charges()
    assert charges[-1].node == "summary"
    spent_by_agent = sum(c.nanousd for c in charges if c.node == "agent")
    assert 500_000 < spent_by_agent <= 800_000
    assert sum(c.nanousd for c in charges) <= 1_000_000


def test_a_trip_tells_what_is_kept():
    """The trip shows the limit that was in force, and its reason says how much is kept for which node."""
    desk = Desk(MemoryLedger())
    graph = agent_and_summary(desk, Budget(usd="0.50", calls=20), Budget(calls=4, keep=1))
    for step in graph.stream({"log": []}, user("ada"), stream_mode="values"):
        trip = Trip.of(step)
        if trip is not None:
            break

    assert trip is not None
    assert (trip.limit, trip.spent, trip.kept) == (3, 3, 1)
    assert trip.reason == "budget exhausted at 'agent': 3 of 3 calls spent; 1 call kept for 'summary'"
    assert Trip.of(trip.to_state()) == trip


async def test_the_whole_limit_counts_deep_inside_the_node(desk):
    """A graph inside the node of `to`, and one called in its function, may spend what is kept."""
    model = desk.model

    def deep(_: Log) -> Log:
        return {"log": [str(model.invoke("q").content)]}

    inner = (
        StateGraph(Log).add_node("deep", deep).add_node("agent", deep).add_edge(START, "deep").add_edge("deep", "agent")
    )
    graph = agent_and_summary(desk, Budget(calls=5, keep=2), summary=inner.compile(), nodes=None)
    await desk.run(graph, user("ada"))

    assert [c.node for c in desk.ledger.charges()] == ["agent"] * 3 + ["deep", "agent"]


@pytest.mark.parametrize("gate", ["auto", "inline"])
async def test_an_agent_leaves_what_is_kept(desk, gate):
    """An agent that calls tools for ever stops in its loop, and the summary around it is still paid for."""
    agents = pytest.importorskip("langchain.agents", reason="needs the extra graphguard[langchain]")

    @tool
    def look(what: str) -> str:
        """Look again."""
        return "nothing there"

    model = Scripted(script=[tool_call("look", what="x")])
    last = Scripted(script=["We found nothing."])
    builder = StateGraph(MessagesState).add_node("agent", agents.create_agent(model, [look]))
    builder.add_node("summary", lambda state: {"messages": [last.invoke(state["messages"])]})
    builder.add_edge(START, "agent").add_edge("agent", "__end__")
    budgets = (Budget(calls=5, keep=1, per="user_id"), Budget(calls=100, per="tenant", every="day"))
    graph = guard(builder, *budgets, on_trip=to("summary"), ledger=desk.ledger, gate=gate).compile()
    state = await desk.run(graph, user("ada", tenant="acme"), {"messages": "Find it."})

    assert (model.billed, last.billed) == (4, 1)
    assert state["messages"][-1].content == "We found nothing."
    assert desk.ledger.total(scope="user_id:ada").calls == 5


async def test_a_node_inside_with_the_same_name_has_no_more(desk):
    """Only the graph's own node may spend what is kept, not one of that name in a graph inside another node."""
    model = desk.model

    def call(_: Log) -> Log:
        return {"log": [str(model.invoke("q").content)]}

    inner = StateGraph(Log).add_node("summary", call).add_edge(START, "summary").add_edge("summary", "summary")
    builder = StateGraph(Log).add_node("agent", inner.compile()).add_node("summary", call).add_edge(START, "agent")
    graph = guard(builder, Budget(calls=4, keep=1), on_trip=to("summary"), ledger=desk.ledger).compile()
    await desk.run(graph, {"recursion_limit": 50})

    assert model.billed == 4


async def test_branches_leave_what_is_kept(desk):
    """Eight branches that start together on five calls, one of them kept, make four; the summary makes the fifth."""
    model = desk.model

    def call(_: Log) -> Log:
        return {"log": [str(model.invoke("q").content)]}

    builder = StateGraph(Log).add_node("work", call).add_node("summary", call)
    builder.add_conditional_edges(START, lambda _: [Send("work", {}) for _ in range(8)], ["work"])
    graph = guard(builder, Budget(calls=5, keep=1, per="user_id"), on_trip=to("summary"), ledger=desk.ledger).compile()
    await desk.run(graph, user("ada"))

    assert sorted(c.node for c in desk.ledger.charges()) == ["summary"] + ["work"] * 4


def test_remaining_knows_what_is_kept():
    """In the node of `to` the whole limit is left, elsewhere that much less."""
    told: dict[str, Any] = {}
    model = Scripted()

    def node(name: str) -> Any:
        def run(_: Log) -> Log:
            told.setdefault(name, remaining().calls)
            return {"log": [str(model.invoke("q").content)]}

        return run

    builder = StateGraph(Log).add_node("agent", node("agent")).add_node("summary", node("summary"))
    builder.add_edge(START, "agent").add_edge("agent", "agent")
    graph = guard(
        builder, Budget(calls=4, keep=2), on_trip=to("summary"), ledger=MemoryLedger(), nodes=["agent", "summary"]
    )
    graph.compile().invoke({"log": []})

    assert told == {"agent": 2, "summary": 2}


def test_top_up_leaves_what_is_kept():
    """Calls that are added go to the agent, and as much as before is kept for the summary."""
    desk = Desk(MemoryLedger())
    graph = agent_and_summary(desk, Budget(calls=4, keep=1))
    graph.invoke({"log": []}, user("ada"))
    assert desk.model.billed == 4

    top_up(graph, user("ada"), calls=3)
    made = [c.node for c in desk.ledger.charges()]
    assert made == ["agent"] * 3 + ["summary"] + ["agent"] * 2 + ["summary"]


def test_keep_needs_a_node_to_keep_it_for():
    """Something kept for nobody is a mistake, found when the graph is guarded."""
    desk = Desk(MemoryLedger())
    with pytest.raises(InvalidBudget, match=r"keeps an amount for one node: name it with on_trip=to\('node'\)"):
        desk.graph(Budget(calls=4, keep=1))
