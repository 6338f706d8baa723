"""Threads that a LangGraph server keeps, through the clients of its SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from graphguard.errors import NothingToTopUp
from graphguard.history.checkpoints import thread_of
from graphguard.history.raising import Stopped, answering, going_on, questions
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.runnables import RunnableConfig
    from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
    from langgraph_sdk.schema import Command as ServersCommand
    from typing_extensions import TypeIs

    from graphguard.history.raising import Added

__all__ = ["atop_up_served", "is_async_client", "is_client", "top_up_served"]


def is_client(graph: object) -> TypeIs[SyncLangGraphClient]:
    """Whether this is the SDK's sync client; by name, as the SDK takes long to load."""
    return type(graph).__name__ == "SyncLangGraphClient"


def is_async_client(graph: object) -> TypeIs[LangGraphClient]:
    """Whether this is the SDK's async client."""
    return type(graph).__name__ == "LangGraphClient"


def top_up_served(client: SyncLangGraphClient, config: RunnableConfig, added: Added) -> object:
    """Raise the limit of a server's thread, and wait for the run that goes on."""
    thread = thread_of(config)
    state = cast("Mapping[str, Any]", client.threads.get_state(thread))
    command = _command(state, added)
    return client.runs.wait(thread, _assistant(thread, client.threads.get(thread)), command=command)


async def atop_up_served(client: LangGraphClient, config: RunnableConfig, added: Added) -> object:
    """The same as `top_up_served`, on an event loop."""
    thread = thread_of(config)
    state = cast("Mapping[str, Any]", await client.threads.get_state(thread))
    command = _command(state, added)
    return await client.runs.wait(thread, _assistant(thread, await client.threads.get(thread)), command=command)


def _command(state: Mapping[str, Any], added: Added) -> ServersCommand:
    tasks = state.get("tasks") or ()
    asked = questions([*(state.get("interrupts") or ()), *(each for t in tasks for each in t.get("interrupts") or ())])
    if asked:
        return {"resume": answering(asked, added).resume}
    values = state.get("values")
    trip = Trip.of({"trip": values.get("trip")}) if isinstance(values, dict) else None
    if trip is None or trip.answer == "raised" or trip.node is None:
        problem = "the thread is not at a trip that its state tells of; look at client.threads.get_state(...)"
        raise NothingToTopUp(problem)
    if trip.pushed:
        problem = f"{trip.node!r} was started by a Send whose payload the server does not tell; use on_trip='interrupt'"
        raise NothingToTopUp(problem)
    command = going_on([Stopped(trip, trip.node)], added, values)
    return {"update": cast("dict[str, Any]", command.update), "goto": trip.node}


def _assistant(thread: str, told: object) -> str:
    """The assistant that ran on the thread last, as the server notes it."""
    metadata = cast("Mapping[str, Any]", told).get("metadata") or {}
    assistant = metadata.get("assistant_id") or metadata.get("graph_id")
    if not assistant:
        problem = f"no run was made on thread {thread!r} yet, so there is nothing to go on with"
        raise NothingToTopUp(problem)
    return str(assistant)
