"""What a run of a shape shows from outside: outputs, updates, tokens, interrupts, supersteps and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Interrupt, StateSnapshot
from pydantic import BaseModel

CONFIG: dict[str, Any] = {"configurable": {"thread_id": "t"}, "recursion_limit": 60}
WATCHED = ["updates", "messages", "tasks", "values", "custom"]
OURS = ("spend", "trip")


@dataclass
class Seen:
    """What the runs of one graph on one thread showed.

    Attributes:
        legs: Per run, from an input or an answer to its end: supersteps of sorted events.
        outputs: Per run, the last values.
        interrupts: Values of the interrupts, in order.
        nodes: How often a task of each node began.
        state: The state's values at the end.
        checkpoints: The number of checkpoints at the end.
        gates: How often gate nodes ran.
        tasks: Ids of the tasks of each node, those of graphs inside as `outer:inner`; a task that a person's answer
            wakes again keeps its id.
    """

    legs: list[list[list[str]]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    interrupts: list[Any] = field(default_factory=list)
    nodes: dict[str, int] = field(default_factory=dict)
    state: Any = None
    checkpoints: int = 0
    gates: int = 0
    tasks: dict[str, set[str]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Give what must be the same with gate nodes and without."""
        return {name: value for name, value in vars(self).items() if name not in {"checkpoints", "gates", "tasks"}}


def watch(graph: CompiledStateGraph, given: Any, resumes: Sequence[Any] = (), seen: Seen | None = None) -> Seen:
    """Run a graph from its input through all answers."""
    seen = seen or Seen()
    for at, now in enumerate([given, *map(_resumption, resumes)]):
        if at and not (graph.checkpointer and _waits(graph.get_state(CONFIG))):
            break
        _note(seen, list(graph.stream(now, CONFIG, stream_mode=WATCHED, subgraphs=True)))
    if graph.checkpointer:
        seen.state = plain(graph.get_state(CONFIG).values)
        seen.checkpoints = len(list(graph.get_state_history(CONFIG)))
    return seen


async def awatch(graph: CompiledStateGraph, given: Any, resumes: Sequence[Any] = (), seen: Seen | None = None) -> Seen:
    """Do the same on an event loop."""
    seen = seen or Seen()
    for at, now in enumerate([given, *map(_resumption, resumes)]):
        if at and not (graph.checkpointer and _waits(await graph.aget_state(CONFIG))):
            break
        _note(seen, [e async for e in graph.astream(now, CONFIG, stream_mode=WATCHED, subgraphs=True)])
    if graph.checkpointer:
        seen.state = plain((await graph.aget_state(CONFIG)).values)
        seen.checkpoints = len([s async for s in graph.aget_state_history(CONFIG)])
    return seen


def resume(graph: CompiledStateGraph, answer: Any, seen: Seen) -> None:
    """Go on with an answer, noting what it shows."""
    _note(seen, list(graph.stream(_resumption(answer), CONFIG, stream_mode=WATCHED, subgraphs=True)))
    seen.state = plain(graph.get_state(CONFIG).values)


def _waits(state: StateSnapshot) -> bool:
    # At a node's second question, LangGraph 1.0 names no next node.
    return bool(state.next or state.interrupts)


def _resumption(answer: Any) -> Any:
    return None if answer is None else Command(resume=answer)


def is_gate(name: str) -> bool:
    """Whether a node was added by `guard`."""
    return name.endswith(".budget") or name.startswith("budget.")


def _note(seen: Seen, events: Sequence[tuple[tuple[str, ...], str, Any]]) -> None:
    steps: list[list[str]] = [[]]
    output: Any = None
    for ns, mode, chunk in events:
        depth = [part.partition(":")[0] for part in ns]
        if mode == "values":
            if not ns:
                output = plain(chunk)
                steps.append([])
        elif mode == "messages":
            message, metadata = chunk
            steps[-1].append(f"{depth} {metadata['langgraph_node']} streams {plain(message)}")
        elif mode == "custom":
            steps[-1] += [f"{depth} tells {plain(chunk)}"] if chunk.get("type") != "budget" else []
        elif mode == "updates":
            steps[-1] += [f"{depth} {k} updates {plain(v)}" for k, v in chunk.items() if not is_gate(k)]
        else:
            steps[-1] += _note_task(seen, depth, chunk)
    together: list[list[str]] = []
    for step in filter(None, steps):
        if together and not any(event.startswith("[]") and event.endswith(" starts") for event in step):
            together[-1] += step  # a task that came late, after another one had interrupted the run
        else:
            together.append(step)
    seen.legs.append([sorted(step) for step in together])
    seen.outputs.append(output)


def _note_task(seen: Seen, depth: list[str], chunk: Mapping[str, Any]) -> list[str]:
    if "input" not in chunk:  # the task's end
        seen.interrupts += [] if depth else [plain(asked["value"]) for asked in chunk["interrupts"]]
        return []
    name = chunk["name"]
    seen.tasks.setdefault(":".join([*depth, name]), set()).add(chunk["id"])
    if is_gate(name):
        seen.gates += 1
        return []
    seen.nodes[name] = seen.nodes.get(name, 0) + 1
    return [f"{depth} {name} starts"]


def plain(value: Any) -> Any:
    """Give a value without ids that differ from run to run, and without graphguard's own fields."""
    if isinstance(value, BaseMessage):
        calls = [(c["name"], c["args"]) for c in getattr(value, "tool_calls", ())]
        return (value.type, value.content, calls, plain(getattr(value, "usage_metadata", None)))
    if isinstance(value, Interrupt):
        return ("interrupt", plain(value.value))
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        return (type(value).__name__, plain(dict(vars(value))))
    if isinstance(value, Mapping):
        kept = {key: plain(part) for key, part in value.items() if key not in OURS}
        return kept or None
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value
