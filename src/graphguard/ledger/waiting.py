"""First come, first served: the line in which calls of one process wait for room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
import weakref
from collections import defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeGuard

from graphguard.ledger.admission import scopes_of
from graphguard.ledger.protocol import Hold, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from graphguard.budget import Call

__all__ = ["Line", "ain_turn", "in_turn"]

_NO_WAIT: Final = 0.001  # a millisecond is no waiting
_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class Line:
    """Who waits for room, by account and in the order they came.

    A call that waits in several accounts is served when it is the first in all of them. Orders can't cross,
    because everybody joins all their accounts in one step, so the first of all is always served.
    """

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._empty()
        _lines.add(self)

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, deque[_Turn]] = defaultdict(deque)

    def join(self, turn: _Turn) -> None:
        """Stand behind all who wait for the same accounts."""
        with self._lock:
            for scope in turn.scopes:
                self._waiting[scope].append(turn)

    def leave(self, turn: _Turn) -> None:
        """Stand there no more, and let those behind have a look."""
        with self._lock:
            for scope in turn.scopes:
                waiting = self._waiting.get(scope)
                if waiting is not None:
                    with contextlib.suppress(ValueError):
                        waiting.remove(turn)
                    if not waiting:
                        del self._waiting[scope]
        self.stir(turn.scopes)

    def is_first(self, turn: _Turn) -> bool:
        """Whether nobody who came earlier waits for one of the same accounts."""
        with self._lock:
            return all(self._waiting[scope][0] is turn for scope in turn.scopes)

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    def somebody_in(self, scopes: tuple[str, ...]) -> bool:
        """Whether anybody waits for one of these accounts."""
        return bool(self._waiting) and any(scope in self._waiting for scope in scopes)

    def stir(self, scopes: tuple[str, ...]) -> None:
        """Wake the first in each of these accounts: something there may have changed."""
        if not self._waiting:
            return
        with self._lock:
            first = {self._waiting[scope][0] for scope in scopes if self._waiting.get(scope)}
        for turn in first:
            turn.wake()

    def __len__(self) -> int:
        """How many calls wait."""
        with self._lock:
            return len({turn for waiting in self._waiting.values() for turn in waiting})


def in_turn(
    line: Line,
    call: Call,
    seconds: float,
    attempt: Callable[[bool, float], Hold | Refusal | None],
    *,
    poll: float | None = None,
) -> Hold | Refusal:
    """The answer to a call that waits in a thread for its turn and for room.

    Args:
        line: Where to stand.
        call: The call.
        seconds: How long to wait at most.
        attempt: Asks for room; with True it must only answer a call that is known already, and else give None.
            It is told how many seconds the call has waited.
        poll: The longest pause between two attempts of whoever is first, in seconds, for room that other
            processes make; None when only this process can.
    """
    scopes = scopes_of(call)
    answer = attempt(seconds > 0 and line.somebody_in(scopes), 0.0)
    if answer is not None and not (seconds > 0 and _is_held(answer)):
        return answer
    with _Turn(line, scopes, seconds, poll) as turn:
        while True:
            if turn.may_try() and turn.ends_with(answer := attempt(False, turn.waited)):  # noqa: FBT003 - a callback
                return turn.stamped(answer)
            turn.pause()


async def ain_turn(
    line: Line,
    call: Call,
    seconds: float,
    attempt: Callable[[bool, float], Awaitable[Hold | Refusal | None]],
    *,
    poll: float | None = None,
) -> Hold | Refusal:
    """The same for a task, whose event loop goes on meanwhile."""
    scopes = scopes_of(call)
    answer = await attempt(seconds > 0 and line.somebody_in(scopes), 0.0)
    if answer is not None and not (seconds > 0 and _is_held(answer)):
        return answer
    with _Turn(line, scopes, seconds, poll) as turn:
        while True:
            if turn.may_try() and turn.ends_with(answer := await attempt(False, turn.waited)):  # noqa: FBT003
                return turn.stamped(answer)
            await turn.apause()


class _Turn:
    """One call's place in the line, for a thread (`pause`) or a task (`apause`)."""

    def __init__(self, line: Line, scopes: tuple[str, ...], seconds: float, poll: float | None = None) -> None:
        """Start the clock; `with` joins the line."""
        self.scopes = scopes
        self._line = line
        self._begun = time.monotonic()
        self._until = self._begun + seconds
        self._poll = poll
        self._pause = 0.004
        self._first = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._woken = threading.Event()
        self._awoken = asyncio.Event()

    def __enter__(self) -> Self:
        """Join the line."""
        self._line.join(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it, whatever happened."""
        self._line.leave(self)

    def may_try(self) -> bool:
        """Whether it is this call's turn, or its last chance."""
        self._woken.clear()
        self._awoken.clear()
        self._first = self._line.is_first(self)
        return self._first or self._left() <= 0

    def ends_with(self, answer: Hold | Refusal | None) -> TypeGuard[Hold | Refusal]:
        """Whether there is nothing to wait for after that answer."""
        return not _is_held(answer) or self._left() <= 0

    def pause(self) -> None:
        """Wait in a thread until another attempt may be worth it."""
        self._woken.wait(self._next())

    async def apause(self) -> None:
        """Wait in a task until another attempt may be worth it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._awoken.wait(), self._next())

    def stamped(self, answer: Hold | Refusal) -> Hold | Refusal:
        """The answer with the seconds waited for it, as the ledger wrote them down if it did."""
        return answer if answer.waited else replace(answer, waited=self.waited)

    @property
    def waited(self) -> float:
        """The seconds waited until now."""
        waited = time.monotonic() - self._begun
        return waited if waited > _NO_WAIT else 0.0

    def wake(self) -> None:
        """End the pause, from whichever thread."""
        self._woken.set()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop has ended, and whoever waited on it
                self._loop.call_soon_threadsafe(self._awoken.set)

    def _left(self) -> float:
        return self._until - time.monotonic()

    def _next(self) -> float:
        left = max(self._left(), 0.0)
        if self._poll is None or not self._first:
            return left
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - so that processes don't ask in step
        self._pause = min(self._pause * 1.5, self._poll)
        return min(left, pause)


def _is_held(answer: Hold | Refusal | None) -> bool:
    """Whether it is a refusal that waiting may help."""
    return isinstance(answer, Refusal) and answer.breach.kind == "held"


def _forked() -> None:
    for line in _lines:  # those who wait are threads of the parent
        line._empty()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
