"""What a process does with a thread and then ends: run as a script, with a saver, an address and a deed.

Prints one JSON document. Each deed is meant for a process of its own, which knows nothing but the database.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from graphguard import Budget, Spend, areplay, atop_up, atrips, replay, top_up, trips
from tests.history.graphs import HI, chain, guarded, thread
from tests.scripted import Scripted


@asynccontextmanager
async def opened(kind: str, address: str):
    """Give the checkpointer."""
    if kind == "sqlite":
        with SqliteSaver.from_conn_string(address) as saver:
            yield saver
    elif kind == "async-sqlite":
        async with AsyncSqliteSaver.from_conn_string(address) as saver:
            yield saver
    else:
        from langgraph.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - an extra

        with PostgresSaver.from_conn_string(address) as saver:
            saver.setup()
            yield saver


async def main(kind: str, address: str, name: str, deed: str) -> None:
    """Do one deed on threads of both modes, and tell of it."""
    told: dict[str, object] = {}
    async with opened(kind, address) as saver:
        for mode in ("end", "interrupt"):
            model = Scripted()
            graph = guarded(chain(model, *"abcd"), saver, Budget(calls=2), on_trip=mode)
            for each in ("replay", "top_up"):
                config = thread(f"{name}-{mode}-{each}")
                told[f"{mode} {each}"] = await _done(graph, config, deed, each, is_async=kind == "async-sqlite")
            told[f"{mode} billed"] = model.billed
        sys.stdout.write(json.dumps(told))
        sys.stdout.flush()
        if deed == "trip":
            os.kill(os.getpid(), signal.SIGKILL)


async def _done(graph, config, deed: str, own: str, *, is_async: bool) -> dict[str, object]:
    """Do the deed if the thread is meant for it, and tell how the thread stands before and after."""
    if deed == "trip":
        _ = await graph.ainvoke(HI, config) if is_async else graph.invoke(HI, config)
    found = [trip async for trip in atrips(graph, config)] if is_async else list(trips(graph, config))
    if deed == own == "replay":
        again = (found[-1], Budget(calls=9))
        _ = await areplay(graph, *again) if is_async else replay(graph, *again)
    elif deed == own == "top_up":
        _ = await atop_up(graph, config, calls=9) if is_async else top_up(graph, config, calls=9)
    state = await graph.aget_state(config) if is_async else graph.get_state(config)
    before = [[trip.node, trip.spent, trip.outcome] for trip in found]
    return {"trips": before, "spend": Spend.of(state).calls, "next": list(state.next)}


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
