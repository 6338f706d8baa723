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

    from graphguard.meter import Meter
    from graphguard.placement import Shape
    from graphguard.scope import Scope

__all__ = ["BRANCH", "AnyRunnable", "Finish", "Ways", "finish_of", "finished", "renamed", "start_node"]

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


class Finish:
    """What a task does last: leads its ways, and tells the state what was spent and what tripped.

    Attributes:
        original: The node as it was before `guard`; None for a node that `guard` added.
    """

    def __init__(self, original: PregelNode | None, ways: Ways | None, meter: Meter | None, *, once: bool) -> None:
        """Finish the tasks of one node; `once` if its writes may come out of a node cache later."""
        self.original = original
        self.ways = ways
        self.meter = meter
        self.once = once

    def __call__(self, value: object, config: RunnableConfig) -> None:
        """Finish a task whose writers have written `value`."""
        if self._nothing_to_do(value, config):
            return
        task = Task.of(config)
        if isinstance(value, Stop):
            _keep_only(task, value)
        begins = self.ways.lead(task) if self.ways is not None else False
        if self.meter is not None:
            own = _users_own(value)  # first: it may raise, and what the task spent must not be taken then
            scope = self.meter.finished.pop(task.key, None)
            told = _told(scope, once=self.once)
            if begins:
                told["spend"] = {**told.get("spend", {}), "parallel": True}
            if writes := _together(told, own):
                task.send(writes)

    def _nothing_to_do(self, value: object, config: RunnableConfig) -> bool:
        """Whether the task spent nothing, and goes nowhere that a gate is: tools, mostly."""
        return (
            (value is None or (type(value) is dict and "spend" not in value and "trip" not in value))
            and not (self.ways is not None and self.ways.gate_of)
            and not (self.meter is not None and Task.key_in(config) in self.meter.finished)
        )


class _Last(RunnableCallable):
    """A writer after which the task is finished: in its place, since one more step would cost and be seen."""

    finish: Finish

    def invoke(self, input: object, config: RunnableConfig | None = None, **kwargs: object) -> object:  # noqa: A002 - LangGraph's signature
        value = super().invoke(input, config, **kwargs)
        self.finish(value, config or {})
        return value

    async def ainvoke(self, input: object, config: RunnableConfig | None = None, **kwargs: object) -> object:  # noqa: A002 - LangGraph's signature
        value = await super().ainvoke(input, config, **kwargs)
        self.finish(value, config or {})
        return value


class _LastWrite(_Last, ChannelWrite):
    pass


def finished(writers: Sequence[AnyRunnable], finish: Finish) -> list[AnyRunnable]:
    """The writers of a node, the last of which finishes its tasks."""
    *before, last = writers or [ChannelWrite(())]
    new: _Last
    if isinstance(last, ChannelWrite):
        new = _LastWrite(tuple(last.writes), tags=last.tags)
    elif isinstance(last, RunnableCallable):
        new = copy.copy(cast("_Last", last))
        new.__class__ = _Last
    else:
        before.append(last)
        new = _LastWrite(())
    new.finish = finish
    return [*before, new]


def finish_of(node: PregelNode) -> Finish | None:
    """What finishes the tasks of a node of a guarded graph; None for any other node."""
    return next((writer.finish for writer in node.writers if isinstance(writer, _Last)), None)


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
        if type(update) is dict or isinstance(update, Mapping):
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


class _Begin(Finish):
    """What START does last: a new input begins a run in the state."""

    def __call__(self, value: object, config: RunnableConfig) -> None:
        task = Task.of(config)
        if task.is_run and self.ways is not None and self.meter is not None:
            self.meter.begins(task)
            _begin_run(task, self.ways)
        elif by_hand := _users_own(value):  # drawing a graph runs its writers too, without any input
            task.send(by_hand)


def _begin_run(task: Task, ways: Ways) -> None:
    begins = ways.lead(task, new_run=True)
    told: list[tuple[str, object]] = [
        ("spend", {"run_id": uuid.uuid4().hex[:12], **({"parallel": True} if begins else {})})
    ]
    if task.read("trip"):
        told.append(("trip", {}))
    task.send(told)


def start_node(node: PregelNode, ways: Ways, meter: Meter) -> PregelNode:
    """The START node, which begins a run in the state with each new input."""
    writers = [renamed(writer, ways) for writer in node.copy({}).flat_writers]
    return node.copy({"writers": finished(writers, _Begin(node, ways, meter, once=False))})


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
