"""The live runs around some code: the current one, and the root of its trace, as far as anybody keeps it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from langchain_core.runnables.config import var_child_runnable_config
from langsmith import get_current_run_tree

from graphguard.running import running_root
from graphguard.traced import LiveRun, live_runs

if TYPE_CHECKING:
    from langsmith import RunTree

__all__ = ["LiveRoots"]


class LiveRoots:
    """Root runs that code has passed, each while the SDK keeps it; a run knows its root only by id."""

    def __init__(self) -> None:
        """Know none."""
        self._roots: weakref.WeakValueDictionary[str, RunTree] = weakref.WeakValueDictionary()

    def note(self, run: RunTree | None = None) -> RunTree | None:
        """Remember a run, or else the current one, if it is a root; the run."""
        run = get_current_run_tree() if run is None else run
        if run is not None and run.id == run.trace_id:
            self._roots[str(run.id)] = run
        return run

    def __contains__(self, trace_id: object) -> bool:
        """Whether the root of a trace is still at work."""
        return trace_id in self._roots

    def around(self) -> list[LiveRun]:
        """The current run and its root, then those of the LangChain run that this code belongs to."""
        leaf = get_current_run_tree()
        root = None if leaf is None else self._root(str(leaf.trace_id))
        found: list[LiveRun | None] = [leaf, root, *live_runs(var_child_runnable_config.get() or {})]
        return [run for run in found if run is not None]

    def _root(self, trace_id: str) -> RunTree | None:
        known = self._roots.get(trace_id)
        if known is None and (found := running_root(trace_id)) is not None:
            known = self.note(found)
        return known
