"""Graphs by their id in `langgraph.json`."""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from langgraph.graph.state import CompiledStateGraph, StateGraph
from langgraph.pregel import Pregel
from langgraph.store.memory import InMemoryStore

from graphguard.demo.mistakes import WrongUse

if TYPE_CHECKING:
    from pathlib import Path

    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph

__all__ = ["document_of", "graph_of", "made", "target_of", "with_saver"]


def document_of(config: Path) -> dict[str, Any]:
    """What a `langgraph.json` says.

    Raises:
        WrongUse: The file can't be read, or is no JSON object.
    """
    try:
        document = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WrongUse(f"can't read {str(config)!r} ({error}); pass --config with your langgraph.json") from error
    if not isinstance(document, dict):
        raise WrongUse(f"{str(config)!r} is no langgraph.json: it must hold one JSON object")
    return document


def graph_of(name: str, config: Path) -> object:
    """The graph, builder or what a factory made, that a `langgraph.json` lists under an id.

    Raises:
        WrongUse: The file, the id, or what it points to is not there.
    """
    return made(target_of(name, config))


def target_of(name: str, config: Path) -> object:
    """What a `langgraph.json` lists under an id, a factory not called; raises as `graph_of` does."""
    listed = document_of(config).get("graphs")
    if not isinstance(listed, dict) or name not in listed:
        known = ", ".join(sorted(listed)) if isinstance(listed, dict) and listed else "none"
        raise WrongUse(f"{str(config)!r} lists no graph {name!r}; it lists: {known}")
    target = listed[name]
    target = target.get("path") if isinstance(target, dict) else target
    path, colon, variable = str(target).rpartition(":")
    if not colon:
        raise WrongUse(f"graph {name!r} in {str(config)!r} must be 'file.py:variable', got {target!r}")
    module = _module(path, config.resolve().parent)
    if not hasattr(module, variable):
        raise WrongUse(f"{path!r} has no {variable!r}, which {str(config)!r} names for graph {name!r}")
    return getattr(module, variable)


def with_saver(graph: object, saver: AnySaver) -> AnyGraph:
    """The graph, compiled, with a checkpointer.

    Raises:
        WrongUse: It is no graph.
    """
    if isinstance(graph, StateGraph):
        return graph.compile(checkpointer=saver)
    if isinstance(graph, CompiledStateGraph):
        new = copy.copy(graph)
        new.checkpointer = saver
        return new
    raise WrongUse(f"expected a graph, got a {type(graph).__name__}; name a StateGraph, or what its compile() returned")


def _module(path: str, folder: Path) -> object:
    for place in (str(folder), str((folder / path).parent)):
        if place not in sys.path:
            sys.path.insert(0, place)
    if path.endswith((".js", ".mjs", ".cjs", ".ts", ".mts", ".cts")):
        raise WrongUse(f"{path!r} is not Python, so it can't be looked into")
    if not path.endswith(".py"):
        return importlib.import_module(path)
    file = (folder / path).resolve()
    if not file.is_file():
        raise WrongUse(f"{str(file)!r} is not there; langgraph.json names it")
    name = f"graphguard_loaded_{file.stem}_{abs(hash((file, file.stat().st_mtime_ns))):x}"
    if name in sys.modules:  # loaded for another graph of this file
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # noqa: S101 - a .py file always has one
    assert spec.loader is not None  # noqa: S101 - likewise
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def made(target: Any) -> object:  # noqa: ANN401 - whatever the user's file has
    """What a factory makes, as a server's looking at it would; a graph itself is none."""
    if isinstance(target, (StateGraph, Pregel)) or not callable(target):
        return target
    graph = target(*(_argument(each) for each in inspect.signature(target).parameters.values()))
    if inspect.iscoroutine(graph):
        return asyncio.run(graph)
    return asyncio.run(_entered(graph)) if hasattr(graph, "__aenter__") else graph


def _argument(parameter: inspect.Parameter) -> object:
    """What a server gives to a factory: its runtime, if the parameter's type says so, or else a config."""
    if "Runtime" in str(parameter.annotation):
        return SimpleNamespace(
            access_context="assistants.read", user=None, store=InMemoryStore(), execution_runtime=None
        )
    return {"configurable": {}}


async def _entered(manager: Any) -> object:  # noqa: ANN401 - likewise
    async with manager as graph:
        return graph
