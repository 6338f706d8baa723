"""What guard.py, door.py and metering.py rely on in LangGraph; when an upgrade changes it, the test says so by name."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import weakref
from collections import deque
from itertools import pairwise
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.runnables.config import run_in_executor
from langgraph._internal import _constants as keys
from langgraph._internal._runnable import RunnableCallable, RunnableSeq
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import BinaryOperatorAggregate, EphemeralValue, LastValueAfterFinish
from langgraph.channels.binop import _get_overwrite
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._write import ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry
from langgraph.types import CachePolicy, Command, Interrupt, Overwrite, RetryPolicy, Send, interrupt
from typing_extensions import TypedDict

from tests.conftest import thread
from tests.needs import NODE_ATTEMPTS, NODE_ERROR_HANDLERS, NODE_TIMEOUTS, TASK_IDS_OF_REPLAYS, needs

Log = Annotated[list[str], operator.add]
CONF = keys.CONF


class State(TypedDict):
    log: Log


class Refused(GraphBubbleUp, RuntimeError):
    """Stands for graphguard's BudgetExceeded."""


def notes(name: str):
    """Give a node that writes its name to the log."""
    return lambda _: {"log": [name]}


def line(*nodes: tuple[str, Any]) -> StateGraph:
    """Build a graph of nodes one after another."""
    builder = StateGraph(State)
    for name, node in nodes:
        builder.add_node(name, node)
    builder.add_edge(START, nodes[0][0])
    for (before, _), (after, _) in pairwise(nodes):
        builder.add_edge(before, after)
    return builder


class Probe:
    """A node that keeps the config it was given."""

    def __init__(self) -> None:
        self.configs: list[RunnableConfig] = []

    def __call__(self, _: State, config: RunnableConfig) -> State:
        self.configs.append(config)
        return {"log": ["probe"]}

    @property
    def conf(self) -> dict[str, Any]:
        """The `configurable` part of the last config."""
        return self.configs[-1][CONF]


def probed(**compile_with: Any) -> Probe:
    """Run a probe in a graph of its own."""
    probe = Probe()
    line(("probe", probe)).compile(**compile_with).invoke({"log": []}, thread("t"))
    return probe


# Facts 1 and 16: limits and history


@needs("langgraph", "1.0.6", "a recursion limit of 10,000")
def test_1_recursion_limit_is_no_brake():
    """The default limit is far above what a budget should allow, and a config need not name it."""
    from langgraph._internal._config import DEFAULT_RECURSION_LIMIT  # noqa: PLC0415 - this test only

    assert DEFAULT_RECURSION_LIMIT >= 1_000
    assert "recursion_limit" not in (line(("a", notes("a"))).compile().config or {})


def test_16_durability_exit_keeps_one_checkpoint():
    """With `durability="exit"` there is no history to travel to."""
    graph = line(("a", notes("a")), ("b", notes("b"))).compile(checkpointer=InMemorySaver())

    graph.invoke({"log": []}, thread("t"), durability="exit")

    assert len(list(graph.get_state_history(thread("t")))) == 1


def test_16_metadata_has_no_writes():
    """A checkpoint's metadata has source, step and parents, and no writes."""
    graph = line(("a", notes("a"))).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))

    assert set(graph.get_state(thread("t")).metadata) == {"source", "step", "parents"}


# Facts 2, 8, 22: ways are writes to channels


class Writes:
    """A last writer that keeps the writes of its task."""

    def __init__(self, graph: Any, node: str) -> None:
        self.seen: list[tuple[str, object]] = []

        def look(value: object, config: RunnableConfig) -> object:
            self.seen = list(config[CONF][keys.CONFIG_KEY_READ].args[3].writes)
            return value

        writer = ChannelWrite.register_writer(RunnableCallable(look, trace=False, name=None), [])
        graph.nodes[node] = graph.nodes[node].copy({"writers": [*graph.nodes[node].writers, writer]})
        graph.validate()


@pytest.mark.parametrize(
    ("output", "way"),
    [
        ({"log": ["a"]}, ("branch:to:b", None)),
        (Command(goto="b"), ("branch:to:b", None)),
        (Command(goto=Send("b", {"log": []})), (keys.TASKS, Send("b", {"log": []}))),
    ],
    ids=["edge", "Command", "Send"],
)
def test_2_ways_are_writes(output, way):
    """An edge and a goto write to `branch:to:<node>`, a Send to the tasks channel, before a last writer runs."""
    builder = line(("a", lambda _: output), ("b", notes("b")))
    if isinstance(output, Command):
        builder.edges.discard(("a", "b"))
    graph = builder.compile()
    writes = Writes(graph, "a")

    graph.invoke({"log": []})

    assert way in writes.seen


def test_2_branch_writes_like_an_edge():
    """A conditional edge writes to `branch:to:<node>` as well, whether it has a path map or not."""
    builder = line(("a", notes("a")))
    builder.add_node("b", notes("b")).add_conditional_edges("a", lambda _: "b")
    graph = builder.compile()
    writes = Writes(graph, "a")

    graph.invoke({"log": []})

    assert ("branch:to:b", None) in writes.seen


def test_2_join_writes_to_a_channel_of_its_own():
    """A list join is a channel `join:<starts>:<end>`, among the triggers of the node behind it."""
    builder = StateGraph(State).add_node("a", notes("a")).add_node("b", notes("b")).add_node("c", notes("c"))
    graph = builder.add_edge(START, "a").add_edge(START, "b").add_edge(["a", "b"], "c").compile()

    assert [trigger for trigger in graph.nodes["c"].triggers if not trigger.startswith("branch:")] == ["join:a+b:c"]


