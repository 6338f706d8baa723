"""Rows B30, B34, B41 and B43: threads, checkpoints, savers, serializers, and graphs that are wrapped later."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from graphguard import Budget, MemoryLedger, Spend, Trip, guard
from tests.conftest import thread
from tests.needs import TASK_IDS_OF_REPLAYS, needs, skip_without
from tests.scripted import NANOUSD_PER_CALL, Scripted

Log = Annotated[list[str], operator.add]
GATES = pytest.mark.parametrize("gate", ["auto", "node", "inline"])


class State(TypedDict):
    log: Log


def calls(model: Scripted, name: str):
    """Give a node that calls the model, and writes its name to the log."""

    def node(state: State) -> State:
        model.invoke(name)
        return {"log": [name]}

    return node


def line(model: Scripted, *names: str) -> StateGraph:
    """Build a graph of nodes one after another, each of which calls the model."""
    return StateGraph(State).add_sequence([(name, calls(model, name)) for name in names]).add_edge(START, names[0])


def asking(model: Scripted) -> StateGraph:
    """Build a graph that pays, asks its user, and pays again."""
    builder = line(model, "a", "b")
    builder.add_node("ask", lambda _: {"log": [str(interrupt("sure?"))]})
    builder.edges.discard(("a", "b"))
    return builder.add_edge("a", "ask").add_edge("ask", "b")


# B30


@GATES
@pytest.mark.parametrize("mode", ["end", "interrupt", "raise"])
def test_b30_thread_of_the_bare_graph_goes_on(gate, mode, saver):
    """A thread that the bare graph left at an interrupt is resumed by the guarded one, and metered from there."""
    model = Scripted()
    asking(model).compile(checkpointer=saver).invoke({"log": []}, thread("t"))
    graph = guard(asking(model), Budget(calls=9), gate=gate, on_trip=mode).compile(checkpointer=saver)
    assert graph.get_state(thread("t")).next == ("ask",)

    out = graph.invoke(Command(resume="yes"), thread("t"))

    assert out == {"log": ["a", "yes", "b"]}
    assert model.billed == 2
    assert Spend.of(graph.get_state(thread("t"))).calls == 1


@GATES
def test_b30_thread_of_the_guarded_graph_goes_on_bare(gate, saver):
    """The other way round: a thread that the guarded graph left at the user's interrupt is resumed by the bare one."""
    model = Scripted()
    guard(asking(model), Budget(calls=9), gate=gate).compile(checkpointer=saver).invoke({"log": []}, thread("t"))

    out = asking(model).compile(checkpointer=saver).invoke(Command(resume="yes"), thread("t"))

    assert out == {"log": ["a", "yes", "b"]}
    assert model.billed == 2


def asking_after_paying(model: Scripted) -> StateGraph:
    """Build a graph whose second model node asks its user between two calls."""

    def node(state: State) -> State:
        model.invoke("one")
        answer = interrupt("sure?")
        model.invoke("two")
        return {"log": [answer]}

    return line(model, "a").add_node("b", node).add_edge("a", "b")


@GATES
@pytest.mark.parametrize("first", ["bare", "guarded"])
def test_b30_question_in_the_middle_of_a_model_node_goes_on(gate, first, saver):
    """A model node that waits for its user is the same task on both graphs, so that the answer finds it."""
    if first == "guarded" and isinstance(saver, SqliteSaver):
        skip_without("langgraph", "1.2.16", "the spend that a bare graph leaves in a SQLite file")
    model = Scripted()
    bare = asking_after_paying(model).compile(checkpointer=saver)
    guarded = guard(asking_after_paying(model), Budget(calls=9), gate=gate).compile(checkpointer=saver)
    begins, ends = (bare, guarded) if first == "bare" else (guarded, bare)

    begins.invoke({"log": []}, thread("t"))

    assert ends.invoke(Command(resume="yes"), thread("t")) == {"log": ["a", "yes"]}
    assert model.billed == 4
    assert Spend.of(guarded.get_state(thread("t"))).calls == (2 if first == "bare" else 1)


