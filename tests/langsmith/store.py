"""What the LangSmith server of the tests keeps, the requests it gets, and the table of its routes."""

from __future__ import annotations

import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import zstandard
from requests_toolbelt.multipart.decoder import MultipartDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Json = dict[str, object]
TENANT = "00000000-0000-4000-8000-000000000001"


def now() -> str:
    """Give the time as the API writes it."""
    return datetime.now(UTC).isoformat()


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


@dataclass(slots=True)
class Request:
    """One request of a client.

    Attributes:
        method: The HTTP method.
        path: The path, without `/api/v1` and without a slash at its end.
        query: Parameters of the query, each with all its values.
        body: The body, unpacked.
        content_type: The body's type.
        packed: The body's encoding on the wire, such as `zstd`, or "".
        key: The client's API key.
        bytes: The body's size on the wire.
        status: What it was answered with; 0 before that.
        runs: Writes of runs in it, such as `("post", "<id>")`.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    content_type: str
    packed: str
    key: str | None
    bytes: int
    status: int = 0
    runs: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, method: str, path: str, query: dict[str, list[str]], raw: bytes, headers: object) -> Request:
        """Unpack a request's body."""
        get: Callable[[str], str | None] = headers.get  # type: ignore[attr-defined] # of http.server
        packed = get("Content-Encoding") or ""
        body = zstandard.ZstdDecompressor().decompressobj().decompress(raw) if packed == "zstd" else raw
        path = path.removeprefix("/api/v1").removeprefix("/v1").rstrip("/")
        return cls(method, path, query, body, get("Content-Type") or "", packed, get("x-api-key"), len(raw))

    @property
    def json(self) -> Json:
        """The body's JSON."""
        return json.loads(self.body or b"{}")

    def parts(self) -> Iterable[tuple[str, bytes]]:
        """Give the parts of a multipart body, by name."""
        for part in MultipartDecoder(self.body, self.content_type).parts:
            found = re.search(rb'name="([^"]*)"', part.headers[b"Content-Disposition"])
            yield found.group(1).decode() if found else "", part.content

    def first(self, name: str) -> str | None:
        """Give the first value of a query parameter."""
        return (self.query.get(name) or [None])[0]

    def page(self, rows: list[Json]) -> list[Json]:
        """Give the page of rows that the query asks for by offset and limit."""
        offset, limit = int(self.first("offset") or 0), int(self.first("limit") or 100)
        return rows[offset : offset + limit]


@dataclass(slots=True)
class Store:
    """Everything that clients wrote.

    Attributes:
        runs: Runs by id, as their last writes left them.
        writes: Every write of a run that was accepted, in order: "post" or "patch", and what it said.
        feedback: Feedback by id.
        sessions: Projects and experiments by id.
        datasets: Datasets by id.
        examples: Examples by id.
        repos: Prompts by owner and name.
        commits: Commits of prompts by owner and name, oldest first.
        tags: Tags of commits by owner and name: the commit's id by the tag.
        comparisons: Comparative experiments by id.
        prices: The server's own price map: USD per million input and output tokens, by model name.
        refuse_duplicates: Whether a second write of one kind to one run is refused, as the hosted service does.
        lock: Held while the above changes.
    """

    runs: dict[str, Json] = field(default_factory=dict)
    writes: list[tuple[str, Json]] = field(default_factory=list)
    feedback: dict[str, Json] = field(default_factory=dict)
    sessions: dict[str, Json] = field(default_factory=dict)
    datasets: dict[str, Json] = field(default_factory=dict)
    examples: dict[str, Json] = field(default_factory=dict)
    repos: dict[tuple[str, str], Json] = field(default_factory=dict)
    commits: dict[tuple[str, str], list[Json]] = field(default_factory=dict)
    tags: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    comparisons: dict[str, Json] = field(default_factory=dict)
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    refuse_duplicates: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def session(self, name: str, **fields: object) -> Json:
        """Give the project of a name, made if there is none."""
        with self.lock:
            for session in self.sessions.values():
                if session["name"] == name:
                    return session
            new = str(fields.get("id") or uuid.uuid4())
            self.sessions[new] = {
                "name": name,
                "start_time": now(),
                "end_time": None,
                "description": None,
                "extra": {},
                "reference_dataset_id": None,
                **{key: value for key, value in fields.items() if value is not None},
                "id": new,
                "tenant_id": TENANT,
            }
            return self.sessions[new]

    def named(self, name: str) -> list[Json]:
        """Give the runs of a name, in order of their first write."""
        with self.lock:
            return [run for run in self.runs.values() if run.get("name") == name]


Route = "Callable[..., object]"
_routes: list[tuple[str, re.Pattern[str], Callable[..., object]]] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Register what answers a path; `{x}` in the pattern is one segment, given by name.

    The answer is a body, or a status and a body.
    """
    compiled = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))

    def register(answer: Callable[..., object]) -> Callable[..., object]:
        _routes.append((method, compiled, answer))
        return answer

    return register


def answer(store: Store, request: Request) -> tuple[int, object]:
    """Answer a request."""
    for method, pattern, handler in _routes:
        if method == request.method and (match := pattern.fullmatch(request.path)):
            result = handler(store, request, **match.groupdict())
            return result if isinstance(result, tuple) else (200, result)
    raise Refused(404, f"the server of the tests has no {request.method} {request.path}")
