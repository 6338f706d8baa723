"""Random small graphs: guarded, their nodes run as often as bare, and never more calls than paid for."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError, InvalidUpdateError
from langgraph.types import Command

from graphguard import Budget, guard
from tests.laws.random_graphs import Drawing, Log, build, drawings
from tests.scripted import Scripted

GIVEN = {"visits": {}, "trail": [], "last": ""}
STEPS = {"recursion_limit": 300, "configurable": {"thread_id": "t"}}
RICH = Budget(usd=1000)
SOME = settings(
    max_examples=150,
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Ran:
    """What a run did: how often each node ran, in which supersteps, what came out, and what was billed."""

    nodes: Counter[str]
    steps: list[list[str]]
    output: object
    billed: int


def _inputs(drawing: Drawing) -> list[object]:
    return [GIVEN, Command(goto=list(drawing.jump))] if drawing.jump else [GIVEN]


def _run(drawing: Drawing, *budgets: Budget, gate: str | None, **options: object) -> Ran:
    """Run a drawing, bare if `gate` is None."""
    model, log = Scripted(), Log(bare=gate is None)
    builder = build(drawing, model, log)
    builder = builder if gate is None else guard(builder, *budgets, gate=gate, **options)
    graph = builder.compile(checkpointer=InMemorySaver() if drawing.jump else None)
    steps: dict[int, list[str]] = {}
    output: object = None
    try:
        for given_now in _inputs(drawing):
            for mode, chunk in graph.stream(given_now, STEPS, stream_mode=["debug", "values"]):
                if mode == "values":
                    output = {key: value for key, value in chunk.items() if key not in ("spend", "trip")}
                elif chunk["type"] == "task":
                    steps.setdefault(chunk["step"], []).append(chunk["payload"]["name"])
    except (InvalidUpdateError, GraphRecursionError) as error:
        output = type(error)
    return Ran(Counter(log.ran), [sorted(step) for _, step in sorted(steps.items())], output, model.billed)


def _without_gates(steps: list[list[str]]) -> list[list[str]]:
    kept = [[name for name in step if not name.endswith(".budget")] for step in steps]
    return [step for step in kept if step]


@SOME
@given(drawings())
def test_auto_never_changes_how_often_a_node_runs(drawing):
    """Whatever the graph's form, auto's gates leave every node its runs, its company and the output."""
    bare, guarded = _run(drawing, gate=None), _run(drawing, RICH, gate="auto")

    assert guarded.nodes == bare.nodes
    assert _without_gates(guarded.steps) == bare.steps
    assert guarded.output == bare.output


@SOME
@given(drawings())
def test_inline_gates_change_no_superstep(drawing):
    """With inline gates a graph takes the very supersteps of the bare one."""
    bare, guarded = _run(drawing, gate=None), _run(drawing, RICH, gate="inline")

    assert (guarded.nodes, guarded.steps, guarded.output) == (bare.nodes, bare.steps, bare.output)


@SOME
@given(drawings(overwrites=False), st.integers(1, 6), st.sampled_from(["auto", "inline"]))
def test_as_many_calls_as_paid_for_are_made(drawing, calls, gate):
    """A budget of k calls lets exactly the first k calls of a graph through."""
    bare, guarded = _run(drawing, gate=None), _run(drawing, Budget(calls=calls, warn_at=()), gate=gate)

    assert guarded.billed == min(calls, bare.billed)


def _asked(drawing: Drawing, calls: int, gate: str) -> Ran:
    model, log = Scripted(), Log()
    graph = guard(build(drawing, model, log), Budget(calls=calls, warn_at=()), gate=gate, on_trip="interrupt").compile(
        checkpointer=InMemorySaver()
    )
    for given_now in _inputs(drawing):
        output = graph.invoke(given_now, STEPS)
        # Asked of the output: a state does not show what runs right after a client's Command.
        for _ in range(50):
            asked = output.get("__interrupt__")
            if not asked:
                break
            assert len(asked) == 1
            output = graph.invoke(Command(resume={"new_limit_calls": asked[0].value["trip"]["spent"] + 1000}), STEPS)
        assert not asked, "asked again and again"
    return Ran(Counter(log.ran), [], None, model.billed)


@SOME
@given(drawings(overwrites=False), st.integers(1, 4), st.sampled_from(["auto", "inline"]))
def test_approved_run_ends_like_the_unbudgeted_one(drawing, calls, gate):
    """Once a person has approved enough, every node has run as often as without a budget."""
    bare, guarded = _run(drawing, gate=None), _asked(drawing, calls, gate)

    assert guarded.nodes == bare.nodes