@GATES
def test_b30_thread_left_before_a_model_node_goes_on(gate, saver):
    """A thread that the bare graph left right before a model node is guarded from that node on."""
    model = Scripted()
    line(model, "a", "b").compile(checkpointer=saver, interrupt_before=["b"]).invoke({"log": []}, thread("t"))
    graph = guard(line(model, "a", "b"), Budget(calls=1), gate=gate).compile(checkpointer=saver)

    graph.update_state(thread("t"), {"spend": {"calls": 1}}, as_node="a")
    graph.invoke(None, thread("t"))

    assert model.billed == 1
    assert Trip.of(graph.get_state(thread("t"))).node == "b"


@GATES
def test_b30_thread_left_before_a_model_node_is_gated_without_a_gate_node(gate, saver):
    """Such a thread passes no gate node, so the model node's own door decides."""
    model = Scripted()
    line(model, "a", "b").compile(checkpointer=saver, interrupt_before=["b"]).invoke({"log": []}, thread("t"))
    graph = guard(line(model, "a", "b"), Budget(usd="0.0000001"), gate=gate).compile(checkpointer=saver)

    assert graph.get_state(thread("t")).next == ("b",)
    graph.invoke(None, thread("t"))

    assert model.billed == 1
    assert graph.get_state(thread("t")).next == ()


@GATES
def test_b30_next_turn_of_a_bare_thread_is_guarded(gate, saver):
    """A conversation begun on the bare graph has spent nothing yet, and keeps its budget from now on."""
    model = Scripted()
    line(model, "a", "b").compile(checkpointer=saver).invoke({"log": []}, thread("t"))
    graph = guard(line(model, "a", "b"), Budget(calls=1), gate=gate).compile(checkpointer=saver)

    out = graph.invoke({"log": []}, thread("t"))

    assert out == {"log": ["a", "b", "a"]}


@GATES
def test_b30_thread_with_an_open_question_goes_on_bare(gate, saver):
    """A thread that waits for money takes its next input on the bare graph, as if the question had been dropped."""
    model = Scripted()
    graph = guard(line(model, "a", "b"), Budget(calls=1), gate=gate, on_trip="interrupt").compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))

    out = line(model, "a", "b").compile(checkpointer=saver).invoke({"log": [":"]}, thread("t"))

    assert out == {"log": ["a", ":", "a", "b"]}


@GATES
def test_b30_names_and_keys_are_added_and_never_renamed(gate):
    """Wrapping keeps all nodes and channels of the bare graph, and adds its own."""
    bare = asking(Scripted()).compile()

    graph = guard(bare, Budget(calls=9), gate=gate, on_trip="interrupt")

    assert set(bare.nodes) <= set(graph.nodes)
    assert set(bare.channels) <= set(graph.channels)
    assert {name for name in graph.nodes if name not in bare.nodes} <= {"a.budget", "b.budget", "budget.review"}


def test_b30_budget_may_change_between_runs(saver):
    """A thread's spend is counted against whatever budget the graph has today."""
    model = Scripted()
    for limit, log in ((1, ["a"]), (3, ["a", "a", "b"]), (3, ["a", "a", "b"])):
        graph = guard(line(model, "a", "b"), Budget(calls=limit)).compile(checkpointer=saver)
        assert graph.invoke({"log": []}, thread("t")) == {"log": log}

    assert Spend.of(graph.get_state(thread("t"))).calls == model.billed == 3


# B34


PLACES = pytest.mark.parametrize("per", ["branch", "thread"])


@GATES
@PLACES
def test_b34_spend_survives_a_restart(gate, per, tmp_path):
    """On the same thread id, a new process with a new ledger goes on counting where the last one stopped."""
    model = Scripted()
    for log in (["a", "b"], ["a", "b", "a"], ["a", "b", "a"]):
        with SqliteSaver.from_conn_string(str(tmp_path / "db.sqlite")) as saver:
            graph = guard(line(model, "a", "b"), Budget(calls=3, per=per), gate=gate, ledger=MemoryLedger()).compile(
                checkpointer=saver
            )
            assert graph.invoke({"log": []}, thread("t")) == {"log": log}

    assert model.billed == 3


