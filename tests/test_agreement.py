"""The state and the ledger agree, whatever became of a node's output: nothing billed is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, interrupt

from graphguard import Budget, Spend, SqliteLedger, guard
from tests.scripted import Scripted

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
RETRY = RetryPolicy(max_attempts=3, initial_interval=0.001, retry_on=ConnectionError)


class State(TypedDict):
    """What was done."""

    log: Annotated[list[str], operator.add]


@dataclass
class World:
    """What outlives a process: the model, and what went wrong so far."""

    aio: bool
    model: Scripted = field(default_factory=Scripted)
    failures: int = 0

    def node(self, then: Callable[[], str] = lambda: "done") -> Callable[..., Any]:
        """A node that calls the model, and then does something."""

        def run(_: State) -> dict[str, list[str]]:
            self.model.invoke("hi")
            return {"log": [then()]}

        async def arun(_: State) -> dict[str, list[str]]:
            await self.model.ainvoke("hi")
            return {"log": [then()]}

        return arun if self.aio else run

    def fails(self, times: int) -> str:
        """Raise so many times in all."""
        if self.failures < times:
            self.failures += 1
            raise ConnectionError
        return "at last"


def retried(world: World) -> StateGraph[State]:
    """A node that pays and raises, twice, under a retry policy."""
    graph = StateGraph(State)
    graph.add_node("a", world.node(lambda: world.fails(2)), retry_policy=RETRY)
    graph.add_edge(START, "a")
    return graph


def asked(world: World) -> StateGraph[State]:
    """A node that pays and then asks a person, so that its code runs again with the answer."""
    graph = StateGraph(State)
    graph.add_node("a", world.node(lambda: str(interrupt("?"))))
    graph.add_node("b", world.node())
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    return graph


def sibling(world: World) -> StateGraph[State]:
    """Of two nodes side by side that both pay, one raises; the run fails, and is resumed."""
    graph = StateGraph(State)
    graph.add_node("a", world.node())
    graph.add_node("b", world.node(lambda: world.fails(1)))
    graph.add_node("c", world.node())
    graph.add_edge(START, "a")
    graph.add_edge(START, "b")
    graph.add_edge(["a", "b"], "c")
    return graph


def inside(world: World) -> StateGraph[State]:
    """A node that calls a graph, whose calls the node's own state would not see."""
    inner = StateGraph(State)
    inner.add_node("x", world.node())
    inner.add_node("y", world.node(lambda: world.fails(1)))
    inner.add_edge(START, "x")
    inner.add_edge("x", "y")
    called = inner.compile()

    def run(_: State) -> dict[str, list[str]]:
        return {"log": called.invoke({"log": []})["log"]}

    async def arun(_: State) -> dict[str, list[str]]:
        return {"log": (await called.ainvoke({"log": []}))["log"]}

    graph = StateGraph(State)
    graph.add_node("a", arun if world.aio else run, retry_policy=RETRY)
    graph.add_edge(START, "a")
    return graph


def shared(world: World) -> StateGraph[State]:
    """A graph as a node that shares the state's fields, whose spend could count twice."""
    graph = StateGraph(State)
    graph.add_node("a", retried(world).compile())
    graph.add_node("b", world.node())
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    return graph


def edges(world: World) -> StateGraph[State]:
    """A conditional edge that calls the model, and raises the first time."""

    def way(_: State) -> str:
        world.model.invoke("which?")
        world.fails(1)
        return END

    async def away(_: State) -> str:
        await world.model.ainvoke("which?")
        world.fails(1)
        return END

    graph = StateGraph(State)
    graph.add_node("a", world.node(), retry_policy=RETRY)
    graph.add_edge(START, "a")
    graph.add_conditional_edges("a", away if world.aio else way, [END])
    return graph


def cached(world: World) -> StateGraph[State]:
    """A cached node that is asked for the same three times; the answers out of the cache are free."""
    graph = StateGraph(State)
    graph.add_node("a", world.node(), cache_policy=CachePolicy(key_func=lambda _: "same"))
    graph.add_node("b", world.node())
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_conditional_edges("b", lambda state: "a" if len(state["log"]) < 6 else END, ["a", END])
    return graph


def sends(world: World) -> StateGraph[State]:
    """Eight tasks in one superstep, for two of which there is money."""
    graph = StateGraph(State)
    graph.add_node("a", world.node())
    graph.add_conditional_edges(START, lambda _: [Send("a", {"log": []}) for _ in range(8)], ["a"])
    return graph


CASES = {build.__name__: build for build in (retried, asked, sibling, inside, shared, edges, cached, sends)}
BUDGETS = {"sends": Budget(calls=2)}


def as_it_is(graph: StateGraph[State], _: World) -> StateGraph[State]:
    """The graph itself."""
    return graph


def as_a_node(graph: StateGraph[State], _: World) -> StateGraph[State]:
    """The graph as a node of another."""
    outer = StateGraph(State)
    outer.add_node("inner", graph.compile(cache=InMemoryCache()))
    outer.add_edge(START, "inner")
    return outer


def as_a_call(graph: StateGraph[State], world: World) -> StateGraph[State]:
    """The graph called in a node of another."""
    inner = graph.compile(cache=InMemoryCache())

    def run(_: State) -> dict[str, list[str]]:
        return {"log": inner.invoke({"log": []})["log"]}

    async def arun(_: State) -> dict[str, list[str]]:
        return {"log": (await inner.ainvoke({"log": []}))["log"]}

    outer = StateGraph(State)
    outer.add_node("calls", arun if world.aio else run)
    outer.add_edge(START, "calls")
    return outer


