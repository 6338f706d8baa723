"""What `langgraph` makes of our `langgraph.json` for a container, as far as it can be seen without docker."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from langgraph_cli import docker

ROOT = Path(__file__).resolve().parents[2]
CONFIG = json.loads((ROOT / "langgraph.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines of the Dockerfile that `langgraph dockerfile` writes, in a copy of what it looks at."""
    folder = tmp_path_factory.mktemp("deploying") / "project"
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name in ("langgraph.json", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    command = [str(Path(sys.executable).with_name("langgraph")), "dockerfile", "Dockerfile"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    return (folder / "Dockerfile").read_text().splitlines()


def test_the_image_has_the_graphs_where_the_server_looks(lines):
    """The project is added as it is, and each graph is a file in it; the shell reads the list as it was written."""
    (added,) = (line.split()[-1] for line in lines if line.startswith("ADD"))
    (setting,) = (line.removeprefix("ENV ") for line in lines if line.startswith("ENV LANGSERVE_GRAPHS"))
    (word,) = shlex.split(setting)  # an apostrophe in a description would end the quotes
    graphs = json.loads(word.partition("=")[2])

    assert {name: graph["description"] for name, graph in graphs.items()} == {
        name: graph["description"] for name, graph in CONFIG["graphs"].items()
    }
    for graph in graphs.values():
        path = graph["path"].partition(":")[0]
        assert (ROOT / Path(path).relative_to(added)).is_file()


def test_the_image_installs_what_the_graphs_import(lines):
    """All packages that the examples import come with the project or are named as dependencies."""
    (installed,) = (line for line in lines if "pip install" in line and "deepagents" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        re.match(r"[\w-]+", text)[0]
        for text in (*project["dependencies"], *installed.split(), "graphguard")
        if re.match(r"[\w-]+", text)
    }
    tree = ast.parse((ROOT / "examples" / "graphs.py").read_text("utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {module.split(".")[0].replace("_", "-") for module in modules}

    assert imported - set(sys.stdlib_module_names) - {"--future--"} <= named
    assert "psycopg[binary,pool]" in installed  # for a ledger in the server's own PostgreSQL


def test_the_image_has_a_python_that_the_project_allows(lines):
    """The base image's Python is one of those in pyproject.toml."""
    version = re.match(r"FROM langchain/langgraph-api:3\.(\d+)", lines[0])[1]

    assert 11 <= int(version) <= 13


def test_langgraph_up_tells_the_server_where_its_postgresql_is():
    """`POSTGRES_URI`, in which the docs put the ledger, is an environment variable of the server's container."""
    version = docker.Version(28, 0, 0)
    text = docker.compose(docker.DockerCapabilities(version, version, healthcheck_start_interval=True), port=8123)

    server = text.partition("langgraph-api:")[2]
    assert re.search(r"POSTGRES_URI: \"?postgres://\S+@langgraph-postgres:5432/postgres", server)


def test_our_own_graphs_pass_our_own_check(tmp_path):
    """`graphguard check --strict` finds nothing wrong with what we ship, and a ceiling for each."""
    command = [sys.executable, "-m", "graphguard", "check", "--strict", "--json", str(ROOT / "langgraph.json")]
    env = {**os.environ, "GRAPHGUARD_LEDGER": str(tmp_path / "ledger.sqlite")}

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert {graph["id"]: bool(graph["ceilings"]) for graph in json.loads(done.stdout)["graphs"]} == dict.fromkeys(
        CONFIG["graphs"], True
    )
