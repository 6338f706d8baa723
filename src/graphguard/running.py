"""The root of a trace, found among the calls of LangSmith's SDK that are under way.

A run knows its root by id alone, and the SDK keeps no list of live runs: only the calls that will end them do. So at a
trip, and only then, the stacks of all threads and of the event loop's tasks are searched for such a call.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from langsmith import RunTree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["running_root"]

_SDK: Final = "langsmith.run_helpers"
_AWAITED: Final = ("cr_await", "ag_await", "gi_yieldfrom")
_FRAMES: Final = ("cr_frame", "ag_frame", "gi_frame")


def running_root(trace_id: str) -> RunTree | None:
    """The live root run of a trace in this process, or None where it can't be found."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == _SDK:
            for value in list(frame.f_locals.values()):
                run = value.get("new_run") if isinstance(value, dict) else None
                if isinstance(run, RunTree) and str(run.id) == trace_id:
                    return run
    return None


def _frames() -> Iterator[FrameType]:
    for top in sys._current_frames().values():  # noqa: SLF001 - CPython's documented way to the other threads
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no event loop in this thread
        return
    for task in tasks:
        awaiting: object = task.get_coro()
        while awaiting is not None:
            suspended = next((found for name in _FRAMES if (found := getattr(awaiting, name, None))), None)
            if suspended is not None:
                yield suspended
            awaiting = next((found for name in _AWAITED if (found := getattr(awaiting, name, None))), None)
