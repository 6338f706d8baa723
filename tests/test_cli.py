"""The command line as a whole: help, version, wrong use."""

from __future__ import annotations

import re
import subprocess
import sys

from graphguard.cli import graphguard
from tests.needs import cli_runner


def test_help_names_every_command():
    """`graphguard --help` lists the commands with a sentence each."""
    result = cli_runner().invoke(graphguard, ["--help"])

    assert result.exit_code == 0
    for name, command in graphguard.commands.items():
        assert re.search(rf"^  {name}\s+{re.escape(command.get_short_help_str(200))}", result.output, re.MULTILINE)


def test_version_says_what_it_stands_on():
    """`graphguard --version` gives its own version, LangGraph's and Python's, in one line."""
    result = cli_runner().invoke(graphguard, ["--version"])

    assert re.fullmatch(r"graphguard \S+ \(langgraph \d\S*, Python \d\S*\)\n", result.output)


def test_it_is_a_module_too():
    """`python -m graphguard` is the same command under the same name."""
    done = subprocess.run([sys.executable, "-m", "graphguard", "--help"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: graphguard ")


def test_an_unknown_command_is_wrong_use():
    """A command that doesn't exist ends with exit code 2 and says so."""
    result = cli_runner().invoke(graphguard, ["demos"])

    assert result.exit_code == 2
    assert "No such command 'demos'" in result.stderr


def test_help_of_the_demo_documents_its_exit_codes():
    """`graphguard demo --help` explains every exit code, within 80 columns."""
    result = cli_runner().invoke(graphguard, ["demo", "--help"])

    assert [line.split()[0] for line in result.output.split("Exit codes:")[1].splitlines() if line.strip()] == [
        "0",
        "1",
        "2",
        "130",
    ]
    assert max(map(len, result.output.splitlines())) <= 80