@GATES
def test_b34_run_and_thread_are_distinguishable(gate, saver):
    """Spend adds up across turns of a thread, and begins anew with each run."""
    model = Scripted()
    graph = guard(line(model, "a", "b"), Budget(calls=9), gate=gate).compile(checkpointer=saver)
    seen = []
    for _ in range(3):
        graph.invoke({"log": []}, thread("t"))
        state = graph.get_state(thread("t"))
        seen.append((Spend.of(state).calls, Spend.of_run(state).calls))

    assert seen == [(2, 2), (4, 2), (6, 2)]
    assert Spend.of(state).nanousd == 6 * NANOUSD_PER_CALL


@GATES
def test_b34_budget_of_a_run_is_new_each_turn(gate, saver):
    """A budget `per="run"` stops each turn at its own limit; the next turn has all of it again."""
    model = Scripted()
    graph = guard(line(model, "a", "b", "c"), Budget(calls=2, per="run"), gate=gate).compile(checkpointer=saver)

    for turn in (1, 2):
        assert graph.invoke({"log": []}, thread("t")) == {"log": ["a", "b"] * turn}
    assert model.billed == 4


@GATES
def test_b34_resume_belongs_to_its_run(gate, saver):
    """A run that a person interrupts and resumes has one budget, and not one for each part."""
    model = Scripted()
    graph = guard(asking(model), Budget(calls=1, per="run"), gate=gate).compile(checkpointer=saver)

    graph.invoke({"log": []}, thread("t"))
    out = graph.invoke(Command(resume="yes"), thread("t"))

    assert out == {"log": ["a", "yes"]}
    assert model.billed == 1


@GATES
def test_b34_threads_are_apart(gate, saver):
    """Budgets of branch, run and thread of one thread know nothing of another thread's."""
    model = Scripted()
    budgets = [Budget(calls=2, per=per) for per in ("branch", "run", "thread")]
    graph = guard(line(model, "a", "b"), *budgets, gate=gate, ledger=MemoryLedger()).compile(checkpointer=saver)

    for name in ("1", "2", "3"):
        assert graph.invoke({"log": []}, thread(name)) == {"log": ["a", "b"]}
    assert model.billed == 6


def first_of_two(graph: Any, name: str) -> Any:
    """Give the config of the checkpoint after node `a`."""
    history = list(graph.get_state_history(thread(name)))
    return next(s.config for s in history if s.values.get("log") == ["a"] and s.next in {("b",), ("b.budget",)})


@GATES
def test_b34_branch_goes_back_and_thread_does_not(gate, saver, ledger):
    """After time travel a branch has spent what it had at that checkpoint, and the thread what it really has."""
    model = Scripted()
    graph = guard(line(model, "a", "b"), Budget(calls=9), gate=gate, ledger=ledger).compile(checkpointer=saver)
    graph.invoke({"log": []}, thread("t"))

    graph.invoke(None, first_of_two(graph, "t"))

    assert Spend.of(graph.get_state(thread("t"))).calls == 2
    assert ledger.total(thread="t").calls == model.billed == 3


@GATES
@pytest.mark.parametrize(
    ("per", "billed"),
    [pytest.param("branch", 4, id="branch-4", marks=needs(*TASK_IDS_OF_REPLAYS)), ("thread", 2)],
)
def test_b34_forks_share_a_thread_budget(gate, per, billed, saver):
    """Two replays of the second of two calls: each branch may afford it, the thread can't."""
    model = Scripted()
    graph = guard(line(model, "a", "b"), Budget(calls=2, per=per), gate=gate, ledger=MemoryLedger()).compile(
        checkpointer=saver
    )
    graph.invoke({"log": []}, thread("t"))

    config = first_of_two(graph, "t")
    graph.invoke(None, config)
    graph.invoke(None, config)

    assert model.billed == billed


