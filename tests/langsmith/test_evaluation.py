"""guarded_evaluate: what it says before, what it never passes, and what it says after; over the real SDK."""

from __future__ import annotations

import logging
import pickle
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from uuid import uuid4

import httpx
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langsmith import Client, traceable
from langsmith.schemas import Example

from graphguard import Budget, MemoryLedger, PriceBook, SqliteLedger, UnknownPrice, charge, guard
from graphguard.langsmith import (
    EvalBudgetError,
    EvalSpec,
    aguarded_evaluate,
    apilot,
    guarded_evaluate,
    pilot,
)
from graphguard.langsmith.spec import sample
from tests.langsmith.server import unreachable
from tests.scripted import NANOUSD_PER_CALL, Scripted

NOW = datetime.now(UTC)
BLENDED = PriceBook().add("gpt-4o-mini", input_usd="0.30", output_usd="0.30").add("gpt-4.1", input_usd=8, output_usd=8)
"""The prices of the post, one for input and output alike."""

SEED = EvalSpec(
    dataset_name="rag-qa-200",
    num_examples=200,
    num_repetitions=3,
    num_evaluators=2,
    judge_model="gpt-4.1",
    target_model="gpt-4o-mini",
    target_calls_per_example=2.3,
    prices=BLENDED,
)
"""The worked example of the post."""


@pytest.fixture(autouse=True)
def no_traceback_of_refused_rows(caplog):
    """Keep the SDK's log of rows that were refused out of the output."""
    caplog.set_level(logging.CRITICAL, "langsmith.evaluation._runner")
    caplog.set_level(logging.CRITICAL, "langsmith.evaluation._arunner")


@pytest.fixture
def dataset(client):
    """Give a function that makes a dataset of so many examples."""

    def make(count, name="qa"):
        made = client.create_dataset(name)
        examples = [
            {"inputs": {"q": str(i)}, "reference_outputs": {"a": str(i)}, "split": "hard" if i % 5 == 0 else "easy"}
            for i in range(count)
        ]
        if examples:
            client.create_examples(dataset_id=made.id, examples=examples)
        return made

    return make


@pytest.fixture
def evaluate(client, ledger):
    """Give guarded_evaluate, quiet, with the test's own client and ledger."""
    return partial(guarded_evaluate, client=client, ledger=ledger, say=None)


@pytest.fixture
def aevaluate(client, ledger):
    """Give aguarded_evaluate, likewise."""
    return partial(aguarded_evaluate, client=client, ledger=ledger, say=None)


def agent(model, calls=1):
    """Give a target that calls the model so often: a number, or a function of the example's number."""

    def answer(inputs):
        for _ in range(calls(int(inputs["q"])) if callable(calls) else calls):
            model.invoke(inputs["q"])
        return {"a": inputs["q"]}

    return answer


def aagent(model, calls=1):
    """Give the same, async."""

    async def answer(inputs):
        for _ in range(calls):
            await model.ainvoke(inputs["q"])
        return {"a": inputs["q"]}

    return answer


def judging(model, key="correct"):
    """Give an evaluator that calls a model."""

    def judge(outputs, reference_outputs):
        model.invoke("is it right?")
        return {"key": key, "score": float(outputs["a"] == reference_outputs["a"])}

    return judge


def ajudging(model):
    """Give the same, async."""

    async def judge(outputs, reference_outputs):
        await model.ainvoke("is it right?")
        return {"key": "correct", "score": float(outputs["a"] == reference_outputs["a"])}

    return judge


# ------------------------------------------------------------------------------------------- before anything is spent


def test_the_posts_example_costs_what_its_code_says():
    """The post prints $49.10 for its example; its own formula gives $20.03."""
    assert SEED.total_llm_calls() == 2580
    assert round(SEED.estimated_cost_usd(), 2) == Decimal("20.03")


def test_the_posts_example_samples_31_rows():
    """The post prints 16 of 200 rows for 400 calls and $20; its own formula gives 31."""
    assert SEED.per_example().fits_into(SEED.per_example().ceilings(400, 20)) == 31


def test_input_and_output_have_prices_of_their_own():
    """A call's input and output are priced apart, not by a blend."""
    spec = EvalSpec("d", 1, target_model="gpt-4o-mini", target_input_tokens=1_000_000, target_output_tokens=0)
    assert spec.estimated_cost_usd() == Decimal("0.15")


