"""The guards around LangSmith as a type checker sees them; mypy reads this file, nothing runs it."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from langgraph.graph import StateGraph

from graphguard.langsmith import (
    AgentBudgetError,
    AgentVolume,
    CappedClient,
    FeedbackLoopGuard,
    IterationState,
    LoopResult,
    LoopState,
    RecursiveTraceGuard,
    Verdict,
    ascore_loop,
    guarded_traceable,
    score_graph,
    score_loop,
)

turns = RecursiveTraceGuard(max_depth=3, max_calls=10, max_usd="0.50")


@guarded_traceable(turns, name="reflect", run_type="chain", tags=["agent"])
def reflect(draft: str, *, iteration: int = 0) -> str:
    """A function that keeps its signature."""
    return f"{draft}{iteration}"


@guarded_traceable(turns)
async def areflect(draft: str) -> str:
    """A coroutine function that stays one."""
    return draft


async def functions_keep_their_types(error: AgentBudgetError) -> None:
    """What was decorated is called as before."""
    assert_type(reflect("a", iteration=1), str)
    assert_type(await areflect("a"), str)
    with turns.trace() as trace:
        assert_type((trace.calls, trace.usd), tuple[int, Decimal | None])
    assert_type((error.kind, error.reason, error.run_id), tuple[str, str, str | None])
    assert_type(turns.trips, tuple[AgentBudgetError, ...])


async def loops_are_typed_by_their_output(loop: FeedbackLoopGuard, state: IterationState) -> None:
    """A loop's result has the type of its attempts."""

    async def attempt(task: str, critique: str) -> int:
        return len(task + critique)

    async def evaluate(output: int, task: str) -> float:
        return output / len(task)

    plain = score_loop(loop, lambda task, critique: task, lambda output, task: 0.5, "t", score_threshold=0.9)
    assert_type(plain, LoopResult[str])
    assert_type(await ascore_loop(loop, attempt, evaluate, "t", score_threshold=0.9), LoopResult[int])
    assert_type(loop.should_retry(state, 0.5, 0.9), Verdict)
    assert_type(
        score_graph(loop, lambda task, critique: task, lambda output, task: 0.5, score_threshold=0.9),
        StateGraph[LoopState],
    )


def volumes_are_typed(client: CappedClient) -> None:
    """A capped client is a LangSmith client that can tell its volume."""
    assert_type(client.volume(), tuple[AgentVolume, ...])
