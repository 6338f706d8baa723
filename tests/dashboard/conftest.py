"""A real dashboard process on threads of its own, and a real Chromium to look at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

from graphguard import Budget, guard
from graphguard.ledger import SqliteLedger
from tests.history.graphs import HI, chain
from tests.scripted import Scripted

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCRIPT_NAME = "<script>alert(1)</script><b>name"

GRAPHS = """
import sys
sys.path.insert(0, {root!r})
from graphguard import Budget, guard
from graphguard.ledger import SqliteLedger
from tests.history.graphs import chain, fan
from tests.scripted import Scripted
ledger = SqliteLedger({ledger!r})
line = guard(chain(Scripted(), *"abcd"), Budget(usd="0.0005"), on_trip="interrupt", ledger=ledger)
counted = guard(chain(Scripted(), *"wxyz"), Budget(calls=2), on_trip="interrupt", ledger=ledger)
"""


@dataclass
class Board:
    """A dashboard that runs, with its files.

    Attributes:
        url: Its first page.
        folder: Where its files are.
        process: Its process.
    """

    url: str
    folder: Path
    process: int

    @property
    def process_folder(self) -> Path:
        return Path("/proc") / str(self.process)

    @property
    def db(self) -> str:
        return str(self.folder / "checkpoints.sqlite")

    @property
    def ledger(self) -> str:
        return str(self.folder / "ledger.sqlite")

    def ask(self, graph: str, *threads: str) -> None:
        """Run threads in this process, which is not the dashboard's, up to where a person is asked."""
        ask(self.folder, graph, *threads)


def env() -> dict[str, str]:
    """Give an environment without tracing."""
    outside = {
        name: v for name, v in os.environ.items() if not name.startswith(("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_"))
    }
    return {**outside, "LANGSMITH_TRACING": "false"}


def ask(folder: Path, graph: str, *threads: str) -> None:
    """Run threads up to where a person is asked."""
    budget, nodes = (Budget(usd="0.0005"), "abcd") if graph == "line" else (Budget(calls=2), "wxyz")
    with (
        SqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver,
        SqliteLedger(folder / "ledger.sqlite") as ledger,
    ):
        guarded = guard(chain(Scripted(), *nodes), budget, on_trip="interrupt", ledger=ledger)
        for name in threads:
            config = {"configurable": {"thread_id": name, "user_id": "ada"}}
            guarded.compile(checkpointer=saver).invoke(HI, config)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Board]:
    """Start `graphguard dashboard` on a free port; it ends with the block."""
    command = [sys.executable, "-m", "graphguard", "dashboard", "--port", "0", *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env(), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith("http://127.0.0.1:"), (folder / "log").read_text()
        yield Board(said.split()[0], folder, process.pid)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a folder with graphs, a database and a ledger: one thread asks, and its name is HTML."""
    made = tmp_path_factory.mktemp("board")
    (made / "graphs.py").write_text(GRAPHS.format(root=str(ROOT), ledger=str(made / "ledger.sqlite")))
    listed = {"dependencies": ["."], "graphs": {name: f"./graphs.py:{name}" for name in ("line", "counted")}}
    (made / "langgraph.json").write_text(json.dumps(listed))
    ask(made, "line", SCRIPT_NAME)
    return made


@pytest.fixture(scope="module")
def board(folder) -> Iterator[Board]:
    """Give a dashboard that can answer."""
    options = ("--db", "checkpoints.sqlite", "--ledger", "ledger.sqlite", "--graph", "line", "--graph", "counted")
    with running(folder, *options) as board:
        yield board


@pytest.fixture
def asked(board, request) -> str:
    """Give a thread of this test's own that asks, after two calls."""
    name = request.node.name
    board.ask("line", name)
    return name


# For a module, not for the session: while it is there, playwright keeps an event loop running in this thread, so
# no test of another module could run one of its own.
@pytest.fixture(scope="module")
def browser():
    """Give a Chromium without a window, or skip where the machine has none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine; install one, or say where it is in CHROMIUM")
    args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=args)
        yield launched
        launched.close()


@dataclass
class Watched:
    """What went wrong in pages while a test looked elsewhere."""

    console: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@pytest.fixture
def tab(browser) -> Iterator[Callable[..., object]]:
    """Give what opens a page in a tab; at the end no console error, no outside request and no dialog came."""
    watched = Watched()
    contexts = []

    def opened(url: str, **options: object) -> object:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on(
            "console", lambda said: watched.console.append(said.text) if said.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: watched.console.append(str(error)))
        page.on("dialog", lambda dialog: (watched.console.append(dialog.message), dialog.dismiss()))
        own = url.split("/graphguard", maxsplit=1)[0]
        page.on(
            "request",
            lambda sent: None if sent.url.startswith((own, "data:", "file:")) else watched.outside.append(sent.url),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    answers = [text for text in watched.console if "responded with a status of 4" in text]
    assert [text for text in watched.console if text not in answers] == []
    assert watched.outside == []