def test_retries_are_counted():
    """A retry in every second call makes half as many calls more, at their price."""
    plain, retried = EvalSpec("d", 10), EvalSpec("d", 10, retries=0.5)
    assert (plain.total_llm_calls(), retried.total_llm_calls()) == (10, 15)
    assert retried.estimated_cost_usd() == plain.estimated_cost_usd() * Decimal("1.5")


def test_a_model_without_a_price_is_not_guessed():
    """An unknown model raises instead of costing some made-up ten dollars."""
    with pytest.raises(UnknownPrice, match="my-judge"):
        EvalSpec("d", 1, num_evaluators=1, judge_model="my-judge").estimated_cost_usd()


def test_free_models_divide_nothing_by_zero():
    """With a price of zero only calls limit the sample."""
    spec = EvalSpec("d", 100, target_model="mine", prices=PriceBook().add("mine", input_usd=0, output_usd=0))
    assert spec.per_example().fits_into(spec.per_example().ceilings(20, 1)) == 20


def test_evaluators_that_call_no_model_cost_nothing():
    """Without a judge model, evaluators are code."""
    assert EvalSpec("d", 10, num_evaluators=3).total_llm_calls() == 10


@pytest.mark.parametrize(
    "spec", [{"num_repetitions": 0}, {"target_calls_per_example": -1}, {"num_evaluators": -1}, {"retries": -0.5}]
)
def test_a_spec_that_cant_be_is_refused(spec):
    """Negative amounts are found when the spec is made."""
    with pytest.raises(ValueError, match=r"repetitions|negative"):
        EvalSpec("d", **spec)


def test_the_error_survives_pickle():
    """It crosses processes with its numbers."""
    error = EvalBudgetError("no", calls=3, max_calls=2, usd=Decimal("0.5"), max_cost_usd=None)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (str(again), again.calls, again.max_calls, again.usd) == (str(error), 3, 2, Decimal("0.5"))
    assert isinstance(again, RuntimeError)


def test_the_estimate_is_said_before_anything_is_spent(client, dataset, ledger):
    """It counts the real dataset and the evaluators given, and says so when the spec says otherwise."""
    dataset(12)
    model, said = Scripted(), []
    guarded_evaluate(
        agent(model),
        EvalSpec("qa", num_examples=200, judge_model="gpt-4o-mini"),
        [judging(model)],
        client=client,
        ledger=ledger,
        say=lambda text: said.append((model.billed, text)),
    )
    assert "examples=12 repetitions=1 evaluators=1: estimated calls=24" in said[0][1]
    assert "says 200 examples, but there are 12" in said[1][1]
    assert said[0][0] == said[1][0] == 0
    assert "24 calls (estimated 24)" in said[-1][1]


def test_what_does_not_fit_is_refused_where_no_sample_is_wanted(evaluate, dataset):
    """Without sampling, nothing runs."""
    dataset(50)
    model = Scripted()
    with pytest.raises(EvalBudgetError, match=r"sample_if_over=True.*calls=50 \(max 20\)"):
        evaluate(agent(model), EvalSpec("qa"), max_calls=20, sample_if_over=False)
    assert model.billed == 0


def test_not_even_one_example_fits(evaluate, dataset, langsmith):
    """Then none is run, and no experiment is made: the post's ten rows at least would have been ten too many."""
    dataset(50)
    model = Scripted()
    with pytest.raises(EvalBudgetError, match="not even one example"):
        evaluate(agent(model, 30), EvalSpec("qa", target_calls_per_example=30), max_calls=20)
    assert model.billed == 0
    assert not langsmith.seen("POST", "/sessions")


def test_an_empty_dataset_says_so(evaluate, dataset):
    """No examples is an error, not an empty experiment."""
    dataset(0)
    with pytest.raises(ValueError, match=r"no examples.*'qa'"):
        evaluate(agent(Scripted()), EvalSpec("qa"))


# ---------------------------------------------------------------------------------------------------------- the sample


