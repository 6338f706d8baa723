"""`guard()`: put a budget in front of every model call of a graph.

The only module that changes graphs. It works on the compiled graph: each user node's runnable is cloned in
place with a door around it, a last writer tells the state what the task spent, and where a node of its own
can't change what the graph does, a gate node is put before the model node: writes that would wake the model
node wake its gate, and the gate wakes the model node. Names, edges, policies and metadata of the user's
nodes stay, and so do the ids of their tasks, so that a thread begun on the bare graph goes on.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.config import run_in_executor, var_child_runnable_config
from langgraph._internal._runnable import RunnableCallable, RunnableSeq
from langgraph.channels import BinaryOperatorAggregate, EphemeralValue, LastValueAfterFinish
from langgraph.constants import END, START
from langgraph.graph.state import CompiledStateGraph, StateGraph
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._write import ChannelWrite, ChannelWriteTupleEntry
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command, Send

from graphguard import gate as gates
from graphguard.choices import FIELDS, caps_of, check, joined, make_settings, plan
from graphguard.door import Door, Stop
from graphguard.errors import NotGuardable
from graphguard.functional import guarded_entrypoint, is_entrypoint
from graphguard.meter import Meter
from graphguard.metering import current_scope
from graphguard.placement import AnyBuilder, AnyGraph, ModelNode, Shape
from graphguard.remote import counted
from graphguard.scope import Scope
from graphguard.spend import add_spend
from graphguard.task import Task
from graphguard.trip import merge_trip
from graphguard.ways import BRANCH, AnyRunnable, Finish, Ways, finish_of, finished, renamed, start_node

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from langgraph.pregel import Pregel

    from graphguard.budget import Breach, Budget, Policy
    from graphguard.choices import To
    from graphguard.door import Visit
    from graphguard.ledger.protocol import Ledger
    from graphguard.meter import Settings
    from graphguard.prices import PriceBook

__all__ = ["guard", "model_nodes", "rebudgeted", "settings_of"]

_NO_GATE: Final = "each call in it and in its tasks is held by itself"
_MAPPERS: Final = ("_output_mapper", "_state_mapper")  # set by compile(), read by stream v2 for outputs and checkpoints
_REDUCERS: Final = dict(zip(FIELDS, (add_spend, merge_trip), strict=True))
_G = TypeVar("_G", bound="AnyBuilder | AnyGraph | Pregel[Any, Any, Any, Any]")


def guard(
    graph: _G,
    /,
    *budgets: Budget | Policy,
    on_trip: str | To = "end",
    gate: str = "auto",
    nodes: Sequence[str] | None = None,
    ledger: Ledger | None = None,
    prices: PriceBook | None = None,
    on_ledger_error: str = "refuse",
) -> _G:
    """The same kind of graph, in which no model call starts that the budgets can't pay for.

    Args:
        graph: A `StateGraph`, what its `compile()`, `create_agent` or another builder returned, or an
            `@entrypoint`, which has no nodes to lead to and so asks or raises. It is not changed.
        budgets: `Budget`s, or functions `(Spend, Call) -> Breach | None`. Without any, calls are only
            metered.
        on_trip: What happens when a budget has no room: `"end"` the graph, `"interrupt"` and ask a person,
            `"raise"` `BudgetExceeded`, or go on at the node of `to("node")`.
        gate: Where the gates go: `"node"`, `"inline"`, or `"auto"`, which makes a node of a gate only
            where that can't change what the graph does. `model_nodes(graph)` shows each choice.
        nodes: Names of the nodes that call a model; None finds them.
        ledger: Where real money is held; None is a `MemoryLedger` that all guards of the process share.
        prices: A price book with the user's own prices; None is the bundled one.
        on_ledger_error: What happens to a call while the ledger can't answer: `"refuse"` it, by raising
            `LedgerUnavailable`, or `"allow"` it, counted in this process until the ledger answers again.

    Returns:
        A `StateGraph` whose `compile()` guards, or a compiled graph.

    Raises:
        NotGuardable: `graph` is something else, such as a raw `Pregel`.
        NoModelNodes: Budgets were given, but no node was seen to call a model.
        UnknownNode: `nodes`, `to(...)` or a budget's `node` names a node that isn't there.
        UnknownPrice: A USD budget, and a model in the graph without a known price.
        StateConflict: The graph's own state has a field `spend` or `trip`.
        InvalidBudget: Something else than a budget, an unknown `on_trip` or `gate`, or `keep=` without `to(...)`.

    ```python
    agent = guard(create_agent(model, tools), Budget(usd="0.50", calls=20), on_trip="interrupt")
    ```
    """
    settings = make_settings(
        budgets,
        on_trip=on_trip,
        gate=gate,
        nodes=nodes,
        ledger=ledger,
        prices=prices,
        on_ledger_error=on_ledger_error,
    )
    if isinstance(graph, CompiledStateGraph):
        bare, settings = _unguarded(graph, settings)
        builder = _guarded_builder(bare.builder, settings)
        return cast("_G", _guarded(bare, settings, builder))
    if isinstance(graph, StateGraph):
        builder = _guarded_builder(graph, settings)
        if builder.nodes:
            check(builder, {name: spec.runnable for name, spec in builder.nodes.items()}, _settings_of(builder))
        return cast("_G", builder)
    if is_entrypoint(graph):
        return cast("_G", guarded_entrypoint(graph, settings, _around))
    raise NotGuardable(type(graph).__name__)


def model_nodes(graph: AnyBuilder | AnyGraph | Pregel[Any, Any, Any, Any], /) -> dict[str, ModelNode]:
    """The nodes that `guard` takes to call a model, where the gate of each is or would be, and why.

    Args:
        graph: A graph, guarded or not.

    Returns:
        By node name; nodes of graphs inside as `outer:inner`.
    """
    if isinstance(graph, CompiledStateGraph):
        settings = make_settings()
        bare, settings = _unguarded(graph, settings)
        bounds: dict[str, object] = {name: node.bound for name, node in bare.nodes.items() if name != START}
        breakpoints = bool(bare.interrupt_before_nodes or bare.interrupt_after_nodes)
        cached = _cached(bare)
        return plan(bare.builder, bounds, settings, breakpoints=breakpoints, cached=cached, inside_of=model_nodes)
    if isinstance(graph, StateGraph):
        settings = _settings_of(graph) or make_settings()
        bounds = {name: spec.runnable for name, spec in graph.nodes.items()}
        return plan(graph, bounds, settings, breakpoints=False, cached=(), inside_of=model_nodes)
    if is_entrypoint(graph):
        return {name: ModelNode(name, "is an @entrypoint", "inside", _NO_GATE) for name in graph.nodes}
    raise NotGuardable(type(graph).__name__)


def rebudgeted(graph: AnyGraph, budgets: Sequence[Budget | Policy]) -> AnyGraph:
    """The compiled graph with these budgets instead of its own, or with its own where none are given.

    What it knows of earlier runs is left behind, so that a replay counts only its own line of checkpoints.
    """
    bare, settings = _unguarded(graph, make_settings())
    if budgets:
        new = make_settings(budgets)
        settings = replace(settings, budgets=new.budgets, policies=new.policies)
    return _guarded(bare, settings, _guarded_builder(bare.builder, settings))


def settings_of(graph: AnyGraph) -> Settings | None:
    """What a compiled graph was guarded with; None if it is not guarded."""
    return _settings_of(graph.builder)


# Builders


def _settings_of(builder: AnyBuilder) -> Settings | None:
    return cast("Settings | None", builder.__dict__.get("_graphguard"))


def _guarded_builder(builder: AnyBuilder, settings: Settings) -> AnyBuilder:
    new = copy.copy(builder)
    # Copied, not shared: add_edge() on the original would show up here, and the other way round.
    for name, value in vars(builder).items():
        if isinstance(value, (dict, set, list)) or name == "_node_defaults":  # what set_node_defaults() changes
            setattr(new, name, copy.copy(value))
    new.nodes = {name: copy.copy(spec) for name, spec in builder.nodes.items()}
    new.branches = type(builder.branches)(
        getattr(builder.branches, "default_factory", None), {k: dict(v) for k, v in builder.branches.items()}
    )
    new.__dict__["_graphguard"] = joined(_settings_of(builder), settings)
    if "GuardedStateGraph" not in {cls.__name__ for cls in type(builder).__mro__}:
        new.__class__ = _guarded_class(type(builder))  # type: ignore[arg-type] # classes are hashable; StateGraph hides it
    return new


@functools.cache
def _guarded_class(cls: type[AnyBuilder]) -> type[AnyBuilder]:
    def compile(self: AnyBuilder, *args: object, **kwargs: object) -> AnyGraph:  # noqa: A001 - its name
        compiled = cls.compile(self, *args, **kwargs)  # type: ignore[arg-type] # passed on as they came
        settings = _settings_of(self)
        return compiled if settings is None else _guarded(compiled, settings, self)

    functools.update_wrapper(compile, cls.compile)
    return type("GuardedStateGraph", (cls,), {"compile": compile, "__doc__": cls.__doc__, "__module__": __name__})


# Compiled graphs


def _cached(compiled: AnyGraph) -> list[str]:
    return [name for name, node in compiled.nodes.items() if node.cache_policy or compiled.cache_policy]


def _guarded(compiled: AnyGraph, settings: Settings, builder: AnyBuilder) -> AnyGraph:
    bounds = {name: node.bound for name, node in compiled.nodes.items() if name != START}
    check(compiled.builder, bounds, settings)
    return _rebuilt(compiled, Meter(settings, caps_of(bounds)), builder)


def _rebuilt(compiled: AnyGraph, meter: Meter, builder: AnyBuilder, *, inside: bool = False) -> AnyGraph:
    """The compiled graph with doors, gates and the two state fields; `compiled` stays as it is."""
    settings = meter.settings
    bounds = {name: node.bound for name, node in compiled.nodes.items() if name != START}
    breakpoints = bool(compiled.interrupt_before_nodes or compiled.interrupt_after_nodes)
    cached = _cached(compiled)
    named = replace(settings, nodes=None) if inside else settings
    planned = plan(compiled.builder, bounds, named, breakpoints=breakpoints, cached=cached, inside_of=model_nodes)
    gated = [name for name, node in planned.items() if name in bounds and node.gate in ("node", "inline")]
    gate_of = {name: _free_name(f"{name}.budget", compiled) for name in gated if planned[name].gate == "node"}
    review = _free_name(gates.REVIEW, compiled)
    ways = Ways(gate_of, Shape(compiled.builder), always=settings.gate == "node")
    talks = _talks(compiled)

    new = copy.copy(compiled)  # not Pregel.copy(), which loses the output and state mappers
    new.builder = builder
    new.channels = dict(compiled.channels)
    new.nodes = {}
    for name, node in compiled.nodes.items():
        if name == START:
            new.nodes[name] = start_node(node, ways, meter)
            continue
        gate = gate_of.get(name)
        inline = name in gated and name != settings.to
        door = Door(meter=meter, node=name, gated=inline, gate=gate, review=review, talks=talks)
        new.nodes[name] = _doored(node, door, ways, once=name in cached)
    _add_gates(new, meter, gate_of, review, talks=talks)
    for field, reducer in _REDUCERS.items():
        channel = _Field(dict, reducer)
        channel.key = field
        new.channels[field] = channel
    if isinstance(compiled.stream_channels, list):
        new.stream_channels = list(dict.fromkeys([*compiled.stream_channels, *FIELDS]))
    for name in _MAPPERS:
        if (mapper := getattr(compiled, name, None)) is not None:
            setattr(new, name, _Mapper(mapper))
    return new.validate()


class _Field(BinaryOperatorAggregate[dict[str, object]]):
    """A state field of graphguard's own. LangGraph copies every field for each conditional edge."""

    def copy(self) -> Self:
        new = object.__new__(type(self))
        new.typ, new.key, new.operator, new.value = self.typ, self.key, self.operator, self.value
        return new


