"""`CappedClient`: a LangSmith client that records a runaway agent's traces in part, and every other agent's in full.

Only what is recorded changes. Ceilings are enforced elsewhere, and are the same with a run that is not recorded.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from langsmith import Client

from graphguard.errors import InvalidBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

__all__ = ["AgentVolume", "CappedClient"]

logger = logging.getLogger("graphguard.langsmith")
_KEPT: Final = 10_000  # traces that are remembered
_MINUTE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentVolume:
    """What one agent has traced in this process.

    Attributes:
        agent: Its name.
        traces: Traces begun.
        runs: Runs recorded; each is two events for LangSmith, its beginning and its end.
        dropped: Runs that were not recorded.
    """

    agent: str
    traces: int = 0
    runs: int = 0
    dropped: int = 0

    @property
    def events(self) -> int:
        """Events that LangSmith gets for the runs recorded."""
        return 2 * self.runs


@dataclass(slots=True)
class _Trace:
    agent: str
    lucky: bool
    admitted: bool
    runs: int = 0
    dropped: int = 0
    open: set[str] = field(default_factory=set)


class CappedClient(Client):
    """A LangSmith client for all agents of a process, of which none can use up what the others need.

    An agent's name is its root run's metadata `agent`, or else the root run's name. A trace is left out whole, or its
    later runs are; its root run then says how many, as `runguard_dropped_runs`, and always has the tag of a trip.

    Args:
        max_runs_per_trace: Runs recorded of one trace; the first ones.
        max_runs_per_minute: Runs recorded of one agent in a minute, over all of its traces; None is no limit.
        sample: Which share of the traces, 0 to 1, that an agent begins beyond that is recorded all the same.
        exit_seconds: How long a process that ends waits for what is not sent yet. The SDK alone waits for a server that
            is gone for a minute and more.
        clock: What tells the time, in seconds.
        options: What `langsmith.Client` takes.

    ```python
    from graphguard.langsmith import CappedClient

    client = CappedClient(max_runs_per_minute=600, api_url="http://127.0.0.1:9", api_key="k", auto_batch_tracing=False)
    # then: langsmith.tracing_context(client=client), @traceable(client=client), LangChainTracer(client=client)
    assert client.volume() == ()
    ```
    """

    # Read when the SDK starts its threads. As daemons they can't keep a process from ending; `close` still sends first.
    _use_daemon_threads = property(lambda _: True, lambda _, __: None)

    def __init__(
        self,
        *,
        max_runs_per_trace: int = 1_000,
        max_runs_per_minute: int | None = None,
        sample: float = 0.0,
        exit_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,  # noqa: ANN401 - the SDK's own, with the SDK's own types
    ) -> None:
        """Check the limits, and make the client."""
        for name, count in (("max_runs_per_trace", max_runs_per_trace), ("max_runs_per_minute", max_runs_per_minute)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                msg = f"{name} must be a whole number of at least 1, got {count!r}"
                raise InvalidBudget(msg)
        if not 0 <= sample <= 1:
            msg = f"sample must be a share from 0 to 1, got {sample!r}"
            raise InvalidBudget(msg)
        self._max_of_trace = max_runs_per_trace
        self._max_of_minute = max_runs_per_minute
        self._sample = sample
        self._clock = clock
        self._guarding = threading.Lock()
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._volumes: dict[str, AgentVolume] = {}
        self._minutes: dict[str, tuple[int, int]] = {}
        super().__init__(**options)
        at_exit = _Closing(self, exit_seconds)
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit)

    def volume(self) -> tuple[AgentVolume, ...]:
        """What each agent has traced so far, the most first."""
        with self._guarding:
            return tuple(sorted(self._volumes.values(), key=lambda one: -(one.runs + one.dropped)))

    def create_run(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the SDK's signature
        """Record the beginning of a run, unless its agent or its trace has used up its share."""
        name = str(args[0] if args else kwargs.get("name"))
        run, trace = str(kwargs.get("id")), str(kwargs.get("trace_id") or kwargs.get("id"))
        if self._begin(trace, run, name, kwargs.get("extra")):
            super().create_run(*args, **kwargs)

    def update_run(self, run_id: UUID | str, **kwargs: Any) -> None:  # noqa: ANN401 - the SDK's signature
        """Record the end of a run whose beginning was recorded."""
        recorded, dropped = self._end(str(kwargs.get("trace_id") or run_id), str(run_id))
        if dropped and kwargs.get("parent_run_id") is None:
            extra = dict(kwargs.get("extra") or {})
            extra["metadata"] = {**(extra.get("metadata") or {}), "runguard_dropped_runs": dropped}
            kwargs["extra"] = extra
        if recorded:
            super().update_run(run_id, **kwargs)

    def _begin(self, trace_id: str, run: str, name: str, extra: object) -> bool:
        with self._guarding:
            trace = self._traces.get(trace_id) or self._new_trace(trace_id, name, extra)
            volume = self._volumes[trace.agent]
            has_room = trace.runs == 0 or trace.lucky or not self._is_full(trace.agent)
            if trace.admitted and has_room and trace.runs < self._max_of_trace:
                trace.runs += 1
                trace.open.add(run)
                self._count(trace.agent)
                self._volumes[trace.agent] = replace(volume, runs=volume.runs + 1)
                return True
            trace.dropped += 1
            self._volumes[trace.agent] = replace(volume, dropped=volume.dropped + 1)
            return False

    def _new_trace(self, trace_id: str, name: str, extra: object) -> _Trace:
        metadata = extra.get("metadata") if isinstance(extra, Mapping) else None
        agent = str((metadata or {}).get("agent") or name)
        volume = self._volumes.get(agent, AgentVolume(agent=agent))
        self._volumes[agent] = replace(volume, traces=volume.traces + 1)
        # By the id, so that all processes that share a trace decide alike.
        lucky = int(trace_id.replace("-", "")[-8:], 16) < self._sample * 0x1_0000_0000
        trace = self._traces[trace_id] = _Trace(agent, lucky=lucky, admitted=lucky or not self._is_full(agent))
        if len(self._traces) > _KEPT:
            self._traces.popitem(last=False)
        return trace

    def _end(self, trace_id: str, run: str) -> tuple[bool, int]:
        """Whether to record the end of a run, and how many runs of its trace are missing."""
        with self._guarding:
            trace = self._traces.get(trace_id)
            if trace is None:  # of another process, or long ago
                return True, 0
            was_open = run in trace.open
            trace.open.discard(run)
            return was_open or not trace.dropped, trace.dropped

    def _is_full(self, agent: str) -> bool:
        minute, runs = self._minutes.get(agent, (0, 0))
        return self._max_of_minute is not None and minute == self._minute() and runs >= self._max_of_minute

    def _count(self, agent: str) -> None:
        minute, runs = self._minutes.get(agent, (0, 0))
        now = self._minute()
        runs = runs + 1 if minute == now else 1
        self._minutes[agent] = now, runs
        if runs == self._max_of_minute:
            logger.warning("agent %r has traced %d runs this minute; its further ones are left out", agent, runs)

    def _minute(self) -> int:
        return int(self._clock() // _MINUTE)


class _Closing:
    """Sends what can be sent when a process ends; knows its client weakly, as the SDK's threads do."""

    def __init__(self, client: CappedClient, seconds: float) -> None:
        self._client = weakref.ref(client)
        self._seconds = seconds

    def __call__(self) -> None:
        client = self._client()
        if client is not None:
            client.close(timeout=self._seconds)
