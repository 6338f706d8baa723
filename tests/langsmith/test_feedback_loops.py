"""FeedbackLoopGuard: when a score-gated loop ends, what it counts, and what it says of it."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from decimal import Decimal

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langsmith import Client, traceable, tracing_context
from urllib3 import Retry

from graphguard import Budget, BudgetExceeded, InvalidBudget, MemoryLedger, SqliteLedger, guard
from graphguard.langsmith import FeedbackLoopGuard, IterationState, ascore_loop, score_graph, score_loop
from tests.langsmith.server import unreachable
from tests.scripted import NANOUSD_PER_CALL, Scripted


def verdicts(loop: FeedbackLoopGuard, *scores: float | None, threshold: float = 0.75) -> list[str]:
    """Give the kinds of verdict on these scores, until the loop is ended."""
    state, kinds = loop.begin(), []
    for score in scores:
        with loop.attempt(state):
            pass
        retry, _ = verdict = loop.should_retry(state, score, threshold)
        kinds.append(verdict.kind)
        if not retry:
            break
    return kinds


@pytest.mark.parametrize(
    ("scores", "kind", "after"),
    [
        ((0.5, 0.8), "success", 2),
        ((0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "iterations", 5),
        ((0.52, 0.54, 0.53, 0.54), "plateau", 3),
        ((0.5, 0.505, 0.51), "plateau", 3),
        ((0.6, 0.5, 0.6, 0.5), "plateau", 3),
        ((0.6, 0.45, 0.4), "regression", 3),
        ((None, None, None), "plateau", 3),
        ((0.5, float("nan"), 0.52), "plateau", 3),
    ],
    ids=["success", "too many", "noise", "a slow climb", "to and fro", "falling", "no scores", "some scores"],
)
def test_a_loop_ends_when_its_scores_say_so(scores, kind, after):
    """Success and ceilings end it, and so do scores that stay within the noise, fall, or are none at all."""
    kinds = verdicts(FeedbackLoopGuard(plateau_threshold=0.03), *scores)

    assert (kinds[-1], len(kinds)) == (kind, after)
    assert set(kinds[:-1]) <= {"retry"}


def test_falling_scores_are_no_progress():
    """The original guard took max - min for progress, and so went on while 0.6 fell to 0.4; here that ends the loop."""
    falling = (0.6, 0.5, 0.4)

    assert max(falling) - min(falling) >= 0.02
    assert verdicts(FeedbackLoopGuard(regression_threshold=None), *falling) == ["retry", "retry", "plateau"]


def test_no_attempt_begins_after_the_last_one():
    """Whoever doesn't ask should_retry, or doesn't listen, still can't begin attempt max_iterations + 1."""
    loop = FeedbackLoopGuard(max_iterations=3)
    state, begun = loop.begin(), 0

    with suppress(BudgetExceeded):
        for _ in range(10):
            with loop.attempt(state):
                begun += 1

    assert begun == 3
    with pytest.raises(BudgetExceeded, match="3 of 3 iterations"):
        loop.attempt(state)


def test_no_attempt_begins_in_a_loop_that_ended():
    """After a success or a plateau, the loop stays ended."""
    loop = FeedbackLoopGuard()
    state = loop.begin()
    with loop.attempt(state):
        pass
    loop.should_retry(state, 0.9, 0.8)

    with pytest.raises(BudgetExceeded, match="ended by success"):
        loop.attempt(state)


def test_calls_are_counted_by_the_meter():
    """Two calls per attempt are two; the original's combined example counted its own count, so 2, 6, 14."""
    model = Scripted()
    loop = FeedbackLoopGuard(max_total_calls=20, max_iterations=4, ledger=MemoryLedger())
    state, counts = loop.begin(), []
    for score in (0.1, 0.3, 0.5, 0.7):
        with loop.attempt(state):
            model.invoke("attempt")
            model.invoke("evaluate")
        loop.should_retry(state, score, 0.9)
        counts.append(state.total_llm_calls)

    assert counts == [2, 4, 6, 8]
    assert state.usd == Decimal(8 * NANOUSD_PER_CALL) / 10**9