class _Mapper:
    """Coerces values to the user's schema, which doesn't know graphguard's fields."""

    def __init__(self, mapper: Callable[[object], object]) -> None:
        self.mapper = mapper

    def __call__(self, value: object) -> object:
        if isinstance(value, dict):
            value = {key: v for key, v in value.items() if key not in FIELDS}
        return self.mapper(value)


def _talks(compiled: AnyGraph) -> bool:
    channel = compiled.channels.get("messages")
    return hasattr(channel, "operator") or hasattr(channel, "reducer")


def _free_name(name: str, compiled: AnyGraph) -> str:
    while name in compiled.nodes:
        name += "_"
    return name


def _unguarded(compiled: AnyGraph, settings: Settings) -> tuple[AnyGraph, Settings]:
    """The graph as it was before `guard`, with what was changed on it since; and both guards' settings."""
    marks = {name: mark for name, node in compiled.nodes.items() if (mark := finish_of(node)) is not None}
    if not marks:
        return compiled, settings
    bare = copy.copy(compiled)
    originals = {name: mark.original for name, mark in marks.items() if mark.original is not None}
    bare.nodes = {
        name: originals.get(name, node)
        for name, node in compiled.nodes.items()
        if name in originals or name not in marks
    }
    added = {*FIELDS, *(f"{BRANCH}{name}" for name, mark in marks.items() if mark.original is None)}
    own: dict[str, Any] = {key: v for key in FIELDS if (v := compiled.builder.channels.get(key))}  # of middleware
    bare.channels = {
        key: own.get(key, channel) for key, channel in compiled.channels.items() if key not in added - own.keys()
    }
    if isinstance(compiled.stream_channels, list):
        bare.stream_channels = [key for key in compiled.stream_channels if key not in FIELDS or key in own]
    for name in _MAPPERS:
        if isinstance(mapper := getattr(compiled, name, None), _Mapper):
            setattr(bare, name, mapper.mapper)
    builder = copy.copy(compiled.builder)
    old = builder.__dict__.pop("_graphguard", None)
    bare.builder = builder
    return bare.validate(), joined(cast("Settings | None", old), settings)


