"""Ids, minted before anything is sent."""

from __future__ import annotations

import itertools
import os
import secrets

__all__ = ["new_id"]


def new_id() -> str:
    """An id for one attempt, minted before anything is sent."""
    return f"{_process}{next(_counter):016x}"


def _new_process() -> None:
    # Random once for each process, not for each id: the system takes longer than the rest of a call's hold.
    global _process  # noqa: PLW0603 - a fork begins a process without loading this module again
    _process = secrets.token_hex(8)


_process = ""
_counter = itertools.count()
_new_process()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_new_process)
