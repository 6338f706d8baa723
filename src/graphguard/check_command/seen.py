"""What can be seen of a graph without running it: its model calls, the budgets around each, and its loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

from langchain_core.language_models import BaseLanguageModel
from langchain_core.tools import BaseTool
from langgraph.constants import END, START
from langgraph.graph.state import CompiledStateGraph

from graphguard.bounds import output_cap
from graphguard.choices import identity
from graphguard.discovery import evidence, mentions, models_in, reach
from graphguard.functional import is_entrypoint
from graphguard.guard import settings_of
from graphguard.placement import Shape
from graphguard.ways import finish_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from langgraph.pregel import Pregel

    from graphguard.meter import Settings
    from graphguard.placement import AnyGraph

__all__ = ["Model", "Seen", "calls_of", "settings_around"]

_CLIENTS: Final = ("OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI", "Anthropic", "AsyncAnthropic", "litellm")
_REMOTE: Final = "RemoteGraph"


@dataclass(frozen=True, slots=True)
class Model:
    """A chat model, as far as it says what it is.

    Attributes:
        kind: Its class.
        name: Its name; None if it says none.
        provider: LangChain's name of its provider; None likewise.
        output_tokens: The most it answers; None where nothing caps it.
        input_tokens: The most it takes; None if that is not known.
    """

    kind: str
    name: str | None
    provider: str | None
    output_tokens: int | None
    input_tokens: int | None

    @classmethod
    def of(cls, model: object) -> Model:
        """Read a model's own settings and its LangChain profile."""
        name, provider = identity(model)
        profile = getattr(model, "profile", None)
        profile = cast("Mapping[str, object]", profile) if isinstance(profile, dict) else {}
        told: Mapping[str, object] = getattr(model, "_get_ls_params", dict)()
        asked: Mapping[str, object] = getattr(model, "_get_invocation_params", dict)()
        cap, window = output_cap(told, asked) or profile.get("max_output_tokens"), profile.get("max_input_tokens")
        sizes = [size if isinstance(size, int) and size > 0 else None for size in (cap, window)]
        return cls(type(model).__name__, name, provider, *sizes)

    def __str__(self) -> str:
        """Its name, or what it is."""
        return repr(self.name) if self.name else f"a {self.kind} that does not say its name"


@dataclass(frozen=True, slots=True)
class Seen:
    """One node that calls a model, or something that LangChain does not see.

    Attributes:
        path: Names of the nodes around it and its own, outermost first.
        how: How it was recognised.
        models: The models it holds.
        chosen_late: Whether it may call others, which nobody can name yet.
        around: The settings of each guard around it, outermost first.
        unseen: What it calls that no callback tells of, in words; None for a call of a model.
        loops: Whether it may run again and again.
    """

    path: tuple[str, ...]
    how: str
    models: tuple[Model, ...] = ()
    chosen_late: bool = False
    around: tuple[Settings, ...] = ()
    unseen: str | None = None
    loops: bool = False

    @property
    def name(self) -> str:
        """The node as `model_nodes` names it."""
        return ":".join(self.path)


def settings_around(graph: AnyGraph | Pregel[Any, Any, Any, Any]) -> Settings | None:
    """What a graph or an `@entrypoint` was guarded with; None if it is not."""
    if isinstance(graph, CompiledStateGraph):
        return settings_of(graph)
    meters = [mark.meter for node in graph.nodes.values() if (mark := finish_of(node)) is not None]
    return next((meter.settings for meter in meters if meter is not None), None)


def calls_of(
    graph: AnyGraph | Pregel[Any, Any, Any, Any],
    around: tuple[Settings, ...] = (),
    seen: set[int] | None = None,
) -> Iterator[Seen]:
    """Each node of a graph, and of the graphs that it runs, that calls a model or something alike.

    A graph that several nodes reach is looked into once: at a node that runs it, rather than at a model's.
    """
    seen = {id(graph)} if seen is None else seen
    own = settings_around(graph)
    around = around if own is None or own in around else (*around, own)
    looping = _looping(graph) if isinstance(graph, CompiledStateGraph) else frozenset()
    bounds: dict[str, object] = {}
    for name, node in graph.nodes.items():
        mark = finish_of(node)
        if name != START and (mark is None or mark.original is not None):  # no gate
            bounds[name] = node.bound if mark is None or mark.original is None else mark.original.bound
    for name, bound in sorted(bounds.items(), key=lambda item: any(True for _ in models_in(item[1]))):
        for found in _in_node(bound, around, seen):
            yield replace(found, path=(name, *found.path), loops=found.loops or name in looping)
    if isinstance(graph, CompiledStateGraph):
        for name, branches in graph.builder.branches.items():
            for branch in branches.values():
                for found in _in_node(branch.path, around, seen):
                    how = f"its edge {found.how}"
                    yield replace(found, path=(name, *found.path), how=how, loops=found.loops or name in looping)


def _in_node(bound: object, around: tuple[Settings, ...], seen: set[int]) -> Iterator[Seen]:
    if isinstance(bound, CompiledStateGraph):
        yield from calls_of(bound, around, seen)
        return
    things = list(_things(bound))
    around = (*around, *(s for thing in things if (s := _of_middleware(thing)) is not None))
    models = tuple(dict.fromkeys(Model.of(thing) for thing in things if isinstance(thing, BaseLanguageModel)))
    graphs = [thing for thing in things if isinstance(thing, CompiledStateGraph) or is_entrypoint(thing)]
    direct = any(True for _ in models_in(bound))
    if direct or (not graphs and (models or evidence(bound))):
        how = evidence(bound) or f"has a tool that holds the model {models[0].kind}"
        late = not models or any(type(thing).__name__ == "_ConfigurableModel" for thing in things)
        yield Seen((), how, models, chosen_late=late, around=around)
    for inner in graphs:
        if id(inner) not in seen:
            seen.add(id(inner))
            yield from calls_of(cast("AnyGraph", inner), around, seen)
    if (unseen := _unseen(bound, things)) and not mentions(bound, "charge"):
        yield Seen((), f"uses {unseen}", around=around, unseen=unseen)


def _things(root: object) -> Iterator[object]:
    """All that a node reaches, inside its tools too."""
    for thing in reach(root):
        yield thing
        if isinstance(thing, BaseTool):
            for function in (getattr(thing, "func", None), getattr(thing, "coroutine", None)):
                yield from reach(function)


def _of_middleware(thing: object) -> Settings | None:
    # By name: langchain, which the middleware is made for, need not be installed.
    if type(thing).__name__ != "BudgetMiddleware":
        return None
    return cast("Settings", thing._meter.settings)  # type: ignore[attr-defined]  # noqa: SLF001 - our own class


def _unseen(bound: object, things: list[object]) -> str | None:
    kinds = {type(thing).__name__ for thing in things if thing is not bound}  # a remote graph as a node is counted
    if _REMOTE in kinds:
        return f"a {_REMOTE}, whose calls are made elsewhere"
    client = next((name for name in _CLIENTS if name in kinds or mentions(bound, name)), None)
    return f"the client {client} without LangChain" if client else None


def _looping(graph: AnyGraph) -> frozenset[str]:
    """Nodes that some way leads back to."""
    following = Shape(graph.builder).next
    found = set()
    for name in graph.builder.nodes:
        todo, past = list(following[name]), set[str]()
        while todo:
            there = todo.pop()
            if there not in past and there != END:
                past.add(there)
                todo += following[there]
        if name in past:
            found.add(name)
    return frozenset(found)
