"""The routes that take runs and give them back: ingest, queries of both generations, stats."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

from tests.langsmith.filters import matches
from tests.langsmith.store import Json, Refused, now, route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.langsmith.store import Request, Store

_ALWAYS = {"id", "name", "run_type", "start_time", "trace_id", "dotted_order", "session_id", "inputs"}


@route("POST", "/runs")
def create_run(store: Store, request: Request) -> tuple[int, Json]:
    """Take one new run."""
    return _ingest(store, request, [("post", request.json)])


@route("PATCH", "/runs/{run_id}")
def update_run(store: Store, request: Request, run_id: str) -> tuple[int, Json]:
    """Take a change of one run."""
    return _ingest(store, request, [("patch", {**request.json, "id": run_id})])


@route("POST", "/runs/batch")
def ingest_batch(store: Store, request: Request) -> tuple[int, Json]:
    """Take many writes as one JSON body."""
    body = request.json
    return _ingest(store, request, [(kind, run) for kind in ("post", "patch") for run in body.get(kind) or []])  # type: ignore[attr-defined]


@route("POST", "/runs/multipart")
def ingest_multipart(store: Store, request: Request) -> tuple[int, Json]:
    """Take many writes, each in parts named `<kind>.<id>` and `<kind>.<id>.<field>`."""
    writes: dict[tuple[str, str], Json] = {}
    for name, content in request.parts():
        kind, run_id, *fields = name.split(".")
        if kind == "feedback":
            keep_feedback(store, json.loads(content))
        elif kind in ("post", "patch"):
            write = writes.setdefault((kind, run_id), {"id": run_id})
            write.update({fields[0]: json.loads(content)} if fields else json.loads(content))
    return _ingest(store, request, [(kind, run) for (kind, _), run in writes.items()])


def keep_feedback(store: Store, body: Json) -> Json:
    """Keep feedback as it came."""
    with store.lock:
        return store.feedback.setdefault(str(body["id"]), {"created_at": now(), "trace_id": None, **body})


def _ingest(store: Store, request: Request, writes: list[tuple[str, Json]]) -> tuple[int, Json]:
    request.runs = [(kind, str(run["id"])) for kind, run in writes]
    refused = [not _write(store, kind, run) for kind, run in writes]
    if refused and all(refused):
        raise Refused(409, "payloads already received")
    return 202, {}


def _write(store: Store, kind: str, body: Json) -> bool:
    """Merge one write into its run; False if it was refused as a duplicate.

    A guess about the service, after its SDK: what a write doesn't name or names as null stays as it was, what it
    names is replaced whole (so a later `extra` replaces all metadata), and a POST that comes after its PATCH fills
    gaps only. A run that was begun and ended in one batch comes as one POST, which then is both kinds of write.
    """
    with store.lock:
        run = store.runs.setdefault(str(body["id"]), {"id": str(body["id"]), "_kinds": set()})
        seen: set[str] = run["_kinds"]  # type: ignore[assignment] # our own
        if store.refuse_duplicates and kind in seen:
            return False
        late = kind == "post" and "patch" in seen
        store.writes.append((kind, dict(body)))
        run |= {key: value for key, value in body.items() if value is not None and not (late and key in run)}
        seen |= {kind, "patch"} if body.get("end_time") else {kind}
        if run.get("session_id") is None:
            run["session_id"] = store.session(str(run.get("session_name") or "default"))["id"]
    return True


@route("POST", "/runs/query")
def query(store: Store, request: Request) -> Json:
    """Find runs, the first generation's way."""
    asked = request.json
    rows = _found(store, asked)
    rows, following = _cut(rows, asked.get("cursor"), min(int(asked.get("limit") or 100), 100))  # type: ignore[call-overload]
    chosen = set(asked.get("select") or ()) | _ALWAYS  # type: ignore[call-overload]
    views = [_view(store, run) for run in rows]
    if asked.get("select"):
        views = [{key: value for key, value in view.items() if key in chosen} for view in views]
    return {"runs": views, "cursors": {"next": following}}


@route("GET", "/runs/{run_id}")
def read_run(store: Store, request: Request, run_id: str) -> Json:
    """Give one run."""
    if run_id not in store.runs:
        raise Refused(404, "Run not found")
    return _view(store, store.runs[run_id])