# Nodes


def _doored(node: PregelNode, door: Door, ways: Ways, *, once: bool) -> PregelNode:
    """The node with its door, its branches metered, and the last writer after its own."""
    writers = [_metered_branch(renamed(writer, ways), door) for writer in node.copy({}).flat_writers]
    writers = finished(writers, Finish(node, ways, door.meter, once=once))
    bound, subgraphs = _enclosed(node.bound, door), node.subgraphs
    if isinstance(bound, CompiledStateGraph) and subgraphs:  # none is shown of a graph with checkpointer=False
        subgraphs = [bound]
    return node.copy({"bound": bound, "writers": writers, "subgraphs": subgraphs})


def _metered_branch(writer: AnyRunnable, door: Door) -> AnyRunnable:
    """A branch whose function is metered, and is left out when the task was stopped."""
    if isinstance(writer, ChannelWrite) or not isinstance(writer, RunnableCallable):
        return writer
    new = copy.copy(writer)
    new.func, new.afunc = _around(writer.func, writer.afunc, door.inner(edge=True))
    return new


def _enclosed(bound: AnyRunnable, door: Door) -> AnyRunnable:
    """A clone of the node's runnable with the door around it."""
    if bound is DEFAULT_BOUND:
        return bound
    if isinstance(bound, CompiledStateGraph):
        return _scoped_graph(bound, door)
    if isinstance(bound, RunnableCallable):
        new = copy.copy(bound)
        new.func, new.afunc = _around(bound.func, bound.afunc, door, recurse=bound.recurse)
        return new
    if isinstance(bound, (RunnableSequence, RunnableSeq)):
        # LangGraph runs the steps one by one, so each has a door; the gate is at the first.
        first, *rest = bound.steps
        steps = [_enclosed(first, door), *(_enclosed(step, door.inner()) for step in rest)]
        return type(bound)(*steps, name=bound.name)
    return _behind(bound, door)


