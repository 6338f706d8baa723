"""Short kill -9 storms; `python -m tests.soak.storm` runs long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked, which this system can't")


def storm(name: str, *, kills: int, seconds: float) -> dict[str, object]:
    """Run a storm in a process of its own, because a test runner has threads and must not fork."""
    command = [sys.executable, "-m", "tests.soak.storm", "--ledger", name, "--kills", kills, "--seconds", seconds]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_sqlite_loses_nothing_when_processes_are_killed():
    """No account goes over its limit, nothing billed is missing after a sweep, and late settles make it exact."""
    report = storm("sqlite", kills=80, seconds=15)

    assert report["problems"] == []
    assert report["swept"] > 0
    assert report["full_accounts"] > 0


def test_postgres_loses_nothing_when_processes_are_killed():
    """The same for PostgreSQL."""
    pytest.importorskip("psycopg", reason="the extra graphguard[postgres] is not installed")
    from tests.conformance.postgres_server import NoServer, binaries  # noqa: PLC0415 - needs the extra

    try:
        binaries()
    except NoServer as error:
        pytest.skip(str(error))
    report = storm("postgres", kills=60, seconds=15)

    assert report["problems"] == []
    assert report["swept"] > 0
