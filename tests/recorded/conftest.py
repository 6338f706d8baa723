"""The local server, one for each process that runs these tests, and where the recordings are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.recorded.server import RecordedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = Path(__file__).parent / "own"


@pytest.fixture(scope="session")
def server() -> Iterator[RecordedServer]:
    """Give the running server."""
    with RecordedServer() as running:
        yield running


@pytest.fixture
def own() -> Path:
    """Give the folder of the project's own recordings."""
    return OWN