def test_a_sample_is_the_same_for_a_seed_in_any_order():
    """Datasets are listed in any order; the seed alone decides."""
    shuffled = random.Random(3).sample(range(100), 100)
    drawn = [set(sample(numbers, 10, seed=7, key=str)) for numbers in (range(100), shuffled)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != set(sample(range(100), 10, seed=8, key=str))
    assert drawn[0] != set(range(10)), "the first ten are no sample"


@pytest.mark.parametrize(("count", "shares"), [(10, (2, 8)), (7, (1, 6)), (100, (20, 80)), (500, (20, 80))])
def test_strata_get_their_shares(count, shares):
    """Each group is drawn from by its size."""
    drawn = sample(range(100), count, seed=1, key=str, stratum=lambda n: n < 20)
    found = Counter(n < 20 for n in drawn)
    assert (found[True], found[False]) == shares


def test_a_sample_by_split(evaluate, dataset):
    """Splits of the dataset are strata by name."""
    dataset(50)
    results = evaluate(agent(Scripted()), EvalSpec("qa"), max_calls=10, stratify_by="split")
    assert Counter(row["example"].metadata["dataset_split"][0] for row in results) == {"hard": 2, "easy": 8}


def test_a_small_dataset_is_not_sampled_up(evaluate, dataset):
    """Five examples are five, not the post's ten."""
    dataset(5)
    model = Scripted()
    results = evaluate(agent(model), EvalSpec("qa"), max_calls=400)
    assert (len(results), model.billed, results.seed) == (5, 5, None)


# ----------------------------------------------------------------------------------------------- the ceiling, in a run


@pytest.mark.parametrize("concurrency", [0, 1, 4, None])
@pytest.mark.parametrize("calls", [1, 7, 25])
def test_a_ceiling_of_20_calls_is_never_passed(evaluate, dataset, concurrency, calls):
    """Whatever the spec promised and however many rows run at once, call 21 is not sent."""
    dataset(50)
    model = Scripted()
    spec = EvalSpec("qa", judge_model="gpt-4o-mini")
    results = evaluate(agent(model, calls), spec, [judging(model)], max_calls=20, safe_concurrency=concurrency)
    assert model.billed <= 20
    assert results.spent.calls == model.billed


@pytest.mark.parametrize("concurrency", [0, 4])
async def test_an_async_ceiling_is_never_passed(aevaluate, dataset, concurrency):
    """The same over aevaluate, for targets and evaluators."""
    dataset(50)
    model = Scripted()
    spec = EvalSpec("qa", judge_model="gpt-4o-mini")
    results = await aevaluate(aagent(model, 3), spec, [ajudging(model)], max_calls=20, safe_concurrency=concurrency)
    assert model.billed <= 20
    assert results.spent.calls == model.billed


def test_a_ceiling_in_usd_is_never_passed(evaluate, dataset):
    """Money is held at its worst case before each call, so real costs stay below the ceiling."""
    dataset(50)
    model = Scripted()
    ceiling = 30 * NANOUSD_PER_CALL
    results = evaluate(agent(model, 4), EvalSpec("qa"), max_calls=None, max_cost_usd=Decimal(ceiling) / 10**9)
    assert 0 < results.spent.nanousd == model.billed * NANOUSD_PER_CALL <= ceiling


def test_rows_are_not_begun_that_would_fail(evaluate, dataset):
    """Rows that take seven calls instead of one end before the ceiling, none of them with an error."""
    dataset(50)
    model = Scripted()
    results = evaluate(agent(model, 7), EvalSpec("qa"), max_calls=60)
    assert model.billed > 60 - 2 * 7
    assert [row["run"].error for row in results] == [None] * len(results)
    assert "no room for another example" in results.stopped


def test_rows_that_vary_use_most_of_the_ceiling(evaluate, dataset):
    """Rows of one to five calls: all of them run, or the ceiling is nearly used up; none fails."""
    dataset(200)
    model = Scripted()
    results = evaluate(agent(model, lambda i: 1 + i % 5), EvalSpec("qa", target_calls_per_example=3), max_calls=100)
    assert results.examples == results.sampled or 95 < model.billed <= 100
    assert [row["run"].error for row in results] == [None] * len(results)


def test_a_refused_row_ends_the_evaluation(evaluate, dataset):
    """A row that needs more than there is fails, and no further chunk begins."""
    dataset(50)
    model = Scripted()
    results = evaluate(agent(model, 100), EvalSpec("qa"), max_calls=60, safe_concurrency=0)
    assert model.billed == 60
    assert [bool(row["run"].error) for row in results] == [True]
    assert "60" in results.stopped


def test_rows_wait_for_each_other_where_the_worst_case_is_dear(client, dataset):
    """Four rows at once under a ceiling that holds the worst case of one call: all run, one after the other."""
    dataset(8)
    model = Scripted(max_tokens=10_000, before=lambda: threading.Event().wait(0.02))  # a call takes its time
    spec = EvalSpec("qa", target_output_tokens=10)
    impatient = MemoryLedger(wait=0)
    results = guarded_evaluate(agent(model), spec, max_cost_usd="0.015", client=client, ledger=impatient, say=None)
    assert [row["run"].error for row in results] == [None] * 8
    assert max(charge.waited for charge in impatient.charges()) > 0


def test_the_posts_example_runs_within_its_ceilings(client, dataset, ledger):
    """Its 200 examples, three repetitions, two judges: 31 examples are drawn, and 400 calls and $20 are not passed."""
    dataset(200, "rag-qa-200")
    model, judge, said = Scripted(), Scripted(model_name="gpt-4.1"), []
    evaluators = [judging(judge), judging(judge, "faithful")]
    results = guarded_evaluate(
        target=agent(model, lambda i: 2 + (i % 10 < 3)),
        spec=SEED,
        evaluators=evaluators,
        max_calls=400,
        max_cost_usd=20.0,
        safe_concurrency=4,
        experiment_prefix="guarded-eval",
        client=client,
        ledger=ledger,
        say=said.append,
    )
    assert "estimated calls=2580 estimated cost=$20.0280" in said[0]
    assert "sampling 31/200 examples with seed 0 (calls≈400, cost≈$3.1043)" in said[1]
    assert 360 < model.billed + judge.billed == results.spent.calls <= 400
    assert [row["run"].error for row in results] == [None] * len(results)


def test_answers_from_a_cache_are_not_charged(evaluate, dataset):
    """A judge whose answer LangChain has cached is asked, and billed, once."""
    dataset(10)
    judge = Scripted(cache=InMemoryCache())
    spec = EvalSpec("qa", judge_model="gpt-4o-mini")
    results = evaluate(agent(Scripted()), spec, [judging(judge)], safe_concurrency=0)
    assert judge.billed == results.spent_by_evaluators.calls == 1


def test_repetitions_count(evaluate, dataset):
    """Each example runs so often, and a sample has room for all of it."""
    dataset(50)
    model = Scripted()
    results = evaluate(agent(model), EvalSpec("qa", num_repetitions=3), max_calls=20)
    assert (results.sampled, len(results), model.billed) == (6, 18, 18)


def test_one_experiment_for_all_chunks(evaluate, dataset, client, langsmith):
    """However many chunks there are, LangSmith has one experiment with all rows and their feedback."""
    dataset(40)
    model = Scripted()
    spec = EvalSpec("qa", judge_model="gpt-4o-mini")
    results = evaluate(agent(model), spec, [judging(model)], max_calls=60, experiment_prefix="mine")
    client.flush()
    assert len(results.parts) > 1
    assert len(langsmith.seen("POST", "/sessions")) == 1
    assert results.experiment_name.startswith("mine-")
    rows = [run for run in langsmith.store.runs.values() if run.get("reference_example_id")]
    assert {str(run["session_id"]) for run in rows} == {str(results.experiment_id)}
    assert len(rows) == len(results) == 30
    assert sum(row["key"] == "correct" for row in langsmith.store.feedback.values()) == 30


def test_an_experiment_can_be_used_again(evaluate, dataset, client, langsmith):
    """With `experiment=` rows are added to one there is, instead of making another."""
    dataset(5)
    first = evaluate(agent(Scripted()), EvalSpec("qa"))
    again = evaluate(agent(Scripted()), EvalSpec("qa"), experiment=first.experiment_name)
    client.flush()
    assert again.experiment_id == first.experiment_id
    assert len(langsmith.seen("POST", "/sessions")) == 1
    assert sum(bool(run.get("reference_example_id")) for run in langsmith.store.runs.values()) == 10


def test_the_experiment_says_what_was_planned_and_what_it_took(evaluate, dataset, client):
    """Its metadata records sample, seed, estimate, ceilings and the sum, beside the user's own."""
    dataset(40)
    results = evaluate(agent(Scripted()), EvalSpec("qa"), max_calls=10, seed=5, metadata={"rev": "r1"})
    metadata = client.read_project(project_id=results.experiment_id).metadata
    told = {name.removeprefix("graphguard_"): metadata[name] for name in metadata if name.startswith("graphguard_")}
    assert told == {
        "sample": 10,
        "available": 40,
        "seed": 5,
        "estimated_calls": 10,
        "estimated_usd": str(results.estimate.usd),
        "max_calls": 10,
        "max_usd": "25",
        "calls": 10,
        "usd": "0.0021",
        "examples": 10,
        "stopped": None,
    }
    assert (metadata["graphguard"], metadata["rev"]) == (True, "r1")
    assert metadata["dataset_splits"] == sorted({r["example"].metadata["dataset_split"][0] for r in results})


def test_targets_and_evaluators_are_told_apart(evaluate, dataset):
    """The sum has both parts."""
    dataset(10)
    model, judge = Scripted(), Scripted(model_name="gpt-4.1")
    results = evaluate(
        agent(model, 2), EvalSpec("qa", judge_model="gpt-4.1"), [judging(judge), judging(judge, "again")]
    )
    assert results.spent_by_targets.calls == model.billed == 20
    assert results.spent_by_evaluators.calls == judge.billed == 20
    assert (results.target_model, results.judge_model) == ("gpt-4o-mini", "gpt-4.1")


async def test_async_targets_and_evaluators_are_told_apart(aevaluate, dataset):
    """The same over aevaluate."""
    dataset(10)
    model, judge = Scripted(), Scripted(model_name="gpt-4.1")
    results = await aevaluate(aagent(model, 2), EvalSpec("qa", judge_model="gpt-4.1"), [ajudging(judge)])
    assert (results.spent_by_targets.calls, results.spent_by_evaluators.calls) == (20, 10)


def test_a_guarded_graph_counts_in_both(evaluate, dataset, ledger):
    """A target with a budget of its own keeps it, and the evaluation's ceiling holds over it."""
    dataset(50)
    model = Scripted()

    def call(state):
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("model", call).add_edge(START, "model").add_edge("model", END)
    graph = guard(builder, Budget(calls=5), ledger=ledger, nodes=["model"]).compile()
    results = evaluate(lambda inputs: graph.invoke({"messages": [("user", inputs["q"])]}), EvalSpec("qa"), max_calls=20)
    assert model.billed == results.spent.calls == 20


def test_raw_calls_are_charged(evaluate, dataset):
    """What a target charges for calls that LangChain doesn't see counts against the ceiling."""
    dataset(50)

    def target(inputs):
        charge(usd="0.10")
        return {"a": inputs["q"]}

    results = evaluate(target, EvalSpec("qa"), max_cost_usd=1)
    assert results.spent.usd == Decimal(1)


@pytest.mark.parametrize("upload", [True, False])
def test_traced_calls_are_charged(evaluate, dataset, upload):
    """Calls that LangSmith traces but LangChain never sees count after each chunk, each once, LangChain's not again."""
    dataset(50)
    model = Scripted()

    @traceable(run_type="llm", metadata={"ls_model_name": "gpt-4o-mini", "ls_provider": "openai"})
    def raw(question):
        return {
            "text": question,
            "usage_metadata": {"input_tokens": 1_000, "output_tokens": 100, "total_tokens": 1_100},
        }

    @traceable(run_type="llm", metadata={"ls_model_name": "gpt-4o-mini"})
    def around(question):
        return {"text": model.invoke(question).text, "usage_metadata": {"input_tokens": 9, "output_tokens": 9}}

    def target(inputs):
        raw(inputs["q"])
        around(inputs["q"])
        return {"a": inputs["q"]}

    results = evaluate(target, EvalSpec("qa"), max_calls=30, upload_results=upload)
    assert model.billed == len(results) <= 15
    assert results.spent.calls == 2 * len(results)
    assert results.spent.nanousd == 2 * len(results) * NANOUSD_PER_CALL
    assert "no room for another example" in results.stopped


@pytest.mark.filterwarnings("ignore:langsmith.wrappers:DeprecationWarning")
def test_wrapped_openai_is_charged(evaluate, dataset):
    """A target that calls OpenAI's own client, wrapped by LangSmith, is charged by what it reports."""
    openai = pytest.importorskip("openai")
    wrap_openai = pytest.importorskip("langsmith.wrappers").wrap_openai
    dataset(10)
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100},
    }
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    wrapped = wrap_openai(openai.OpenAI(api_key="key", http_client=httpx.Client(transport=transport)))

    def target(inputs):
        messages = [{"role": "user", "content": inputs["q"]}]
        return {"a": wrapped.chat.completions.create(model="gpt-4o-mini", messages=messages).model}

    results = evaluate(target, EvalSpec("qa"))
    assert (results.spent.calls, results.spent.nanousd) == (10, 10 * NANOUSD_PER_CALL)