def as_sends(graph: StateGraph[State], _: World) -> StateGraph[State]:
    """The graph as a node of another that is sent to twice."""
    outer = as_a_node(graph, _)
    outer.edges.clear()
    outer.add_conditional_edges(START, lambda _: [Send("inner", {"log": []}) for _ in range(2)], ["inner"])
    return outer


PLACES = {place.__name__: place for place in (as_it_is, as_a_node, as_a_call, as_sends)}


@dataclass
class Machine:
    """Where a graph runs: in one process, or each time in another one, which knows only the files."""

    folder: Path
    build: Callable[[], StateGraph[State]]
    budget: Budget
    restarts: bool
    stack: ExitStack
    graph: Any = None

    @property
    def ledger(self) -> SqliteLedger:
        """A ledger that nobody has used yet, on the same file."""
        return self.stack.enter_context(closing(SqliteLedger(self.folder / "ledger.db")))

    def ready(self, saver: Any) -> Any:
        """The guarded graph; another one if the process ended meanwhile."""
        if self.graph is None or self.restarts:
            guarded = guard(self.build(), self.budget, ledger=self.ledger)
            self.graph = guarded.compile(checkpointer=saver, cache=InMemoryCache())
        self.graph.checkpointer = saver
        return self.graph


def answers(found: Any) -> Command[Any] | None:
    """What a person says to every question that waits."""
    waiting = [one for task in found.tasks for one in task.interrupts]
    return Command(resume={one.id: "yes" for one in waiting}) if waiting else None


def to_its_end(machine: Machine) -> Any:
    """Begin, and go on after each failure and question until nothing is left to do."""
    given: Any = {"log": []}
    for _ in range(9):
        with SqliteSaver.from_conn_string(str(machine.folder / "checkpoints.db")) as saver:
            graph = machine.ready(saver)
            with suppress(ConnectionError):
                graph.invoke(given, T)
            found = graph.get_state(T)
            if not found.next:
                return found
            given = answers(found)
    raise AssertionError(found)


async def ato_its_end(machine: Machine) -> Any:
    """The same on an event loop."""
    given: Any = {"log": []}
    for _ in range(9):
        async with AsyncSqliteSaver.from_conn_string(str(machine.folder / "checkpoints.db")) as saver:
            graph = machine.ready(saver)
            with suppress(ConnectionError):
                await graph.ainvoke(given, T)
            found = await graph.aget_state(T)
            if not found.next:
                return found
            given = answers(found)
    raise AssertionError(found)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as found:
        yield found


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarted"])
@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_state_ledger_and_provider_agree(
    case: str, place: str, tmp_path: Path, stack: ExitStack, *, aio: bool, restarts: bool
) -> None:
    """Whatever happens to outputs, what the state says is what the ledger says, and what the model billed."""
    world = World(aio)
    budget = BUDGETS.get(case, Budget(usd=1))
    machine = Machine(tmp_path, lambda: PLACES[place](CASES[case](world), world), budget, restarts, stack)

    found = asyncio.run(ato_its_end(machine)) if aio else to_its_end(machine)

    total = machine.ledger.total()
    assert (total, machine.ledger.open_holds()) == (Spend.of(found), ())
    assert total.calls == world.model.billed
    if case == "sends":
        assert total.calls == 2
    elif place != "as_sends":
        assert total.calls > 1


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarted"])
@pytest.mark.parametrize("place", [as_it_is, as_a_node, as_a_call])
def test_time_travel_takes_back_the_branch_and_not_the_money(
    place: Callable[..., StateGraph[State]], restarts: bool, tmp_path: Path, stack: ExitStack
) -> None:
    """From the first of four steps again: the branch has spent four calls, the thread seven."""
    world = World(aio=False)

    def build() -> StateGraph[State]:
        graph = StateGraph(State)
        names = ["a", "b", "c", "d"]
        for name in names:
            graph.add_node(name, place(retried(world), world).compile() if place is not as_it_is else world.node())
        graph.add_edge(START, "a")
        for before, after in itertools.pairwise(names):
            graph.add_edge(before, after)
        return graph

    world.failures = 2  # no more of them
    machine = Machine(tmp_path, build, Budget(usd=1), restarts, stack)
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        machine.ready(saver).invoke({"log": []}, T)
        after_first = [one for one in machine.graph.get_state_history(T) if len(one.values.get("log", ())) == 1]
        machine.ready(saver).invoke(None, after_first[0].config)

        assert Spend.of(machine.graph.get_state(T)).calls == 4
    assert machine.ledger.total(thread="t").calls == world.model.billed == 7


@pytest.mark.parametrize("gate", ["node", "inline"])
@pytest.mark.parametrize("aio", [False, True], ids=["sync", "async"])
async def test_a_line_of_its_own_takes_nothing_over_from_the_one_it_left(gate: str, *, aio: bool) -> None:
    """What a task spent before it failed for good stays with its line; a fork from before has not spent it."""
    world = World(aio=aio, failures=-1)
    graph = StateGraph(State)
    graph.add_node("a", world.node())
    graph.add_node("b", world.node(lambda: world.fails(0)))
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    guarded = guard(graph, Budget(usd=1), gate=gate).compile(checkpointer=InMemorySaver())

    async def run(given: Any, config: RunnableConfig) -> None:
        with suppress(ConnectionError):
            await guarded.ainvoke(given, config) if aio else guarded.invoke(given, config)

    await run({"log": []}, T)
    before = next(one for one in guarded.get_state_history(T) if not one.values.get("log") and one.next != (START,))
    await run(None, before.config)

    found = guarded.get_state(T)
    assert found.values["log"] == ["done", "at last"]
    assert (Spend.of(found).calls, world.model.billed) == (2, 4)
