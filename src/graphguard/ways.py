"""The ways from task to task: which writes wake a gate, and what a task's last writer tells the state.

Names that are private to LangGraph are used here as in `guard`, whose part this is.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from langgraph._internal import _constants as keys
from langgraph._internal._runnable import RunnableCallable
from langgraph.channels.binop import _get_overwrite
from langgraph.pregel._write import ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry
from langgraph.types import Command, Overwrite, Send

from graphguard.choices import FIELDS
from graphguard.door import Stop
from graphguard.spend import add_spend
from graphguard.task import Task
from graphguard.trip import merge_trip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.runnables import Runnable, RunnableConfig
    from langgraph.pregel._read import PregelNode

    from graphguard.placement import Shape
    from graphguard.scope import Meter, Scope

__all__ = ["BRANCH", "AnyRunnable", "Finish", "StartWrite", "Ways", "renamed", "start_node"]

BRANCH: Final = "branch:to:"
"""What the channels that wake a node begin with."""

_JOIN: Final = "join:"
_REDUCERS: Final = dict(zip(FIELDS, (add_spend, merge_trip), strict=True))
AnyRunnable: TypeAlias = "Runnable[Any, Any]"


class Ways:
    """Which writes wake a gate instead of its model node.

    While one line of tasks runs, every way into a gated node leads to its gate. Once several lines run side
    by side, a gate node would shift them against each other: from then on, to the end of the run, the ways
    lead to the model nodes themselves, whose doors decide inline.
    """

    def __init__(self, gate_of: Mapping[str, str], shape: Shape, *, always: bool) -> None:
        """Lead to these gates by node name; `always`, even where lines run side by side."""
        self.gate_of = {f"{BRANCH}{name}": f"{BRANCH}{gate}" for name, gate in gate_of.items()}
        self.node_of = {gate: node for node, gate in self.gate_of.items()}
        self.shape = shape
        self.always = always

    def gate_channel(self, channel: str) -> str:
        """The channel that wakes the gate in front, if there is one."""
        return self.gate_of.get(channel, channel)

    def forks(self, writes: Sequence[tuple[str, object]]) -> bool:
        """Whether the writes lead to several places, from which lines go on side by side."""
        places: set[str] = set()
        spread: set[str] = set()
        for channel, value in writes:
            if channel == keys.TASKS and isinstance(value, Send):
                if value.node in places and not self.shape.converges(value.node):
                    spread.add(value.node)
                places.add(value.node)
            elif channel.startswith((BRANCH, _JOIN)):
                places.add(self.node_of.get(channel, channel).removeprefix(BRANCH))
        return len(places) > 1 or bool(spread)

    def lead(self, task: Task, *, new_run: bool = False) -> bool:
        """Lead a task's writes to gates or past them; True if several lines begin here.

        With `new_run`, the lines of the last run, which the state still tells of, don't count.
        """
        if not self.gate_of:
            return False
        writes = list(task.writes)
        parallel = not self.always and not new_run and bool(task.read("spend").get("parallel"))
        # A client's Command may have begun several lines, without any task that could have said so.
        begins = not self.always and not parallel and (self.forks(writes) or (not new_run and task.accompanied))
        names = self.node_of if parallel or begins else self.gate_of
        if any(channel in names for channel, _ in writes):
            task.rewrite([(names.get(channel, channel), value) for channel, value in writes])
        return begins


class Finish(RunnableCallable):
    """The last writer of a task: leads its ways, and tells the state what was spent and what tripped.

    Attributes:
        original: The node as it was before `guard`; None for a node that `guard` added.
    """

    def __init__(self, original: PregelNode | None, ways: Ways | None, meter: Meter | None, *, once: bool) -> None:
        """Finish the tasks of one node; `once` if its writes may come out of a node cache later."""
        # Never called, but a node with a timeout must have only writers with an async function.
        super().__init__(self._finish, self._afinish, trace=False, name=None)
        self.original = original
        self.ways = ways
        self.meter = meter
        self.once = once
        ChannelWrite.register_writer(self, [])

    def invoke(self, input: object, config: RunnableConfig | None = None, **_: object) -> object:  # noqa: A002 - LangGraph's signature
        """Finish the task, without what `RunnableCallable` does for functions that it doesn't know."""
        return self._finish(input, config or {})

    async def ainvoke(self, input: object, config: RunnableConfig | None = None, **_: object) -> object:  # noqa: A002 - LangGraph's signature
        """The same."""
        return self._finish(input, config or {})

    def _finish(self, value: object, config: RunnableConfig) -> object:
        task = Task.of(config)
        if isinstance(value, Stop):
            _keep_only(task, value)
        begins = self.ways.lead(task) if self.ways is not None else False
        if self.meter is not None:
            own = _users_own(value)  # first: it may raise, and what the task spent must not be taken then
            scope = self.meter.finished.pop(task.id, None)
            told = _told(scope, once=self.once)
            if begins:
                told["spend"] = {**told.get("spend", {}), "parallel": True}
            if writes := _together(told, own):
                task.send(writes)
        return value

    async def _afinish(self, value: object, config: RunnableConfig) -> object:
        return self._finish(value, config)


