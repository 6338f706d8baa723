"""What was paid for nothing: attempts that a retry replaced, calls that never reported back, work no branch has."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphguard.spend import Charge

__all__ = ["Loss", "Retried", "loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A task that was tried more than once.

    Attributes:
        node: Its node.
        task: LangGraph's id of it.
        attempts: What each attempt cost, the first one first; all but the last failed.
    """

    node: str | None
    task: str
    attempts: tuple[Spend, ...]

    @property
    def lost(self) -> Spend:
        """What the attempts cost that a later one replaced."""
        return sum(self.attempts[:-1], ZERO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a thread paid for nothing, as its ledger tells.

    Attributes:
        retried: Tasks that were tried more than once, the most expensive loss first.
        assumed: Calls that never reported back, charged at their worst case.
        elsewhere: Real money that no branch's state counts: failed attempts before a crash, cancelled runs,
            runs that were rolled back, and threads that were deleted.
    """

    retried: tuple[Retried, ...] = ()
    assumed: Spend = ZERO
    elsewhere: Spend = ZERO

    @property
    def retries(self) -> Spend:
        """What all retries together cost beside the attempts that counted in the end."""
        return sum((each.lost for each in self.retried), ZERO)


def loss(charges: Iterable[Charge], known: Spend) -> Loss:
    """What a thread's charges tell of losses.

    Args:
        charges: All of the thread.
        known: What its branches' states count, each step once.
    """
    tried: defaultdict[str, dict[int, Spend]] = defaultdict(dict)
    nodes: dict[str, str | None] = {}
    assumed = total = ZERO
    for charge in charges:
        total += charge.spend
        assumed += charge.spend if charge.assumed else ZERO
        if charge.task is not None:
            attempts = tried[charge.task]
            attempts[charge.attempt] = attempts.get(charge.attempt, ZERO) + charge.spend
            nodes[charge.task] = charge.node
    retried = [
        Retried(node=nodes[task], task=task, attempts=tuple(attempts[number] for number in sorted(attempts)))
        for task, attempts in tried.items()
        if len(attempts) > 1
    ]
    return Loss(
        retried=tuple(sorted(retried, key=lambda each: (-each.lost.nanousd, -each.lost.calls))),
        assumed=assumed,
        elsewhere=(total + -known).at_least(ZERO),
    )
