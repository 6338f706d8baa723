"""Who is kept out of the dashboard, request by request."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="the extra graphguard[dashboard] is not installed")
import httpx

from graphguard.dashboard import dashboard
from graphguard.ledger import MemoryLedger


async def status(method="GET", path="/graphguard/static/htmx.min.js", *, host="localhost", **headers):
    """Ask the app, and give the answer's status."""
    app = dashboard(MemoryLedger(), hosts=["localhost"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
        return (
            await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        ).status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_another_site_can_not_answer(headers, expected):
    """A post that a browser makes for another site is refused, with or without Sec-Fetch-Site."""
    assert await status("POST", "/graphguard/answer", **headers) == expected


async def test_another_site_can_not_read():
    """A page of another site can't fetch the dashboard, but may link to it."""
    assert await status(sec_fetch_site="cross-site", sec_fetch_mode="cors") == 403
    assert await status(sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200
    assert await status(sec_fetch_site="same-origin") == 200


async def test_a_foreign_name_gets_nothing():
    """A site that points its own name to this machine is refused by that name."""
    assert await status() == 200
    assert await status(host="evil.example") == 403


async def test_a_server_with_auth_that_leaves_routes_open_keeps_it_closed(monkeypatch):
    """With auth that is not in force on custom routes, the dashboard shows nothing until it is."""
    monkeypatch.setenv("LANGGRAPH_AUTH", json.dumps({"path": "auth.py:auth"}))
    assert await status() == 403

    monkeypatch.setenv("LANGGRAPH_HTTP", json.dumps({"enable_custom_route_auth": True}))
    assert await status() == 200
