"""What keeps other sites and other people out of the dashboard, around all of its routes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Shield", "left_open"]

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAME: Final = frozenset({"same-origin", "none"})
_OPEN: Final = (
    "This server asks who its users are, but not on custom routes, so the dashboard stays closed. Add "
    '"enable_custom_route_auth": true beside "app" in the "http" part of langgraph.json.'
)


def left_open() -> bool:
    """Whether a LangGraph server around has auth, but none on custom routes.

    Source: langgraph-api reads both from these variables, which `langgraph dev` and its images set.
    """

    def read(name: str) -> object:
        try:
            return json.loads(os.environ.get(name) or "null")
        except ValueError:
            return None

    auth, http = read("LANGGRAPH_AUTH"), read("LANGGRAPH_HTTP")
    if not (isinstance(auth, dict) and auth.get("path")):
        return False
    return not (isinstance(http, dict) and http.get("enable_custom_route_auth"))


class Shield:
    """Lets through only what the dashboard's own pages ask for, and tells browsers to keep to that.

    Args:
        app: The routes.
        hosts: The names that it is called by; a site that points its own name here gets nothing. None takes all,
            where a server around decides.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None = None) -> None:
        """Note them."""
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        if left_open():
            return _OPEN
        host = headers.get("host", "")
        if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
            return "The dashboard is not called by this name; start it with --host NAME."
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if method in {"GET", "HEAD"}:
            elsewhere = site is not None and site not in _SAME and headers.get("sec-fetch-mode") != "navigate"
        elif site is not None:
            elsewhere = site not in _SAME
        else:  # browsers that don't say so name the origin of what they post
            elsewhere = origin is not None and urlsplit(origin).netloc != host
        return "This request comes from another site." if elsewhere else None
