"""All guards in one program: each does its own, none needs another, and a trip is reported once."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from langsmith import traceable

from graphguard import MemoryLedger
from graphguard.langsmith import (
    AgentBudgetError,
    CachedHubPrompt,
    EvalSpec,
    FeedbackLoopGuard,
    RecursiveTraceGuard,
    guarded_evaluate,
    guarded_traceable,
    score_loop,
)
from tests.scripted import Scripted

ROOMY = {"recursion": 100, "loop": 30, "evaluation": 1_000}


@dataclass
class Program:
    """An agent that works in three nested turns, in a loop that is content at the third attempt.

    Attributes:
        recursion: The most turns of a request; None is no guard.
        loop: The most model calls of a request's attempts; None is no guard.
        cached: Whether the prompt is kept.
    """

    recursion: int | None = ROOMY["recursion"]
    loop: int | None = ROOMY["loop"]
    cached: bool = True
    model: Scripted = field(default_factory=Scripted)
    fetched: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.turns = RecursiveTraceGuard(max_calls=self.recursion) if self.recursion else None
        self.prompt = CachedHubPrompt("agent-v3", fetch=self._fetch)
        decorate = guarded_traceable(self.turns) if self.turns else traceable
        self.turn = decorate(self._turn)

    def _fetch(self, ref: str) -> str:
        self.fetched.append(ref)
        return "Be kind."

    def _turn(self, left: int) -> str:
        self.model.invoke(f"{self.prompt.get() if self.cached else self._fetch('agent-v3')} {left}")
        return self.turn(left - 1) if left > 1 else "an answer"

    def handle(self, inputs: dict[str, object]) -> dict[str, object]:
        """Answer one request."""
        scores = iter([0.3, 0.5, 0.9])
        if self.loop is None:
            answer = [self.turn(3) for _ in scores][-1]
            self.ended["success"] += 1
        else:
            guard = FeedbackLoopGuard(max_total_calls=self.loop, ledger=MemoryLedger())
            result = score_loop(guard, lambda *_: self.turn(3), lambda *_: next(scores), "t", score_threshold=0.8)
            self.ended[result.kind] += 1
            answer = result.output
        return {"answer": answer}

    def run(self, client, *, evaluation: int | None = ROOMY["evaluation"]) -> int:
        """Answer four examples of a dataset, in an evaluation or one after the other; how many were answered."""
        if evaluation is None:
            answered = [self._guarded({"q": str(n)}) for n in range(4)]
            return sum(one is not None for one in answered)
        spec = EvalSpec("questions", target_calls_per_example=9)
        ledger = MemoryLedger()
        results = guarded_evaluate(
            self.handle, spec, client=client, max_calls=evaluation, ledger=ledger, say=None, progress=False
        )
        return sum(not row["run"].error for row in results)

    def _guarded(self, inputs: dict[str, object]) -> dict[str, object] | None:
        with suppress(AgentBudgetError):
            return self.handle(inputs)
        return None


@pytest.fixture(autouse=True)
def dataset(client) -> None:
    """Put four questions into a dataset."""
    made = client.create_dataset("questions")
    client.create_examples(inputs=[{"q": str(n)} for n in range(4)], dataset_id=made.id)


@pytest.mark.parametrize("without", [None, "recursion", "loop", "cached", "evaluation"])
def test_any_one_can_be_left_out(client, without):
    """With room everywhere, the same calls are made and the same is answered, whichever guard is missing."""
    program = Program(**({without: None} if without in {"recursion", "loop"} else {"cached": without != "cached"}))

    answered = program.run(client, evaluation=None if without == "evaluation" else ROOMY["evaluation"])

    assert (answered, program.model.billed, program.ended) == (4, 36, {"success": 4})
    assert program.turns is None or program.turns.trips == ()
    assert len(program.fetched) == (36 if without == "cached" else 1)


def test_only_the_recursion_trips(client):
    """A ceiling of five turns ends each request at its sixth; nothing else ends anything, and a trip is told once."""
    program = Program(recursion=5)

    assert program.run(client) == 0
    assert [trip.reason for trip in program.turns.trips] == ["call_budget_exceeded (calls=5, max=5)"] * 4
    assert (program.model.billed, program.ended) == (20, {})


def test_only_the_loop_trips(client):
    """A ceiling of seven calls ends each loop in its third attempt, with its best output."""
    program = Program(loop=7)

    assert program.run(client) == 4
    assert (program.model.billed, program.ended, program.turns.trips) == (28, {"calls": 4}, ())


def test_only_the_evaluation_is_cut(client):
    """A ceiling of 20 calls has room for two examples of nine; those are answered in full."""
    program = Program()

    assert program.run(client, evaluation=20) == 2
    assert (program.model.billed, program.ended, program.turns.trips) == (18, {"success": 2}, ())
