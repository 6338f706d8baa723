"""A provider on this machine that bills what it is asked, and answers when the test lets it; and a webhook's receiver.

A prompt that begins with `wait` is billed at once and answered only after `release`: meanwhile a run is in flight.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PATIENCE = 60
"""Seconds to wait for anything at most."""


class Provider(ThreadingHTTPServer):
    """Speaks OpenAI's chat completions at `{url}/v1`, and takes webhooks at `{url}/hook`.

    Attributes:
        billed: The last user message of each request, in the order of arrival.
        hooks: Bodies of webhooks.
    """

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port; `with` answers."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.billed: list[str] = []
        self.hooks: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.released: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def release(self, prompt: str) -> None:
        """Let the answers to a prompt go."""
        self.released[prompt].set()

    def until(self, holds: Any) -> None:
        """Wait until a function of the provider gives true."""
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), PATIENCE), f"billed {self.billed}, hooks {self.hooks}"

    def bill(self, prompt: str) -> None:
        """Note a request."""
        with self.changed:
            self.billed.append(prompt)
            self.changed.notify_all()

    def hook(self, body: dict[str, Any]) -> None:
        """Note a webhook."""
        with self.changed:
            self.hooks.append(body)
            self.changed.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that hung up, as cancelled runs do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # passed on as it came

    def __enter__(self) -> Self:
        """Begin to answer."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Let all go, and stop."""
        for event in list(self.released.values()):
            event.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        """Bill and answer, or take a webhook."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/hook":
            self.server.hook(body)
            self._send({})
            return
        prompt = str(next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user"))
        self.server.bill(prompt)
        if prompt.startswith("wait"):
            self.server.released[prompt].wait(PATIENCE)
        self._send(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hm."}}],
                "usage": {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100},
            }
        )

    def _send(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name
        """Keep quiet."""
