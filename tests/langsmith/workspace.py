"""The routes of everything beside runs: projects and experiments, datasets, feedback, prompts."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING

from tests.langsmith.store import TENANT, Json, Refused, now, route
from tests.langsmith.tracing import keep_feedback, session_totals

if TYPE_CHECKING:
    from tests.langsmith.store import Request, Store


@route("GET", "/settings")
def settings(store: Store, request: Request) -> Json:
    """Give the workspace."""
    return {"id": TENANT, "display_name": "tests", "created_at": now(), "tenant_handle": "tests"}


# --------------------------------------------------------------------------------------- projects and experiments


@route("POST", "/sessions")
def create_session(store: Store, request: Request) -> Json:
    """Make a project, or with `upsert` change the one of that name."""
    body = request.json
    with store.lock:
        if any(session["name"] == body["name"] for session in store.sessions.values()):
            if request.first("upsert") not in ("True", "true"):
                raise Refused(409, "Session with this name already exists")
            session = store.session(str(body["name"]))
            session |= {key: value for key, value in body.items() if value is not None and key != "id"}
            return session
        return store.session(str(body.pop("name")), **body)


@route("GET", "/sessions")
def list_sessions(store: Store, request: Request) -> list[Json]:
    """Find projects and experiments."""
    with store.lock:
        if not store.sessions:
            store.session("default")
        rows = list(store.sessions.values())
    if (name := request.first("name")) is not None:
        rows = [row for row in rows if row["name"] == name]
    if (part := request.first("name_contains")) is not None:
        rows = [row for row in rows if part in str(row["name"])]
    if references := request.query.get("reference_dataset"):
        rows = [row for row in rows if str(row.get("reference_dataset_id")) in references]
    if request.first("reference_free") in ("True", "true"):
        rows = [row for row in rows if row.get("reference_dataset_id") is None]
    rows = request.page(sorted(rows, key=lambda row: str(row["start_time"]), reverse=True))
    return [session_totals(store, row) if _stats(request) else row for row in rows]


def _stats(request: Request) -> bool:
    return request.first("include_stats") in ("True", "true")


@route("GET", "/sessions/{session_id}")
def read_session(store: Store, request: Request, session_id: str) -> Json:
    """Give one project."""
    session = _one(store.sessions, session_id, "Session")
    return session_totals(store, session) if _stats(request) else session


@route("PATCH", "/sessions/{session_id}")
def update_session(store: Store, request: Request, session_id: str) -> Json:
    """Change one project."""
    session = _one(store.sessions, session_id, "Session")
    session |= {key: value for key, value in request.json.items() if value is not None}
    return session


@route("DELETE", "/sessions/{session_id}")
def delete_session(store: Store, request: Request, session_id: str) -> tuple[int, Json]:
    """Delete one project with its runs."""
    _one(store.sessions, session_id, "Session")
    with store.lock:
        del store.sessions[session_id]
        for run_id in [key for key, run in store.runs.items() if run.get("session_id") == session_id]:
            del store.runs[run_id]
    return 202, {}


def _one(rows: dict[str, Json], key: str, kind: str) -> Json:
    if key not in rows:
        raise Refused(404, f"{kind} not found")
    return rows[key]


# --------------------------------------------------------------------------------------- datasets and examples


@route("POST", "/datasets")
def create_dataset(store: Store, request: Request) -> Json:
    """Make a dataset."""
    body = request.json
    if any(row["name"] == body["name"] for row in store.datasets.values()):
        raise Refused(409, "Dataset with this name already exists")
    new = str(body.get("id") or uuid.uuid4())
    with store.lock:
        store.datasets[new] = {**body, "id": new, "tenant_id": TENANT, "created_at": now(), "modified_at": now()}
    return _dataset(store, store.datasets[new])


@route("GET", "/datasets")
def list_datasets(store: Store, request: Request) -> list[Json]:
    """Find datasets."""
    name = request.first("name")
    rows = [row for row in store.datasets.values() if name is None or row["name"] == name]
    return [_dataset(store, row) for row in request.page(rows)]


@route("GET", "/datasets/{dataset_id}")
def read_dataset(store: Store, request: Request, dataset_id: str) -> Json:
    """Give one dataset."""
    return _dataset(store, _one(store.datasets, dataset_id, "Dataset"))


@route("DELETE", "/datasets/{dataset_id}")
def delete_dataset(store: Store, request: Request, dataset_id: str) -> Json:
    """Delete one dataset."""
    _one(store.datasets, dataset_id, "Dataset")
    with store.lock:
        del store.datasets[dataset_id]
    return {}


@route("GET", "/datasets/{dataset_id}/splits")
def list_splits(store: Store, request: Request, dataset_id: str) -> list[str]:
    """Name the splits of a dataset."""
    rows = [row for row in store.examples.values() if row["dataset_id"] == dataset_id]
    return sorted({split for row in rows for split in row["metadata"]["dataset_split"]})  # type: ignore[index, call-overload]


@route("PUT", "/datasets/{dataset_id}/splits")
def update_splits(store: Store, request: Request, dataset_id: str) -> Json:
    """Add examples to a split, or take them out of it."""
    body = request.json
    with store.lock:
        for key in body["examples"]:  # type: ignore[attr-defined]
            metadata: Json = store.examples[key]["metadata"]  # type: ignore[assignment]
            others = [name for name in metadata["dataset_split"] if name != body["split_name"]]  # type: ignore[attr-defined]
            metadata["dataset_split"] = others + ([] if body.get("remove") else [body["split_name"]])
    return {}


def _dataset(store: Store, row: Json) -> Json:
    with store.lock:
        examples = sum(example["dataset_id"] == row["id"] for example in store.examples.values())
        sessions = sum(str(one.get("reference_dataset_id")) == row["id"] for one in store.sessions.values())
    return {**row, "example_count": examples, "session_count": sessions}


@route("POST", "/examples")
def create_example(store: Store, request: Request) -> Json:
    """Add one example."""
    return _add_example(store, request.json)


@route("POST", "/examples/bulk")
def create_examples(store: Store, request: Request) -> list[Json]:
    """Add examples, sent as one JSON body."""
    return [_add_example(store, body) for body in request.json]  # type: ignore[arg-type, attr-defined]


@route("POST", "/platform/datasets/{dataset_id}/examples")
def create_examples_multipart(store: Store, request: Request, dataset_id: str) -> tuple[int, Json]:
    """Add examples, each in parts named `<id>` and `<id>.<field>`."""
    rows: dict[str, Json] = {}
    for name, content in request.parts():
        example_id, _, part = name.partition(".")
        row = rows.setdefault(example_id, {"id": example_id, "dataset_id": dataset_id})
        row.update({part: json.loads(content)} if part else json.loads(content))
    for row in rows.values():
        _add_example(store, row)
    return 201, {"count": len(rows), "example_ids": list(rows), "as_of": now()}


def _add_example(store: Store, body: Json) -> Json:
    new = str(body.get("id") or uuid.uuid4())
    splits = body.get("split") or ["base"]
    with store.lock:
        store.examples[new] = {
            "id": new,
            "dataset_id": str(body["dataset_id"]),
            "inputs": body.get("inputs") or {},
            "outputs": body.get("outputs"),
            "metadata": {
                **(body.get("metadata") or {}),  # type: ignore[dict-item]
                "dataset_split": splits if isinstance(splits, list) else [splits],
            },
            "created_at": body.get("created_at") or now(),
            "modified_at": now(),
            "name": f"#{new[:4]}",
        }
        return store.examples[new]


@route("GET", "/examples")
def list_examples(store: Store, request: Request) -> list[Json]:
    """Find examples by dataset, id, split, metadata and time; a version's tag other than a time means the latest."""
    asked = request.query
    rows = list(store.examples.values())
    for key, name in (("dataset", "dataset_id"), ("id", "id")):
        if key in asked:
            rows = [row for row in rows if row[name] in asked[key]]
    if splits := asked.get("splits"):
        rows = [row for row in rows if set(splits) & set(row["metadata"]["dataset_split"])]  # type: ignore[index, call-overload]
    if metadata := json.loads(request.first("metadata") or "{}"):
        rows = [row for row in rows if metadata.items() <= row["metadata"].items()]  # type: ignore[attr-defined]
    as_of = request.first("as_of") or ""
    if as_of[:1].isdigit():
        rows = [row for row in rows if str(row["modified_at"])[:26] <= as_of[:26]]
    return request.page(rows)


