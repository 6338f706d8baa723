"""A PostgreSQL server for the session, and an empty schema for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from graphguard.ledger.protocol import Ledger

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Give the address of a server, or skip with the reason why there is none."""
    pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
    from tests.conformance.postgres_server import NoServer, running  # noqa: PLC0415 - needs the extra

    try:
        server = running()
        address = server.__enter__()
    except NoServer as error:
        pytest.skip(str(error))
    yield address
    server.__exit__(None, None, None)


@pytest.fixture
def postgres_opening(postgres: str) -> Callable[..., Ledger]:
    """Give what opens ledgers on one empty schema."""
    from graphguard.ledger.postgres import PostgresLedger  # noqa: PLC0415 - an extra

    schema = f"test {next(_numbers)}"
    with PostgresLedger(postgres, schema=schema) as ledger:
        ledger.setup()
    return lambda **options: PostgresLedger(postgres, schema=schema, **options)
