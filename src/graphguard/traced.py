"""What LangSmith is told, by live runs in their own last write: trips, as a tag and metadata, and what calls cost.

Nothing is sent from here. A live run tree writes its tags and metadata when it ends, in the batch that it would be in
anyway; a request of our own would block the call, and the run's last write would undo it. Without tracing there is
no live run, and nothing is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import handle_event
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.base import BaseTracer
from langsmith import get_current_run_tree

from graphguard.running import running_root
from graphguard.spend import NANO, usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from uuid import UUID

    from langchain_core.runnables import RunnableConfig

    from graphguard.errors import BudgetExceeded
    from graphguard.spend import Charge
    from graphguard.trip import Trip

__all__ = ["TAG", "LiveRun", "add_cost", "end_refused", "live_runs", "mark", "tell", "tell_cost", "trip_metadata"]

TAG: Final = "runguard_trip"
"""The tag of runs at which something was stopped, and of the root runs of their traces."""


class LiveRun(Protocol):
    """A run that has not ended yet: what LangSmith's run tree and LangChain's tracers have in common."""

    id: UUID
    trace_id: UUID
    tags: list[str] | None
    extra: dict[str, object]
    run_type: str
    dotted_order: str
    session_name: str | None


def trip_metadata(trip: Trip) -> dict[str, object]:
    """What a run's metadata says of a trip: names and amounts, never a prompt.

    >>> from graphguard.trip import Trip
    >>> trip_metadata(Trip(budget="usd=0.50", limit=500_000_000, spent=490_000_000, node="plan"))["runguard_spent"]
    '0.49'
    """
    in_usd = trip.metric == "usd"
    said = {
        "trip": trip.reason,
        "label": trip.node,
        "budget": trip.budget,
        "kind": trip.kind,
        "metric": trip.metric,
        "limit": usd_text(trip.limit) if in_usd else trip.limit,
        "spent": usd_text(trip.spent) if in_usd else trip.spent,
        "mode": trip.mode,
        "account": trip.account,
        "model": trip.model,
    }
    return {f"runguard_{name}": value for name, value in said.items() if value is not None}


def mark(runs: Iterable[LiveRun], metadata: Mapping[str, object]) -> None:
    """Tag live runs as stopped; what an earlier trip said of one of them stays."""
    for run in runs:
        if TAG not in (run.tags or ()):
            # A new list: a tracer may have given one list to several runs.
            run.tags = [*(run.tags or ()), TAG]
            run.extra["metadata"] = {**_metadata(run), **metadata}


def _metadata(run: LiveRun) -> dict[str, object]:
    told = run.extra.get("metadata")
    return told if isinstance(told, dict) else {}


def live_runs(config: RunnableConfig) -> Iterator[LiveRun]:
    """The run that a config's callbacks belong to, and the root of its trace, as far as a tracer keeps them."""
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return
    for handler in callbacks.handlers:
        # LangChain's tracers keep their live runs under this name, and LangSmith's keeps run trees there.
        if isinstance(handler, BaseTracer):
            run = handler.run_map.get(str(callbacks.parent_run_id))
            root = handler.run_map.get(str(getattr(run, "trace_id", None)))
            yield from {id(found): found for found in (run, root) if found is not None}.values()


def tell(config: RunnableConfig, trip: Trip) -> None:
    """Mark the run that a config belongs to, and the root of its trace."""
    runs = list(live_runs(config))
    if runs:
        if all(run.id != run.trace_id for run in runs) and (root := running_root(str(runs[0].trace_id))) is not None:
            runs.append(root)  # of functions that are traced around the graph, the tracer keeps only the innermost
        mark(runs, trip_metadata(trip))


def end_refused(tracer: BaseTracer, run_id: UUID, refused: BudgetExceeded) -> None:
    """End the run of a model call that was refused: LangChain has begun it, and would leave it pending for ever."""
    run = tracer.run_map.get(str(run_id))
    if run is not None:
        mark([run], trip_metadata(refused.trip))
        # As LangChain calls it: a tracer that fails is logged, and costs nobody more than its trace.
        handle_event([tracer], "on_llm_error", "ignore_llm", refused, run_id=run_id)


class _Priced(dict[str, object]):
    """A run's metadata in which the usage keeps its costs, whatever a tracer then says of the tokens."""

    def __init__(self, metadata: Mapping[str, object], costs: Mapping[str, float]) -> None:
        super().__init__(metadata)
        self._costs = costs

    def __setitem__(self, key: str, value: object) -> None:
        if key == "usage_metadata" and isinstance(value, dict):
            value = {**value, **self._costs}
        super().__setitem__(key, value)


def tell_cost(run: LiveRun, charge: Charge | None, output_nanousd: int) -> None:
    """Say what a model call cost, in the fields that LangSmith prefers to its own prices.

    Args:
        run: The call's live run.
        charge: What it cost; None is nothing, for an answer out of a cache.
        output_nanousd: How much of that its output cost, in nano-USD.
    """
    if charge is not None and charge.unpriced:
        return
    total = 0 if charge is None else charge.nanousd
    output = min(output_nanousd, total)
    costs = {"input_cost": (total - output) / NANO, "output_cost": output / NANO, "total_cost": total / NANO}
    metadata = _Priced(_metadata(run), costs)
    if charge is not None:
        sent, received = charge.input_tokens, charge.output_tokens
        usage = {"input_tokens": sent, "output_tokens": received, "total_tokens": sent + received}
        metadata["usage_metadata"] = usage  # until a tracer knows better
        if charge.estimated:
            metadata["runguard_estimated"] = True
    run.extra["metadata"] = metadata


def add_cost(nanousd: int) -> None:
    """Say that the run of the code that calls this cost something beside its model calls, such as a paid tool."""
    current = get_current_run_tree()
    found = [*([current] if current is not None else ()), *live_runs(var_child_runnable_config.get() or {})]
    run: LiveRun | None = max(found, key=lambda one: len(one.dotted_order), default=None)
    if run is not None and run.run_type != "llm":
        usage = _metadata(run).get("usage_metadata")
        before = usage.get("total_cost", 0) if isinstance(usage, dict) else 0
        run.extra["metadata"] = {**_metadata(run), "usage_metadata": {"total_cost": before + nanousd / NANO}}
