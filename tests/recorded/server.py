"""A local server that gives recorded provider answers to real clients, and remembers what it billed.

One server serves any number of tests at once. Each opens a lane of its own with the answers it wants, in order, and
points its client at `lane.url + <the provider's path>`; the lane then knows every request it answered.

```
client ──▶ http://127.0.0.1:<port>/r/<lane>/v1/chat/completions ──▶ the lane's next answer, byte for byte
```
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP body to be given.

    Attributes:
        body: The bytes, as the provider sent them.
        stream: True for an event stream, which is sent event by event; False for one JSON document.
    """

    body: bytes
    stream: bool = False

    @classmethod
    def of(cls, payload: dict[str, object] | str) -> Answer:
        """Make the answer of a JSON body or, given text, of an event stream."""
        if isinstance(payload, str):
            return cls(body=payload.encode(), stream=True)
        return cls(body=json.dumps(payload, ensure_ascii=False).encode())

    def chunks(self) -> Iterable[bytes]:
        """Give the event stream in its events; a JSON body is one chunk."""
        if not self.stream:
            return (self.body,)
        separator = b"\r\n\r\n" if b"\r\n\r\n" in self.body else b"\n\n"
        events = self.body.split(separator)
        return tuple(event + separator for event in events[:-1]) + ((events[-1],) if events[-1] else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """One request that the server answered, which a provider would have charged for.

    Attributes:
        path: The path after the lane.
        request: The JSON body that the client sent.
        answer: What it was given.
    """

    path: str
    request: dict[str, object]
    answer: Answer


@dataclass(slots=True)
class Lane:
    """One test's answers to come, and the requests that were answered.

    Attributes:
        url: Where the client has to be pointed, without the provider's own path.
        waiting: Answers not yet given.
        billed: Requests answered, in order.
        unanswered: Paths of requests for which no answer was left. Each got status 400.
    """

    url: str
    waiting: deque[Answer] = field(default_factory=deque)
    billed: list[Billed] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str, request: dict[str, object]) -> Answer | None:
        """Give the next answer and bill it, or None when there is none left."""
        with self._lock:
            if not self.waiting:
                self.unanswered.append(path)
                return None
            answer = self.waiting.popleft()
            self.billed.append(Billed(path=path, request=request, answer=answer))
            return answer


class RecordedServer(ThreadingHTTPServer):
    """The server; a context manager that listens on 127.0.0.1, at a port the system chooses, until it is left."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        """Listen; `__enter__` starts to answer."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lanes: dict[str, Lane] = {}
        self._names = itertools.count(1)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def lane(self, answers: Iterable[Answer]) -> Lane:
        """Open a lane in which these answers are given, in this order."""
        name = str(next(self._names))
        lane = Lane(url=f"http://127.0.0.1:{self.server_port}/r/{name}", waiting=deque(answers))
        self._lanes[name] = lane
        return lane

    def find(self, path: str) -> tuple[Lane | None, str]:
        """Give the lane that a request path names, and the rest of the path."""
        _, _, name, rest = path.split("/", 3) if path.count("/") > 2 else ("", "", "", "")
        return self._lanes.get(name), f"/{rest}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that hung up in the middle of an answer, as a cancelled call does; tell the rest."""
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
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a header and a small body would otherwise wait 40 ms for each other
    wbufsize = -1

    def do_POST(self) -> None:
        """Answer with the lane's next answer."""
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        lane, path = cast("RecordedServer", self.server).find(self.path)
        if lane is None:
            self._refuse(404, f"no lane at {self.path!r}; open one with RecordedServer.lane()")
        elif (answer := lane.take(path.partition("?")[0], request)) is None:
            self._refuse(400, "no recorded answer is left in this lane")
        elif answer.stream:
            self._send_events(answer)
        else:
            self._send(200, answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own signature
        """Keep quiet."""

    def _begin(self, status: int) -> None:
        self.send_response(status)
        # Clients that nobody closes would otherwise keep a socket open until the garbage collector complains.
        self.send_header("Connection", "close")

    def _refuse(self, status: int, why: str) -> None:
        self._send(status, json.dumps({"error": {"message": why, "type": "recorded_server", "code": status}}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self._begin(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _send_events(self, answer: Answer) -> None:
        self._begin(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in answer.chunks():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
