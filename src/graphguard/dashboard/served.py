"""Threads that a LangGraph server keeps, through its API and in the name of who looks."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, cast

from graphguard.dashboard.asking import Answered, Question, Refused, standing
from graphguard.errors import HistoryUnavailable
from graphguard.history.attempts import is_gate
from graphguard.history.found import PastTrip
from graphguard.report.branches import Point, branches
from graphguard.report.lost import loss
from graphguard.report.story import Story
from graphguard.spend import ZERO, Spend
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx
    from langgraph_sdk.client import LangGraphClient

    from graphguard.dashboard.asking import Asker, Book, Standing

__all__ = ["ServedThreads"]

_MOST: Final = 200
_STATES: Final = 500
_NOT_THERE: Final = frozenset({401, 403, 404, 422})


class ServedThreads:
    """A server's threads.

    Args:
        url: The server; None is the one that this runs in.
        answers: Whether answers are taken.
    """

    def __init__(self, url: str | None = None, *, answers: bool = True) -> None:
        """Note where it is."""
        self.answers = answers
        self._url = url
        self._transport: httpx.AsyncBaseTransport | None = None

    def _client(self, asker: Asker) -> LangGraphClient:
        import httpx  # noqa: PLC0415 - the SDK takes long to load, and needs it
        from langgraph_sdk.client import LangGraphClient  # noqa: PLC0415 - likewise

        if self._transport is None:
            if self._url is None:
                # Its own app, but not as the SDK's client for use within a server reaches it, which has no auth.
                from langgraph_api.server import app  # type: ignore[import-untyped] # noqa: PLC0415 - only in a server

                self._transport = httpx.ASGITransport(app)
            else:
                self._transport = httpx.AsyncHTTPTransport()
        base = self._url or "http://localhost"
        return LangGraphClient(
            httpx.AsyncClient(base_url=base, transport=self._transport, headers=dict(asker.headers), timeout=30)
        )

    async def waiting(self, asker: Asker) -> Sequence[Question]:
        """The questions that wait, the oldest first; those of the threads that this person may read."""
        import httpx  # noqa: PLC0415 - see _client

        try:
            found = await self._client(asker).threads.search(status="interrupted", limit=_MOST)
        except httpx.HTTPError:
            return []
        questions = [each for thread in found for each in _questions(cast("Mapping[str, Any]", thread))]
        return sorted(questions, key=lambda question: question.time or "")

    async def standings(self, asker: Asker, threads: Sequence[str]) -> Mapping[str, Standing]:
        """How these threads stand, as far as they were at work lately."""
        import httpx  # noqa: PLC0415 - see _client

        if not threads:
            return {}
        try:
            found = await self._client(asker).threads.search(limit=_MOST, sort_by="updated_at", sort_order="desc")
        except httpx.HTTPError:
            return {}
        known = {str(thread["thread_id"]): standing(thread.get("values")) for thread in found}
        return {name: stands for name in threads if (stands := known.get(name)) is not None}

    async def story(self, asker: Asker, thread: str, book: Book) -> Story:
        """One thread's story, by the states that the server tells."""
        import httpx  # noqa: PLC0415 - see _client

        try:
            states = await self._client(asker).threads.get_history(thread, limit=_STATES)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in _NOT_THERE:
                problem = f"the server has no thread {thread!r} that you may read"
                raise HistoryUnavailable(problem) from error
            raise
        if not states:
            problem = f"thread {thread!r} has no checkpoints yet"
            raise HistoryUnavailable(problem)
        told = [cast("Mapping[str, Any]", state) for state in states]
        return await asyncio.to_thread(_story, thread, told, book)

    async def answer(self, asker: Asker, thread: str, question: str, answer: object) -> None:
        """Answer by a run that the server starts, if it lets this person."""
        import httpx  # noqa: PLC0415 - see _client

        client = self._client(asker)
        try:
            told = cast("Mapping[str, Any]", await client.threads.get(thread))
            if question not in {each.id for each in _questions(told)}:
                raise Answered
            metadata = told.get("metadata") or {}
            assistant = metadata.get("assistant_id") or metadata.get("graph_id")
            if not assistant:
                raise Refused("No run was made on this thread yet, so there is nothing to go on with.")
            await client.runs.create(
                thread, str(assistant), command={"resume": {question: answer}}, multitask_strategy="reject"
            )
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == httpx.codes.CONFLICT:
                raise Answered from error
            raise Refused(_said(status)) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()