# B41


@GATES
@pytest.mark.parametrize("per", ["branch", "run", "thread"])
def test_b41_trip_restart_resume_and_replay_on_sqlite(gate, per, tmp_path):
    """On a SqliteSaver file: trip, restart, `get_state`, resume, and a replay from before the trip."""
    model = Scripted()

    def open_graph(saver: SqliteSaver) -> Any:
        budget = Budget(calls=1, per=per)
        return guard(line(model, "a", "b"), budget, gate=gate, on_trip="interrupt", ledger=MemoryLedger()).compile(
            checkpointer=saver
        )

    path = str(tmp_path / "db.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        asked = open_graph(saver).invoke({"log": []}, thread("t"))
    assert asked["__interrupt__"][0].value["kind"] == "graphguard.budget"

    with SqliteSaver.from_conn_string(path) as saver:
        state = open_graph(saver).get_state(thread("t"))
    assert (Trip.of(state).node, Trip.of(state).limit, Spend.of(state).calls) == ("b", 1, 1)

    with SqliteSaver.from_conn_string(path) as saver:
        assert open_graph(saver).invoke(Command(resume={"new_limit_calls": 2}), thread("t")) == {"log": ["a", "b"]}
    assert model.billed == 2

    with SqliteSaver.from_conn_string(path) as saver:
        graph = open_graph(saver)
        before = next(s for s in graph.get_state_history(thread("t")) if s.next in {("a",), ("a.budget",)})
        replayed = graph.invoke(None, before.config)
        graph_state = graph.get_state(thread("t"))
    # A ledger in memory ends with its process, so here even a thread's budget knows only what the checkpoint does.
    assert replayed["log"] == ["a"]
    assert Trip.of(graph_state).node == "b"


@GATES
async def test_b41_trip_restart_resume_on_async_sqlite(gate, tmp_path):
    """The same on an AsyncSqliteSaver file, with async calls."""
    model = Scripted()

    def open_graph(saver: AsyncSqliteSaver) -> Any:
        budget = Budget(usd="0.00021")
        return guard(line(model, "a", "b"), budget, gate=gate, on_trip="interrupt", ledger=MemoryLedger()).compile(
            checkpointer=saver
        )

    path = str(tmp_path / "db.sqlite")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        await open_graph(saver).ainvoke({"log": []}, thread("t"))
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        state = await open_graph(saver).aget_state(thread("t"))
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        out = await open_graph(saver).ainvoke(Command(resume={"new_limit_usd": "$1"}), thread("t"))
        after = await open_graph(saver).aget_state(thread("t"))

    assert str(Spend.of(state).usd) == "0.00021"
    assert str(Trip.of(state).limit_usd) == "0.00021"
    assert out == {"log": ["a", "b"]}
    assert Spend.of(after).nanousd == 2 * NANOUSD_PER_CALL


CHILD = """
    import sys
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.types import Command
    from graphguard import Budget, Spend, guard
    from tests.rows.test_persistence import line
    from tests.scripted import Scripted

    model = Scripted()
    with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
        graph = guard(line(model, "a", "b", "c"), Budget(calls=1), on_trip="interrupt").compile(checkpointer=saver)
        given = {"log": []} if sys.argv[2] == "begin" else Command(resume={"new_limit_calls": int(sys.argv[2])})
        config = {"configurable": {"thread_id": "t"}}
        out = graph.invoke(given, config)
        print(out["log"], "__interrupt__" in out, model.billed, Spend.of(graph.get_state(config)).calls)
"""


def test_b41_three_processes_share_a_thread(tmp_path):
    """One process trips, a second is given too little and trips again, a third ends the run: nothing is paid twice."""
    root = Path(__file__).resolve().parents[2]

    def child(word: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "db.sqlite"), word]
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    assert child("begin") == "['a'] True 1 1"
    assert child("2") == "['a', 'b'] True 1 2"
    assert child("3") == "['a', 'b', 'c'] False 1 3"