def test_threads_of_a_target_are_counted(evaluate, dataset):
    """A target may call models in threads that copy its context."""
    dataset(10)
    model = Scripted()
    fan = RunnableLambda(lambda inputs: model.batch([inputs["q"]] * 4))
    results = evaluate(lambda inputs: {"a": str(fan.invoke(inputs))}, EvalSpec("qa", target_calls_per_example=4))
    assert results.spent.calls == model.billed == 40


def test_a_runnable_is_a_target(evaluate, dataset):
    """Runnables are evaluated as they are."""
    dataset(4)
    model = Scripted()
    results = evaluate(RunnableLambda(agent(model)), EvalSpec("qa"))
    assert (len(results), results.spent.calls) == (4, 4)


def test_splits_versions_and_iterables(evaluate, dataset, client):
    """Whatever lists examples can be evaluated, and is counted."""
    dataset(50)
    model = Scripted()
    hard = client.list_examples(dataset_name="qa", splits=["hard"], as_of="latest")
    results = evaluate(agent(model), EvalSpec("qa"), data=hard)
    assert (results.available, model.billed) == (10, 10)


def test_nothing_is_uploaded_where_that_is_said(evaluate, dataset, client, langsmith):
    """`upload_results=False` keeps the ceiling and the results, and sends neither experiment nor run."""
    dataset(50)
    model = Scripted()
    results = evaluate(agent(model, 2), EvalSpec("qa", target_calls_per_example=2), max_calls=20, upload_results=False)
    client.flush()
    assert (len(results), model.billed, results.experiment_id) == (10, 20, None)
    assert not langsmith.seen("POST", "/sessions")
    assert not langsmith.store.runs


