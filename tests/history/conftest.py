"""A PostgreSQL server for the tests of histories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def postgres() -> Iterator[str]:
    """Give the address of a server, or skip with the reason why there is none."""
    pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
    from tests.conformance.postgres_server import NoServer, running  # noqa: PLC0415 - needs the extra

    server = running()
    try:
        address = server.__enter__()
    except NoServer as error:
        pytest.skip(str(error))
    yield address
    server.__exit__(None, None, None)
