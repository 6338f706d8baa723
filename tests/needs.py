"""Skips of tests on releases that lack what is tested: `make lowest` installs the oldest ones that are promised."""

from __future__ import annotations

import os
import re
from importlib.metadata import version

import pytest
from click.testing import CliRunner

# What is looked at in more than one file, each with the release that it came with.
FILE_SEARCH = ("langchain", "1.0.1", "FilesystemFileSearchMiddleware")
MODEL_RETRIES = ("langchain", "1.1.0", "ModelRetryMiddleware")
NODE_ATTEMPTS = ("langgraph", "1.1.3", "Runtime.execution_info, which numbers a node's attempts")
NODE_ERROR_HANDLERS = ("langgraph", "1.2.0", "add_node(error_handler=)")
NODE_TIMEOUTS = ("langgraph", "1.2.0", "add_node(timeout=)")
PROFILES = ("langchain-core", "1.1.0", "BaseChatModel.profile")
SUMMARY_TRIGGERS = ("langchain", "1.1.0", "SummarizationMiddleware(trigger=)")
TASK_IDS_OF_REPLAYS = ("langgraph", "1.1.7", "new task ids in replays")


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:3]))


# Read when loaded: tests that look for what blocks an event loop would find the reading.
INSTALLED = {
    package: _numbers(version(package))
    for package in ("click", "langchain", "langchain-core", "langgraph", "langgraph-checkpoint", "langsmith")
}


def older(package: str, release: str) -> bool:
    """Tell whether the installed package is older than a release, such as "1.1.3"."""
    return INSTALLED[package] < _numbers(release)


def needs(package: str, release: str, thing: str) -> pytest.MarkDecorator:
    """Give the mark of a test that is skipped before the release of a package that brought the thing."""
    return pytest.mark.skipif(older(package, release), reason=f"{thing} came with {package} {release}")


def skip_without(package: str, release: str, thing: str) -> None:
    """Skip the running test, as `needs` does; for what only some of a test's parameters build."""
    if older(package, release):
        pytest.skip(f"{thing} came with {package} {release}")


def cli_runner() -> CliRunner:
    """Give what runs commands and keeps stderr apart, which click does by itself from 8.2 on."""
    return CliRunner(mix_stderr=False) if older("click", "8.2.0") else CliRunner()


SOAK = pytest.mark.skipif(not os.environ.get("GRAPHGUARD_SOAK"), reason="takes long; make soak runs it")
"""Marks what `make soak` tests and `make test` has no time for."""
