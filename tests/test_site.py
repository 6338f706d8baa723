"""The site of the docs builds, asks nothing of other servers, and lists every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphguard
from graphguard import errors, langsmith
from graphguard.cli import graphguard as command_line

ROOT = Path(__file__).resolve().parents[1]
FETCHED = re.compile(r"""<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)="(https?:[^"]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Give the built site, and what the build said."""
    pytest.importorskip("mkdocs", reason="what builds the site is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="what builds the reference is not installed")
    pages = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(pages)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return pages, subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_site_builds_without_a_warning(site):
    """Each page is in the menu, each link leads to a page, and each name of the reference is found."""
    _, built = site
    assert (built.returncode, re.findall(r"^WARNING.*", built.stderr, re.MULTILINE)) == (0, []), built.stderr


def test_pages_fetch_nothing_from_elsewhere(site):
    """A reader's browser asks no other server for scripts, styles, fonts or pictures."""
    pages, _ = site
    found = {page.name: FETCHED.findall(page.read_text("utf-8")) for page in pages.rglob("*.html")}
    assert len(found) > 15
    assert {name: urls for name, urls in found.items() if urls} == {}


def test_code_for_the_tests_is_code(site):
    """Examples with prompts, and blocks that are only shown, are neither quotations nor text on a page."""
    pages, _ = site
    found = {page.name: page.read_text("utf-8") for page in pages.rglob("*.html")}
    assert [name for name, text in found.items() if "no-run" in text or "<blockquote>" in text] == []
    assert 'class="gp"' in found["money.html"]  # a prompt, as highlighted


def test_every_command_is_in_the_reference():
    """The page of the command line has a line for each command, and for nothing else."""
    page = (ROOT / "docs/reference/command-line.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `(\S+?)` \|", page, re.MULTILINE)) == sorted(command_line.commands)


def test_public_names_are_in_the_reference():
    """Each name that the package promises has an entry in the reference."""
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    entries = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", pages, re.MULTILINE)}
    twins = {name for name in (*graphguard.__all__, *langsmith.__all__) if name[1:] in entries}  # atrips, …
    promised = {*graphguard.__all__, *langsmith.__all__}
    assert promised - entries - set(errors.__all__) - twins == set()