# B43


def plain(value: object) -> bool:
    """Tell whether a value consists of plain JSON types, and of no subclass of them."""
    if type(value) is dict:
        return all(type(key) is str and plain(part) for key, part in value.items())
    if type(value) is list:
        return all(plain(part) for part in value)
    return value is None or type(value) in {str, int, float, bool}


def everything(model: Scripted, saver: Any, gate: str) -> Any:
    """Build a guarded graph with all that can get into the state: narrowed budgets, trips, raised limits, caches."""
    budgets = [
        Budget(calls=1),
        Budget(usd=1, per="run", node="a"),
        Budget(tokens=10**6, per="thread", model="gpt-4o-mini"),
    ]
    return guard(line(model, "a", "b"), *budgets, gate=gate, on_trip="interrupt", ledger=MemoryLedger()).compile(
        checkpointer=saver
    )


@GATES
def test_b43_state_holds_plain_json_only(gate, saver):
    """All that guard puts in the state is dict, list, str, int, float, bool or None, at every checkpoint."""
    graph = everything(Scripted(), saver, gate)
    graph.invoke({"log": []}, thread("t"))
    graph.invoke(Command(resume=True), thread("t"))

    found = [(s.values.get("spend"), s.values.get("trip")) for s in graph.get_state_history(thread("t"))]

    assert found
    assert any(spend and spend.get("limits") for spend, _ in found)
    assert all(plain(spend) and plain(trip) for spend, trip in found)
    assert json.loads(json.dumps([list(pair) for pair in found])) == [list(pair) for pair in found]


STRICT_SERDE = ("langgraph-checkpoint", "4.0.1", "JsonPlusSerializer(allowed_msgpack_modules=)")


def strict() -> JsonPlusSerializer:
    """Give the serializer that makes no objects but those it knows."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)


def encrypted() -> EncryptedSerializer:
    """Give the strict serializer, encrypted."""
    return EncryptedSerializer.from_pycryptodome_aes(strict(), key=b"0123456789abcdef")


@GATES
@pytest.mark.parametrize(
    "serde",
    [
        pytest.param(JsonPlusSerializer, id="default"),
        pytest.param(strict, id="strict", marks=needs(*STRICT_SERDE)),
        pytest.param(encrypted, id="encrypted", marks=needs(*STRICT_SERDE)),
    ],
)
def test_b43_any_serializer_will_do(gate, serde, caplog):
    """A trip, its question and its answer go through the default, the strict and the encrypted serde."""
    saver = InMemorySaver(serde=serde())
    model = Scripted()
    everything(model, saver, gate).invoke({"log": []}, thread("t"))

    out = everything(model, saver, gate).invoke(Command(resume=True), thread("t"))

    assert out == {"log": ["a", "b"]}
    assert not [record for record in caplog.records if "serial" in record.getMessage().lower()]


@needs(*STRICT_SERDE)
@GATES
def test_b43_messages_and_questions_survive_the_strict_serde(gate, caplog):
    """In a conversation too: the closing message and an inline gate's marks need no allow-list."""
    model = Scripted()

    def open_graph(saver: InMemorySaver) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("chat", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_edge(START, "chat")
        return guard(builder, Budget(calls=1), gate=gate, on_trip="interrupt", ledger=MemoryLedger()).compile(
            checkpointer=saver
        )

    saver = InMemorySaver(serde=strict())
    graph = open_graph(saver)
    graph.invoke({"messages": [("user", "hi")]}, thread("t"))
    graph.invoke({"messages": [("user", "again")]}, thread("t"))
    out = open_graph(saver).invoke(Command(resume="stop"), thread("t"))

    assert out["messages"][-1].additional_kwargs["graphguard"]["answer"] == "stopped"
    assert model.billed == 1
    assert not [record for record in caplog.records if "serial" in record.getMessage().lower()]
