"""Trips outlive their process: it is killed, and others go on from the database alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("restarting.py")
MODES = ("end", "interrupt")


@pytest.fixture(params=["sqlite", "async-sqlite", "postgres"])
def place(request, tmp_path):
    """Give a kind of checkpointer, and the address of a database."""
    if request.param == "postgres":
        return request.param, request.getfixturevalue("postgres")
    return request.param, str(tmp_path / "checkpoints.sqlite")


def does(place: tuple[str, str], deed: str, *, killed: bool = False) -> dict[str, dict[str, object]]:
    """Do a deed in a process of its own, and give what it told."""
    command = [sys.executable, str(SCRIPT), *place, "restart", deed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == (-9 if killed else 0), done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_new_processes_tell_replay_and_top_up(place):
    """After kill -9, new processes that know nothing but the database tell each trip, replay it, and go on from it."""
    does(place, "trip", killed=True)
    replayed = does(place, "replay")
    gone_on = does(place, "top_up")
    seen = does(place, "trips")

    for mode in MODES:
        waits = "waits for an answer" if mode == "interrupt" else "not answered"
        assert replayed[f"{mode} replay"] == {"trips": [["c", 2, waits]], "spend": 4, "next": []}
        assert gone_on[f"{mode} top_up"] == {"trips": [["c", 2, waits]], "spend": 4, "next": []}
        assert (replayed[f"{mode} billed"], gone_on[f"{mode} billed"], seen[f"{mode} billed"]) == (2, 2, 0)
        assert seen[f"{mode} replay"]["trips"] == [["c", 2, waits]]
        assert seen[f"{mode} top_up"]["trips"] == [["c", 2, "raised to 11 calls"]]
