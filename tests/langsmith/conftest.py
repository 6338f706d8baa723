"""A LangSmith of each test's own, and real clients of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from langsmith import tracing_context

from tests.langsmith.server import LangSmithServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from langsmith import Client


@pytest.fixture
def langsmith() -> Iterator[LangSmithServer]:
    """Give a server that speaks LangSmith's protocol."""
    with LangSmithServer() as server:
        yield server


@pytest.fixture
def client(langsmith: LangSmithServer) -> Client:
    """Give a real client of the server."""
    return langsmith.client()


@pytest.fixture
def traced(client: Client) -> Callable[[], AbstractContextManager[None]]:
    """Give a context in which runs are traced to the server; all of them are there when it is left."""

    @contextmanager
    def tracing() -> Iterator[None]:
        with tracing_context(enabled=True, client=client, project_name="tests"):
            yield
        client.flush()

    return tracing
