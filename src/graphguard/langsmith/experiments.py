"""The experiment that a guarded evaluation makes in LangSmith, and what it says there of its budget."""

from __future__ import annotations

import inspect
import uuid
from typing import TYPE_CHECKING, Any, Final, cast

from langsmith import Client
from langsmith.run_trees import get_cached_client
from langsmith.schemas import Dataset

from graphguard.spend import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from langsmith.schemas import Example, TracerSession

    from graphguard.langsmith.asked import Asked
    from graphguard.langsmith.results import EvalResults
    from graphguard.langsmith.spec import Need

__all__ = ["begin", "client_for", "examples_of", "named", "note", "unrecorded"]

_MARK: Final = "graphguard"
"""What the metadata of a guarded experiment begins with."""


def examples_of(client: Client, data: object) -> Iterable[Example]:
    """The examples of a dataset, by name, id or object; or those given themselves."""
    if isinstance(data, Dataset):
        return client.list_examples(dataset_id=data.id)
    if isinstance(data, (str, uuid.UUID)):
        return client.list_examples(**_id_or_name("dataset", data))
    return cast("Iterable[Example]", data)


def named(experiment: str | uuid.UUID) -> dict[str, Any]:
    """The arguments by which the client finds an experiment."""
    return _id_or_name("project", experiment)


def _id_or_name(kind: str, name: str | uuid.UUID) -> dict[str, Any]:
    try:
        return {f"{kind}_id": str(uuid.UUID(str(name)))}
    except ValueError:
        return {f"{kind}_name": str(name)}


def begin(
    asked: Asked, options: dict[str, Any], chosen: list[Example], *, available: int, seed: int | None, need: Need
) -> TracerSession:
    """Make the experiment, or find the one given in `options`; what `evaluate` must not see is taken out of them."""
    given = options.pop("experiment", None)
    prefix, description = options.pop("experiment_prefix", None), options.pop("description", None)
    if isinstance(given, (str, uuid.UUID)):
        return cast("TracerSession", asked.client.read_project(**named(given)))
    if given is not None:
        return cast("TracerSession", given)
    about = {
        "": True,
        "_sample": len(chosen),
        "_available": available,
        "_seed": seed,
        "_estimated_calls": round(need.calls),
        "_estimated_usd": str(need.usd),
        "_max_calls": asked.max_calls,
        "_max_usd": None if asked.max_cost_usd is None else str(asked.max_cost_usd),
    }
    # Newer releases of the SDK tell the server how large an experiment will be.
    known = inspect.signature(asked.client.create_project).parameters
    size = {"num_examples": len(chosen), "num_repetitions": asked.spec.num_repetitions}
    return asked.client.create_project(
        f"{prefix or 'guarded'}-{uuid.uuid4().hex[:8]}",
        description=description,
        reference_dataset_id=chosen[0].dataset_id,
        metadata={**(options.get("metadata") or {}), **_marked(about)},
        **{name: cast("Any", count) for name, count in size.items() if name in known},
    )


def note(client: Client, experiment: TracerSession, results: EvalResults) -> None:
    """Write what it took beside what it was going to take."""
    about = {
        "_calls": results.spent.calls,
        "_usd": usd_text(results.spent.nanousd),
        "_examples": results.examples,
        "_stopped": results.stopped,
    }
    # Read again: each chunk has written into the metadata, but only of itself which splits there were.
    metadata = client.read_project(project_id=experiment.id).metadata or {}
    splits = {split for row in results for split in (row["example"].metadata or {}).get("dataset_split") or ["base"]}
    client.update_project(experiment.id, metadata={**metadata, "dataset_splits": sorted(splits), **_marked(about)})


def client_for(given: Client | None, data: object, *, uploads: bool) -> Client:
    """The client that was given, or one from the environment; where LangSmith isn't needed, one that asks nobody.

    Args:
        given: The client that was given.
        data: What is evaluated; examples themselves need no server.
        uploads: Whether an experiment is made.
    """
    if given is not None:
        return given
    named = data is None or isinstance(data, (str, uuid.UUID, Dataset))
    return get_cached_client() if uploads or named else unrecorded(None)


def unrecorded(client: Client | None) -> Client:
    """A client like this one that records no runs.

    `aevaluate(upload_results=False)` makes no experiment, but traces its rows all the same.
    """
    url, key = (client.api_url, client.api_key) if client else ("http://localhost", "none")
    return Client(api_url=url, api_key=key, tracing_sampling_rate=0.0, auto_batch_tracing=False)


def _marked(about: Mapping[str, object]) -> dict[str, object]:
    return {f"{_MARK}{name}": value for name, value in about.items()}