async def test_nothing_is_uploaded_by_aevaluate_either(aevaluate, dataset, client, langsmith):
    """The SDK's aevaluate would trace its rows; here they are not sent."""
    dataset(8)
    model = Scripted()
    results = await aevaluate(aagent(model), EvalSpec("qa"), upload_results=False)
    client.flush()
    assert (len(results), model.billed) == (8, 8)
    assert not langsmith.store.runs


def test_summary_evaluators_see_all_rows_once(evaluate, dataset, langsmith):
    """They run over the rows of all chunks together, by name or by position, and their scores are kept."""
    dataset(40)
    calls = []

    def accuracy(outputs, reference_outputs):
        calls.append(len(outputs))
        return {"key": "accuracy", "score": sum(map(dict.__eq__, outputs, reference_outputs)) / len(outputs)}

    def rows(runs, examples):
        return len(runs) + len(examples)

    results = evaluate(agent(Scripted()), EvalSpec("qa"), max_calls=30, summary_evaluators=[accuracy, rows])
    assert calls == [30]
    assert {one.key: one.score for one in results.summary} == {"accuracy": 1.0, "rows": 60}
    assert {row["key"] for row in langsmith.store.feedback.values()} == {"accuracy", "rows"}


def test_ceilings_hold_across_processes(client, dataset, tmp_path):
    """On a ledger in a file, what an evaluation spent can be read by others."""
    dataset(5)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    guarded_evaluate(agent(Scripted()), EvalSpec("qa"), client=client, ledger=ledger, say=None)
    ledger.close()
    with SqliteLedger(tmp_path / "ledger.sqlite") as again:
        assert again.total().calls == 5