def test_2_renamed_write_wakes_another_node():
    """A last writer may change the task's writes in place, and so lead the task elsewhere."""
    builder = line(("a", notes("a")), ("b", notes("b")))
    builder.add_node("c", notes("c"))
    graph = builder.compile()

    def lead(value: object, config: RunnableConfig) -> object:
        writes = config[CONF][keys.CONFIG_KEY_READ].args[3].writes
        led = [("branch:to:c" if channel == "branch:to:b" else channel, v) for channel, v in writes]
        writes.clear()
        writes.extend(led)
        return value

    writer = ChannelWrite.register_writer(RunnableCallable(lead, trace=False, name=None), [])
    graph.nodes["a"] = graph.nodes["a"].copy({"writers": [*graph.nodes["a"].writers, writer]})

    assert graph.validate().invoke({"log": []}) == {"log": ["a", "c"]}


def test_8_goto_end_does_not_cancel_edges():
    """A node that returns `Command(goto=END)` still takes its static edges."""
    graph = line(("a", lambda _: Command(goto=END)), ("b", notes("b"))).compile()

    assert graph.invoke({"log": []}) == {"log": ["b"]}


def test_8_nobody_reads_the_write_to_end():
    """A write to `branch:to:__end__` wakes nothing and is no error."""
    graph = line(("a", lambda _: Command(goto=END))).compile()

    assert graph.invoke({"log": []}) == {"log": []}


def test_22_inserted_node_shifts_siblings():
    """In a → {b, c} → d, one more node before b makes d run twice."""

    def shape(*, inserted: bool) -> dict[str, list[str]]:
        builder = StateGraph(State)
        for name in ("a", "b", "c", "d"):
            builder.add_node(name, notes(name))
        builder.add_node("gate", lambda _: {})
        builder.add_edge(START, "a").add_edge("a", "c").add_edge("b", "d").add_edge("c", "d")
        if inserted:
            builder.add_edge("a", "gate").add_edge("gate", "b")
        else:
            builder.add_edge("a", "b").add_edge(START, "gate")
        return builder.compile().invoke({"log": []})

    assert shape(inserted=False)["log"].count("d") == 1
    assert shape(inserted=True)["log"].count("d") == 2


# Facts 3, 4: state beside the user's


def test_3_channel_added_after_compile_is_no_input_or_output():
    """A channel that is added to the compiled graph takes writes of any node, and stays out of input and output."""

    def pay(state: State, config: RunnableConfig) -> State:
        assert set(state) == {"log"}
        config[CONF][keys.CONFIG_KEY_SEND]([("spend", 1)])
        return {"log": ["a"]}

    graph = copy.copy(line(("a", pay), ("b", pay)).compile(checkpointer=InMemorySaver()))
    graph.channels = {**graph.channels, "spend": BinaryOperatorAggregate(int, operator.add)}
    graph.channels["spend"].key = "spend"
    graph.stream_channels = [*graph.stream_channels, "spend"]
    graph.validate()

    assert graph.invoke({"log": []}, thread("t")) == {"log": ["a", "a"]}
    assert graph.get_state(thread("t")).values["spend"] == 2
    assert "spend" not in graph.get_input_jsonschema()["properties"]


def test_4_node_may_add_a_command_to_its_output():
    """`[output, Command(update=...)]`: both are applied."""
    graph = line(("a", lambda _: [{"log": ["a"]}, Command(update={"log": ["more"]})])).compile()

    assert graph.invoke({"log": []}) == {"log": ["a", "more"]}


def test_25_command_subclass_is_a_command():
    """A subclass of Command as output writes its update, so that a stop needs no form of its own."""

    class Stop(Command[str]):
        pass

    assert line(("a", lambda _: Stop(update={"log": ["stop"]}))).compile().invoke({"log": []}) == {"log": ["stop"]}


def test_25_writers_get_the_output_one_after_another():
    """Writers run in order, and each is given what the one before returned: the node's output."""
    graph = line(("a", notes("a"))).compile()
    given: list[object] = []

    def last(value: object) -> object:
        given.append(value)
        return value

    writer = ChannelWrite.register_writer(RunnableCallable(last, trace=False, name=None), [])
    graph.nodes["a"] = graph.nodes["a"].copy({"writers": [*graph.nodes["a"].flat_writers, writer]})
    graph.validate().invoke({"log": []})

    assert given == [{"log": ["a"]}]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(Overwrite(1), id="Overwrite"),
        pytest.param({"__overwrite__": 1}, id="sentinel"),
        pytest.param(
            {"value": 1, "type": "__overwrite__"},
            id="from JSON",
            marks=needs("langgraph", "1.2.7", "an Overwrite that has been JSON"),
        ),
    ],
)
def test_overwrite_has_three_forms(form):
    """`_get_overwrite` knows all forms in which an Overwrite arrives."""
    assert _get_overwrite(form) == (True, 1)
    assert _get_overwrite({"usd": "1"}) == (False, None)


# Fact 7: what bubbles up


