"""The dashboard as an ASGI app: to stand alone, or beside a LangGraph server's own routes."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, nullcontext
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from graphguard.dashboard.asking import Answered, Asker, Refused, decided
from graphguard.dashboard.live import Channel
from graphguard.dashboard.served import ServedThreads
from graphguard.dashboard.shield import Shield
from graphguard.dashboard.sums import WINDOWS, Sums
from graphguard.dashboard.views import (
    PARTS,
    THREADS,
    burn_part,
    environment,
    now_part,
    spenders_part,
    threads_part,
    waiting_part,
)
from graphguard.errors import HistoryUnavailable
from graphguard.report.page import story_values
from graphguard.report.story import Tale

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from graphguard.dashboard.asking import Book, Threads
    from graphguard.ledger_command.opening import Readable
    from graphguard.report.drawing import Drawing
    from graphguard.trip import Trip

__all__ = ["PREFIX", "Place", "dashboard"]

PREFIX: Final = "/graphguard"
_PATIENCE: Final = 0.1
"""Seconds that a page waits for the first sums; they come live if they take longer."""
_TEMPLATES: Final = (
    "overview.html",
    "thread.html",
    "problem.html",
    "said.html",
    *(f"{name}.html" for name in PARTS),
)
_LONGEST_FORM: Final = 4_096
_FORWARDED: Final = ("authorization", "cookie", "x-api-key")
_ALL: Final = "graphguard"
"""The permission that shows everybody's money, on a server with auth."""


class Place:
    """Where a dashboard gets what it shows.

    Args:
        book: Opens the ledger for one look; in another thread.
        threads: The threads.
        tale: How to say commands.
        drawn: The graph's drawing.
    """

    def __init__(
        self,
        book: Book,
        threads: Threads,
        *,
        tale: Tale | None = None,
        drawn: Drawing | None = None,
    ) -> None:
        """Note them."""
        self.book = book
        self.threads = threads
        self.tale = tale or Tale(db="$GRAPHGUARD_DB")
        self.drawn = drawn
        self._channels: dict[tuple[str | None, bool, str], tuple[Channel, _Overview]] = {}

    def channel(self, asker: Asker, window: str, base: str) -> Channel:
        """What this person sees of a window, live."""
        key = (asker.user, asker.everything, window)
        if key not in self._channels:
            self._channels = {key: kept for key, kept in self._channels.items() if not kept[0].idle}
            overview = _Overview(self, window, base, asker)
            self._channels[key] = Channel(overview.parts), overview
        channel, overview = self._channels[key]
        overview.asker = asker  # a name may come with a new token
        return channel

    def hurry(self) -> None:
        """Refresh all at once: something was answered."""
        for channel, _ in self._channels.values():
            channel.hurry()

    async def close(self) -> None:
        """Stop refreshing, and let all tabs go."""
        for channel, _ in self._channels.values():
            await channel.close()
        await self.threads.close()


class _Overview:
    """The overview as one kind of person sees it."""

    def __init__(self, place: Place, window: str, base: str, asker: Asker) -> None:
        self.asker = asker
        self._place, self._base = place, base
        self._sums = Sums(window=WINDOWS[window])

    async def parts(self) -> AsyncIterator[tuple[str, str]]:
        """All parts as they are now, the most urgent first."""
        place, asker = self._place, self.asker
        questions = await place.threads.waiting(asker)
        yield "waiting", waiting_part(questions, answers=place.threads.answers, base=self._base)
        self._sums = sums = await asyncio.to_thread(self._read)
        yield "now", now_part(sums)
        yield "burn", burn_part(sums)
        yield "spenders", spenders_part(sums)
        names = [name for name in list(sums.groups["thread"])[:THREADS] if name is not None]
        standings = await place.threads.standings(asker, names)
        yield "threads", threads_part(sums, standings, base=self._base)

    def _read(self) -> Sums:
        with self._place.book() as book:
            return self._sums.now(book, self.asker, THREADS)


