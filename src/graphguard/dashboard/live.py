"""What every open tab is told: made once for all that show the same, and sent when it has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from graphguard.errors import GraphguardError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

__all__ = ["Channel"]

_log = logging.getLogger("graphguard.dashboard")
_PAUSE: Final = 1.0
_SHARE: Final = 10
"""A refresh that took a second is not begun again for ten."""
_SILENCE: Final = 15
_ALIVE: Final = ": still here\n\n"
_LINGERS: Final = 30
"""Seconds that it goes on without any tab, for the one that is being loaded anew."""


class Channel:
    """The latest parts of one page, by name; refreshed as long as anybody looks.

    Args:
        make: Gives all parts as HTML, each as soon as it is made.
    """

    def __init__(self, make: Callable[[], AsyncIterator[tuple[str, str]]]) -> None:
        """Begin with nothing."""
        self._make = make
        self._changed = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tabs = 0
        self._closed = False
        self._whole = False
        self.parts: Mapping[str, str] = {}

    async def latest(self, patience: float) -> Mapping[str, str]:
        """The parts as they are, waiting a little for the first ones."""
        self._start()
        if not self._whole:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience), self._changed:
                    await self._changed.wait_for(lambda: self._whole)
        return self.parts

    @property
    def idle(self) -> bool:
        """Whether nobody has looked for a while."""
        return self._task is None or self._task.done()

    def hurry(self) -> None:
        """Refresh at once."""
        self._hurry.set()

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: each part when it has changed, all of them at first."""
        self._tabs += 1
        self._start()
        sent: dict[str, int] = {}  # hashes: the parts themselves are kept once for all tabs
        try:
            while not self._closed:
                for name, html in self.parts.items():
                    if sent.get(name) != hash(html):
                        sent[name] = hash(html)
                        yield event(name, html)
                seen = self.parts
                try:
                    async with asyncio.timeout(_SILENCE), self._changed:
                        await self._changed.wait_for(lambda seen=seen: self._closed or self.parts is not seen)  # type: ignore[misc] # the default binds it
                except TimeoutError:
                    yield _ALIVE
        finally:
            self._tabs -= 1

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="graphguard dashboard")

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        alone = clock()
        while True:
            begun = clock()
            try:
                async for name, html in self._make():
                    await self._put(name, html)
                self._whole = True
                await self._put("problem", "")
            except Exception as error:  # noqa: BLE001 - of a ledger, a server or a checkpointer; it may be over next time
                if not isinstance(error, GraphguardError):
                    _log.exception("the dashboard can't be refreshed")
                await self._put("problem", f'<p role="alert">{_escaped(str(error))}</p>')
            alone = clock() if self._tabs else alone
            if clock() - alone > _LINGERS:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_PAUSE, _SHARE * (clock() - begun))):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _put(self, name: str, html: str) -> None:
        async with self._changed:
            if self.parts.get(name) != html:
                self.parts = {**self.parts, name: html}
            self._changed.notify_all()

    async def close(self) -> None:
        """Stop refreshing, and let all tabs go."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        async with self._changed:
            self._changed.notify_all()


def event(name: str, html: str) -> str:
    r"""One server-sent event.

    >>> event("now", "<p>\\n</p>")
    'event: now\ndata: <p>\\n</p>\n\n'
    """
    return f"event: {name}\n" + "".join(f"data: {line}\n" for line in html.splitlines() or [""]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