def _told(scope: Scope | None, *, once: bool) -> dict[str, dict[str, object]]:
    told: dict[str, dict[str, object]] = {}
    if scope is not None:
        if delta := scope.delta(once=once):
            told["spend"] = delta
        if scope.trip is not None:
            told["trip"] = scope.trip.to_state()
    return told


def _users_own(value: object) -> list[tuple[str, object]]:
    """What the user's own code wrote to graphguard's fields: compiled writers only know the user's fields."""
    found: list[tuple[str, object]] = []
    for part in value if isinstance(value, (list, tuple)) else (value,):
        update = part.update if isinstance(part, Command) and part.graph is None else part
        if isinstance(update, Mapping):
            found += [(field, _checked(field, update[field])) for field in FIELDS if field in update]
    return found


def _checked(field: str, value: object) -> object:
    """The value, if its reducer can read it: raised at the end of a superstep, an error would stay in the thread."""
    overwrites, content = _get_overwrite(value)
    _REDUCERS[field]({}, cast("dict[str, object]", content if overwrites else value))
    return value


def _together(told: dict[str, dict[str, object]], own: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """What a task tells and what its code wrote itself: a trip before theirs, an amount on top of theirs."""
    writes: list[tuple[str, object]] = []
    for field, value in own:
        overwrites, content = _get_overwrite(value)
        if field in told and overwrites and field == "spend":
            writes.append((field, Overwrite(add_spend(content, told.pop(field)))))
        elif field not in told or field == "spend":
            writes.append((field, value))
    return [*told.items(), *writes]


def _keep_only(task: Task, stop: Stop) -> None:
    """Take none of the node's own ways: only those that the stop names."""
    task.rewrite([(c, v) for c, v in task.writes if c != keys.TASKS and not c.startswith((BRANCH, _JOIN))])
    goto = [stop.goto] if isinstance(stop.goto, (str, Send)) else stop.goto
    task.send([(keys.TASKS, way) if isinstance(way, Send) else (f"{BRANCH}{way}", None) for way in goto])


class StartWrite(ChannelWrite):
    """Writes a new input to the state, and begins a run there."""

    ways: Ways
    original: PregelNode

    def _write(self, input: object, config: RunnableConfig) -> None:  # noqa: A002 - LangGraph's signature
        super()._write(input, config)
        self._begin(input, config)
        return cast("None", input)

    async def _awrite(self, input: object, config: RunnableConfig) -> None:  # noqa: A002 - LangGraph's signature
        await super()._awrite(input, config)
        self._begin(input, config)
        return cast("None", input)

    def _begin(self, given: object, config: RunnableConfig) -> None:
        task = Task.of(config)
        if task.is_run:
            _begin_run(task, self.ways)
        elif by_hand := _users_own(given):  # drawing a graph runs its writers too, without any input
            task.send(by_hand)


def _begin_run(task: Task, ways: Ways) -> None:
    begins = ways.lead(task, new_run=True)
    told: list[tuple[str, object]] = [
        ("spend", {"run_id": uuid.uuid4().hex[:12], **({"parallel": True} if begins else {})})
    ]
    if task.read("trip"):
        told.append(("trip", {}))
    task.send(told)


class _BeginRun(Finish):
    """The last writer of a START with branches."""

    def _finish(self, value: object, config: RunnableConfig) -> object:
        task = Task.of(config)
        if self.ways is not None:
            _begin_run(task, self.ways)
        return value


def start_node(node: PregelNode, ways: Ways) -> PregelNode:
    """The START node, which begins a run in the state with each new input."""
    writers = [renamed(writer, ways) for writer in node.copy({}).flat_writers]
    if len(writers) == 1 and type(writers[0]) is ChannelWrite:
        # A subclass in its place, not one more writer: a sequence would show up in traces and events.
        start = StartWrite(tuple(writers[0].writes), tags=writers[0].tags)
        start.ways, start.original = ways, node
        return node.copy({"writers": [start]})
    return node.copy({"writers": [*writers, _BeginRun(node, ways, None, once=False)]})


def renamed(writer: AnyRunnable, ways: Ways) -> AnyRunnable:
    """The writer with its declared ways leading to gates, so that drawings show them."""
    if isinstance(writer, ChannelWrite):
        entries = [
            entry._replace(channel=ways.gate_channel(entry.channel))
            if isinstance(entry, ChannelWriteEntry)
            else entry._replace(static=[(ways.gate_channel(c), v, label) for c, v, label in entry.static])
            if isinstance(entry, ChannelWriteTupleEntry) and entry.static
            else entry
            for entry in writer.writes
        ]
        return ChannelWrite(tuple(entries), tags=writer.tags)  # a tuple: flat_writers adds them up
    declared = getattr(writer, "_is_channel_writer", None)
    if not isinstance(writer, RunnableCallable) or not declared:
        return writer
    new = copy.copy(writer)
    ChannelWrite.register_writer(
        new,
        [
            (e._replace(channel=ways.gate_channel(e.channel)) if isinstance(e, ChannelWriteEntry) else e, label)
            for e, label in declared
        ],
    )
    return new