def dashboard(
    ledger: Readable | None = None,
    *,
    place: Place | None = None,
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """Give the dashboard as an app, at `/graphguard`.

    Beside a LangGraph server, threads are the server's own, asked in the name of who looks: trips can be
    answered by whoever may start runs on the thread. Where the server has auth, it must be in force on custom
    routes too (`"enable_custom_route_auth": true`); people then see their own spend, and everybody's with the
    permission `graphguard`.

    Args:
        ledger: The ledger that the server's graphs use.
        place: Instead of it, where to get everything from, as `graphguard dashboard` does.
        hosts: The only names that it may be called by; None is any.

    ```python
    app = dashboard(ledger)  # in langgraph.json: "http": {"app": "./dashboard.py:app"}
    ```
    """
    if place is None:
        if ledger is None:
            msg = "the dashboard shows a ledger; pass the one that your graphs use"
            raise TypeError(msg)
        shown: Readable = ledger
        place = Place(lambda: nullcontext(shown), ServedThreads())

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await place.close()

    pages = _Pages(place)
    inner = Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/live", pages.live),
            Route("/thread", pages.thread),
            Route("/answer", pages.answer, methods=["POST"]),
            Route("/style.css", pages.style),
            Mount("/static", StaticFiles(packages=[("graphguard.dashboard", "static")])),
        ],
        # Around these routes alone: what the outer app has would be around all of a LangGraph server's.
        middleware=[Middleware(Shield, hosts=hosts)],
    )
    home = Route(PREFIX, lambda _request: RedirectResponse(f"{PREFIX}/"))
    return Starlette(routes=[home, Mount(PREFIX, inner)], lifespan=lifespan)


class _Pages:
    """Requests in, pages out."""

    def __init__(self, place: Place) -> None:
        self._place = place
        sheets = (files("graphguard.report") / "templates" / "style.css", files("graphguard.dashboard") / "board.css")
        self._style = "\n".join(sheet.read_text("utf-8") for sheet in sheets)
        for name in _TEMPLATES:  # compiled now, so that nobody waits for it
            environment().get_template(name)
        self._mark = hashlib.sha256(self._style.encode()).hexdigest()[:12]

    async def overview(self, request: Request) -> Response:
        """The first page."""
        window = _window(request)
        parts = await self._channel(request, window).latest(_PATIENCE)
        shown = {"parts": parts, "window": window, "windows": WINDOWS.values()}
        return self._page(request, "overview.html", values=shown)

    async def live(self, request: Request) -> Response:
        """The parts of the first page, as they change."""
        events = self._channel(request, _window(request)).events()
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def thread(self, request: Request) -> Response:
        """One thread's story."""
        name, asker = request.query_params.get("id", ""), _asker(request)
        try:
            story = await self._place.threads.story(asker, name, self._place.book)
        except HistoryUnavailable as error:
            return self._page(request, "problem.html", 404, values={"thread": name, "problem": str(error)})
        questions = [each for each in await self._place.threads.waiting(asker) if each.thread == name]
        asked = waiting_part(questions, answers=self._place.threads.answers, base=_base(request)) if questions else ""
        values = story_values(story, self._place.tale, self._place.drawn)
        return self._page(request, "thread.html", values={**values, "asked": asked})

    async def answer(self, request: Request) -> Response:
        """Take a person's answer."""
        form, asker = await _form(request), _asker(request)
        thread, question = form.get("thread", ""), form.get("question", "")
        try:
            trip = await self._trip(asker, thread, question)
            answer = decided(form.get("decision", ""), trip, form.get("limit", ""))
            await self._place.threads.answer(asker, thread, question, answer)
        except Answered:
            return self._said(request, "It was already answered elsewhere.", 409)
        except Refused as error:
            return self._said(request, str(error), 422)
        self._place.hurry()
        return self._said(request, "Stopped." if answer == "stop" else "Answered; the run goes on.")

    async def _trip(self, asker: Asker, thread: str, question: str) -> Trip:
        """What a question is about; raises `Answered` if it does not wait any more."""
        for each in await self._place.threads.waiting(asker):
            if (each.thread, each.id) == (thread, question) and not each.going_on:
                return each.trip
        raise Answered

    async def style(self, _request: Request) -> Response:
        """The style sheet."""
        return HTMLResponse(self._style, media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    def _channel(self, request: Request, window: str) -> Channel:
        return self._place.channel(_asker(request), window, _base(request))

    def _said(self, request: Request, text: str, status: int = 200) -> Response:
        return self._page(request, "said.html", status, values={"good": status < 400, "text": text})  # noqa: PLR2004 - of HTTP

    def _page(self, request: Request, template: str, status: int = 200, *, values: Mapping[str, object]) -> Response:
        told = {"base": _base(request), "answers": self._place.threads.answers, "mark": self._mark}
        return HTMLResponse(environment().get_template(template).render(**told, **values), status)


def _window(request: Request) -> str:
    name = request.query_params.get("window", "24h")
    return name if name in WINDOWS else "24h"


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", PREFIX)).rstrip("/")


def _asker(request: Request) -> Asker:
    """Who asks, by the server's auth if there is one."""
    user = request.scope.get("user")
    headers = {name: value for name in _FORWARDED if (value := request.headers.get(name)) is not None}
    if user is None or not getattr(user, "is_authenticated", False):
        return Asker(headers=headers)
    permissions = getattr(request.scope.get("auth"), "scopes", ())
    return Asker(str(user.identity), _ALL in permissions, headers)


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            return {}
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
