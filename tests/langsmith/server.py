"""A local server that speaks LangSmith's protocol, to which the real, unchanged SDK talks over HTTP.

```
with LangSmithServer() as server:
    client = server.client()               # a real langsmith.Client
    ...
    client.flush()
    server.store.named("agent")            # the runs of that name, as their last writes left them
```

Switches, all to be set at any time: `latency`, `fail(...)`, `quota`, `store.refuse_duplicates`, `store.prices`, `info`.
The SDK's real behaviour is the reference. What is modelled by guess is marked where it is: how writes of one run
merge (`tracing._write`), what a refusal of duplicates refuses (the same), and that a quota is used up by runs.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

from langsmith import Client

from tests.langsmith import workspace
from tests.langsmith.store import Json, Refused, Request, Store, answer

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LangSmithServer", "Request", "Store", "unreachable", "workspace"]

# What the service tells its clients; each of them changes what the SDK sends.
_INFO: Json = {
    "version": "0.18.0",
    "batch_ingest_config": {
        "use_multipart_endpoint": True,
        "scale_up_qsize_trigger": 1000,
        "scale_up_nthreads_limit": 16,
        "scale_down_nempty_trigger": 4,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
    },
    "instance_flags": {
        "zstd_compression_enabled": True,
        "dataset_examples_multipart_enabled": True,
        "examples_multipart_enabled": True,
        "ch_query_enabled": True,
        "sdb_query_enabled": True,
    },
}


def unreachable() -> str:
    """Give a URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@dataclass(slots=True)
class _Failure:
    method: str
    path: str
    status: int
    times: float
    headers: dict[str, str]


class LangSmithServer(ThreadingHTTPServer):
    """The server; a context manager that listens on 127.0.0.1, at a port the system chooses, until it is left.

    Attributes:
        url: Where a client has to be pointed.
        store: What clients wrote.
        requests: Every request, answered or refused, in order of their answers.
        info: What `/info` says.
        latency: Seconds before each answer.
        quota: Runs that may still be written, over all clients; then 429. None is no limit.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        """Listen; `__enter__` starts to answer."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.store = Store()
        self.requests: list[Request] = []
        self.info: Json = copy.deepcopy(_INFO)
        self.latency = 0.0
        self.quota: int | None = None
        self._failures: list[_Failure] = []
        self._closing = threading.Event()
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def client(self, **options: object) -> Client:
        """Give a real client of this server, closed when the server is left."""
        options = {"api_url": self.url, "api_key": "key-of-the-tests"} | options
        client = Client(**options)  # type: ignore[arg-type] # passed on as they came
        self.closing(client)
        return client

    def closing(self, client: Client) -> None:
        """Close a client when the server is left, while somebody still listens."""
        self._clients.append(client)

    def fail(
        self, status: int, path: str = "", *, method: str = "", times: float = float("inf"), **headers: str
    ) -> None:
        """Answer requests with a status from now on.

        Args:
            status: The status, such as 429 or 503.
            path: A regular expression that is searched in the path; all by default.
            method: The HTTP method; all by default.
            times: How often; for ever by default.
            headers: Headers of the answer, with `_` for `-`.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._failures.append(_Failure(method, path, status, times, named))

    def recover(self) -> None:
        """Answer as before `fail`."""
        self._failures.clear()

    def seen(self, method: str, path: str) -> list[Request]:
        """Give the requests of a method to a path, so far."""
        return [one for one in list(self.requests) if one.method == method and re.fullmatch(path, one.path)]

    def check(self, request: Request) -> None:
        """Refuse a request if a switch says so."""
        with self.store.lock:
            for failure in self._failures:
                fits = failure.method in ("", request.method) and re.search(failure.path, request.path)
                if fits and failure.times > 0:
                    failure.times -= 1
                    raise Refused(failure.status, "switched off by the test", failure.headers)
            if self.quota is not None and request.method == "POST" and request.path.startswith("/runs"):
                runs = _count_runs(request)
                if runs > self.quota:
                    raise Refused(429, "Monthly unique traces usage limit exceeded")
                self.quota -= runs

    def pause(self) -> None:
        """Wait for `latency`, or until the server is left."""
        if self.latency:
            self._closing.wait(self.latency)

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that hung up; tell the rest."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # passed on as it came

    def __enter__(self) -> Self:
        """Start to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and free the port."""
        self._closing.set()
        self.recover()
        for client in self._clients:
            client.close(timeout=5)
        self.shutdown()
        self.server_close()
        self._thread.join()


def _count_runs(request: Request) -> int:
    if request.path == "/runs/multipart":
        return sum(name.count(".") == 1 and name.startswith("post.") for name, _ in request.parts())
    if request.path == "/runs/batch":
        return len(request.json.get("post") or ())  # type: ignore[arg-type]
    return int(request.path == "/runs")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _serve(self) -> None:
        server = cast("LangSmithServer", self.server)
        url = urlsplit(self.path)
        request = Request.read(self.command, unquote(url.path), parse_qs(url.query), self._body(), self.headers)
        headers: dict[str, str] = {}
        try:
            server.pause()
            server.check(request)
            request.status, body = (200, server.info) if request.path == "/info" else answer(server.store, request)
        except Refused as refused:
            request.status, body, headers = refused.status, {"detail": refused.detail}, refused.headers
        server.requests.append(request)
        content = json.dumps(body).encode()
        self.send_response(request.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's own names

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own signature
        """Keep quiet."""
