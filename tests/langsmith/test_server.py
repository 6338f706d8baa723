"""The server of the tests, asked by the real SDK."""

from __future__ import annotations

import asyncio
import datetime as dt
import time

import langsmith as sdk
import pytest
from langchain_core.prompts import ChatPromptTemplate
from langsmith import Client, aevaluate, evaluate, get_current_run_tree, traceable, tracing_context
from langsmith.utils import LangSmithConnectionError, LangSmithNotFoundError
from urllib3 import Retry

from tests.langsmith.server import unreachable

DAY_AGO = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
USAGE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


@traceable(run_type="llm", metadata={"ls_model_name": "tiny"})
def model(question: str, cost: float | None = None) -> dict[str, object]:
    """Answer, and say what it used."""
    return {"text": question, "usage_metadata": USAGE | ({"total_cost": cost} if cost is not None else {})}


@traceable
def child(question: str, cost: float | None = None) -> str:
    """Mark its own live run; the SDK hands metadata down to the runs below, tags not."""
    run = get_current_run_tree()
    run.add_tags(["tagged"])
    run.add_metadata({"why": "tried", "count": 3})
    return str(model(question, cost)["text"])


@traceable
def root(question: str, cost: float | None = None) -> str:
    """Call twice."""
    return child(question, cost) + child(question, cost)


def query(client: Client, **asked: object) -> list[sdk.types.Run]:
    """Give runs of the project "tests" by the SDK's synchronous query of the second generation."""
    project = str(client.read_project(project_name="tests").id)
    with sdk.Langsmith(base_url=client.api_url, api_key="key-of-the-tests") as api:
        found = api.runs.query(
            project_ids=[project],
            selects=["NAME", "TOTAL_COST", "TOTAL_TOKENS", "TAGS", "METADATA"],
            min_start_time=DAY_AGO,
            include_subtree_usage=True,
            **asked,
        )
        return list(found)


@pytest.mark.parametrize(
    ("zstd", "multipart", "path"),
    [(True, True, "/runs/multipart"), (False, True, "/runs/multipart"), (False, False, "/runs/batch")],
    ids=["zstd", "multipart", "batch"],
)
def test_a_trace_arrives_in_every_form_that_the_sdk_sends(langsmith, traced, zstd, multipart, path):
    """The tree is whole, and what was set on the live run tree is in its last write."""
    langsmith.info["instance_flags"]["zstd_compression_enabled"] = zstd
    langsmith.info["batch_ingest_config"]["use_multipart_endpoint"] = multipart

    for _ in range(2):  # before the first request, a client does not know what the server understands
        with traced():
            root("q")

    assert langsmith.seen("POST", path)[-1].packed == ("zstd" if zstd else "")
    _, top = langsmith.store.named("root")
    children = [run for run in langsmith.store.named("child") if run["parent_run_id"] == top["id"]]
    assert [run["tags"] for run in children] == [["tagged"]] * 2
    assert children[0]["extra"]["metadata"]["why"] == "tried"


def test_a_run_of_an_unbatched_client_is_posted_and_patched(langsmith):
    """Without batching, a run is one POST and one PATCH."""
    with tracing_context(enabled=True, client=langsmith.client(auto_batch_tracing=False)):
        model("q")

    assert [one.method for one in langsmith.requests if one.path.startswith("/runs")] == ["POST", "PATCH"]
    assert langsmith.store.named("model")[0]["end_time"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('has(tags, "tagged")', ["child", "child"]),
        ('and(has(tags, "tagged"), eq(name, "root"))', []),
        ('or(eq(name, "root"), has(tags, "tagged"))', ["child", "child", "root"]),
        ('not(has(tags, "tagged"))', ["model", "model", "root"]),
        ('and(eq(metadata_key, "why"), eq(metadata_value, "tried"))', ["child", "child", "model", "model"]),
        ('and(eq(metadata_key, "why"), eq(metadata_value, "3"))', []),
        ("gt(total_tokens, 200)", ["root"]),
    ],
)
def test_queries_understand_the_filter_language(client, traced, expression, names):
    """A filter finds the runs that it describes."""
    with traced():
        root("q")

    assert sorted(run.name for run in query(client, filter=expression)) == names


def test_a_written_cost_wins_over_the_servers_prices_and_is_summed_up_the_tree(langsmith, client, traced):
    """The root's cost is the sum of what its calls cost, as the client wrote it or else by the server's prices."""
    langsmith.store.prices["tiny"] = (1.0, 2.0)
    with traced():
        root("q", 0.25)
        root("q")

    assert sorted(run.total_cost for run in query(client, is_root=True)) == [0.0004, 0.5]
    assert sorted(run.total_tokens for run in query(client, is_root=True)) == [300, 300]
    assert client.get_run_stats(project_names=["tests"], is_root=True)["total_cost"] == "0.5004"
    assert client.read_project(project_name="tests", include_stats=True).run_count == 2


