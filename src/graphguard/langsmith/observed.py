"""What requests took, and how evaluators scored, as LangSmith has recorded it."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import langsmith
from langsmith.run_trees import get_cached_client

from graphguard.langsmith.ceilings import Request
from graphguard.usage import nanousd_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from langsmith import Client

__all__ = ["repeated_scores", "requests_in_langsmith"]

_FIELDS: Final = (
    "ID",
    "NAME",
    "RUN_TYPE",
    "TRACE_ID",
    "PARENT_RUN_IDS",
    "START_TIME",
    "END_TIME",
    "TOTAL_TOKENS",
    "TOTAL_COST",
)
_PAGE: Final = 1000
_WEEK: Final = timedelta(days=7)


def requests_in_langsmith(
    project: str, *, client: Client | None = None, since: datetime | None = None, most: int = 200
) -> list[Request]:
    """What each trace of a project took, the latest first.

    Calls are its runs of type `llm`. Depth is how often a function lies within itself, which is what
    `RecursiveTraceGuard(max_depth=)` limits. Traces that have not ended are left out.

    Args:
        project: The project's name.
        client: A LangSmith client; None is made from the environment.
        since: Only traces that began after then; None is the last seven days.
        most: How many traces at most.

    Raises:
        LangSmithNotFoundError: There is no such project.
    """
    client = client or get_cached_client()
    since = since or datetime.now(UTC) - _WEEK
    project_id = str(client.read_project(project_name=project).id)
    runs: defaultdict[str, list[Any]] = defaultdict(list)
    workspace = getattr(client, "workspace_id", None)
    tenant = str(workspace) if workspace else None
    with langsmith.Langsmith(base_url=_root_of(client.api_url), api_key=client.api_key, tenant_id=tenant) as api:
        asked: Mapping[str, Any] = {
            "project_ids": [project_id],
            "min_start_time": since,
            "selects": list(_FIELDS),
            "page_size": _PAGE,
            "include_subtree_usage": True,
        }
        roots = []
        for root in api.runs.query(is_root=True, **asked):
            if root.end_time is not None:
                roots.append(root)
            if len(roots) == most:
                break
        chosen = {str(root.trace_id) for root in roots}
        earliest = min((root.start_time or since for root in roots), default=since)
        # One pass over all runs rather than one query a trace: queries are few a second.
        for run in api.runs.query(**{**asked, "min_start_time": earliest}) if roots else ():
            if str(run.trace_id) in chosen:
                runs[str(run.trace_id)].append(run)
    return [_request(root, runs[str(root.trace_id)]) for root in roots]


def _root_of(api_url: str) -> str:
    """The server's address without the path of the older API, which clients of self-hosted servers are given.

    >>> _root_of("https://langsmith.example.com/api/v1"), _root_of("https://eu.api.smith.langchain.com")
    ('https://langsmith.example.com', 'https://eu.api.smith.langchain.com')
    """
    return api_url.rstrip("/").removesuffix("/v1").removesuffix("/api")


def _request(root: Any, runs: Sequence[Any]) -> Request:  # noqa: ANN401 - the SDK's run, whichever release it is
    cost, tokens = root.total_cost, root.total_tokens
    return Request(
        id=str(root.trace_id),
        calls=sum(str(run.run_type).rpartition(".")[2].lower() == "llm" for run in runs),
        tokens=int(tokens) if tokens is not None else None,
        nanousd=nanousd_of(Decimal(str(cost))) if cost is not None else None,
        seconds=(root.end_time - root.start_time).total_seconds(),
        depth=_recursion(runs),
    )


def _recursion(runs: Iterable[Any]) -> int | None:
    named = {str(run.id): run.name for run in runs}
    lines = [[run.name, *(named.get(str(parent)) for parent in run.parent_run_ids or ())] for run in runs]
    return max((Counter(line)[line[0]] for line in lines), default=None)


def repeated_scores(project: str, key: str, *, client: Client | None = None) -> list[list[float]]:
    """The scores that one evaluator gave to the same run more than once, for `calibrate(scores=...)`.

    Args:
        project: The project's, or experiment's, name.
        key: The feedback's key.
        client: A LangSmith client; None is made from the environment.
    """
    client = client or get_cached_client()
    session = str(client.read_project(project_name=project).id)
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for feedback in client.list_feedback(feedback_key=[key], session=[session]):
        if feedback.score is not None and feedback.run_id is not None:
            groups[str(feedback.run_id)].append(float(feedback.score))
    return [scores for scores in groups.values() if len(scores) > 1]
