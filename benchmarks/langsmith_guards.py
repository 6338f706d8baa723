"""What the LangSmith guards cost, beside the same functions under LangSmith's bare `@traceable`.

    python benchmarks/langsmith_guards.py [--calls 300] [--rounds 9]

Every figure is a ratio of two times, or of two sizes, taken in turns in one process; the median round counts. Times are
the calling thread's own use of the processor. Runs are traced to a local server that answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

from langsmith import Client, traceable, tracing_context

from graphguard import MemoryLedger
from graphguard.langsmith import RecursiveTraceGuard, guarded_traceable

if TYPE_CHECKING:
    from collections.abc import Callable

TRACED_GOAL: Final = 1.25
"""The most that a traced guarded call may take, times a traced bare one."""

MEMORY_GOAL: Final = 1.25
"""The most memory that a recursion under the guard may take, times the bare one's."""

DEEP: Final = 1_000


class Server(ThreadingHTTPServer):
    """Takes what a LangSmith client sends, and forgets it."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on this machine."""
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a batch."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(b"{}")

    def do_GET(self) -> None:
        """Say nothing special of itself, so that clients send batches as they do by default."""
        self._answer(b'{"version": "0.18.0"}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own signature
        """Keep quiet."""


def flat(decorate: Callable[[Callable[[int], int]], Callable[[int], int]]) -> Callable[[int], None]:
    """Give a root that makes sync calls one after the other."""
    step = decorate(lambda n: n)

    def root(calls: int) -> None:
        for n in range(calls):
            step(n)

    return decorate(root)  # type: ignore[arg-type, return-value]


def beside(decorate: Callable[..., Callable[[int], object]]) -> Callable[[int], None]:
    """Give a root that makes async calls beside each other."""

    async def work(n: int) -> int:
        return n

    step = decorate(work)

    async def root(calls: int) -> None:
        await asyncio.gather(*(step(n) for n in range(calls)))  # type: ignore[arg-type]

    traced = decorate(root)
    return lambda calls: asyncio.run(traced(calls))  # type: ignore[arg-type]


def deep(decorate: Callable[..., Callable[[int], int]]) -> Callable[[int], int]:
    """Give a function that calls itself."""

    def step(n: int) -> int:
        return traced(n - 1) if n > 1 else 0

    traced = decorate(step)
    return traced


def seconds(run: Callable[[int], object], calls: int, client: Client) -> float:
    """Time one run by what this thread used; what is left to send is sent before, and not counted."""
    client.flush()
    gc.collect()
    began = time.thread_time()
    run(calls)
    return time.thread_time() - began


def compare(name: str, runs: tuple[Callable[[int], object], ...], calls: int, rounds: int, client: Client) -> float:
    """Take turns, print what each takes per call and the ratio of both; the ratio."""
    for run in runs:
        run(calls)
    times: list[tuple[float, ...]] = []
    for turn in range(rounds):
        taken = {run: seconds(run, calls, client) for run in (runs if turn % 2 else runs[::-1])}
        times.append(tuple(taken[run] for run in runs))
    ratio = statistics.median(guarded / bare for bare, guarded in times)
    each = [statistics.median(column) / calls * 1e6 for column in zip(*times, strict=True)]
    print(f"{name:<46} {each[0]:>8.1f} us  {each[1]:>8.1f} us  {ratio:>6.2f} x")
    return ratio


def peak(run: Callable[[int], object]) -> float:
    """The most memory that one deep recursion takes, in MiB."""
    gc.collect()
    tracemalloc.start()
    with suppress(RecursionError):
        run(DEEP)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 2**20


def main() -> int:
    """Print all ratios; 1 if one is above its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    sys.setrecursionlimit(100_000)
    threading.stack_size(512 * 2**20)
    client = Client(api_url=f"http://127.0.0.1:{Server().server_port}", api_key="key")
    ceilings = {"max_depth": 10**6, "max_calls": 10**9}
    plain = RecursiveTraceGuard(**ceilings)
    paying = RecursiveTraceGuard(**ceilings, max_usd=1_000, ledger=MemoryLedger())
    kept = True

    def measured() -> None:
        nonlocal kept
        print(f"{'':<46} {'bare':>11}  {'guarded':>11}")
        for tracing in (False, True):
            with tracing_context(enabled=tracing, client=client):
                for shape in (flat, beside):
                    for kind, guard in (("calls and depth", plain), ("and USD", paying)):
                        name = f"tracing {'on' if tracing else 'off'}, {shape.__name__}, {kind}"
                        runs = (shape(traceable), shape(guarded_traceable(guard)))
                        ratio = compare(name, runs, asked.calls, asked.rounds, client)
                        kept = kept and (not tracing or guard is paying or ratio <= TRACED_GOAL)
            client.flush()
        with tracing_context(enabled=True, client=client):
            sizes = [peak(deep(decorate)) for decorate in (traceable, guarded_traceable(plain))]
        ratio = sizes[1] / sizes[0]
        kept = kept and ratio <= MEMORY_GOAL
        print(
            f"{f'tracing on, {DEEP} deep, peak memory':<46} {sizes[0]:>7.1f} MiB {sizes[1]:>8.1f} MiB {ratio:>6.2f} x"
        )

    worker = threading.Thread(target=measured)  # with a stack that is deep enough
    worker.start()
    worker.join()
    client.close(timeout=5)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
