"""A report's page, opened from a file in a browser."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

from graphguard.cli import graphguard
from graphguard.ledger import SqliteLedger
from tests.dashboard.conftest import SCRIPT_NAME
from tests.needs import cli_runner

pytestmark = pytest.mark.xdist_group("browser")


def written(folder, *args):
    """Write a page, and give its address."""
    page = folder / "page.html"
    args = ["report", "--db", str(folder / "checkpoints.sqlite"), "--ledger", str(folder / "ledger.sqlite"), *args]
    result = cli_runner().invoke(graphguard, [*args, "-o", str(page)])
    assert result.exit_code == 0, result.output
    return page.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1_200])
def test_a_threads_page_shows_the_ledgers_figures(folder, tab, width, scheme):
    """Opened as a file, the page shows what the ledger charged, fits its window, and loads nothing."""
    config = str(folder / "langgraph.json")
    url = written(folder, "--thread", SCRIPT_NAME, "--graph", "line", "--config", config)
    with SqliteLedger(folder / "ledger.sqlite") as ledger:
        total = ledger.total(thread=SCRIPT_NAME)

    page = tab(url, viewport={"width": width, "height": 800}, color_scheme=scheme)

    expect(page.locator("h1")).to_have_text(f"Thread {SCRIPT_NAME}")
    expect(page.locator(".facts").first).to_contain_text(f"${total.usd}")
    expect(page.locator(".facts").first).to_contain_text(f"Calls{total.calls}")
    expect(page.locator("svg .mark.trip").first).to_be_visible()
    expect(page.locator("svg .box.gate")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_of_all_threads_opens(folder, tab):
    """The page of a whole database names each thread as it is written."""
    page = tab(written(folder))

    expect(page.locator("main table").first.locator("tbody th")).to_contain_text([SCRIPT_NAME])
