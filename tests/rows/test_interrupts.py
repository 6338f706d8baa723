"""Rows B47-B52 and B55-B58: questions to people, the user's own interrupts beside them, and what comes after."""

from __future__ import annotations

import json
import operator
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt

from graphguard import Budget, MemoryLedger, NoCheckpointer, Spend, Trip, guard
from tests.scripted import Scripted, tool_call

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
Make = Callable[[Scripted], Any]


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    x: int


def call(model: Scripted, name: str, calls: int = 1) -> Callable[[Log], Log]:
    """A node that makes calls one after the other."""

    def node(state: Log) -> Log:
        return {"log": [name, *(str(model.invoke("q").content) for _ in range(calls))]}

    return node


def line(model: Scripted) -> StateGraph:
    """One node after the other."""
    builder = StateGraph(Log)
    for before, name in zip([START, *"abc"], "abc", strict=False):
        builder.add_node(name, call(model, name))
        builder.add_edge(before, name)
    return builder


def loop(model: Scripted) -> StateGraph:
    """A node that goes round four times."""
    builder = StateGraph(Log)
    builder.add_node("a", call(model, "a"))
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", lambda state: "a" if len(state["log"]) < 8 else END, ["a", END])
    return builder


def fork(model: Scripted) -> StateGraph:
    """A node, three beside each other, and one behind them that counts what it sees."""
    builder = StateGraph(Log)
    for name in "abcd":
        builder.add_node(name, call(model, name))
    builder.add_node("e", lambda state: {"log": [len(state["log"])]})
    builder.add_edge(START, "a")
    for name in "bcd":
        builder.add_edge("a", name)
        builder.add_edge(name, "e")
    return builder


def fan(model: Scripted) -> StateGraph:
    """Five payloads sent to one node, and one behind them that counts what it sees."""
    builder = StateGraph(Log)
    builder.add_node("w", lambda state: {"log": [f"{state['x']}{model.invoke('q').content}"]})
    builder.add_node("z", lambda state: {"log": [len(state["log"])]})
    builder.add_conditional_edges(START, lambda _: [Send("w", {"x": i}) for i in range(5)], ["w"])
    builder.add_edge("w", "z")
    return builder


def middle(model: Scripted) -> StateGraph:
    """A node with three calls, and one behind it."""
    builder = StateGraph(Log)
    builder.add_node("a", call(model, "a", 3))
    builder.add_node("b", call(model, "b", 0))
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    return builder


def people(model: Scripted) -> StateGraph:
    """A node that asks people before, between and after its calls."""

    def node(state: Log) -> Log:
        before = interrupt("before")
        first = str(model.invoke("q").content)
        between = interrupt("between")
        second = str(model.invoke("q").content)
        return {"log": [before, first, between, second, interrupt("after")]}

    builder = StateGraph(Log)
    builder.add_node("p", call(model, "p"))
    builder.add_node("a", node)
    builder.add_edge(START, "p")
    builder.add_edge("p", "a")
    return builder


def inner(model: Scripted) -> StateGraph:
    """A graph inside, as a node."""
    builder = StateGraph(Log)
    builder.add_node("s", line(model).compile())
    builder.add_node("e", call(model, "e"))
    builder.add_edge(START, "s")
    builder.add_edge("s", "e")
    return builder


def called(model: Scripted) -> StateGraph:
    """A graph inside, called by a node."""
    sub = line(model).compile()
    builder = StateGraph(Log)
    builder.add_node("s", lambda _: {"log": sub.invoke({"log": []})["log"]})
    builder.add_node("e", call(model, "e"))
    builder.add_edge(START, "s")
    builder.add_edge("s", "e")
    return builder


def edge(model: Scripted) -> StateGraph:
    """A node whose conditional edge makes a call."""
    builder = StateGraph(Log)
    builder.add_node("a", call(model, "a"))
    builder.add_node("b", call(model, "b"))
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", lambda _: "b" if model.invoke("q") else END, ["b", END])
    return builder