def _said(status: int) -> str:
    if status in _NOT_THERE:
        return "You may not answer for this thread."
    return f"The server did not take it (status {status}); try again."


def _questions(thread: Mapping[str, Any]) -> list[Question]:
    if thread.get("status") != "interrupted":
        return []
    name, time = str(thread["thread_id"]), thread.get("updated_at")
    found = [
        Question.of(name, str(each.get("id") or each.get("interrupt_id")), each.get("value"), time and str(time))
        for interrupts in (thread.get("interrupts") or {}).values()
        for each in interrupts
    ]
    return list({each.id: each for each in found if each is not None}.values())


def _story(thread: str, states: Sequence[Mapping[str, Any]], book: Book) -> Story:
    """The story of a thread by its states, newest first."""
    ordered = sorted(states, key=lambda state: _id(state, "checkpoint") or "")
    by_id = {_id(state, "checkpoint"): state for state in ordered}
    answers = {trip.at: trip for state in ordered if (trip := Trip.of(state.get("values"))) is not None and trip.answer}
    points: list[Point] = []
    trips: list[PastTrip] = []
    for at, state in enumerate(ordered):
        before = by_id.get(_id(state, "parent_checkpoint"))
        spend, loop = _spend(state), (state.get("metadata") or {}).get("source") == "loop"
        own = [_past(thread, trip, state, answers) for trip in _asked(state)]
        trips += own
        points.append(
            Point(
                at=at,
                checkpoint=str(_id(state, "checkpoint")),
                parent=_id(state, "parent_checkpoint"),
                number=(state.get("metadata") or {}).get("step", -1),
                time=str(state.get("created_at")),
                nodes=tuple(node for node in (before or {}).get("next") or () if loop and not is_gate(node)),
                source=str((state.get("metadata") or {}).get("source", "loop")),
                added=(spend + -_spend(before)).at_least(ZERO) if loop and before is not None else ZERO,
                spend=spend,
                trips=tuple(own),
            )
        )
    with book() as ledger:
        known = sum((point.added for point in points), ZERO)
        return Story(
            thread=thread,
            branches=branches(points),
            trips=tuple(reversed(trips)),
            known=known,
            real=ledger.total(thread=thread),
            by_node=ledger.totals("node", thread=thread),
            by_model=ledger.totals("model", thread=thread),
            loss=loss(ledger.charges(thread=thread), known),
        )


def _id(state: Mapping[str, Any], name: str) -> str | None:
    found = (state.get(name) or {}).get("checkpoint_id")
    return None if found is None else str(found)


def _spend(state: Mapping[str, Any] | None) -> Spend:
    values = (state or {}).get("values")
    try:
        return Spend.of(values) if isinstance(values, dict) else ZERO
    except ValueError:  # a graph without a guard keeps something else under that name
        return ZERO


def _asked(state: Mapping[str, Any]) -> list[Trip]:
    """The questions that were asked from a state."""
    found = [
        Question.of("", "", each.get("value"), None)
        for task in state.get("tasks") or ()
        for each in task.get("interrupts") or ()
    ]
    return list(dict.fromkeys(each.trip for each in found if each is not None))


def _past(thread: str, trip: Trip, state: Mapping[str, Any], answers: Mapping[str | None, Trip]) -> PastTrip:
    told = answers.get(trip.at, trip)
    return PastTrip(
        **{each.name: getattr(trip, each.name) for each in fields(trip) if each.name != "answer"},
        answer=told.answer,
        thread=thread,
        root=_id(state, "checkpoint"),
        time=str(state.get("created_at")),
        step=(state.get("metadata") or {}).get("step", -1),
    )