@route("GET", "/examples/{example_id}")
def read_example(store: Store, request: Request, example_id: str) -> Json:
    """Give one example."""
    return _one(store.examples, example_id, "Example")


@route("POST", "/datasets/comparative")
def create_comparison(store: Store, request: Request) -> Json:
    """Make a comparative experiment."""
    body = request.json
    with store.lock:
        row = {**body, "tenant_id": TENANT, "created_at": body.get("created_at") or now(), "modified_at": now()}
        return store.comparisons.setdefault(str(body["id"]), row)


# --------------------------------------------------------------------------------------- feedback


@route("POST", "/feedback")
def create_feedback(store: Store, request: Request) -> Json:
    """Take feedback."""
    return keep_feedback(store, request.json)


@route("GET", "/feedback")
def list_feedback(store: Store, request: Request) -> list[Json]:
    """Find feedback by run, key and project."""
    rows = list(store.feedback.values())
    for asked, name in (("run", "run_id"), ("key", "key"), ("session", "session_id")):
        if wanted := request.query.get(asked):
            rows = [row for row in rows if str(row.get(name)) in wanted]
    return request.page(rows)


@route("PATCH", "/feedback/{feedback_id}")
def update_feedback(store: Store, request: Request, feedback_id: str) -> Json:
    """Change feedback."""
    row = _one(store.feedback, feedback_id, "Feedback")
    row |= request.json
    return row