SHAPES: list[Make] = [line, loop, fork, fan, middle, people, inner, called, edge]


def is_ours(value: object) -> bool:
    """Whether an interrupt asks about a budget."""
    return isinstance(value, dict) and value.get("kind") == "graphguard.budget"


def answers(out: dict[str, Any], ours: Callable[[dict[str, Any]], object]) -> Command[str]:
    """A resume for everything that waits: plain while one question waits, by id otherwise."""
    asked = {i.id: ours(i.value) if is_ours(i.value) else f"user:{i.value}" for i in out["__interrupt__"]}
    return Command(resume=next(iter(asked.values())) if len(asked) == 1 else asked)


def finish(graph: Any, ours: Callable[[dict[str, Any]], object] = lambda _: True) -> tuple[dict[str, Any], list[Any]]:
    """Run to the end with every question answered; the output, and what was asked each time."""
    out, asked = graph.invoke({"log": []}, T), []
    while out.get("__interrupt__"):
        asked.append([i.value for i in out["__interrupt__"]])
        assert len(asked) < 60, "it never ends"
        out = graph.invoke(answers(out, ours), T)
    return out, asked


async def afinish(graph: Any) -> dict[str, Any]:
    """The same on an event loop."""
    out = await graph.ainvoke({"log": []}, T)
    while out.get("__interrupt__"):
        out = await graph.ainvoke(answers(out, lambda _: True), T)
    return dict(out)


def bare(make: Make) -> dict[str, Any]:
    """What the graph gives without a budget."""
    return finish(make(Scripted()).compile(checkpointer=InMemorySaver()))[0]


def guarded(make: Make, *budgets: Budget, model: Scripted | None = None, **options: Any) -> Any:
    """The graph with a budget that asks."""
    options = {"ledger": MemoryLedger(), "on_trip": "interrupt", **options}
    return guard(make(model or Scripted()), *budgets, **options).compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("per", ["branch", "run", "thread"])
@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("make", SHAPES)
def test_after_enough_was_approved_the_run_ends_as_the_bare_one(make: Make, gate: str, per: str) -> None:
    """However often it had to ask, an approved run ends with the output of the unbudgeted one."""
    ledger, model = MemoryLedger(), Scripted()
    graph = guarded(make, Budget(calls=1, per=per), model=model, gate=gate, ledger=ledger)

    out, asked = finish(graph)

    assert out == bare(make)
    assert any(is_ours(value) for values in asked for value in values)
    assert ledger.total().calls == model.billed == Spend.of(graph.get_state(T)).calls
    assert ledger.open_holds() == ()


@pytest.mark.parametrize("make", SHAPES)
async def test_an_async_run_ends_as_the_bare_one(make: Make) -> None:
    """The same holds on an event loop."""
    assert await afinish(guarded(make, Budget(calls=1))) == bare(make)


@pytest.mark.parametrize("gate", ["auto", "inline"])
@pytest.mark.parametrize("make", [line, loop, fork, fan, inner])
def test_small_raises_ask_as_often_as_needed(make: Make, gate: str) -> None:
    """Approved one call at a time, the run asks for each, bills nothing twice, and ends as the bare one."""
    model = Scripted()
    graph = guarded(make, Budget(calls=1), model=model, gate=gate)

    out, asked = finish(graph, lambda payload: payload["trip"]["limit"] + 1)

    assert out == bare(make)
    assert len(asked) == model.billed - 1


@pytest.mark.parametrize("make", [line, fork, fan, middle, people, inner, edge])
@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b55_one_question_waits_at_a_time(make: Make, gate: str) -> None:
    """However many lines trip in one superstep, `Send` payloads among them, people see one question of ours."""
    _, asked = finish(guarded(make, Budget(calls=1), gate=gate), lambda payload: payload["trip"]["limit"] * 2)

    assert all(len({json.dumps(v) for v in values if is_ours(v)}) <= 1 for values in asked)


