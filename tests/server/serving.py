"""A real `langgraph dev` for tests: on a free port of this machine, in a folder of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE = 90
"""Seconds that a server may take to start, on a busy machine."""


@dataclass
class DevServer:
    """One process of `langgraph dev`.

    Attributes:
        url: Where it listens.
        log: The file that it writes its log to.
        process: The process.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait_until_ready(self) -> None:
        """Wait for the first answer."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{self.url}/ok").raise_for_status()
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"langgraph dev did not start:\n{self.log.read_text()[-3000:]}")
                time.sleep(0.2)  # the server says nowhere else that it is ready
            else:
                return

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()
        self.process.wait(20)


@contextmanager
def dev_server(folder: Path, config: Path | Mapping[str, Any], *, jobs: int = 1, **env: str) -> Iterator[DevServer]:
    """Start a server with a `langgraph.json` or what is to be in one; it ends with the block, if it didn't before.

    Args:
        folder: Where it runs, keeps its log, and, unless `config` is a file, its `langgraph.json`.
        config: The configuration.
        jobs: How many runs it works on at once.
        env: More environment variables; all of LangSmith's are left out.
    """
    if not isinstance(config, Path):
        path = folder / "langgraph.json"
        path.write_text(json.dumps(config))
        config = path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser", "--no-reload"]
    command += ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--n-jobs-per-worker", str(jobs)]
    outside = {name: v for name, v in os.environ.items() if not name.startswith(("LANGSMITH_", "LANGCHAIN_"))}
    log_file = folder / f"log-{port}"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**outside, "LANGSMITH_TRACING": "false", **env}
        )
    server = DevServer(f"http://127.0.0.1:{port}", log_file, process)
    try:
        server.wait_until_ready()
        yield server
        assert "BlockingError" not in log_file.read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
