"""One writer for each file and process, however many ledgers use it; and no file open while a process forks."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from graphguard.ledger.writer import Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["leave", "writer_of"]

_shared: dict[Path, Writer] = {}
_users: dict[Writer, int] = {}  # of these and of those that are ending
_sharing = threading.RLock()  # again by the same thread, when it forgets a ledger meanwhile


def writer_of(path: Path, connect: Callable[[Path], sqlite3.Connection], *, patience: float) -> Writer:
    """The writer of a file in this process, one for all who use the file; `leave` it when done."""
    with _sharing:
        writer = _shared.get(path)
        if writer is None:
            writer = _shared[path] = Writer(path, connect, patience=patience)
        _users[writer] = _users.get(writer, 0) + 1
        return writer


def leave(writer: Writer) -> None:
    """Use it no more; with the last user it ends, after all that was asked before."""
    with _sharing:
        _users[writer] -= 1
        if _users[writer] > 0:
            return
        _shared.pop(writer.path, None)
    writer.end()
    with _sharing:
        _users.pop(writer, None)


# SQLite's locks belong to a process, and its memory of them would be copied by a fork: a child that opened the
# file anew would believe that it has the parent's. So nothing is open while a process forks.
def _before_fork() -> None:
    while True:
        writers = list(_users)
        for writer in writers:
            writer.using.acquire()
            writer.reading.acquire()
        # Not held while waiting above: whoever uses a writer may want it, to forget a ledger.
        _sharing.acquire()
        _forking[:] = writers
        if set(_users) <= set(writers):
            break
        _after_fork_in_parent()
    for writer in writers:
        writer.file.close()


def _after_fork_in_parent() -> None:
    for writer in _forking:
        writer.reading.release()
        writer.using.release()
    _sharing.release()


def _after_fork_in_child() -> None:
    for writer in _forking:
        writer.forget()
    _sharing.release()


_forking: list[Writer] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