@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_a_trip_in_an_edge_writes_nothing_of_its_node(gate: str) -> None:
    """Asked in a conditional edge, the node in front of it has not written yet; it writes once in the end."""
    graph = guarded(edge, Budget(calls=1), gate=gate)

    out = graph.invoke({"log": []}, T)

    assert is_ours(out["__interrupt__"][0].value)
    assert out["log"] == graph.get_state(T).values["log"] == []


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_b55_send_fan_out_needs_k_approvals_at_most(k: int) -> None:
    """Of five payloads on a budget for k, the rest are asked about as one question, and run in the same superstep."""
    model = Scripted()
    graph = guarded(fan, Budget(calls=k), model=model)

    out = graph.invoke({"log": []}, T)
    assert len(out["__interrupt__"]) == 1
    assert model.billed == k
    out = graph.invoke(Command(resume={"new_limit_calls": 5}), T)

    assert out == bare(fan)
    assert model.billed == 5


@pytest.mark.parametrize("make", [fork, fan])
def test_b55_a_no_stops_all_that_wait(make: Make) -> None:
    """One rejection ends every line that waited for the answer; what finished before is kept."""
    model = Scripted()
    graph = guarded(make, Budget(calls=2), model=model)
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume=False), T)

    assert "__interrupt__" not in out
    assert model.billed == 2
    assert graph.get_state(T).next == ()
    assert Trip.of(graph.get_state(T)).answer == "stopped"


@pytest.mark.parametrize("make", [fork, fan])
def test_b55_a_bad_answer_asks_all_again_as_one(make: Make) -> None:
    """An answer that can't be used brings one question with `error`, and the next good one goes for all."""
    graph = guarded(make, Budget(calls=1))
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume="soon"), T)
    assert len(out["__interrupt__"]) == 1
    assert out["__interrupt__"][0].value["error"]

    assert graph.invoke(Command(resume=9), T) == bare(make)


@pytest.mark.parametrize("make", [line, fork, fan, people, middle])
@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b55_answers_by_interrupt_id(make: Make, gate: str) -> None:
    """A resume map `{interrupt id: answer}` is understood as a plain answer is."""
    graph = guarded(make, Budget(calls=1), gate=gate)
    out = graph.invoke({"log": []}, T)
    while out.get("__interrupt__"):
        given = {i.id: True if is_ours(i.value) else f"user:{i.value}" for i in out["__interrupt__"]}
        out = graph.invoke(Command(resume=given), T)

    assert out == bare(make)


def test_b55_a_bad_answer_by_id_never_reaches_the_users_interrupt() -> None:
    """A bad answer given by id is asked about again, and is not kept as an answer to the node's own question."""
    graph = guarded(people, Budget(calls=1), gate="inline")
    out = graph.invoke({"log": []}, T)

    for given in ("soon", "later", 9):
        out = graph.invoke(Command(resume={out["__interrupt__"][0].id: given}), T)

    assert out["__interrupt__"][0].value == "before"


def test_b47_a_trip_waits_under_dunder_interrupt() -> None:
    """The question comes back under `__interrupt__`, and the run waits on its thread until it is answered."""
    graph = guarded(line, Budget(calls=1))

    out = graph.invoke({"log": []}, T)

    assert is_ours(out["__interrupt__"][0].value)
    assert out["log"] == ["a", "ok"]
    assert graph.get_state(T).interrupts == tuple(out["__interrupt__"])


@pytest.mark.parametrize("make", [line, fan, middle])
def test_b47_without_a_checkpointer_it_fails_loudly(make: Make) -> None:
    """Where LangGraph would return an interrupt that nobody can answer, the first trip is a clear error."""
    graph = guard(make(Scripted()), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger()).compile()

    with pytest.raises(NoCheckpointer, match="checkpointer"):
        graph.invoke({"log": []})