def test_a_loop_whose_calls_nobody_counts_is_warned_of():
    """Without blocks of attempt(state), ceilings on calls and USD can't hold, and that is said."""
    loop = FeedbackLoopGuard()

    with pytest.warns(UserWarning, match="attempt"):
        loop.should_retry(loop.begin(), 0.5, 0.9)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_ceiling_of_calls_is_never_passed(asynchronous):
    """With 20 calls allowed and 7 an attempt, call 21 is refused in the middle of attempt 3, before it is billed."""
    model = Scripted()
    loop = FeedbackLoopGuard(max_iterations=10, max_total_calls=20, ledger=MemoryLedger())
    scores = iter([0.1, 0.3, 0.5, 0.7])

    def attempt(task: str, critique: str) -> str:
        for _ in range(6):
            model.invoke("step")
        return f"{task} {model.billed}"

    def evaluate(output: str, task: str) -> float:
        model.invoke("judge")
        return next(scores)

    async def aattempt(task: str, critique: str) -> str:
        await asyncio.gather(*(model.ainvoke("step") for _ in range(6)))
        return f"{task} {model.billed}"

    async def aevaluate(output: str, task: str) -> float:
        await model.ainvoke("judge")
        return next(scores)

    if asynchronous:
        result = asyncio.run(ascore_loop(loop, aattempt, aevaluate, "t", score_threshold=0.9))
    else:
        result = score_loop(loop, attempt, evaluate, "t", score_threshold=0.9)

    assert (model.billed, result.kind, result.iterations) == (20, "calls", 2)
    assert (result.output, result.score) == ("t 13", 0.3)
    assert result.state.total_llm_calls == 20


def test_a_ceiling_of_usd_is_never_passed():
    """Money runs out in the middle of an attempt, and what was spent stays within the ceiling."""
    model = Scripted()
    loop = FeedbackLoopGuard(max_usd=Decimal(5 * NANOUSD_PER_CALL) / 10**9, ledger=MemoryLedger())

    result = score_loop(
        loop,
        lambda task, critique: str(model.invoke("x" * 1_000).content),
        lambda output, task: (model.invoke("x" * 1_000), model.billed / 100)[1],
        "t",
        score_threshold=0.9,
    )

    assert (result.kind, model.billed <= 5) == ("usd", True)
    assert result.state.nanousd <= 5 * NANOUSD_PER_CALL


def test_no_model_call_begins_after_the_time_is_up():
    """Seconds count from the loop's beginning, and are looked at before each call, not only between attempts."""
    now = [1_000.0]
    model = Scripted()
    loop = FeedbackLoopGuard(max_elapsed_seconds=90, clock=lambda: now[0], ledger=MemoryLedger())

    def attempt(task: str, critique: str) -> str:
        model.invoke("fast")
        now[0] += 100
        model.invoke("too late")
        return "never"

    result = score_loop(loop, attempt, lambda output, task: 0.1, "t", score_threshold=0.9)

    assert (model.billed, result.kind, result.output) == (1, "seconds", None)
    assert "100 of 90 seconds" in result.reason or "90 seconds are used up" in result.reason


def test_time_that_runs_out_between_attempts_ends_the_loop():
    """A loop whose time is up when the next attempt would begin ends with its best output."""
    now = [0.0]
    loop = FeedbackLoopGuard(max_elapsed_seconds=90, clock=lambda: now[0])
    ticks = iter([80.0, 81.0])

    def evaluate(output: str, task: str) -> float:
        now[0] = next(ticks)
        return 0.5

    real = loop.should_retry

    def late(*args: object) -> object:
        verdict = real(*args)
        now[0] = 95.0
        return verdict

    loop.should_retry = late
    result = score_loop(loop, lambda task, critique: "first", evaluate, "t", score_threshold=0.9)

    assert (result.kind, result.output, result.iterations) == ("seconds", "first", 1)


def test_the_state_is_json_and_goes_on_in_another_process():
    """Iterations, calls, money and time go on where they were, also with a ledger that has forgotten."""
    now = [1_000.0]
    model = Scripted()
    first = FeedbackLoopGuard(max_total_calls=3, ledger=MemoryLedger(), clock=lambda: now[0])
    state = first.begin()
    with first.attempt(state):
        model.invoke("a")
        model.invoke("b")
    first.should_retry(state, 0.4, 0.9)

    kept = json.dumps(state.to_json())
    now[0] += 60
    second = FeedbackLoopGuard(max_total_calls=3, ledger=MemoryLedger(), clock=lambda: now[0])
    resumed = IterationState.of(json.loads(kept))
    with second.attempt(resumed), suppress(BudgetExceeded):
        model.invoke("c")
        model.invoke("d")

    assert (model.billed, resumed.total_llm_calls, resumed.iteration, resumed.started) == (3, 3, 1, 1_000.0)