def test_chunks_are_announced_once(client, dataset, ledger, capsys):
    """The SDK's lines and bars for each chunk would be noise: one announcement, and what targets print."""
    dataset(40)
    model = Scripted()

    def target(inputs):
        print("target")  # noqa: T201 - that is tried here
        model.invoke(inputs["q"])
        return {"a": "?"}

    results = guarded_evaluate(target, EvalSpec("qa"), max_calls=30, client=client, ledger=ledger)
    out, err = capsys.readouterr()
    assert len(results.parts) > 1
    assert out.count("View the evaluation results") == 1
    assert out.count("target") == 30 + out.count("  target:")
    assert "it/s" not in err


def test_silence_is_silence(evaluate, dataset, capsys):
    """With `say=None`, and where nothing is uploaded, nothing is printed."""
    dataset(10)
    evaluate(agent(Scripted()), EvalSpec("qa"), max_calls=5)
    guarded_evaluate(agent(Scripted()), EvalSpec("l"), data=local(2), upload_results=False, say=None)
    assert capsys.readouterr() == ("", "")


def test_the_rate_of_requests_is_kept(evaluate, dataset):
    """At 600 requests a minute a tenth goes at once, and the others one every ninth of a second."""
    dataset(66)
    times = []
    model = Scripted(before=lambda: times.append(time.monotonic()))
    evaluate(agent(model), EvalSpec("qa"), requests_per_minute=600, safe_concurrency=8)
    assert len(times) == 66
    assert times[-1] - times[0] >= 0.5


