"""Where a recorded thread called models, one entry a task as far as the history tells them apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graphguard.history.found import PastTrip
    from graphguard.history.steps import Step

__all__ = ["Attempt", "Move", "is_gate", "moves"]

_GATE: Final = ".budget"
_REVIEW: Final = "budget.review"


def is_gate(node: str) -> bool:
    """Whether a node's name is one that `guard` gives to its own nodes."""
    name = node.rstrip("_")
    return name.endswith(_GATE) or name == _REVIEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Tasks that called a model, or would have if a budget had let them.

    Attributes:
        ns: Checkpoint namespace of their graph.
        at: Id of the checkpoint that they ran from.
        step: LangGraph's count of supersteps there.
        time: When that checkpoint was made, or the one after it, in ISO format.
        nodes: The nodes, gates left out.
        before: What the superstep of the top graph had spent before.
        spent: What they spent.
        needed: What a refused call was known to need; nothing for calls that were made.
    """

    ns: str
    at: str
    step: int
    time: str
    nodes: tuple[str, ...]
    before: Spend
    spent: Spend
    needed: Spend = ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One superstep of the top graph, with the model calls in it and in its subgraphs.

    Attributes:
        step: The step; for a superstep that never ended, the one that made the checkpoint it ran from.
        origin: The step that made the checkpoint it ran from; None at the beginning.
        attempts: Its model calls, earliest first.
        ended: Whether the superstep ended.
    """

    step: Step
    origin: Step | None
    attempts: tuple[Attempt, ...]
    ended: bool = True


def moves(steps: Iterable[Step], trips: Iterable[PastTrip]) -> Iterator[Move]:
    """The supersteps of the top graph, oldest first, so that each comes after the one it ran from."""
    top: list[Step] = []
    inside: defaultdict[tuple[str, str], list[Step]] = defaultdict(list)
    for step in steps:
        if not step.ns:
            top.append(step)
        else:
            around = step.ns.rpartition("|")[0]
            inside[around, step.outer.get(around, "")].append(step)
    refused: defaultdict[tuple[str, str], list[PastTrip]] = defaultdict(list)
    for trip in trips:
        if trip.at is not None:
            refused[trip.ns, trip.at].append(trip)
    top.sort(key=lambda step: step.checkpoint)
    made = {step.checkpoint: step for step in top}
    left = {step.parent for step in top if step.source == "loop"}
    tell = _Telling(inside, refused)
    for step in top:
        origin = made.get(step.parent or "")
        yield Move(step=step, origin=origin, attempts=tuple(tell.of(step, ZERO)) if step.source == "loop" else ())
        if step.checkpoint not in left:
            unfinished = tuple(tell.after(step, ZERO))
            if unfinished:
                yield Move(step=step, origin=step, attempts=unfinished, ended=False)


class _Telling:
    """Takes steps apart into attempts."""

    def __init__(
        self,
        inside: defaultdict[tuple[str, str], list[Step]],
        refused: defaultdict[tuple[str, str], list[PastTrip]],
    ) -> None:
        self._inside = inside
        self._refused = refused

    def of(self, step: Step, before: Spend) -> Iterator[Attempt]:
        """The attempts of a superstep that ended; `before` is what the one around it had spent."""
        yield from self._from(step, step.parent or "", before, step.added)

    def after(self, step: Step, before: Spend) -> Iterator[Attempt]:
        """The attempts from a checkpoint whose superstep never ended."""
        yield from self._from(step, step.checkpoint, before, step.unsettled)

    def _from(self, step: Step, at: str, before: Spend, spent: Spend) -> Iterator[Attempt]:
        ended = at != step.checkpoint
        nodes = tuple(node for node in step.nodes if not is_gate(node)) if ended else ()
        ns, time, number = step.ns, step.time, step.number - 1 if ended else step.number
        told = ZERO
        for attempt in self._deeper(ns, at, before):
            told += attempt.spent
            yield attempt
        rest = (spent + -told).at_least(ZERO)
        if rest.calls or rest.nanousd:
            yield Attempt(ns=ns, at=at, step=number, time=time, nodes=nodes, before=before + told, spent=rest)
        for trip in self._refused.get((ns, at), ()):
            yield Attempt(
                ns=ns,
                at=at,
                step=trip.step,
                time=trip.time or time,
                nodes=(trip.node,) if trip.node else nodes,
                before=before + told + rest,
                spent=ZERO,
                needed=_needed(trip),
            )

    def _deeper(self, ns: str, at: str, before: Spend) -> Iterator[Attempt]:
        steps = sorted(self._inside.get((ns, at), ()), key=lambda step: step.checkpoint)
        left = {(step.ns, step.parent) for step in steps if step.source == "loop"}
        told = before
        for step in steps:
            found: list[Attempt] = list(self.of(step, told)) if step.source == "loop" else []
            if (step.ns, step.checkpoint) not in left:
                found += self.after(step, told + _total(found))
            told += _total(found)
            yield from found


def _total(attempts: Sequence[Attempt]) -> Spend:
    return sum((attempt.spent for attempt in attempts), ZERO)


def _needed(trip: PastTrip) -> Spend:
    if trip.metric == "usd":
        return Spend(nanousd=trip.needed)
    if trip.metric == "tokens":
        return Spend(input_tokens=trip.needed)
    return Spend(**{trip.metric: trip.needed})