def _behind(bound: AnyRunnable, door: Door) -> AnyRunnable:
    """The runnable as it is, behind the door."""
    if isinstance(bound, RemoteGraph):
        bound = counted(bound)

    # Not bound.invoke itself: LangGraph warns about how LangChain annotates its config.
    def invoke(given: object, config: RunnableConfig) -> object:
        return bound.invoke(given, config)

    async def ainvoke(given: object, config: RunnableConfig) -> object:
        return await bound.ainvoke(given, config)

    func, afunc = _around(invoke, ainvoke, door)
    return RunnableCallable(func, afunc, name=bound.get_name(), trace=False, recurse=False)


_Func: TypeAlias = "Callable[..., Any] | None"


def _around(func: _Func, afunc: _Func, door: Door, *, recurse: bool = False) -> tuple[_Func, _Func]:
    """Both functions of a node with the door around them; None stays None.

    With `recurse`, LangGraph runs what they return, if that is a runnable: after the door has closed behind them.
    """
    new_func = None if func is None else _call_around(func, door, recurse=recurse)
    if afunc is None:
        return new_func, None
    if new_func is not None and isinstance(afunc, functools.partial) and afunc.func is run_in_executor:
        # Still executor-backed, and still seen to be: a timeout on a sync node must go on to be refused.
        return new_func, functools.update_wrapper(functools.partial(run_in_executor, None, new_func), new_func)
    return new_func, _acall_around(afunc, door, recurse=recurse)


