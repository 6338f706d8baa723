"""Each ledger of the package keeps what the protocol promises."""

from __future__ import annotations

import functools

import pytest

from graphguard.ledger import MemoryLedger, SqliteLedger
from graphguard.testing import DurableLedgerConformance, LedgerConformance


class TestMemoryLedger(LedgerConformance):
    """The ledger in memory, with leases."""

    @pytest.fixture
    def opening(self):
        return MemoryLedger


class TestSqliteLedger(DurableLedgerConformance):
    """The ledger in a file."""

    @pytest.fixture
    def opening(self, tmp_path):
        return functools.partial(SqliteLedger, tmp_path / "ledger.sqlite")


class TestPostgresLedger(DurableLedgerConformance):
    """The ledger in PostgreSQL."""

    @pytest.fixture
    def opening(self, postgres_opening):
        return postgres_opening