def test_an_attempt_that_was_killed_is_counted_when_it_runs_again(tmp_path):
    """What an attempt spent before its process died is found in the ledger when the attempt is run again."""
    model = Scripted()
    kept = None
    for _ in range(2):
        loop = FeedbackLoopGuard(max_total_calls=3, ledger=SqliteLedger(tmp_path / "ledger.sqlite"))
        state = IterationState.of(kept) if kept else loop.begin()
        kept = state.to_json()
        with loop.attempt(state), suppress(BudgetExceeded):
            for _ in range(2):
                model.invoke("q")

    assert (model.billed, state.total_llm_calls) == (3, 3)


def test_the_result_is_the_best_output_not_the_latest():
    """A loop that got worse gives what was best."""
    scores = {"one": 0.5, "two": 0.7, "three": 0.6, "four": 0.6, "five": 0.6}
    outputs = iter(scores)

    result = score_loop(
        FeedbackLoopGuard(),
        lambda task, critique: next(outputs),
        lambda output, task: scores[output],
        "t",
        score_threshold=0.9,
    )

    assert (result.output, result.score) == ("two", 0.7)


def test_the_critique_reaches_the_next_attempt():
    """The evaluator's words, or else the score, are what the next attempt is given."""
    given: list[str] = []
    scores = iter([(0.1, "Shorter!"), 0.4, 0.95])

    score_loop(
        FeedbackLoopGuard(),
        lambda task, critique: given.append(critique),
        lambda output, task: next(scores),
        "t",
        score_threshold=0.9,
    )

    assert given == ["", "Shorter!", "The previous attempt scored 0.40. Improve on it."]


def graph_of(loop: FeedbackLoopGuard, model: Scripted, scores: dict[str, float], *, asynchronous: bool = False):
    """Give the graph of a loop whose attempts are numbered and call a model, as does their evaluation."""
    outputs = iter(scores)

    def attempt(task: str, critique: str) -> str:
        model.invoke("attempt")
        return next(outputs)

    def evaluate(output: object, task: str) -> float:
        model.invoke("evaluate")
        return scores[str(output)]

    async def aattempt(task: str, critique: str) -> str:
        await model.ainvoke("attempt")
        return next(outputs)

    async def aevaluate(output: object, task: str) -> float:
        await model.ainvoke("evaluate")
        return scores[str(output)]

    chosen = (aattempt, aevaluate) if asynchronous else (attempt, evaluate)
    return score_graph(loop, *chosen, score_threshold=0.9)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_graph_is_the_same_loop(asynchronous):
    """As a graph it ends with the same output, score, reason and counts."""
    model = Scripted()
    loop = FeedbackLoopGuard(ledger=MemoryLedger())
    graph = graph_of(
        loop, model, {"one": 0.5, "two": 0.7, "three": 0.71, "four": 0.71}, asynchronous=asynchronous
    ).compile()

    end = asyncio.run(graph.ainvoke({"task": "t"})) if asynchronous else graph.invoke({"task": "t"})

    assert (end["output"], end["score"], end["kind"]) == ("three", 0.71, "plateau")
    assert (end["loop"]["total_llm_calls"], model.billed) == (8, 8)


def test_the_graph_refuses_the_call_beyond_the_ceiling():
    """Call 6 of 5 is refused in the evaluation of attempt 3; the best output so far is the result."""
    model = Scripted()
    loop = FeedbackLoopGuard(max_total_calls=5, ledger=MemoryLedger())
    graph = graph_of(loop, model, {"one": 0.5, "two": 0.7, "three": 0.8}).compile()

    end = graph.invoke({"task": "t"})

    assert (model.billed, end["kind"], end["output"]) == (5, "calls", "two")