@pytest.mark.parametrize(("error", "runs"), [(ConnectionError, 3), (Refused, 1)])
def test_7_bubbling_error_is_not_retried(error, runs):
    """RetryPolicy tries a plain error again, and never a GraphBubbleUp, even when it is named."""
    ran: list[int] = []

    def node(state: State) -> State:
        ran.append(1)
        raise error

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=(ConnectionError, Refused))
    builder = StateGraph(State).add_node("a", node, retry_policy=policy).add_edge(START, "a")

    with pytest.raises(error):
        builder.compile().invoke({"log": []})
    assert len(ran) == runs


@needs(*NODE_ERROR_HANDLERS)
@pytest.mark.parametrize(("error", "handled"), [(ConnectionError, True), (Refused, False)])
def test_7_bubbling_error_passes_error_handlers(error, handled):
    """A node's error handler swallows a plain error, and not a GraphBubbleUp."""
    builder = StateGraph(State)

    def node(state: State) -> State:
        raise error

    builder.add_node("a", node, error_handler=lambda _: {"log": ["handled"]})
    graph = builder.add_edge(START, "a").compile()

    if handled:
        assert graph.invoke({"log": []}) == {"log": ["handled"]}
    else:
        with pytest.raises(Refused):
            graph.invoke({"log": []})


@pytest.mark.parametrize(("error", "swallowed"), [(ConnectionError, True), (Refused, False)])
def test_7_bubbling_error_passes_tool_nodes(error, swallowed):
    """ToolNode with `handle_tool_errors=True` tells the model of a plain error, and lets a GraphBubbleUp through."""

    def search(query: str) -> str:
        """Search."""
        raise error

    class Talk(TypedDict):
        messages: Annotated[list[Any], operator.add]

    builder = StateGraph(Talk).add_node("tools", ToolNode([search], handle_tool_errors=True)).add_edge(START, "tools")
    call = AIMessage("", tool_calls=[{"name": "search", "args": {"query": "x"}, "id": "1"}])

    if swallowed:
        assert builder.compile().invoke({"messages": [call]})["messages"][-1].status == "error"
    else:
        with pytest.raises(Refused):
            builder.compile().invoke({"messages": [call]})


def test_28_bubbling_error_leaves_the_node_to_do():
    """After a GraphBubbleUp that is no interrupt, the node is next in the checkpoint, and nothing of it is kept."""
    graph = line(("a", notes("a")), ("b", RunnableLambda(_refuse))).compile(checkpointer=InMemorySaver())

    with pytest.raises(Refused):
        graph.invoke({"log": []}, thread("t"))

    assert graph.get_state(thread("t")).next == ("b",)
    assert graph.get_state(thread("t")).values == {"log": ["a"]}


def _refuse(state: object) -> None:
    raise Refused


# Facts 9, 10, 11, 29: interrupts


def test_9_interrupted_node_runs_again_from_its_start():
    """What a node did before `interrupt()` it does again on resume, so a paid call is paid twice."""
    paid: list[int] = []

    def node(state: State) -> State:
        paid.append(1)
        return {"log": [interrupt("?")]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))

    assert graph.invoke(Command(resume="yes"), thread("t")) == {"log": ["yes"]}
    assert paid == [1, 1]


