"""A run that is killed anywhere and resumed in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="kills forked processes")
@pytest.mark.timeout(400)
def test_a_run_killed_anywhere_ends_as_an_undisturbed_one_and_pays_once(tmp_path: Path) -> None:
    """After kill -9 at each checkpoint, request and answer: the same output, and every billed attempt charged once.

    The ledger has what the provider billed, and at most the requests that were under way besides. The state tells
    the same, but for calls of a run of which not even the input was saved.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.recovery.victim", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, *killed = map(json.loads, done.stdout.splitlines())

    assert whole["state"] == whole["ledger"] == [13, 13 * 210_000]
    assert len(killed) == sum(whole["passed"].values()) > 40
    assert Counter(run["attempts"] for run in killed) == {2: len(killed)}
    for run in killed:
        assert run["log"] == whole["log"], run
        calls, _ = run["ledger"]
        assert run["billed"] <= calls <= run["billed"] + run["swept"], run
        if run["inputs"] == 1:
            assert run["state"] == run["ledger"], run
            assert run["asks"] >= whole["asks"], run