def test_the_graph_goes_on_from_its_checkpoint():
    """A run that was stopped between attempts goes on with its counts, and a second task begins anew."""
    model = Scripted()
    loop = FeedbackLoopGuard(max_iterations=3, plateau_threshold=0.0, ledger=MemoryLedger())
    saver = InMemorySaver()
    scores = {"one": 0.1, "two": 0.3, "three": 0.5, "four": 0.95}
    graph = graph_of(loop, model, scores).compile(checkpointer=saver, interrupt_after=["evaluate"])
    config = {"configurable": {"thread_id": "t"}}

    graph.invoke({"task": "first"}, config)
    graph.invoke(None, config)
    first = graph.invoke(None, config)
    second = graph.invoke({"task": "second"}, config)

    assert (first["kind"], first["loop"]["iteration"], first["output"]) == ("iterations", 3, "three")
    assert (second["kind"], second["loop"]["iteration"], second["output"]) == ("success", 1, "four")


def test_a_guard_around_the_graph_counts_each_call_once():
    """The loop's own ceilings and a graph's budget both hold, on one ledger, and a call is charged once."""
    model, ledger = Scripted(), MemoryLedger()
    loop = FeedbackLoopGuard(ledger=ledger)
    graph = graph_of(loop, model, {"one": 0.1, "two": 0.3, "three": 0.5})
    guarded = guard(graph, Budget(calls=3), nodes=["attempt", "evaluate"], ledger=ledger).compile()

    end = guarded.invoke({"task": "t"})

    assert (model.billed, ledger.total().calls) == (3, 3)
    assert end["output"] == "one"


def test_a_trip_is_on_the_true_root(langsmith, traced):
    """The loop runs in a run below the root; the root is told of the trip, in its own last write."""
    loop = FeedbackLoopGuard()

    @traceable
    def retries() -> None:
        score_loop(loop, lambda task, critique: "secret", lambda output, task: 0.5, "t", score_threshold=0.9)

    @traceable
    def request() -> None:
        loop.begin()
        retries()

    with traced():
        request()

    for name in ("request", "retries"):
        (run,) = langsmith.store.named(name)
        metadata = run["extra"]["metadata"]
        assert run["tags"] == ["runguard_trip"]
        assert metadata["runguard_trip"].startswith("feedback_loop: plateau")
        assert (metadata["runguard_kind"], metadata["runguard_iterations"]) == ("plateau", 3)
        assert not run.get("error")
        assert "secret" not in json.dumps(metadata)
    assert langsmith.store.feedback == {}


def sent() -> None:
    """Wait until all feedback was sent, or failed."""
    for thread in threading.enumerate():
        if thread.name == "graphguard-feedback":
            thread.join(timeout=10)


def test_feedback_is_left_when_asked_for(langsmith, client):
    """One piece of feedback on the root run, without a score that would drag averages down, or a longer retention."""
    loop = FeedbackLoopGuard(client, feedback=True)

    @traceable
    def request() -> str:
        return score_loop(loop, lambda task, critique: "a", lambda output, task: 0.5, "t", score_threshold=0.9).kind

    with tracing_context(enabled=True, client=client, project_name="tests"):
        request()
    sent()

    (feedback,) = langsmith.store.feedback.values()
    (root,) = langsmith.store.named("request")
    assert (feedback["key"], feedback["run_id"], feedback["value"]) == (
        "runguard_feedback_loop_trip",
        root["id"],
        "plateau",
    )
    assert (feedback.get("score"), feedback["extend_trace_retention"]) == (None, False)


def test_feedback_that_can_t_be_sent_is_counted_not_raised():
    """With nobody listening, the loop ends as it would, and the failure is counted."""
    client = Client(api_url=unreachable(), api_key="k", auto_batch_tracing=False, retry_config=Retry(total=0))
    loop = FeedbackLoopGuard(client, feedback=True)
    state = IterationState(root_run_id="0199f1d2-0000-7000-8000-000000000001", scores=[0.5, 0.5], iteration=2, blocks=2)

    verdict = loop.should_retry(state, 0.5, 0.9)
    sent()

    assert (verdict.kind, loop.feedback_failures) == ("plateau", 1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_iterations": 0},
        {"max_total_calls": 1.5},
        {"plateau_window": 1},
        {"max_elapsed_seconds": 0},
        {"max_usd": "x"},
    ],
)
def test_a_ceiling_that_can_t_be_kept_is_found_when_the_guard_is_made(options):
    """Misuse is an InvalidBudget before anything runs."""
    with pytest.raises(InvalidBudget):
        FeedbackLoopGuard(**options)