def test_9_resume_values_number_the_interrupts():
    """The n-th `interrupt()` of a task gets the n-th resume value, whoever asked: the list is the task's."""
    pads: list[list[object]] = []

    def node(state: State, config: RunnableConfig) -> State:
        pads.append(list(config[CONF][keys.CONFIG_KEY_SCRATCHPAD].resume))
        return {"log": [interrupt("one"), interrupt("two")]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    graph.invoke(Command(resume="1"), thread("t"))

    assert graph.invoke(Command(resume="2"), thread("t")) == {"log": ["1", "2"]}
    assert pads == [[], [], ["1"]]


def test_9_resume_value_waits_as_the_null_resume():
    """A fresh resume value is not in the task's list yet; `get_null_resume` shows it, and takes it on demand."""
    seen: list[tuple[object, ...]] = []

    def node(state: State, config: RunnableConfig) -> State:
        look = config[CONF][keys.CONFIG_KEY_SCRATCHPAD].get_null_resume
        seen.append((look(False), look(False)))
        return {"log": [interrupt("?")]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    graph.invoke(Command(resume="yes"), thread("t"))

    assert seen == [(None, None), ("yes", "yes")]


def ask_by_hand(config: RunnableConfig, payload: object, values: list[object]) -> None:
    """Interrupt a task as metering.Task.ask does, keeping values among the task's resume values."""
    conf = config[CONF]
    conf[keys.CONFIG_KEY_SEND]([(keys.RESUME, values)] if values else [])
    raise GraphInterrupt((Interrupt.from_ns(payload, ns=conf[keys.CONFIG_KEY_CHECKPOINT_NS]),))


def test_29_resume_writes_are_kept_with_an_interrupt():
    """A write to the resume channel that goes with a GraphInterrupt is the task's resume list in the next attempt."""
    pads: list[list[object]] = []

    def node(state: State, config: RunnableConfig) -> State:
        pads.append(list(config[CONF][keys.CONFIG_KEY_SCRATCHPAD].resume))
        if len(pads) == 1:
            ask_by_hand(config, "?", [{"mark": 1}])
        return {"log": [str(len(pads))]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    graph.invoke(Command(resume="yes"), thread("t"))

    assert pads == [[], [{"mark": 1}]]


def test_10_interrupt_of_a_namespace_is_answered_by_its_id():
    """An interrupt made with `Interrupt.from_ns` is accepted by a map of ids to answers."""
    heard: list[object] = []

    def node(state: State, config: RunnableConfig) -> State:
        answer = config[CONF][keys.CONFIG_KEY_SCRATCHPAD].resume
        if not answer:
            ask_by_hand(config, "?", [])
        heard.extend(answer)
        return {"log": ["a"]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    asked = graph.invoke({"log": []}, thread("t"))["__interrupt__"][0]
    graph.invoke(Command(resume={asked.id: "yes"}), thread("t"))

    assert heard == ["yes"]


def test_10_interrupt_id_is_the_tasks_namespace():
    """The same task asks under the same id, in any attempt; another task under another."""
    one, again, other = (Interrupt.from_ns(v, ns=ns) for v, ns in (("x", "a:1"), ("y", "a:1"), ("x", "a:2")))

    assert one.id == again.id != other.id


def asking(*names: str) -> StateGraph:
    """Build a graph in which these nodes run side by side and ask."""
    builder = StateGraph(State)
    for name in names:
        builder.add_node(name, lambda _, name=name: {"log": [interrupt(name)]})
        builder.add_edge(START, name)
    return builder


def test_10_two_questions_need_two_addresses():
    """Two tasks that interrupt in one superstep give two ids, and one answer for both is refused."""
    graph = asking("a", "b").compile(checkpointer=InMemorySaver())
    asked = graph.invoke({"log": []}, thread("t"))["__interrupt__"]

    assert len({question.id for question in asked}) == 2
    with pytest.raises(RuntimeError, match="interrupt"):
        graph.invoke(Command(resume="yes"), thread("t"))


def test_11_interrupt_without_a_checkpointer_just_stops():
    """Without a checkpointer, an interrupt raises nothing: the run ends, and nobody can resume it."""
    assert asking("a").compile().invoke({"log": []})["__interrupt__"]


def test_29_empty_interrupt_leaves_the_task_undone():
    """A GraphInterrupt without any question shows nothing, and its task runs again with the next resume."""
    ran: list[int] = []

    def silent(state: State) -> State:
        ran.append(1)
        if len(ran) == 1:
            raise GraphInterrupt(())
        return {"log": ["b"]}

    builder = asking("a")
    builder.add_node("b", silent).add_edge(START, "b")
    graph = builder.compile(checkpointer=InMemorySaver())
    asked = graph.invoke({"log": []}, thread("t"))["__interrupt__"]

    assert [question.value for question in asked] == ["a"]
    assert graph.invoke(Command(resume="yes"), thread("t")) == {"log": ["yes", "b"]}


def test_29_pending_writes_are_seen_through_the_null_resume():
    """`get_null_resume` closes over `pending_writes`, which tells a task what the tasks beside it asked."""
    seen: list[list[tuple[str, str, object]]] = []

    def look(state: State, config: RunnableConfig) -> State:
        function = config[CONF][keys.CONFIG_KEY_SCRATCHPAD].get_null_resume
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        seen.append(list(cells["pending_writes"].cell_contents))
        raise GraphInterrupt(())

    builder = asking("a")
    builder.add_node("look", look).add_edge(START, "look")
    graph = builder.compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    graph.invoke(Command(resume="yes"), thread("t"))

    asked = [value for _, channel, value in seen[-1] if channel == keys.INTERRUPT]
    assert [[question.value for question in questions] for questions in asked] == [["a"]]


def test_29_null_resume_is_seen_after_it_was_taken():
    """A task beside the one that takes the resume value can still look at it, whichever runs first."""
    seen: list[tuple[object, ...]] = []

    def look(state: State, config: RunnableConfig) -> State:
        null_resume = config[CONF][keys.CONFIG_KEY_SCRATCHPAD].get_null_resume
        seen.append((null_resume(False), null_resume(True), null_resume(False)))
        raise GraphInterrupt(())

    builder = asking("a")
    builder.add_node("look", look).add_edge(START, "look")
    graph = builder.compile(checkpointer=InMemorySaver())
    one_by_one: RunnableConfig = {**thread("t"), "max_concurrency": 1}
    graph.invoke({"log": []}, one_by_one)
    graph.invoke(Command(resume="yes"), one_by_one)

    assert seen == [(None, None, None), ("yes", None, "yes")]


def test_29_resume_map_is_in_the_config():
    """Answers by id are in the config of every task, also of those that they are not for."""
    seen: list[object] = []

    def look(state: State, config: RunnableConfig) -> State:
        seen.append(config[CONF].get(keys.CONFIG_KEY_RESUME_MAP))
        raise GraphInterrupt(())

    builder = asking("a")
    builder.add_node("look", look).add_edge(START, "look")
    graph = builder.compile(checkpointer=InMemorySaver())
    asked = graph.invoke({"log": []}, thread("t"))["__interrupt__"][0]
    graph.invoke(Command(resume={asked.id: "yes"}), thread("t"))

    assert seen[-1] == {asked.id: "yes"}


# Facts 12, 13, 24: copies


def test_12_with_config_makes_another_graph():
    """`with_config` and `copy` make new objects, without attributes that LangGraph doesn't know."""
    graph = line(("a", notes("a"))).compile()
    graph.mine = 1

    assert graph.copy({"name": "x"}).name == "x"
    assert graph.with_config(tags=["t"]).config["tags"] == ["t"]
    assert graph.config is None or "tags" not in graph.config


def test_13_copy_of_a_builder_shares_its_parts():
    """`copy.copy(builder)` shares edges, nodes and branches: an edge added to one is in the other."""
    builder = line(("a", notes("a")), ("b", notes("b")))
    shared = copy.copy(builder)

    shared.add_edge("b", END)

    assert ("b", END) in builder.edges
    assert shared.nodes is builder.nodes


def test_24_copy_of_a_compiled_graph_may_have_other_nodes():
    """`copy.copy(compiled)` with dicts of its own is another graph; `validate()` learns its triggers anew."""
    graph = line(("a", notes("a"))).compile()
    other = copy.copy(graph)
    other.nodes = {**graph.nodes, "a": graph.nodes["a"].copy({"bound": RunnableCallable(notes("other"), trace=False)})}
    other.channels = dict(graph.channels)

    assert other.validate().invoke({"log": []}) == {"log": ["other"]}
    assert graph.invoke({"log": []}) == {"log": ["a"]}


@needs(*NODE_TIMEOUTS)
def test_24_node_copy_keeps_policies():
    """`PregelNode.copy({...})` changes what it is told to and keeps triggers, policies, metadata and subgraphs."""
    builder = StateGraph(State)
    builder.add_node("a", notes("a"), retry_policy=RetryPolicy(max_attempts=7), cache_policy=CachePolicy(ttl=1))
    node = builder.add_edge(START, "a").compile().nodes["a"]

    copied = node.copy({"bound": DEFAULT_BOUND})

    assert copied.bound is DEFAULT_BOUND
    for name in ("triggers", "channels", "retry_policy", "cache_policy", "metadata", "tags", "timeout", "writers"):
        assert getattr(copied, name) == getattr(node, name)


def test_24_writers_are_joined_as_tuples():
    """`flat_writers` adds up the writes of consecutive ChannelWrites, so both must be tuples."""
    one, two = (ChannelWrite((ChannelWriteEntry(name),)) for name in ("a", "b"))

    flat = PregelNode(channels=[], triggers=[], writers=[one, two]).flat_writers

    assert [entry.channel for entry in flat[0].writes] == ["a", "b"]
    with pytest.raises(TypeError):
        _ = PregelNode(channels=[], triggers=[], writers=[one, ChannelWrite([ChannelWriteEntry("b")])]).flat_writers


def test_24_entries_are_named_tuples_with_these_fields():
    """Entries are changed with `_replace`: `channel` of one kind, `static` of the other."""
    assert ChannelWriteEntry("a")._replace(channel="b").channel == "b"
    assert ChannelWriteTupleEntry(list)._replace(static=[("b", None, None)]).static == [("b", None, None)]


def test_24_writer_declares_its_writes():
    """`register_writer` keeps the declared writes in `_is_channel_writer`, from which drawings are made."""
    writer = ChannelWrite.register_writer(RunnableCallable(lambda v: v), [(ChannelWriteEntry("x"), "label")])

    assert writer._is_channel_writer == [(ChannelWriteEntry("x"), "label")]  # noqa: SLF001 - the fact itself
    assert ChannelWrite.is_writer(writer)
    assert [(channel, label) for channel, _, label in ChannelWrite.get_static_writes(writer)] == [("x", "label")]


def test_24_runnable_callable_may_be_copied():
    """A copied RunnableCallable with other functions runs those, with the config that its signature asked for."""

    def node(state: State, config: RunnableConfig) -> State:
        return {"log": [config[CONF]["thread_id"]]}

    bound = line(("a", node)).compile().nodes["a"].bound
    assert isinstance(bound, RunnableCallable)
    copied = copy.copy(bound)
    copied.func = functools.wraps(bound.func)(
        lambda *_, **kwargs: {"log": [f"! {kwargs['config'][CONF]['thread_id']}"]}
    )
    graph = line(("a", node)).compile()
    graph.nodes["a"] = graph.nodes["a"].copy({"bound": copied})

    assert graph.validate().invoke({"log": []}, thread("t")) == {"log": ["! t"]}


async def test_24_sync_node_is_async_by_an_executor():
    """A sync node's `afunc` is `partial(run_in_executor, None, func)`, which is how LangGraph knows that it is sync."""
    bound = line(("a", notes("a"))).compile().nodes["a"].bound

    assert isinstance(bound.afunc, functools.partial)
    assert bound.afunc.func is run_in_executor
    assert bound.afunc.args[0] is None


@needs(*NODE_TIMEOUTS)
def test_24_timeout_on_a_sync_node_is_refused():
    """A sync node with a timeout does not compile; a wrapper must not hide that it is sync."""
    builder = StateGraph(State)

    with pytest.raises(ValueError, match=r"(?i)timeout"):
        builder.add_node("a", notes("a"), timeout=1).add_edge(START, "a").compile()


def test_24_sequences_are_run_step_by_step():
    """A node may be a RunnableSequence of LangChain or a RunnableSeq of LangGraph, both with `steps` and a name."""
    for kind in (RunnableSequence, RunnableSeq):
        made = kind(RunnableCallable(lambda v: v), RunnableCallable(lambda v: v), name="n")
        assert len(made.steps) == 2
        assert made.name == "n"


def test_24_graph_as_a_node_is_itself():
    """A compiled graph as a node is the node's `bound`, and its only subgraph."""
    inner = line(("a", notes("a"))).compile()

    node = line(("inner", inner)).compile().nodes["inner"]

    assert node.bound is inner
    assert list(node.subgraphs) == [inner]


def test_24_channels_of_branches():
    """A node's own channel is an EphemeralValue; a deferred node's is a LastValueAfterFinish."""
    builder = line(("a", notes("a")))
    builder.add_node("b", notes("b"), defer=True).add_edge("a", "b")
    graph = builder.compile()

    assert type(graph.channels["branch:to:a"]) is EphemeralValue
    assert type(graph.channels["branch:to:b"]) is LastValueAfterFinish
    assert graph.nodes["a"].triggers == ["branch:to:a"]


def test_24_start_has_one_writer_unless_it_branches():
    """START's only writer is a ChannelWrite; with branches there are more."""
    plain = line(("a", notes("a"))).compile()
    builder = StateGraph(State).add_node("a", notes("a"))
    branching = builder.add_conditional_edges(START, lambda _: "a").compile()

    assert [type(writer) for writer in plain.nodes[START].flat_writers] == [ChannelWrite]
    assert len(branching.nodes[START].writers) > 1


def test_26_colon_and_bar_are_not_for_node_names():
    """Colons and bars are forbidden in node names, so they may separate names; dots are allowed."""
    for name in ("a:b", "a|b"):
        with pytest.raises(ValueError, match="reserved"):
            StateGraph(State).add_node(name, notes("a"))
    StateGraph(State).add_node("a.budget", notes("a"))


# Fact 14


def test_14_async_only_node_fails_when_sync():
    """An async-only node can't be invoked, so inserted nodes have both functions."""

    async def node(state: State) -> State:
        return {"log": []}

    with pytest.raises(TypeError, match="No synchronous function"):
        line(("a", node)).compile().invoke({"log": []})


# Fact 15


def test_15_cache_hit_replays_writes():
    """A hit replays the cached writes, also those to channels that the node's output doesn't name."""
    paid: list[int] = []

    def pay(state: State, config: RunnableConfig) -> State:
        paid.append(1)
        config[CONF][keys.CONFIG_KEY_SEND]([("log", ["sent"])])
        return {"log": ["a"]}

    builder = StateGraph(State).add_node("a", pay, cache_policy=CachePolicy()).add_edge(START, "a")
    graph = builder.compile(cache=InMemoryCache())

    assert [graph.invoke({"log": []}) for _ in range(2)] == [{"log": ["sent", "a"]}] * 2
    assert paid == [1]


@pytest.mark.parametrize("forget", [False, True])
def test_15_cache_key_of_a_running_task_can_be_cleared(forget):
    """CONFIG_KEY_CALL holds the task, whose `cache_key` may be cleared: its result is then not cached."""
    ran: list[int] = []

    def node(state: State, config: RunnableConfig) -> State:
        ran.append(1)
        task = config[CONF][keys.CONFIG_KEY_CALL].args[0]()
        assert task.cache_key is not None
        if forget:
            object.__setattr__(task, "cache_key", None)
        return {"log": ["a"]}

    builder = StateGraph(State).add_node("a", node, cache_policy=CachePolicy()).add_edge(START, "a")
    graph = builder.compile(cache=InMemoryCache())
    graph.invoke({"log": []})
    graph.invoke({"log": []})

    assert len(ran) == (2 if forget else 1)


@needs(*NODE_TIMEOUTS)
async def test_15_call_of_a_timed_node_is_in_a_closure():
    """For a node with a timeout, CONFIG_KEY_CALL and CONFIG_KEY_SEND are wrapped; the former's cells hold the call."""
    seen: list[dict[str, Any]] = []

    async def node(state: State, config: RunnableConfig) -> State:
        seen.append(config[CONF])
        return {"log": ["a"]}

    builder = StateGraph(State).add_node("a", node, timeout=30, cache_policy=CachePolicy()).add_edge(START, "a")
    await builder.compile(cache=InMemoryCache()).ainvoke({"log": []})

    call = seen[0][keys.CONFIG_KEY_CALL]
    held = [cell.cell_contents for cell in call.__closure__ if getattr(cell.cell_contents, "args", None)]
    assert len(held) == 1
    assert isinstance(held[0].args[0], weakref.ref)
    assert not isinstance(getattr(seen[0][keys.CONFIG_KEY_SEND], "__self__", None), deque)


# Fact 18: ids and attempts


@needs(*NODE_ATTEMPTS)
def test_18_attempts_share_the_task_id():
    """In-process retries raise `node_attempt` and keep the task's id, so neither can be a charge's key."""
    seen: list[tuple[str, int]] = []

    def node(state: State, config: RunnableConfig) -> State:
        conf = config[CONF]
        seen.append((conf[keys.CONFIG_KEY_TASK_ID], conf[keys.CONFIG_KEY_RUNTIME].execution_info.node_attempt))
        if len(seen) < 3:
            raise ConnectionError
        return {"log": []}

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ConnectionError)
    StateGraph(State).add_node("a", node, retry_policy=policy).add_edge(START, "a").compile().invoke({"log": []})

    assert len({task for task, _ in seen}) == 1
    assert [attempt for _, attempt in seen] == [1, 2, 3]


@needs(*NODE_ATTEMPTS)
def test_18_resume_after_an_error_repeats_id_and_attempt():
    """A resume re-runs a failed task under the same id as attempt 1, though what it calls is sent again."""
    seen: list[tuple[str, int]] = []

    def node(state: State, config: RunnableConfig) -> State:
        conf = config[CONF]
        seen.append((conf[keys.CONFIG_KEY_TASK_ID], conf[keys.CONFIG_KEY_RUNTIME].execution_info.node_attempt))
        if len(seen) == 1:
            raise ConnectionError
        return {"log": []}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        graph.invoke({"log": []}, thread("t"))
    graph.invoke(None, thread("t"))

    assert seen[0] == seen[1]


@needs(*TASK_IDS_OF_REPLAYS)
def test_18_time_travel_gives_new_task_ids():
    """A replay from an earlier checkpoint runs its tasks under other ids."""
    probe = Probe()
    graph = line(("probe", probe)).compile(checkpointer=InMemorySaver())
    graph.invoke({"log": []}, thread("t"))
    first = probe.conf[keys.CONFIG_KEY_TASK_ID]

    graph.invoke(None, next(s.config for s in graph.get_state_history(thread("t")) if s.next == ("probe",)))

    assert probe.conf[keys.CONFIG_KEY_TASK_ID] != first


# What a task's config holds


def test_config_holds_the_tasks_writes():
    """CONFIG_KEY_SEND is `extend` of the deque of writes, which CONFIG_KEY_READ holds too, among its arguments."""
    conf = probed().conf
    held = [part.writes for part in conf[keys.CONFIG_KEY_READ].args if isinstance(getattr(part, "writes", None), deque)]

    assert isinstance(conf[keys.CONFIG_KEY_READ], functools.partial)
    assert len(held) == 1
    assert conf[keys.CONFIG_KEY_SEND].__self__ is held[0]


def test_config_reads_the_state_as_the_step_began():
    """CONFIG_KEY_READ gives a channel without the task's own writes when its second argument is false."""
    seen: list[object] = []

    def node(state: State, config: RunnableConfig) -> State:
        config[CONF][keys.CONFIG_KEY_SEND]([("log", ["mine"])])
        read = config[CONF][keys.CONFIG_KEY_READ]
        seen.extend([read("log", False), read("log", True)])
        return {"log": []}

    line(("a", node)).compile().invoke({"log": ["given"]})

    assert seen == [["given"], ["given", "mine"]]


def test_config_names_the_task():
    """The namespace ends in `node:task id`, parts joined by "|"; the metadata tells the node and the path."""
    probe = Probe()
    line(("outer", line(("probe", probe)).compile())).compile(checkpointer=InMemorySaver()).invoke(
        {"log": []}, thread("t")
    )

    outer, own = probe.conf[keys.CONFIG_KEY_CHECKPOINT_NS].split(keys.NS_SEP)

    assert outer.partition(keys.NS_END)[0] == "outer"
    assert own == f"probe{keys.NS_END}{probe.conf[keys.CONFIG_KEY_TASK_ID]}"
    assert probe.configs[0]["metadata"]["langgraph_node"] == "probe"
    assert probe.configs[0]["metadata"]["langgraph_path"] == (keys.PULL, "probe")


def test_config_names_the_checkpoint_of_each_graph():
    """CONFIG_KEY_CHECKPOINT_MAP tells, by the graph's namespace, the checkpoint that a task runs from."""
    probe = Probe()
    line(("outer", line(("probe", probe)).compile())).compile(checkpointer=InMemorySaver()).invoke(
        {"log": []}, thread("t")
    )

    checkpoints = probe.conf[keys.CONFIG_KEY_CHECKPOINT_MAP]
    graph_ns = probe.conf[keys.CONFIG_KEY_CHECKPOINT_NS].rpartition(keys.NS_SEP)[0]

    assert set(checkpoints) == {"", graph_ns}
    assert len(set(checkpoints.values())) == 2


def test_config_has_a_checkpoint_without_a_checkpointer():
    """The checkpoint's id is there without a checkpointer, too, and each step has another."""
    probe = Probe()
    line(("one", probe), ("two", probe)).compile().invoke({"log": []})

    ids = [config[CONF][keys.CONFIG_KEY_CHECKPOINT_MAP][""] for config in probe.configs]

    assert len(set(ids)) == 2
    assert not probe.conf.get(keys.CONFIG_KEY_CHECKPOINTER)


def test_config_tells_the_checkpointer():
    """CONFIG_KEY_CHECKPOINTER is there where the run can be resumed, in graphs inside as well."""
    saver = InMemorySaver()
    probe = Probe()
    line(("outer", line(("probe", probe)).compile())).compile(checkpointer=saver).invoke({"log": []}, thread("t"))

    assert probe.conf[keys.CONFIG_KEY_CHECKPOINTER] is saver


def test_send_starts_a_pushed_task():
    """A task that a Send started says so in the first part of its path."""
    probe = Probe()
    builder = StateGraph(State).add_node("probe", probe)
    builder.add_conditional_edges(START, lambda state: [Send("probe", state)])
    builder.compile().invoke({"log": []})

    assert probe.configs[0]["metadata"]["langgraph_path"][0] == keys.PUSH


def test_tasks_of_a_superstep_share_their_futures():
    """CONFIG_KEY_CALL has a weak reference `futures`: one object for a superstep's tasks, another for the next."""
    seen: list[tuple[str, int]] = []
    alive: list[object] = []

    def node(name: str):
        def run(state: State, config: RunnableConfig) -> State:
            futures = config[CONF][keys.CONFIG_KEY_CALL].keywords["futures"]()
            alive.append(futures)
            seen.append((name, id(futures)))
            return {"log": []}

        return run

    builder = StateGraph(State).add_node("a", node("a")).add_node("b", node("b")).add_node("c", node("c"))
    builder.add_edge(START, "a").add_edge(START, "b").add_edge(["a", "b"], "c").compile().invoke({"log": []})

    by_name = dict(seen)
    assert by_name["a"] == by_name["b"] != by_name["c"]


def test_call_is_there_only_in_a_run():
    """CONFIG_KEY_CALL is in the config of a task that a graph runs, and not when a state is updated by hand."""
    graph = line(("a", notes("a"))).compile(checkpointer=InMemorySaver())
    confs: list[dict[str, Any]] = []

    def look(value: object, config: RunnableConfig) -> object:
        confs.append(dict(config[CONF]))
        return value

    writer = ChannelWrite.register_writer(RunnableCallable(look, trace=False, name=None), [])
    graph.nodes["a"] = graph.nodes["a"].copy({"writers": [*graph.nodes["a"].writers, writer]})
    graph.validate()
    graph.invoke({"log": []}, thread("t"))
    graph.update_state(thread("t"), {"log": ["x"]}, as_node="a")

    assert [keys.CONFIG_KEY_CALL in conf for conf in confs] == [True, False]
    assert all(keys.CONFIG_KEY_SEND in conf for conf in confs)


def test_node_called_by_hand_has_no_task():
    """`graph.nodes["a"].bound.invoke(...)` runs a node without anything to write to."""
    probe = Probe()
    line(("probe", probe)).compile().nodes["probe"].bound.invoke({"log": []})

    assert keys.CONFIG_KEY_SEND not in probe.configs[0].get(CONF, {})


def test_scratchpad_is_a_dataclass():
    """The scratchpad may be replaced by one with another resume list, which the node's interrupts then use."""

    def node(state: State, config: RunnableConfig) -> State:
        return {"log": [interrupt("?")]}

    graph = line(("a", node)).compile(checkpointer=InMemorySaver())
    bound = graph.nodes["a"].bound
    inner = bound.func

    def with_answer(state: State, config: RunnableConfig) -> State:
        from langchain_core.runnables.config import var_child_runnable_config  # noqa: PLC0415 - this test only

        pad = dataclasses.replace(config[CONF][keys.CONFIG_KEY_SCRATCHPAD], resume=["given"])
        config = {**config, CONF: {**config[CONF], keys.CONFIG_KEY_SCRATCHPAD: pad}}
        token = var_child_runnable_config.set(config)
        try:
            return inner(state, config=config)
        finally:
            var_child_runnable_config.reset(token)

    copied = copy.copy(bound)
    copied.func = functools.wraps(inner)(with_answer)
    graph.nodes["a"] = graph.nodes["a"].copy({"bound": copied})

    assert graph.validate().invoke({"log": []}, thread("t")) == {"log": ["given"]}


def test_runtime_streams_custom_events():
    """The runtime in a task's config has a `stream_writer`, which writes to the custom stream."""

    def node(state: State, config: RunnableConfig) -> State:
        config[CONF][keys.CONFIG_KEY_RUNTIME].stream_writer({"type": "budget"})
        return {"log": []}

    assert list(line(("a", node)).compile().stream({"log": []}, stream_mode="custom")) == [{"type": "budget"}]


@needs("langgraph", "1.1.0", "CompiledStateGraph._state_mapper")
def test_state_mapper_is_an_attribute():
    """A graph of a Pydantic or dataclass schema keeps what coerces its state in `_state_mapper`, when copied too."""

    @dataclasses.dataclass
    class Kept:
        log: Log

    builder = StateGraph(Kept).add_node("a", notes("a"), input_schema=Kept).add_edge(START, "a")

    copied = copy.copy(builder.compile())

    assert copied._state_mapper({"log": []}) == Kept(log=[])  # noqa: SLF001 - the fact itself


def test_stream_channels_are_a_list():
    """A state graph's `stream_channels` is a list of its fields, to which two more can be added."""
    assert line(("a", notes("a"))).compile().stream_channels == ["log"]


@needs(*NODE_ERROR_HANDLERS)
def test_error_handlers_are_nodes_of_their_own():
    """A node's error handler is a node in the compiled graph, marked `is_error_handler`."""
    builder = StateGraph(State)
    builder.add_node("a", notes("a"), error_handler=lambda _: {}).add_edge(START, "a")
    graph = builder.compile()

    assert [name for name, node in graph.nodes.items() if node.is_error_handler]
    assert graph.nodes["a"].error_handler_node in graph.nodes


def test_a_task_can_see_all_tasks_of_its_superstep():
    """CONFIG_KEY_CALL's `schedule_task` is bound to the loop, whose `tasks` are those of the superstep."""
    seen: dict[str, list[str]] = {}

    def notices(name: str):
        def node(state: State, config: RunnableConfig):
            loop = config[CONF][keys.CONFIG_KEY_CALL].keywords["schedule_task"].__self__
            seen[name] = sorted(task.name for task in loop.tasks.values())

        return node

    builder = line(("a", notices("a")), ("b", notices("b")), ("d", notices("d")))
    builder.add_node("c", notices("c"))
    builder.add_edge("a", "c")
    builder.compile().invoke({"log": []})

    assert seen == {"a": ["a"], "b": ["b", "c"], "c": ["b", "c"], "d": ["d"]}
