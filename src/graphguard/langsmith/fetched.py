"""One fetched value that many threads and tasks share: single flight, stale on error, backoff.

Knows nothing of prompts or LangSmith. An `Entry` decides under its lock, and is never locked over the network.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

__all__ = ["Entry", "Flight", "Ready", "Terms", "recall"]

_KEPT: Final = 256
_FIRST_BACKOFF: Final = 1.0
_LONGEST_BACKOFF: Final = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What one reader asks of a shared value.

    Attributes:
        fresh_for: Seconds after a fetch in which the value is taken as it is.
        stale_for: Seconds after a fetch in which it may stand in for one that fails.
        generation: The least generation of the value that will do; see `Entry.invalidate`.
    """

    fresh_for: float
    stale_for: float
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A value, without any fetch.

    Attributes:
        value: The value.
    """

    value: object


@dataclass(frozen=True, slots=True)
class Flight:
    """A fetch that is under way, or about to begin.

    Attributes:
        landing: Resolved when the fetch has ended, well or not; ask the entry again then.
        lead: Whether whoever got this must make the fetch; everybody else waits.
        generation: The entry's generation as it began.
    """

    landing: Future[None]
    lead: bool
    generation: int


class Entry:
    """One value, as it was fetched last.

    Attributes:
        pinned: Whether the value can never change, so that it is never fetched again.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without a value; `clock` gives seconds, and never goes back."""
        self.pinned = False
        self._clock = clock
        self._lock = threading.Lock()
        self._value: Ready | None = None
        self._fetched_at = 0.0
        self._held = -1  # the generation that the value belongs to
        self._generation = 0
        self._flight: Flight | None = None
        self._landed: Future[None] | None = None  # the flight that brought the value
        self._error: tuple[Exception, TracebackType | None] | None = None
        self._failures = 0
        self._retry_at = 0.0

    def ask(self, terms: Terms, after: Flight | None = None) -> Ready | Flight:
        """The value if it will do, else the flight to wait for or to lead.

        Args:
            terms: What will do.
            after: The flight that the reader waited for; what it brought will do, however little is fresh enough.

        Raises:
            Exception: What the last fetch raised, until its backoff is over, where no value can stand in.
        """
        with self._lock:
            now = self._clock()
            age = now - self._fetched_at
            held = self._value if self._held >= terms.generation else None
            is_new = self._held == self._generation and age < terms.fresh_for
            if held is not None and (self.pinned or is_new or (after is not None and after.landing is self._landed)):
                return held
            usable = held if held is not None and age < terms.stale_for else None
            if self._flight is not None:
                return usable or Flight(self._flight.landing, lead=False, generation=self._flight.generation)
            if self._error is not None and now < self._retry_at:
                if usable is not None:
                    return usable
                error, traceback = self._error
                raise error.with_traceback(traceback)
            self._flight = Flight(Future(), lead=True, generation=self._generation)
            return self._flight

    def land(self, flight: Flight, value: object, *, pinned: bool) -> None:
        """End a flight with what it fetched."""
        with self._lock:
            self._value, self._fetched_at, self._held = Ready(value), self._clock(), flight.generation
            self._landed = flight.landing
            self.pinned = pinned
            self._error, self._failures = None, 0
            self._flight = None
        flight.landing.set_result(None)

    def crash(self, flight: Flight, error: BaseException) -> bool:
        """End a flight that failed; whether a value is left.

        An interrupt of whoever led it says nothing of the server: the next reader flies at once.
        """
        with self._lock:
            if isinstance(error, Exception):
                self._failures += 1
                longest = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(self._failures - 1, 10))
                # Not all processes at once, after a server was down for all of them.
                self._retry_at = self._clock() + longest * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
                self._error = (error, error.__traceback__)
            self._flight = None
            left = self._value is not None
        flight.landing.set_result(None)
        return left

    def invalidate(self, *, retry: bool = False) -> int:
        """Take the value for outdated, flights under way included; the generation that will do from here on.

        Args:
            retry: Also forget a failure, so that nobody waits for its backoff.
        """
        with self._lock:
            self._generation += 1
            if retry:
                self._error, self._retry_at = None, 0.0
            return self._generation


_entries: OrderedDict[Hashable, Entry] = OrderedDict()
_lock = threading.Lock()


def recall(key: Hashable, clock: Callable[[], float]) -> Entry:
    """The process's entry of a key; the 256 that were asked for last are kept."""
    with _lock:
        entry = _entries.get(key)
        if entry is None:
            entry = _entries[key] = Entry(clock)
        _entries.move_to_end(key)
        while len(_entries) > _KEPT:
            _entries.popitem(last=False)
        return entry
