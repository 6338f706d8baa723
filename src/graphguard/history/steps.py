"""What a thread's checkpoints tell, step by step: who ran, what it cost, where it forked, what tripped.

A reading layer for everything that shows a history. A step leads from one checkpoint to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

from langgraph.types import Send

from graphguard.history.checkpoints import aeach_checkpoint, each_checkpoint, saver_of, thread_of
from graphguard.spend import ZERO, Spend
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph

__all__ = ["BY_HAND", "Reading", "Step", "asked", "asteps", "by_task", "field", "spend_of", "steps"]

BY_HAND: Final = "00000000-0000-0000-0000-000000000000"
"""The task under which LangGraph notes what a client's `Command` wrote."""

_ASKED: Final = "__interrupt__"
_TASKS: Final = "__pregel_tasks"
_OWN: Final = frozenset({"__start__", "__input__", "__interrupt__"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What led to one checkpoint.

    Attributes:
        thread: The thread.
        ns: The graph's checkpoint namespace; empty at the top, `"node:task|…"` in subgraphs.
        checkpoint: Id of the checkpoint that the step made; ids grow with time.
        parent: Id of the checkpoint that it ran from; None at the beginning.
        outer: Checkpoint ids of the graphs around, by namespace; a subgraph's step ran during the step from there.
        number: LangGraph's count of supersteps, from -1.
        source: `"input"`, `"loop"`, `"update"` by hand, or `"fork"`.
        time: When the checkpoint was made, in ISO format.
        nodes: The nodes that ran, gates included.
        run: Id of the run, from one input to its end; forks and resumes share it.
        spend: The branch's spend after it.
        run_spend: The spend of the branch's latest run after it.
        added: What the step added to the branch; nothing for forks and updates by hand.
        shares: What each of its tasks told, if the checkpointer kept it; one entry a task.
        raised: Limits in force by people's raises after it, by budget and metric, in the state's form.
        trip: The trip in the state after it, if any: of this step or an earlier one of the same run.
        waiting: Questions of gates that were asked from this checkpoint and wait, or waited, for an answer.
        unsettled: What tasks that ran from this checkpoint told before the superstep could end.
    """

    thread: str
    ns: str
    checkpoint: str
    parent: str | None
    outer: Mapping[str, str]
    number: int
    source: str
    time: str
    nodes: tuple[str, ...]
    run: str | None
    spend: Spend
    run_spend: Spend
    added: Spend
    shares: tuple[Spend, ...]
    raised: Mapping[str, Mapping[str, object]]
    trip: Trip | None
    waiting: tuple[Trip, ...]
    unsettled: Spend

    @property
    def config(self) -> RunnableConfig:
        """The config of the checkpoint that the step made."""
        return {"configurable": {"thread_id": self.thread, "checkpoint_ns": self.ns, "checkpoint_id": self.checkpoint}}


def steps(source: AnyGraph | AnySaver, config: RunnableConfig) -> Iterator[Step]:
    """Every step of a thread, in the graph and its subgraphs, across forks, newest first.

    Reads the checkpoints once, a page at a time. A step is given when the checkpoint that it ran from has been
    read, so the first step of a fork comes right before the step that led to where it forked.

    Args:
        source: The graph with its checkpointer, or the checkpointer.
        config: The thread's config.

    Raises:
        HistoryUnavailable: There is no checkpointer, or no such thread.
    """
    reading = Reading()
    yield from each_checkpoint(saver_of(source), thread_of(config), reading.feed)
    yield from reading.rest()


async def asteps(source: AnyGraph | AnySaver, config: RunnableConfig) -> AsyncIterator[Step]:
    """The same as `steps`, on an event loop."""
    reading = Reading()
    async for step in aeach_checkpoint(saver_of(source), thread_of(config), reading.feed):
        yield step
    for step in reading.rest():
        yield step


class Reading:
    """Makes steps of checkpoints that come newest first; remembers only those whose parent has yet to come."""

    def __init__(self) -> None:
        """Begin before the newest checkpoint."""
        self._open: dict[tuple[str, str], list[tuple[Step, Mapping[str, object]]]] = {}

    def feed(self, saved: CheckpointTuple) -> Iterator[Step]:
        """The steps that can be told now that this checkpoint is known."""
        step, seen = _begun(saved), saved.checkpoint["versions_seen"]
        shares = by_task(saved)
        children = self._open.pop((step.ns, step.checkpoint), [])
        for child, seen_then in children:
            yield _completed(child, seen_then, step, seen, shares, _sent(saved))
        if not children:
            step = replace(step, unsettled=sum(shares, ZERO))
        if step.parent is None:
            # A run whose last checkpoint alone was kept is one step.
            yield replace(step, nodes=_names(seen), added=step.spend) if step.source == "loop" else step
        else:
            self._open.setdefault((step.ns, step.parent), []).append((step, seen))

    def rest(self) -> Iterator[Step]:
        """The steps whose parent is not there any more."""
        for children in self._open.values():
            for child, seen in children:
                yield replace(child, nodes=_names(seen))
        self._open.clear()


def field(saved: CheckpointTuple, name: str) -> Mapping[str, object]:
    """One of graphguard's own state fields in a checkpoint; empty where there is none."""
    value = saved.checkpoint["channel_values"].get(name)
    return value if isinstance(value, Mapping) else {}


def spend_of(data: object) -> Spend:
    """The amounts in a spend field; none where a graph without a guard keeps something else under that name."""
    try:
        return Spend.of({"spend": data})
    except ValueError:
        return ZERO


def by_task(saved: CheckpointTuple) -> tuple[Spend, ...]:
    """What each task that ran from a checkpoint told; empty if the checkpointer did not keep it."""
    told = {
        task: spend_of(value)
        for task, channel, value in saved.pending_writes or ()
        if channel == "spend" and task != BY_HAND and isinstance(value, Mapping) and "run_id" not in value
    }
    return tuple(share for share in told.values() if share != ZERO)


def _begun(saved: CheckpointTuple) -> Step:
    """What a checkpoint tells by itself of the step that made it."""
    conf, metadata = saved.config["configurable"], saved.metadata
    spend = field(saved, "spend")
    run = cast("Mapping[str, object]", spend.get("run") or {})
    limits = (spend.get("limits") or {}, run.get("limits") or {})
    return Step(
        thread=str(conf["thread_id"]),
        ns=str(conf.get("checkpoint_ns", "")),
        checkpoint=saved.checkpoint["id"],
        parent=saved.parent_config["configurable"].get("checkpoint_id") if saved.parent_config else None,
        outer=metadata.get("parents") or {},
        number=metadata.get("step", -1),
        source=str(metadata.get("source", "loop")),
        time=saved.checkpoint["ts"],
        nodes=(),
        run=str(run["id"]) if run.get("id") else None,
        spend=spend_of(spend),
        run_spend=spend_of(run),
        added=ZERO,
        shares=(),
        raised={key: raised for place in limits if isinstance(place, Mapping) for key, raised in place.items()},
        trip=Trip.of({"trip": field(saved, "trip")}),
        waiting=tuple(trip for _, trip in asked(saved)),
        unsettled=ZERO,
    )


def _completed(  # noqa: PLR0917 - two checkpoints, side by side
    step: Step,
    seen: Mapping[str, object],
    before: Step,
    seen_before: Mapping[str, object],
    shares: tuple[Spend, ...],
    sent: tuple[str, ...],
) -> Step:
    """The step, now that the checkpoint it ran from is known."""
    if step.source != "loop":
        return step
    ran = [name for name in _names(seen) if seen[name] != seen_before.get(name)]
    return replace(
        step,
        nodes=tuple(dict.fromkeys([*ran, *sent])),
        added=(step.spend + -before.spend).at_least(ZERO),
        shares=shares,
    )


def _names(seen: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(name for name in seen if name not in _OWN)


def _sent(saved: CheckpointTuple) -> tuple[str, ...]:
    """The nodes of the Sends that wait in a checkpoint: which tasks they started is told nowhere else."""
    waiting = saved.checkpoint["channel_values"].get(_TASKS)
    return tuple(send.node for send in waiting if isinstance(send, Send)) if isinstance(waiting, list) else ()


def asked(saved: CheckpointTuple) -> Iterator[tuple[str, Trip]]:
    """The questions that gates asked in tasks from this checkpoint, each with its task."""
    for task, channel, value in saved.pending_writes or ():
        if channel == _ASKED:
            for interrupt in value if isinstance(value, (list, tuple)) else (value,):
                payload = getattr(interrupt, "value", None)
                if isinstance(payload, Mapping) and payload.get("kind") == "graphguard.budget":
                    trip = Trip.of({"trip": payload.get("trip")})
                    if trip is not None:
                        yield task, trip
