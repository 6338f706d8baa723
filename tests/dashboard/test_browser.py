"""What a person does with the dashboard in a browser."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

from graphguard.ledger import SqliteLedger
from tests.dashboard.conftest import SCRIPT_NAME, running

pytest.importorskip("starlette", reason="the extra graphguard[dashboard] is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

pytestmark = pytest.mark.xdist_group("browser")


def trip_of(page, thread):
    """The part of the page that asks about a thread."""
    return page.locator("#waiting article", has_text=thread)


def calls(board, thread):
    """What the ledger charged a thread."""
    with SqliteLedger(board.ledger) as ledger:
        return ledger.total(thread=thread).calls


def spent(board, thread):
    """What the thread's state counts."""
    with SqliteSaver.from_conn_string(board.db) as saver:
        saved = saver.get_tuple({"configurable": {"thread_id": thread}})
        return saved.checkpoint["channel_values"]["spend"]


def test_the_first_page_shows_money_and_what_waits(board, tab, asked):
    """The first page tells what was spent, by whom, and which trip waits, with its reason."""
    page = tab(board.url)

    expect(page.locator("#now")).to_contain_text("Last 24 hours$0.00")
    expect(page.locator("#spenders")).to_contain_text("ada")
    expect(page.locator("#spenders")).to_contain_text("gpt-4o-mini")
    expect(page.locator("#threads tbody tr", has_text=asked)).to_contain_text("$0.00042 of $0.0005")
    expect(trip_of(page, asked)).to_contain_text("budget exhausted at 'c': $0.00042 of $0.0005 spent")


def test_a_name_that_is_html_stays_text(board, tab):
    """A thread whose name is a script is shown as it is written, on the first page and on its own."""
    page = tab(board.url)
    expect(trip_of(page, SCRIPT_NAME)).to_be_visible()

    page.locator("#threads tbody a", has_text=SCRIPT_NAME).click()

    expect(page.locator("h1")).to_have_text(f"Thread {SCRIPT_NAME}")
    expect(page.locator("main b")).to_have_count(0)


def test_what_happens_elsewhere_appears_by_itself(board, tab, asked):
    """A thread that another process runs shows up, with its question, without loading the page again."""
    page = tab(board.url)
    expect(trip_of(page, asked)).to_be_visible()

    board.ask("counted", "another one")

    expect(trip_of(page, "another one")).to_contain_text("2 of 2 calls spent")
    expect(page.locator("#threads tbody tr", has_text="another one")).to_have_count(1)


def test_an_approval_lets_the_run_go_on_to_its_end(board, tab, asked):
    """Approve raises the limit as proposed; the run ends, the question goes, and the money is charged."""
    page = tab(board.url)

    trip_of(page, asked).get_by_role("button", name="Approve").click()

    expect(trip_of(page, asked)).to_have_count(0)
    assert (calls(board, asked), spent(board, asked)["calls"]) == (4, 4)


def test_a_typed_limit_is_the_new_limit(board, tab, asked):
    """Set takes the limit that was typed: the run goes on up to that, and asks again."""
    page = tab(board.url)

    trip_of(page, asked).get_by_label("New limit").fill("0.0007")
    trip_of(page, asked).get_by_role("button", name="Set").click()

    expect(trip_of(page, asked)).to_contain_text("$0.00063 of $0.0007 spent")
    assert calls(board, asked) == 3


def test_a_limit_below_what_is_spent_is_refused(board, tab, asked):
    """A limit that would not help is answered with what to type instead, and nothing runs."""
    page = tab(board.url)

    trip_of(page, asked).get_by_label("New limit").fill("0.0001")
    trip_of(page, asked).get_by_role("button", name="Set").click()

    expect(trip_of(page, asked).locator(".said")).to_have_text("the new limit must be more than $0.0005, got '0.0001'")
    assert calls(board, asked) == 2


def test_stop_ends_the_run(board, tab, asked):
    """Stop ends the run where it is; no further call is made."""
    page = tab(board.url)

    trip_of(page, asked).get_by_role("button", name="Stop").click()

    expect(trip_of(page, asked)).to_have_count(0)
    assert calls(board, asked) == 2


def test_a_keyboard_is_enough(board, tab, asked):
    """With Tab and Enter alone a person reaches the question's buttons, in their order, and approves."""
    page = tab(board.url)
    expect(trip_of(page, asked)).to_be_visible()

    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.name || ''"))
        around = page.evaluate("document.activeElement.closest('article')?.innerText || ''")
        if asked in around and reached[-1].startswith("Approve"):
            break
    page.keyboard.press("Enter")

    assert reached[0] == "Skip to the content"
    assert reached[-1] == "Approve $0.001"
    expect(trip_of(page, asked)).to_have_count(0)
    assert calls(board, asked) == 4


def test_what_is_being_typed_survives_an_update(board, tab, asked):
    """While a person types a limit, another question arrives: the typed text and the focus stay."""
    page = tab(board.url)
    limit = trip_of(page, asked).get_by_label("New limit")
    limit.fill("0.00")
    limit.press("End")

    board.ask("counted", "meanwhile")
    expect(trip_of(page, "meanwhile")).to_be_visible()
    page.keyboard.type("07")

    expect(trip_of(page, asked).get_by_label("New limit")).to_have_value("0.0007")


def test_the_second_of_two_tabs_hears_that_it_was_answered(board, tab, asked):
    """Two tabs answer the same trip: the run goes on once, and the later one is told."""
    first, second = tab(board.url), tab(board.url)
    expect(trip_of(second, asked)).to_be_visible()
    second.route("**/live*", lambda route: route.abort())
    form = trip_of(second, asked).locator("form")
    thread, question = (form.locator(f"[name={name}]").input_value() for name in ("thread", "question"))

    trip_of(first, asked).get_by_role("button", name="Approve").click()
    expect(trip_of(first, asked)).to_have_count(0)
    told = second.request.post(
        f"{board.url}answer", form={"thread": thread, "question": question, "decision": "approve"}
    )

    assert (told.status, "It was already answered elsewhere." in told.text()) == (409, True)
    assert calls(board, asked) == 4


def test_without_a_graph_it_only_looks(folder, tab):
    """Started without --graph, the page shows the question without buttons, and says that it is read-only."""
    with running(folder, "--db", "checkpoints.sqlite", "--ledger", "ledger.sqlite") as board:
        page = tab(board.url)

        expect(trip_of(page, SCRIPT_NAME)).to_be_visible()
        expect(page.get_by_role("button")).to_have_count(0)
        expect(page.locator("footer")).to_contain_text("Read-only")
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1_200])
def test_every_page_fits(board, tab, width, scheme):
    """Light and dark, on a phone and on a desk, no page is wider than its window, and texts stand out."""
    for url in (board.url, f"{board.url}thread?id={SCRIPT_NAME.replace('/', '%2F').replace('<', '%3C')}"):
        page = tab(url, viewport={"width": width, "height": 800}, color_scheme=scheme)
        expect(page.locator("main .card").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(246, 247, 249)", "dark": "rgb(17, 21, 26)"}[scheme]