def _visit(door: Door, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Visit | Stop:
    given = args[0] if args else None
    if isinstance(given, Stop):  # an earlier step of the same task was stopped
        return given
    config = kwargs.get("config") or var_child_runnable_config.get() or {}
    return door.visit(config, given)  # type: ignore[arg-type] # what LangGraph gives under that name


def _call_around(func: Callable[..., Any], door: Door, *, recurse: bool = False) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> object:
        visit = _visit(door, args, kwargs)
        if isinstance(visit, Stop):
            return visit
        value = None
        with visit as inside:
            if inside:
                value = func(*args, **visit.patched(kwargs))
        output = visit.output(value)
        return _behind(output, door.inner()) if recurse and isinstance(output, Runnable) else output

    return functools.wraps(func)(call)


def _acall_around(afunc: Callable[..., Any], door: Door, *, recurse: bool = False) -> Callable[..., Any]:
    async def acall(*args: object, **kwargs: object) -> object:
        visit = _visit(door, args, kwargs)
        if isinstance(visit, Stop):
            return visit
        value = None
        async with visit as inside:
            if inside:
                value = await afunc(*args, **visit.patched(kwargs))
        output = visit.output(value)
        return _behind(output, door.inner()) if recurse and isinstance(output, Runnable) else output

    return functools.wraps(afunc)(acall)


def _scoped_graph(graph: AnyGraph, door: Door) -> AnyGraph:
    """A graph inside: guarded by the same guard, with the door of the node that it is."""
    guarded = any(finish_of(node) for node in graph.nodes.values())
    inner = copy.copy(graph) if guarded else _rebuilt(graph, door.meter, graph.builder, inside=True)
    cls = type(inner)

    def invoke(self: AnyGraph, input: object, config: RunnableConfig | None = None, **kwargs: Any) -> object:  # noqa: A002, ANN401
        def run(given: object, *, config: RunnableConfig) -> object:
            return cls.invoke(self, given, config, **kwargs)

        return _call_around(run, door)(input, config=config or {})

    async def ainvoke(self: AnyGraph, input: object, config: RunnableConfig | None = None, **kwargs: Any) -> object:  # noqa: A002, ANN401
        async def run(given: object, *, config: RunnableConfig) -> object:
            return await cls.ainvoke(self, given, config, **kwargs)

        return await _acall_around(run, door)(input, config=config or {})

    async def astream(self: AnyGraph, input: object, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002, ANN401
        # Under `astream_events` LangGraph streams what it would else call; `ainvoke` streams too, and names a mode.
        if not kwargs and Task.id_in(config or {}):
            yield await ainvoke(self, input, config)
            return
        async for chunk in cls.astream(self, input, config, **kwargs):
            yield chunk

    ways = {"invoke": invoke, "ainvoke": ainvoke, "astream": astream}
    namespace = {**ways, "__module__": cls.__module__, "__doc__": cls.__doc__}
    inner.__class__ = type(cls.__name__, (cls,), namespace)
    return inner


# Gate nodes


def _add_gates(new: AnyGraph, meter: Meter, gate_of: Mapping[str, str], review: str, *, talks: bool) -> None:
    """Put a gate node before each node in `gate_of`, and one review node behind all gates that ask."""
    if not gate_of:
        return
    settings = meter.settings
    asks = settings.on_trip == "interrupt"
    own = {*gate_of.values(), review}
    for name, gate in gate_of.items():
        node = new.nodes[name]
        deferred = isinstance(new.channels[f"{BRANCH}{name}"], LastValueAfterFinish)
        channel = f"{BRANCH}{gate}"
        new.channels[channel] = LastValueAfterFinish(object) if deferred else EphemeralValue(object, guard=False)
        joins = [trigger for trigger in node.triggers if not trigger.startswith(BRANCH)]
        if joins:
            new.nodes[name] = node.copy({"triggers": [t for t in node.triggers if t not in joins]})
        ends = [name, *([review] if asks else []), *([settings.to] if settings.to else []), END]
        decide = functools.partial(gates.at_gate, node=name, gate=gate, review=review)
        new.nodes[gate] = _own_node(gate, [channel, *joins], decide, meter, ends, own=own, talks=talks)
    if asks:
        channel = f"{BRANCH}{review}"
        new.channels[channel] = EphemeralValue(object, guard=False)
        ends = [*gate_of.values(), END]
        new.nodes[review] = _own_node(review, [channel], gates.at_review, meter, ends, own=own, talks=talks)


def _own_node(
    name: str,
    triggers: list[str],
    decide: Callable[[Scope, Breach | None], Command[str]],
    meter: Meter,
    ends: Sequence[str],
    *,
    own: Collection[str],
    talks: bool,
) -> PregelNode:
    def run(given: object, config: RunnableConfig) -> Command[str]:  # noqa: ARG001 - a node is called with its input
        scope = Scope(meter, Task.of(config), current_scope(), talks=talks)
        scope.recover()
        scope.task.spare_step(own)
        command = decide(scope, scope.breach())
        meter.finish(scope)
        return command

    async def arun(given: object, config: RunnableConfig) -> Command[str]:  # noqa: ARG001 - see run
        scope = Scope(meter, Task.of(config), current_scope(), talks=talks)
        await scope.arecover()
        scope.task.spare_step(own)
        command = decide(scope, await scope.abreach())
        meter.finish(scope)
        return command

    declared = [(end if end == END else f"{BRANCH}{end}", None, None) for end in ends]
    writes = (ChannelWriteTupleEntry(_own_updates), ChannelWriteTupleEntry(_own_ways, static=declared))
    return PregelNode(
        triggers=triggers,
        channels=[],
        bound=RunnableCallable(run, arun, name=name, trace=False),
        writers=finished([ChannelWrite(writes)], Finish(None, None, meter, once=False)),
    )


def _own_updates(value: object) -> list[tuple[str, object]]:
    # graphguard's own fields go with what the last writer tells, so that each is written once.
    update = value.update if isinstance(value, Command) and isinstance(value.update, dict) else {}
    return [(key, part) for key, part in update.items() if key not in FIELDS]


def _own_ways(value: object) -> list[tuple[str, object]]:
    goto = value.goto if isinstance(value, Command) else ()
    ways = [goto] if isinstance(goto, (str, Send)) else goto
    return [(f"{BRANCH}{way}", None) for way in ways]