@route("POST", "/runs/stats")
def stats(store: Store, request: Request) -> Json:
    """Sum up the runs that a query finds."""
    rows = [_view(store, run) for run in _found(store, request.json)]
    roots = [view for view in rows if view["id"] == view["trace_id"]]
    return {"run_count": len(rows), **totals(roots)}


def totals(roots: list[Json]) -> Json:
    """Sum up whole traces by their root runs."""
    costs = [Decimal(str(view["total_cost"])) for view in roots if view["total_cost"] is not None]
    return {
        "total_tokens": sum(int(view["total_tokens"]) for view in roots),  # type: ignore[call-overload]
        "prompt_tokens": sum(int(view["prompt_tokens"]) for view in roots),  # type: ignore[call-overload]
        "completion_tokens": sum(int(view["completion_tokens"]) for view in roots),  # type: ignore[call-overload]
        "total_cost": str(sum(costs)) if costs else None,
        "error_rate": sum(view["status"] == "error" for view in roots) / len(roots) if roots else None,
    }


def session_totals(store: Store, session: Json) -> Json:
    """Give a project with the sums of its traces."""
    with store.lock:
        runs = [run for run in store.runs.values() if run.get("session_id") == session["id"]]
    roots = [_view(store, run) for run in runs if run.get("trace_id") == run["id"]]
    return {**session, "run_count": len(roots), **totals(roots)}


@route("POST", "/api/v2/runs/query")
def query_v2(store: Store, request: Request) -> Json:
    """Find runs, the second generation's way; it needs to be told which fields to give."""
    asked = request.json
    names = {"project_ids": "session", "ids": "id", "trace_id": "trace", "has_error": "error"}
    names |= {"reference_examples": "reference_example", "min_start_time": "start_time", "max_start_time": "end_time"}
    rows = _found(store, {names.get(key, key): value for key, value in asked.items()})
    rows, following = _cut(rows, asked.get("cursor"), int(asked.get("page_size") or 100))  # type: ignore[call-overload]
    whole = bool(asked.get("include_subtree_usage"))
    items = [_view_v2(store, run, asked.get("selects") or (), whole=whole) for run in rows]  # type: ignore[arg-type]
    return {"items": items, "next_cursor": following}


@route("GET", "/api/v2/runs/{run_id}")
def read_run_v2(store: Store, request: Request, run_id: str) -> Json:
    """Give one run, the second generation's way."""
    if run_id not in store.runs:
        raise Refused(404, "Run not found")
    return _view_v2(store, store.runs[run_id], request.query.get("selects") or (), whole=True)


def _cut(rows: list[Json], cursor: object, size: int) -> tuple[list[Json], str | None]:
    begin = int(str(cursor or 0))
    return rows[begin : begin + size], str(begin + size) if begin + size < len(rows) else None


def _found(store: Store, asked: Json) -> list[Json]:
    with store.lock:
        rows = [run for run in store.runs.values() if "name" in run and _asked_for(store, run, asked)]
    return sorted(rows, key=lambda run: str(run.get("dotted_order") or ""), reverse=True)


def _asked_for(store: Store, run: Json, asked: Json) -> bool:
    wanted = {
        "session": [run.get("session_id")],
        "id": [run["id"]],
        "trace": [run.get("trace_id")],
        "parent_run": [run.get("parent_run_id")],
        "reference_example": [run.get("reference_example_id")],
        "is_root": [not run.get("parent_run_id")],
        "error": [bool(run.get("error"))],
        "run_type": [run.get("run_type"), str(run.get("run_type")).upper()],
    }
    for key, values in wanted.items():
        if (value := asked.get(key)) is not None:
            accepted = [str(item) for item in (value if isinstance(value, list) else [value])]
            if not accepted or not any(str(item) in accepted for item in values):
                return False
    start = str(run.get("start_time"))[:26]
    if asked.get("start_time") and start < str(asked["start_time"])[:26]:
        return False
    if asked.get("end_time") and start > str(asked["end_time"])[:26]:
        return False
    trace = [other for other in store.runs.values() if other.get("trace_id") == run.get("trace_id")]
    roots = [other for other in trace if not other.get("parent_run_id")]
    scopes = (("filter", [run]), ("trace_filter", roots), ("tree_filter", trace))
    return all(_any_matches(store, str(asked[key]), runs) for key, runs in scopes if asked.get(key))