# --------------------------------------------------------------------------------------- prompts


def _prompt(owner: str, name: str) -> tuple[str, str]:
    return ("tests" if owner == "-" else owner, name)


@route("GET", "/repos/{owner}/{name}")
def read_repo(store: Store, request: Request, owner: str, name: str) -> Json:
    """Give one prompt."""
    key = _prompt(owner, name)
    if key not in store.repos:
        raise Refused(404, "Repo not found")
    return {"repo": {**store.repos[key], "num_commits": len(store.commits.get(key, ()))}}


@route("POST", "/repos")
def create_repo(store: Store, request: Request) -> Json:
    """Make a prompt."""
    body = request.json
    name = str(body["repo_handle"])
    repo: Json = {"owner": "tests", "full_name": f"tests/{name}", "id": str(uuid.uuid4()), "tenant_id": TENANT}
    repo |= {"created_at": now(), "updated_at": now(), "is_public": False, "is_archived": False, "tags": []}
    repo |= dict.fromkeys(("num_likes", "num_downloads", "num_views", "num_commits"), 0)
    with store.lock:
        store.repos["tests", name] = repo | {key: value for key, value in body.items() if value is not None}
        return {"repo": store.repos["tests", name]}


@route("PATCH", "/repos/{owner}/{name}")
def update_repo(store: Store, request: Request, owner: str, name: str) -> Json:
    """Change a prompt."""
    store.repos[_prompt(owner, name)] |= request.json
    return {"repo": store.repos[_prompt(owner, name)]}


@route("POST", "/repos/{owner}/{name}/tags")
def tag_commit(store: Store, request: Request, owner: str, name: str) -> Json:
    """Name a commit."""
    store.tags.setdefault(_prompt(owner, name), {})[str(request.json["tag_name"])] = str(request.json["commit_id"])
    return {}


@route("POST", "/commits/{owner}/{name}")
def create_commit(store: Store, request: Request, owner: str, name: str) -> Json:
    """Add a version to a prompt."""
    with store.lock:
        commits = store.commits.setdefault(_prompt(owner, name), [])
        text = json.dumps([len(commits), request.json["manifest"]], sort_keys=True)
        commit: Json = {"id": str(uuid.uuid4()), "commit_hash": hashlib.sha256(text.encode()).hexdigest()}
        commit |= {"parent_commit_hash": request.json.get("parent_commit"), "created_at": now(), "examples": []}
        commits.append(commit | {"manifest": request.json["manifest"]})
    return {"commit": commits[-1]}


@route("GET", "/commits/{owner}/{name}")
def list_commits(store: Store, request: Request, owner: str, name: str) -> Json:
    """Give the versions of a prompt, latest first."""
    commits = store.commits.get(_prompt(owner, name), [])
    return {"commits": request.page(commits[::-1]), "total": len(commits)}


@route("GET", "/commits/{owner}/{name}/{ref}")
def read_commit(store: Store, request: Request, owner: str, name: str, ref: str) -> Json:
    """Give one version of a prompt: the latest, or by the beginning of its hash, or by its tag."""
    key = _prompt(owner, name)
    tagged = store.tags.get(key, {}).get(ref)
    for commit in reversed(store.commits.get(key, ())):
        if ref == "latest" or commit["id"] == tagged or str(commit["commit_hash"]).startswith(ref):
            return {name: commit[name] for name in ("commit_hash", "manifest", "examples")}
    raise Refused(404, "Commit not found")
