"""The dashboard beside a real `langgraph dev`, with auth and without."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra graphguard[dashboard] is not installed")
pytest.importorskip("langgraph_api", reason="the extra graphguard[server] is not installed")
from langgraph_sdk import get_sync_client

from tests.server.serving import dev_server

FILE = Path(__file__).with_name("beside_server.py")
HI = {"messages": [{"role": "user", "content": "hi"}]}
pytestmark = [pytest.mark.xdist_group("dev-server"), pytest.mark.timeout(240)]


def config(**http):
    """Give what is in a langgraph.json."""
    return {
        "dependencies": ["."],
        "graphs": {"line": f"{FILE}:line"},
        "http": {"app": f"{FILE}:app", **http},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Give a server without auth."""
    folder = tmp_path_factory.mktemp("open")
    with dev_server(folder, config(), TEST_LEDGER=str(folder / "ledger.sqlite")) as server:
        yield server.url


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """Give a server with auth, on custom routes too."""
    folder = tmp_path_factory.mktemp("private")
    settings = {**config(enable_custom_route_auth=True), "auth": {"path": f"{FILE}:auth"}}
    with dev_server(folder, settings, TEST_LEDGER=str(folder / "ledger.sqlite")) as server:
        yield server.url


def asked(url, **headers):
    """Run a thread up to where a person is asked; give its name."""
    with get_sync_client(url=url, headers=headers or None) as client:
        thread = client.threads.create()["thread_id"]
        client.runs.wait(thread, "line", input=HI)
    return thread


def page(url, path="", **headers):
    """Get a page as soon as all its parts are there."""
    for _ in range(40):
        got = httpx.get(f"{url}/graphguard/{path}", headers=headers, timeout=30)
        if "Adding up" not in got.text:
            break
    return got


def question(html, thread):
    """Give the id of a thread's question."""
    found = re.search(rf'value="{thread}"><input type="hidden" name="question" value="(\w+)"', html)
    return None if found is None else found[1]


def answer(url, thread, asked_id, **headers):
    """Approve, as the page's button does."""
    form = {"thread": thread, "question": asked_id, "decision": "approve"}
    return httpx.post(f"{url}/graphguard/answer", data=form, headers=headers, timeout=30)


def test_a_person_answers_in_the_browser_and_the_server_goes_on(server, tab):
    """Beside a server, the page shows its threads' trips; Approve starts the run, which ends; the story shows it."""
    from playwright.sync_api import expect  # noqa: PLC0415 - the fixture skips where it is not there

    thread = asked(server)
    board = tab(f"{server}/graphguard/")

    board.locator("#waiting article", has_text=thread).get_by_role("button", name="Approve").click()
    expect(board.locator("#waiting article", has_text=thread)).to_have_count(0)
    expect(board.locator("#threads tbody tr", has_text=thread)).to_contain_text("$0.00084")
    board.locator("#threads a", has_text=thread).click()

    expect(board.locator(".facts").first).to_contain_text("Calls4")
    expect(board.locator("div.trip")).to_contain_text("budget exhausted at 'c'")


def test_the_servers_own_routes_are_as_before(server):
    """What keeps other sites out of the dashboard is around its routes alone, not around the server's."""
    policies = {
        path: httpx.get(f"{server}{path}").headers.get("content-security-policy") for path in ("/ok", "/graphguard/")
    }

    assert policies["/ok"] is None
    assert "default-src 'none'" in policies["/graphguard/"]


def test_nobody_gets_in_without_a_name(private):
    """Where the server has auth, the dashboard is behind it."""
    assert httpx.get(f"{private}/graphguard/").status_code == 401
    assert httpx.get(f"{private}/graphguard/live").status_code == 401


def test_people_see_their_own_and_answer_only_theirs(private):
    """A user sees the own spend and questions alone; an answer to another's thread is not taken."""
    thread = asked(private, authorization="ada")
    seen = {name: page(private, authorization=name).text for name in ("ada", "bob", "boss")}
    asked_id = question(seen["ada"], thread)

    assert [thread in seen[name] for name in ("ada", "bob", "boss")] == [True, False, True]
    assert ["$0.00042" in seen[name] for name in ("ada", "bob", "boss")] == [True, False, True]
    assert answer(private, thread, asked_id, authorization="bob").status_code == 409
    refused = answer(private, thread, asked_id, authorization="boss")
    assert (refused.status_code, "You may not answer for this thread." in refused.text) == (422, True)
    assert page(private, f"thread?id={thread}", authorization="bob").status_code == 404
    assert answer(private, thread, asked_id, authorization="ada").status_code == 200


def test_a_server_that_leaves_its_routes_open_shows_nothing(tmp_path):
    """With auth that is not in force on custom routes, the dashboard stays closed and says what to set."""
    settings = {**config(), "auth": {"path": f"{FILE}:auth"}}
    with dev_server(tmp_path, settings, TEST_LEDGER=str(tmp_path / "ledger.sqlite")) as server:
        got = httpx.get(f"{server.url}/graphguard/")

    assert (got.status_code, "enable_custom_route_auth" in got.text) == (403, True)