def _any_matches(store: Store, expression: str, runs: Iterable[Json]) -> bool:
    return any(matches(expression, _view(store, run), _feedback_of(store, run)) for run in runs)


def _feedback_of(store: Store, run: Json) -> list[Json]:
    return [entry for entry in store.feedback.values() if str(entry.get("run_id")) == run["id"]]


def _own_usage(store: Store, run: Json) -> tuple[int, int, Decimal | None]:
    """Tokens and cost of a run by itself.

    A cost that the client wrote wins over the server's own prices, as the service documents it.
    """
    metadata = (run.get("extra") or {}).get("metadata") or {}  # type: ignore[attr-defined]
    outputs = run.get("outputs") if isinstance(run.get("outputs"), dict) else {}
    usage = metadata.get("usage_metadata") or outputs.get("usage_metadata") or {}  # type: ignore[union-attr]
    sent, got = int(usage.get("input_tokens") or 0), int(usage.get("output_tokens") or 0)
    if usage.get("total_cost") is not None:
        return sent, got, Decimal(str(usage["total_cost"]))
    parts = [Decimal(str(usage[key])) for key in ("input_cost", "output_cost") if usage.get(key) is not None]
    if parts:
        return sent, got, sum(parts, Decimal(0))
    price = store.prices.get(str(metadata.get("ls_model_name")))
    if price is None or run.get("run_type") != "llm":
        return sent, got, None
    return sent, got, (Decimal(str(price[0])) * sent + Decimal(str(price[1])) * got) / 1_000_000


def _view(store: Store, run: Json, *, whole: bool = True) -> Json:
    """Give a run as the first generation does, with the tokens and costs of the runs below it."""
    order = str(run.get("dotted_order") or "")
    with store.lock:
        below = [
            other
            for other in (store.runs.values() if whole and order else ())
            if other is not run and str(other.get("dotted_order") or "").startswith(f"{order}.")
        ]
        usages = [_own_usage(store, one) for one in (run, *below)]
        feedback = _feedback_of(store, run)
    costs = [cost for *_, cost in usages if cost is not None]
    failed = bool(run.get("error"))
    return {
        "inputs": {},
        "start_time": now(),
        "run_type": "chain",
        **{key: value for key, value in run.items() if not key.startswith("_")},
        "parent_run_ids": [part[-36:] for part in order.split(".")[:-1]],
        "status": "error" if failed else ("success" if run.get("end_time") else "pending"),
        "prompt_tokens": sum(sent for sent, *_ in usages),
        "completion_tokens": sum(got for _, got, _ in usages),
        "total_tokens": sum(sent + got for sent, got, _ in usages),
        "total_cost": str(sum(costs)) if costs else None,
        "feedback_stats": _feedback_stats(feedback) or None,
        "trace_id": run.get("trace_id") or run["id"],
    }


def _feedback_stats(feedback: list[Json]) -> Json:
    found: dict[str, Json] = {}
    for key in {str(entry["key"]) for entry in feedback}:
        scores = [float(one["score"]) for one in feedback if one["key"] == key and one.get("score") is not None]
        comments = [one["comment"] for one in feedback if one["key"] == key and one.get("comment")]
        found[key] = {"n": len(scores), "avg": sum(scores) / len(scores) if scores else None, "comments": comments}
    return dict(found)


def _view_v2(store: Store, run: Json, selects: Iterable[str], *, whole: bool) -> Json:
    view = _view(store, run, whole=whole)
    renamed = {**view, "project_id": view.get("session_id"), "run_type": str(view["run_type"]).upper()}
    renamed |= {"status": str(view["status"]).upper(), "metadata": (view.get("extra") or {}).get("metadata")}  # type: ignore[attr-defined]
    if view["total_cost"] is not None:
        renamed["total_cost"] = float(str(view["total_cost"]))
    chosen = {name.lower() for name in selects} | {"id"}
    return {key: value for key, value in renamed.items() if key in chosen and value is not None}