def test_the_wrong_kind_of_target_is_told(evaluate, dataset):
    """An async target in guarded_evaluate says which function it needs."""
    dataset(1)
    with pytest.raises(TypeError, match="aguarded_evaluate"):
        evaluate(aagent(Scripted()), EvalSpec("qa"))


async def test_the_wrong_kind_of_target_is_told_on_a_loop(aevaluate, dataset):
    """And the other way round."""
    dataset(1)
    with pytest.raises(TypeError, match="guarded_evaluate"):
        await aevaluate(agent(Scripted()), EvalSpec("qa"))


def test_blocking_false_is_refused(evaluate, dataset):
    """A ceiling that is kept chunk by chunk can't be left alone."""
    dataset(1)
    with pytest.raises(TypeError, match="blocking"):
        evaluate(agent(Scripted()), EvalSpec("qa"), blocking=False)


# -------------------------------------------------------------------------------------------- judging what has run


def test_an_existing_experiment_is_judged_under_the_ceiling(evaluate, dataset, client):
    """Only the evaluators are estimated, run and charged."""
    dataset(10)
    model, judge = Scripted(), Scripted()
    ran = evaluate(agent(model), EvalSpec("qa"))
    client.flush()
    spec = EvalSpec("qa", judge_model="gpt-4o-mini")
    results = evaluate(str(ran.experiment_id), spec, [judging(judge)], max_calls=10)
    assert (model.billed, judge.billed, len(results), results.estimate.calls) == (10, 10, 10, 10)
    with pytest.raises(EvalBudgetError, match="judging exceeds"):
        evaluate(str(ran.experiment_id), spec, [judging(judge)], max_calls=9)


def test_a_comparison_is_judged_under_the_ceiling(evaluate, dataset, client):
    """Two experiments are compared by a judge, one call a pair; its cost is estimated, held and charged."""
    dataset(6)
    first, second = (evaluate(agent(Scripted()), EvalSpec("qa")) for _ in range(2))
    client.flush()
    judge = Scripted()

    def better(runs, example):
        judge.invoke("which one?")
        return {"key": "better", "scores": {run.id: float(i) for i, run in enumerate(runs)}}

    pair = (str(first.experiment_id), str(second.experiment_id))
    results = evaluate(pair, EvalSpec("qa", judge_model="gpt-4o-mini"), [better], max_calls=6)
    assert judge.billed == results.spent_by_evaluators.calls == results.estimate.calls == len(results) == 6


def test_a_judge_that_calls_more_often_than_said_is_stopped(evaluate, dataset, client):
    """The ceiling ends a comparison too; what was compared is in LangSmith."""
    dataset(6)
    pair = [str(evaluate(agent(Scripted()), EvalSpec("qa")).experiment_id) for _ in range(2)]
    client.flush()
    judge = Scripted()

    def better(runs, example):
        for _ in range(3):
            judge.invoke("which one?")
        return {"key": "better", "scores": {run.id: 0.5 for run in runs}}

    results = evaluate(tuple(pair), EvalSpec("qa", judge_model="gpt-4o-mini"), [better], max_calls=7)
    assert judge.billed == results.spent.calls == 7
    assert "7 of 7 calls" in results.stopped


async def test_an_experiment_is_judged_on_an_event_loop(evaluate, aevaluate, dataset, client):
    """Existing experiments and comparisons can be awaited too."""
    dataset(4)
    pair = [str(evaluate(agent(Scripted()), EvalSpec("qa")).experiment_id) for _ in range(2)]
    client.flush()
    judge, spec = Scripted(), EvalSpec("qa", judge_model="gpt-4o-mini")

    def better(runs, example):
        judge.invoke("which one?")
        return {"key": "better", "scores": {run.id: 0.5 for run in runs}}

    assert len(await aevaluate(pair[0], spec, [ajudging(judge)])) == 4
    assert len(await aevaluate(tuple(pair), spec, [better])) == 4
    assert judge.billed == 8


# ------------------------------------------------------------------------------------------------------------ pilots


def test_a_pilot_measures(dataset, client, ledger, langsmith):
    """Five examples give calls and tokens of targets and evaluators, and record nothing in LangSmith."""
    dataset(50)
    model, judge = Scripted(usage=(800, 40)), Scripted(model_name="gpt-4.1", usage=(300, 10))
    spec = EvalSpec("qa", judge_model="gpt-4.1", target_calls_per_example=1)
    measured = pilot(agent(model, 3), spec, [judging(judge)], client=client, ledger=ledger)
    assert (model.billed, judge.billed) == (15, 5)
    assert (measured.target_calls_per_example, measured.judge_calls_per_example) == (3, 1)
    assert (measured.target_input_tokens, measured.target_output_tokens) == (800, 40)
    assert (measured.judge_input_tokens, measured.judge_output_tokens) == (300, 10)
    client.flush()
    assert not langsmith.store.runs
    assert not langsmith.seen("POST", "/sessions")