def test_b47_without_a_trip_no_checkpointer_is_needed() -> None:
    """A run that stays within its budget needs no checkpointer in interrupt mode."""
    graph = guard(line(Scripted()), Budget(calls=3), on_trip="interrupt", ledger=MemoryLedger()).compile()

    assert graph.invoke({"log": []}) == bare(line)


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_b48_a_resume_runs_no_paid_node_again(gate: str) -> None:
    """Asked in front of a node, nothing that was paid runs again when the answer comes."""
    runs: list[str] = []
    model = Scripted()

    def counted(model: Scripted) -> StateGraph:
        builder = StateGraph(Log)
        for before, name in ((START, "a"), ("a", "b")):
            builder.add_node(name, lambda state, name=name: runs.append(name) or call(model, name)(state))
            builder.add_edge(before, name)
        return builder

    graph = guarded(counted, Budget(calls=1), model=model, gate=gate)

    finish(graph)

    assert runs == ["a", "b"]
    assert model.billed == 2


def test_b48_one_trip_is_one_record() -> None:
    """Asking twice about one trip leaves one trip in the state, with the answer it got in the end."""
    graph = guarded(line, Budget(calls=1))
    graph.invoke({"log": []}, T)
    first = Trip.of(graph.get_state(T))
    graph.invoke(Command(resume="what?"), T)

    graph.invoke(Command(resume=3), T)

    last = Trip.of(graph.get_state(T))
    assert (last.at, last.node, last.answer) == (first.at, first.node, "raised")


