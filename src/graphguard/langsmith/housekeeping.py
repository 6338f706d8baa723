"""Experiments pile up, one for each evaluation: how many there are, which to use again, and which to delete."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langsmith import Client
    from langsmith.schemas import TracerSession

__all__ = ["Experiment", "clean_up", "experiments", "warn_of_many"]

_MADE_BY_US: Final = "graphguard"  # what guarded_evaluate writes into an experiment's metadata
_DELETIONS_PER_MINUTE: Final = 30  # what LangSmith's hosted service allows for one key


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment of a dataset.

    Attributes:
        id: Its id, to be given to `evaluate(experiment=...)` to add rows to it.
        name: Its name.
        started: When it began, in UTC.
        guarded: Whether `guarded_evaluate` made it.
    """

    id: str
    name: str
    started: datetime
    guarded: bool


def experiments(client: Client, dataset: str, *, prefix: str = "") -> tuple[Experiment, ...]:
    """The experiments of a dataset, latest first.

    Args:
        client: A LangSmith client.
        dataset: The dataset's name.
        prefix: What their names begin with.
    """
    found = client.list_projects(reference_dataset_name=dataset)
    rows = [_experiment(project) for project in found if str(project.name).startswith(prefix)]
    return tuple(sorted(rows, key=lambda row: row.started, reverse=True))


def warn_of_many(client: Client, dataset: str, *, prefix: str = "", at: int = 100) -> int:
    """Count the experiments of a dataset, and warn when they are `at` or more; the count."""
    count = len(experiments(client, dataset, prefix=prefix))
    if count >= at:
        text = f"dataset {dataset!r} has {count} experiments; clean_up() deletes old ones, experiment= adds to one"
        warnings.warn(text, stacklevel=2)
    return count


def clean_up(
    client: Client,
    dataset: str,
    *,
    prefix: str = "",
    keep: int = 10,
    older_than: timedelta | None = None,
    others_too: bool = False,
    delete: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Experiment, ...]:
    """Delete old experiments of a dataset, with their runs; what is, or without `delete` would be, deleted.

    Args:
        client: A LangSmith client.
        dataset: The dataset's name.
        prefix: What their names begin with.
        keep: How many of the latest stay, whatever their age.
        older_than: Those begun since stay too.
        others_too: Whether experiments are meant that something else than `guarded_evaluate` made.
        delete: Really delete; otherwise nothing is changed.
        sleep: What waits between deletions, which LangSmith allows 30 of in a minute.
    """
    if keep < 0:
        msg = f"keep must be at least 0, got {keep!r}"
        raise ValueError(msg)
    known = [row for row in experiments(client, dataset, prefix=prefix) if row.guarded or others_too]
    since = datetime.now(UTC) - (older_than or timedelta())
    old = tuple(row for row in known[keep:] if row.started <= since)
    if delete:
        _delete(client, old, sleep)
    return old


def _delete(client: Client, old: Sequence[Experiment], sleep: Callable[[float], None]) -> None:
    for count, row in enumerate(old):
        if count:
            sleep(60 / _DELETIONS_PER_MINUTE)
        client.delete_project(project_id=row.id)


def _experiment(project: TracerSession) -> Experiment:
    started = project.start_time
    return Experiment(
        id=str(project.id),
        name=str(project.name),
        started=started if started.tzinfo else started.replace(tzinfo=UTC),
        guarded=_MADE_BY_US in project.metadata,
    )
