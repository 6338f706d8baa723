"""What every test may ask for: savers, a ledger, thread configs and the data beside the project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from graphguard.ledger import MemoryLedger

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Turn tracing off for the session, whatever the developer's shell says: tests use no network."""
    # LangSmith asks for its variables at the first run and remembers them; the V2 names would win.
    for name in ("LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        os.environ.pop(name, None)
    os.environ["LANGSMITH_TRACING"] = "false"


def thread(id: str, /, **configurable: object) -> RunnableConfig:  # noqa: A002 - LangGraph's thread_id
    """Give the config of one thread; further keys go to `configurable` too."""
    return {"configurable": {"thread_id": id, **configurable}}


@pytest.fixture(name="thread", scope="session")
def thread_fixture() -> Callable[..., RunnableConfig]:
    """Give `thread`, for tests that would otherwise import it."""
    return thread


@pytest.fixture(params=["memory", "sqlite"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseCheckpointSaver[str]]:
    """Give a checkpointer for sync runs: in memory, and in a SQLite file."""
    if request.param == "memory":
        yield InMemorySaver()
    else:
        with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as sqlite:
            yield sqlite


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def asaver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BaseCheckpointSaver[str]]:
    """Give a checkpointer for async runs: in memory, and in a SQLite file."""
    if request.param == "memory":
        yield InMemorySaver()
    else:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as sqlite:
            yield sqlite


@pytest.fixture
def ledger() -> MemoryLedger:
    """Give a ledger that no other test has written to."""
    from graphguard.ledger import MemoryLedger  # noqa: PLC0415 - loaded by the tests that ask for it

    return MemoryLedger()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of recordings that lies beside a checkout, or skip the test where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the recordings are not part of the project: no folder ../shared/data beside this checkout")
    return SHARED_DATA