def test_duplicates_are_refused_when_switched_on(langsmith, client, traced):
    """What a second PATCH of a run says is not kept."""
    langsmith.store.refuse_duplicates = True
    with traced():
        root("q")
    top = langsmith.store.named("root")[0]

    with pytest.raises(sdk.utils.LangSmithConflictError):
        client.update_run(top["id"], tags=["late"])

    assert langsmith.store.named("root")[0]["tags"] == []


def test_failures_are_given_as_often_as_asked(langsmith, client):
    """One 404, which is not retried below the SDK as 429 and 5xx are, then the answer."""
    langsmith.fail(404, "/sessions", times=1)

    with pytest.raises(LangSmithNotFoundError):
        client.request_with_retries("GET", "/sessions")

    assert client.request_with_retries("GET", "/sessions").status_code == 200


def test_a_quota_refuses_what_comes_after_it(langsmith, client):
    """Of three traces, the server keeps the two that its quota has room for."""
    langsmith.quota = 2
    with tracing_context(enabled=True, client=client):
        for _ in range(3):
            model("q")
            client.flush()

    assert len(langsmith.store.named("model")) == 2


def test_answers_are_as_late_as_asked(langsmith, client):
    """The switch delays every answer."""
    langsmith.latency = 0.05
    began = time.perf_counter()

    client.request_with_retries("GET", "/sessions")

    assert time.perf_counter() - began >= 0.05


def test_nobody_listens_at_an_unreachable_url():
    """A client of that URL is refused at once."""
    client = Client(
        api_url=unreachable(), api_key="key-of-the-tests", auto_batch_tracing=False, retry_config=Retry(total=0)
    )

    with pytest.raises(LangSmithConnectionError):
        client.request_with_retries("GET", "/sessions")


def test_feedback_is_kept_with_its_run(langsmith, client, traced):
    """Queued and direct feedback are both found, and queries see them."""
    with traced():
        root("q")
    top = langsmith.store.named("root")[0]

    client.create_feedback(run_id=top["id"], trace_id=top["id"], session_id=top["session_id"], key="queued", score=1)
    client.flush()

    assert [(one.key, one.score) for one in client.list_feedback(run_ids=[top["id"]])] == [("queued", 1.0)]
    assert [run.name for run in query(client, filter='eq(feedback_key, "queued")')] == ["root"]


@pytest.mark.filterwarnings(
    "ignore:'outputs' is deprecated:DeprecationWarning"
)  # its successor is newer than our floor
def test_evaluations_of_both_kinds_are_experiments(langsmith, client):
    """`evaluate` and `aevaluate` each leave an experiment with a run per row, and their scores."""
    dataset = client.create_dataset("questions")
    examples = [
        {"inputs": {"q": str(n)}, "outputs": {"a": str(n)}, "split": "even" if n % 2 == 0 else "odd"} for n in range(5)
    ]
    client.create_examples(dataset_id=dataset.id, examples=examples)

    async def target(inputs):
        return {"a": inputs["q"]}

    def right(outputs, reference_outputs):
        return outputs == reference_outputs

    one = evaluate(lambda inputs: {"a": inputs["q"]}, data="questions", evaluators=[right], client=client)
    odd = client.list_examples(dataset_name="questions", splits=["odd"])
    other = asyncio.run(aevaluate(target, data=odd, evaluators=[right], client=client))
    client.flush()

    stats = {
        name: client.read_project(project_name=name, include_stats=True)
        for name in (one.experiment_name, other.experiment_name)
    }
    assert [project.run_count for project in stats.values()] == [5, 2]
    assert sum(entry["key"] == "right" for entry in langsmith.store.feedback.values()) == 7
    assert client.list_dataset_splits(dataset_name="questions") == ["even", "odd"]


def test_prompts_are_pushed_and_pulled_by_version(client):
    """The latest version, an older one by its hash, and one by its tag."""
    first = client.push_prompt("asker", object=ChatPromptTemplate.from_messages([("user", "a {q}")]))
    client.push_prompt("asker", object=ChatPromptTemplate.from_messages([("user", "b {q}")]), commit_tags="prod")

    texts = {
        ref: client.pull_prompt(ref).format(q="?")
        for ref in ("asker", "asker:prod", f"asker:{first.split('/')[-1][:8]}")
    }

    assert [text[-3:] for text in texts.values()][:2] == ["b ?", "b ?"]