@pytest.mark.parametrize(
    ("answer", "log"),
    [
        (True, 2),
        (False, 1),
        ({"approve": True}, 2),
        ({"add_calls": 5}, 3),
        ({"new_limit": 3}, 3),
        ({"decisions": [{"type": "approve"}]}, 2),
        ({"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {"new_limit_calls": "3"}}}]}, 3),
        ({"decisions": [{"type": "reject"}]}, 1),
        ([{"type": "ignore", "args": None}], 1),
    ],
    ids=repr,
)
def test_b49_approve_edit_reject(answer: object, log: int) -> None:
    """Approved, the run goes on with the raised limit; edited, with the edited one; rejected, it ends."""
    graph = guarded(line, Budget(calls=1))
    graph.invoke({"log": []}, T)

    out = graph.invoke(Command(resume=answer), T)

    assert len(out["log"]) == 2 * log


def test_b49_a_malformed_answer_asks_again_without_charging() -> None:
    """A malformed answer costs nothing and changes nothing but the question."""
    model = Scripted()
    graph = guarded(line, Budget(calls=1), model=model)
    graph.invoke({"log": []}, T)
    before = graph.get_state(T).values["spend"]

    graph.invoke(Command(resume={"new_limit": "a lot"}), T)

    assert graph.get_state(T).values["spend"] == before
    assert model.billed == 1


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b50_b51_the_users_interrupts_stay_as_they_are(gate: str, calls: int) -> None:
    """The user's own questions come in their order and once each, and only their answers reach them."""
    graph = guarded(people, Budget(calls=calls), gate=gate)

    out, asked = finish(graph)

    assert out["log"] == ["p", "ok", "user:before", "ok", "user:between", "ok", "user:after"]
    assert all(is_ours(v) or v in ("before", "between", "after") for values in asked for v in values)


def test_b50_interrupts_pass_the_door() -> None:
    """Without a trip, a node that asks people asks exactly as often as in the bare graph."""
    _, plain = finish(people(Scripted()).compile(checkpointer=InMemorySaver()))
    _, asked = finish(guarded(people, Budget(calls=99)))

    assert asked == plain


def mixed(plans: list[str]) -> Make:
    """Payloads sent to one node; each letter of a plan is a call or a question to people."""

    def make(model: Scripted) -> StateGraph:
        def work(state: Log) -> Log:
            told = [f"w{state['x']}"]
            for letter in plans[state["x"]]:
                told.append(str(model.invoke("q").content if letter == "c" else interrupt(f"u{state['x']}{len(told)}")))
            return {"log": [" ".join(told)]}

        builder = StateGraph(Log)
        builder.add_node("p", call(model, "p"))
        builder.add_node("w", work)
        builder.add_node("z", lambda state: {"log": [len(state["log"])]})
        builder.add_edge(START, "p")
        builder.add_conditional_edges("p", lambda _: [Send("w", {"x": i}) for i in range(len(plans))], ["w"])
        builder.add_edge("w", "z")
        return builder

    return make


@pytest.mark.parametrize("seed", range(40))
def test_b51_b55_every_answer_reaches_whom_it_is_for(seed: int) -> None:
    """Lines that ask people and lines that want money, answered in any order, well or badly: each hears its own."""
    chance = random.Random(seed)
    plans = ["".join(chance.choices("ccu", k=chance.randint(1, 3))) for _ in range(chance.randint(2, 4))]
    make, calls, gate = mixed(plans), chance.randint(1, 4), chance.choice(["auto", "inline"])
    saver, ledger, model = InMemorySaver(), MemoryLedger(), Scripted()
    anew = chance.random() < 0.4  # as if each answer came to a new process

    def graph() -> Any:
        own = MemoryLedger() if anew else ledger
        builder = guard(make(model), Budget(calls=calls), on_trip="interrupt", gate=gate, ledger=own)
        return builder.compile(checkpointer=saver)

    running = graph()
    out, asked = running.invoke({"log": []}, T), 0
    while out.get("__interrupt__"):
        asked += 1
        assert asked < 80, "it never ends"
        given = {i.id: f"user:{i.value}" for i in out["__interrupt__"]}
        given |= {
            i.id: chance.choice([True, {"add_calls": 10}, "bad", i.value["trip"]["limit"] * 3])
            for i in out["__interrupt__"]
            if is_ours(i.value)
        }
        if chance.random() < 0.4:
            given = dict([chance.choice(list(given.items()))])
        # LangGraph gives a plain answer out twice when answers by id follow it, so people's are given by id here.
        plain = len({i.id for i in out["__interrupt__"]}) == 1 and is_ours(out["__interrupt__"][0].value)
        running = graph() if anew else running
        out = running.invoke(Command(resume=next(iter(given.values())) if plain else given), T)

    words = [["ok" if c == "c" else f"user:u{x}{at}" for at, c in enumerate(plan, 1)] for x, plan in enumerate(plans)]
    lines = [" ".join([f"w{x}", *told]) for x, told in enumerate(words)]
    assert out["log"] == ["p", "ok", *lines, len(plans) + 2]
    if not anew:
        assert Spend.of(running.get_state(T)).calls == ledger.total().calls == model.billed
        assert ledger.open_holds() == ()


@pytest.mark.parametrize("answer", ["no", 50, "hello", True])
def test_b51_a_users_answer_never_reaches_the_gate(answer: object) -> None:
    """Once the gate's question was answered, an answer to a user's question beside it means nothing to the gate."""

    def make(model: Scripted) -> StateGraph:
        def work(state: Log) -> Log:
            told = interrupt("really?") if state["x"] == 2 else None
            return {"log": [f"{state['x']}{told}{model.invoke('q').content}"]}

        builder = StateGraph(Log)
        builder.add_node("p", call(model, "p"))
        builder.add_node("w", work)
        builder.add_node("z", lambda state: {"log": [len(state["log"])]})
        builder.add_edge(START, "p")
        builder.add_conditional_edges("p", lambda _: [Send("w", {"x": i}) for i in range(3)], ["w"])
        builder.add_edge("w", "z")
        return builder

    graph = guarded(make, Budget(calls=1))
    assert is_ours(graph.invoke({"log": []}, T)["__interrupt__"][0].value)
    assert graph.invoke(Command(resume=10), T)["__interrupt__"][0].value == "really?"

    out = graph.invoke(Command(resume=answer), T)

    assert out["log"] == ["p", "ok", "0Noneok", "1Noneok", f"2{answer}ok", 5]
    assert graph.get_state(T).values["spend"]["limits"] == {"calls=1 per branch": {"calls": 10}}


def test_b51_a_users_interrupt_beside_the_gates() -> None:
    """A line that waits for its user and a line that waits for money are answered by id, each with its own."""

    def make(model: Scripted) -> StateGraph:
        builder = StateGraph(Log)
        builder.add_node("a", call(model, "a"))
        builder.add_node("b", lambda _: {"log": [interrupt("b?")]})
        builder.add_node("c", call(model, "c"))
        builder.add_edge(START, "a")
        builder.add_edge("a", "b")
        builder.add_edge("a", "c")
        return builder

    out, asked = finish(guarded(make, Budget(calls=1)))

    assert out["log"] == ["a", "ok", "user:b?", "c", "ok"]
    assert len(asked) == 1


@pytest.mark.parametrize("retried", [False, True])
def test_an_answer_counts_for_every_attempt_that_follows(*, retried: bool) -> None:
    """A node that fails after the approval is tried again, or resumed, without asking again."""
    model, fails = Scripted(), [True]

    def make(model: Scripted) -> StateGraph:
        def shaky(state: Log) -> Log:
            text = str(model.invoke("q").content)
            if fails:
                fails.pop()
                raise ConnectionError("lost")
            return {"log": [text]}

        builder = StateGraph(Log)
        builder.add_node("a", call(model, "a"))
        policy = RetryPolicy(initial_interval=0.001, jitter=False) if retried else None
        builder.add_node("b", shaky, retry_policy=policy)
        builder.add_edge(START, "a")
        builder.add_edge("a", "b")
        return builder

    graph = guarded(make, Budget(calls=1), model=model, gate="inline")
    graph.invoke({"log": []}, T)

    if retried:
        out = graph.invoke(Command(resume=9), T)
    else:
        with pytest.raises(ConnectionError):
            graph.invoke(Command(resume=9), T)
        out = graph.invoke(None, T)

    assert out == {"log": ["a", "ok", "ok"]}
    assert Spend.of(graph.get_state(T)).calls == model.billed == 3


@pytest.mark.parametrize("make", [line, fan, fork, people, middle, inner])
def test_b47_a_new_process_goes_on(make: Make, tmp_path: Path) -> None:
    """With the checkpoints in a file, each answer may be given in a new process with an empty ledger."""

    def again(given: object) -> dict[str, Any]:
        # As a new process does: everything is made anew, only the file stays.
        connection = sqlite3.connect(tmp_path / "checkpoints.sqlite", check_same_thread=False)
        try:
            saver = SqliteSaver(connection)
            builder = guard(make(Scripted()), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
            return dict(builder.compile(checkpointer=saver).invoke(given, T))
        finally:
            connection.close()

    out, asked = again({"log": []}), 0
    while out.get("__interrupt__"):
        asked += 1
        assert asked < 60
        out = again(answers(out, lambda _: True))

    assert out == bare(make)


def test_b47_the_limit_survives_the_process(tmp_path: Path) -> None:
    """A limit raised in one process holds in the next, and so does the spend."""
    with SqliteSaver.from_conn_string(str(tmp_path / "c.sqlite")) as saver:
        first = guard(line(Scripted()), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
        first.compile(checkpointer=saver).invoke({"log": []}, T)
        second = guard(line(Scripted()), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
        second.compile(checkpointer=saver).invoke(Command(resume=2), T)

        third = guard(line(Scripted()), Budget(calls=1), on_trip="interrupt", ledger=MemoryLedger())
        state = third.compile(checkpointer=saver).get_state(T)

    assert Spend.of(state).calls == 2
    assert (Trip.of(state).spent, Trip.of(state).limit) == (2, 2)


@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize("gate", ["auto", "inline"])
def test_b52_every_payload_is_plain_json(make: Make, gate: str) -> None:
    """Whatever is asked can be written and read as JSON unchanged."""
    _, asked = finish(guarded(make, Budget(usd="0.0003"), gate=gate))

    ours = [v for values in asked for v in values if is_ours(v)]
    assert ours
    assert all(json.loads(json.dumps(value)) == value for value in ours)


@pytest.mark.parametrize("static", [{"interrupt_before": ["b"]}, {"interrupt_after": ["a"]}])
def test_b56_static_breakpoints_stop_once(static: dict[str, list[str]]) -> None:
    """A breakpoint on a model node stops once, before the model is called, and goes on with None."""
    model = Scripted()
    builder = guard(line(model), Budget(calls=2), ledger=MemoryLedger(), on_trip="interrupt")
    graph = builder.compile(checkpointer=InMemorySaver(), **static)

    graph.invoke({"log": []}, T)
    assert graph.get_state(T).next == ("b",)
    assert model.billed == 1
    out = graph.invoke(None, T)
    assert is_ours(out["__interrupt__"][0].value)

    assert graph.invoke(Command(resume=True), T) == bare(line)


@pytest.mark.parametrize("gate", ["node", "inline"])
def test_b57_a_trip_is_seen_in_updates_and_values(gate: str) -> None:
    """The question comes as `__interrupt__` in the updates stream and in the values stream."""
    for mode in ("updates", "values"):
        graph = guarded(line, Budget(calls=1), gate=gate)

        chunks = list(graph.stream({"log": []}, T, stream_mode=mode))

        found = [chunk["__interrupt__"] for chunk in chunks if "__interrupt__" in chunk]
        assert [is_ours(i.value) for interrupts in found for i in interrupts] == [True]


def test_b57_lines_that_wait_show_no_empty_interrupts() -> None:
    """Lines that leave the asking to another put no interrupts of their own on the stream."""
    graph = guarded(fan, Budget(calls=1))

    chunks = list(graph.stream({"log": []}, T, stream_mode="updates"))

    assert [len(chunk["__interrupt__"]) for chunk in chunks if "__interrupt__" in chunk] == [1]


def test_b58_chat_uis_can_approve_edit_and_reject() -> None:
    """The request has the form of LangChain's HITLRequest, and each decision of its review config works."""
    graph = guarded(line, Budget(usd="0.0003"))
    value = graph.invoke({"log": []}, T)["__interrupt__"][0].value

    (request,), (review,) = value["action_requests"], value["review_configs"]
    assert {"name", "args", "description"} <= set(request)
    assert review["action_name"] == request["name"]
    for kind in review["allowed_decisions"]:
        fresh = guarded(line, Budget(usd="0.0003"))
        fresh.invoke({"log": []}, T)
        edited = {"name": request["name"], "args": {name: str(v) for name, v in request["args"].items()}}
        out = fresh.invoke(Command(resume={"decisions": [{"type": kind, "edited_action": edited}]}), T)
        assert (out == {"log": ["a", "ok"]}) is (kind == "reject")


@tool
def send(to: str = "") -> str:
    """Send a mail."""
    return "sent"


@pytest.mark.parametrize("calls", [1, 2])
def test_b58_beside_langchains_own_review_of_tools(calls: int) -> None:
    """The agent's own review of tool calls is asked in its place, and its decisions go to it alone."""
    model = Scripted(script=[tool_call("send", "c1"), "done"])
    review = HumanInTheLoopMiddleware(interrupt_on={"send": True})
    agent = guard(
        create_agent(model, [send], middleware=[review], checkpointer=InMemorySaver()),
        Budget(calls=calls),
        on_trip="interrupt",
        ledger=MemoryLedger(),
    )

    out, kinds = agent.invoke({"messages": [HumanMessage("hi")]}, T), []
    while out.get("__interrupt__"):
        kinds.append(is_ours(out["__interrupt__"][0].value))
        out = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), T)

    assert kinds == ([False, True] if calls == 1 else [False])
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "ai"]
    assert isinstance(out["messages"][-1], AIMessage)