def test_a_measured_estimate_is_what_it_takes(dataset, client, ledger, evaluate):
    """After a pilot, estimate and sum agree."""
    dataset(30)
    model, judge = Scripted(), Scripted(model_name="gpt-4.1")
    spec = pilot(agent(model, 2), EvalSpec("qa"), [judging(judge)], client=client, ledger=ledger)
    results = evaluate(agent(model, 2), spec, [judging(judge)], num_repetitions=2)
    assert results.estimate.calls == results.spent.calls == 180
    assert results.estimate.usd == results.spent.usd


async def test_a_pilot_of_async_targets(dataset, client, ledger):
    """The same on an event loop."""
    dataset(9)
    measured = await apilot(aagent(Scripted(), 2), EvalSpec("qa"), examples=3, client=client, ledger=ledger)
    assert (measured.target_calls_per_example, measured.measured.calls) == (2, 2)


def test_a_pilot_has_a_ceiling(dataset, client):
    """It can't cost more than it may, either."""
    dataset(9)
    model = Scripted()
    with pytest.raises(RuntimeError, match="measured nothing"):
        pilot(agent(model, 99), EvalSpec("qa"), max_calls=10, client=client, ledger=MemoryLedger())
    assert model.billed == 10


# ------------------------------------------------------------------------------------------------- without LangSmith


def local(count):
    """Give examples that no server knows."""
    return [
        Example(id=uuid4(), dataset_id=uuid4(), inputs={"q": str(i)}, outputs={"a": str(i)}, created_at=NOW)
        for i in range(count)
    ]


def test_local_examples_need_no_langsmith(ledger):
    """With examples of one's own and nothing uploaded, estimate, sample and ceiling hold with nobody reachable."""
    model = Scripted()
    away = Client(api_url=unreachable(), api_key="key", auto_batch_tracing=False)
    spec = EvalSpec("local", judge_model="gpt-4o-mini")
    options = {"data": local(30), "upload_results": False, "client": away, "ledger": ledger, "say": None}
    results = guarded_evaluate(agent(model), spec, [judging(model)], max_calls=20, **options)
    assert (len(results), model.billed, results.spent.calls) == (10, 20, 20)
    assert {row["evaluation_results"]["results"][0].score for row in results} == {1.0}


async def test_local_examples_need_no_langsmith_on_an_event_loop(ledger):
    """The same over aevaluate."""
    model = Scripted()
    away = Client(api_url=unreachable(), api_key="key", auto_batch_tracing=False)
    options = {"data": local(30), "upload_results": False, "client": away, "ledger": ledger, "say": None}
    results = await aguarded_evaluate(aagent(model), EvalSpec("local"), max_calls=20, **options)
    assert (len(results), model.billed) == (20, 20)


async def test_examples_may_come_from_an_async_iterator(ledger):
    """As `aevaluate` takes them."""

    async def some():
        for example in local(5):
            yield example

    model = Scripted()
    options = {"data": some(), "upload_results": False, "ledger": ledger, "say": None}
    assert len(await aguarded_evaluate(aagent(model), EvalSpec("local"), **options)) == model.billed == 5


def test_a_server_that_takes_no_traces_changes_nothing(evaluate, dataset, client, langsmith):
    """Runs that LangSmith refuses are lost to it, but the ceiling and the rows are what they were."""
    dataset(30)
    langsmith.fail(429, "/runs")
    model = Scripted()
    results = evaluate(agent(model), EvalSpec("qa"), max_calls=20)
    assert (len(results), model.billed) == (20, 20)


def test_langsmiths_own_total_is_ours(evaluate, dataset, client):
    """What LangSmith shows as the experiment's cost is what its targets spent here."""
    dataset(10)
    results = evaluate(agent(Scripted(), 2), EvalSpec("qa"))
    client.flush()
    shown = client.read_project(project_id=results.experiment_id, include_stats=True)
    assert Decimal(str(shown.total_cost)) == results.spent_by_targets.usd
    assert shown.total_tokens == results.spent_by_targets.input_tokens + results.spent_by_targets.output_tokens
