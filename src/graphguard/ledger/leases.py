"""Leases: who holds here is alive, and says so until the hold is settled."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING

from graphguard.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Leases"]

logger = logging.getLogger("graphguard")
_all: weakref.WeakSet[Leases] = weakref.WeakSet()


class Leases:
    """Renews the holds made here, from a thread of its own, as long as this process lives.

    A call may stream for minutes, and nobody who waits for it could renew its lease better than the
    ledger that made the hold. Nothing runs while nothing is held.

    Args:
        renew: Renews holds by id and gives back those still held; a bound method, which is not kept alive.
        every: Seconds between two renewals.
    """

    def __init__(self, renew: Callable[[Iterable[str]], tuple[str, ...]], *, every: float) -> None:
        """Begin with no holds."""
        self._renew = weakref.WeakMethod(renew)
        self._every = every
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, id: str) -> None:  # noqa: A002 - a hold's id
        """Keep this hold's lease from now on."""
        self._ids.add(id)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._stop = threading.Event()
                    self._thread = threading.Thread(
                        target=self._run, args=(self._stop,), name="graphguard-leases", daemon=True
                    )
                    self._thread.start()

    def drop(self, id: str) -> None:  # noqa: A002 - a hold's id
        """Keep it no longer: it is settled or released."""
        self._ids.discard(id)

    def close(self) -> None:
        """Keep none any longer."""
        self._ids.clear()
        self._stop.set()

    def _is_wanted(self) -> bool:
        """Whether a hold was added while the thread was about to end; who adds one later starts another."""
        self._thread = None
        if not self._ids:
            return False
        with self._lock:
            if self._thread is not None:
                return False
            self._thread = threading.current_thread()
            return True

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._every):
            renew = self._renew()
            ids = tuple(self._ids)
            if renew is None or not (ids or self._is_wanted()):
                return
            try:
                self._ids.difference_update(set(ids) - set(renew(ids)))
            except LedgerUnavailable as error:  # the next round may find it again; no harm is done meanwhile
                logger.warning("leases of %d holds were not renewed: %s", len(ids), error)
            del renew


def _forked() -> None:
    for leases in _all:  # the parent keeps what it held
        leases._begin()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
