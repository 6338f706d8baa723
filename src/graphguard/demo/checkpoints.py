"""The file that a demo run leaves behind: an ordinary LangGraph checkpoint file, with a mark of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from langgraph.checkpoint.sqlite import SqliteSaver

from graphguard.demo.mistakes import WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_FILE", "clear", "demo_saver"]

DEFAULT_FILE = "graphguard-demo.sqlite"

MARK = 0x47476431  # "GGd1"
"""What a demo file carries as its application id, a number SQLite keeps in bytes 68 to 71 of a file's header."""

HEADER = b"SQLite format 3\x00"


def clear(path: Path) -> bool:
    """Make way for a new demo file, and say whether an older one was there.

    Args:
        path: Where the file is going to be.

    Raises:
        WrongUse: something else is there, which is left alone; or the folder is missing.
    """
    if not path.parent.is_dir():
        raise WrongUse(f"no folder {str(path.parent)!r} to put the checkpoint file in; make it, or pass another --db")
    if not (path.exists() or path.is_symlink()):
        return False
    if not _is_demo_file(path):
        raise WrongUse(f"{str(path)!r} exists and is not a demo's checkpoint file, so it stays; pass another --db FILE")
    try:
        for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise WrongUse(f"can't replace {str(path)!r} ({error.strerror}); pass another --db FILE") from error
    return True


@contextmanager
def demo_saver(path: Path) -> Iterator[SqliteSaver]:
    """Give a checkpointer on a new file that is marked as the demo's.

    Args:
        path: Where to make the file; nothing is there yet.

    Raises:
        WrongUse: the file can't be written.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA application_id = {MARK}")
            connection.execute("PRAGMA user_version = 1")
    except sqlite3.Error as error:
        raise WrongUse(f"can't write {str(path)!r} ({error}); pass another --db FILE") from error
    with SqliteSaver.from_conn_string(str(path)) as saver:
        yield saver


def _is_demo_file(path: Path) -> bool:
    """Say whether a file carries the demo's mark, without opening it as a database."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(72)
    except OSError:
        return False
    return start.startswith(HEADER) and start[68:72] == MARK.to_bytes(4, "big")
