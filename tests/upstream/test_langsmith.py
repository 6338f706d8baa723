"""Facts about LangSmith's SDK that the guards around it rely on, or that were said of it and don't hold."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client, ContextThreadPoolExecutor, get_current_run_tree, run_helpers, traceable, tracing_context
from pydantic import BaseModel, ValidationError

from tests.langsmith.server import LangSmithServer
from tests.needs import needs
from tests.scripted import Scripted, tool_call

pytestmark = needs("langsmith", "0.14.0", "what the guards around LangSmith are built on")


@pytest.fixture(name="server")
def server_fixture():
    """Give a server that speaks LangSmith's protocol."""
    with LangSmithServer() as server:
        yield server


@pytest.mark.parametrize("enabled", [False, True])
def test_a_count_in_the_context_is_lost_when_a_traced_body_returns(server, enabled):
    """@traceable runs a body in a copy of the context, with tracing on and off: a hundred siblings all see zero."""
    count: ContextVar[int] = ContextVar("count", default=0)
    seen: list[int] = []

    @traceable
    def step() -> None:
        seen.append(count.get())
        count.set(count.get() + 1)

    @traceable
    def root() -> None:
        for _ in range(100):
            step()

    with tracing_context(enabled=enabled, client=server.client()):
        root()

    assert seen == [0] * 100


def test_runs_are_sent_in_batches(server):
    """Fifty-one runs are a handful of requests made by one thread, not a hundred made by a pool of ten."""
    client = server.client()

    @traceable
    def step() -> None:
        pass

    @traceable
    def root() -> None:
        for _ in range(50):
            step()

    with tracing_context(enabled=True, client=client):
        root()
    client.flush()

    assert len(server.store.runs) == 51
    assert len(server.seen("POST", "/runs/multipart")) <= 5


def test_update_run_on_a_live_run_is_not_in_the_runs_own_last_write(server):
    """It is a request that the caller waits for, and that ends the run; when the run ends, it writes no such tag."""
    client = server.client()

    @traceable
    def step() -> str:
        client.update_run(get_current_run_tree().id, tags=["stopped"])
        patched = server.seen("PATCH", "/runs/.*")
        assert len(patched) == 1
        return str(patched[0].json["end_time"])

    with tracing_context(enabled=True, client=client):
        assert step() != "None"
    client.flush()

    assert [write["tags"] for _, write in server.store.writes][-1] == []


def test_the_live_run_tree_keeps_what_it_is_told(server):
    """Tags, metadata and an error that are set on it are in its own last write, without any other request."""
    client = server.client()

    @traceable
    def step() -> None:
        run = get_current_run_tree()
        run.add_tags(["stopped"])
        run.add_metadata({"why": "enough"})
        run.error = "refused"

    with tracing_context(enabled=True, client=client):
        step()
    client.flush()

    (run,) = server.store.named("step")
    assert (run["tags"], run["error"], run["extra"]["metadata"]["why"]) == (["stopped"], "refused", "enough")
    assert server.seen("PATCH", "/runs/.*") == []


def test_threads_are_daemons_where_the_client_says_so(server):
    """The attribute is read when the threads are started, so that a subclass can say it."""

    class Leaving(Client):
        _use_daemon_threads = property(lambda _: True, lambda _, __: None)

    before = set(threading.enumerate())
    client = Leaving(api_url=server.url, api_key="key-of-the-tests")
    server.closing(client)
    step = traceable(name="step")(lambda: None)
    with tracing_context(enabled=True, client=client):
        step()
    client.flush()

    started = [thread for thread in set(threading.enumerate()) - before if "tracing" in thread.name]
    assert started
    assert all(thread.daemon for thread in started)


def test_structured_output_is_not_asked_for_again():
    """with_structured_output() makes one call, and raises when its answer doesn't fit."""

    class Report(BaseModel):
        pages: int

    model = Scripted(script=[tool_call("Report", pages="many")])

    with pytest.raises(ValidationError):
        model.with_structured_output(Report).invoke("q")

    assert model.billed == 1


def test_handlers_hear_of_an_end_in_the_order_of_their_managers_list(server):
    """A handler that moves itself in the manager's list while it hears of a start is told of the end in that place."""
    heard: list[str] = []

    class First(BaseCallbackHandler):
        manager: CallbackManager

        def on_llm_start(self, *_: object, **__: object) -> None:
            self.manager.handlers.remove(self)
            self.manager.handlers.insert(0, self)

        def on_llm_end(self, *_: object, **__: object) -> None:
            heard.append("first")

    class Other(BaseCallbackHandler):
        def on_llm_end(self, *_: object, **__: object) -> None:
            heard.append("other")

    first = First()
    manager = first.manager = CallbackManager([Other(), first])
    (run,) = manager.on_llm_start({}, ["q"])
    run.on_llm_end(None)

    assert heard == ["first", "other"]


@needs("langchain-core", "1.2.0", "usage in the metadata of traced runs")
def test_a_tracer_puts_the_usage_into_the_metadata_that_a_run_has(server):
    """When a call ends, its tokens are set as one item of the run's metadata, before the run is written."""
    client = server.client()
    tracer = LangChainTracer(client=client)
    items: list[str] = []

    class Watched(dict[str, object]):
        def __setitem__(self, key: str, value: object) -> None:
            items.append(key)
            super().__setitem__(key, value)

    class Watching(BaseCallbackHandler):
        def on_chat_model_start(self, *_: object, run_id: object, **__: object) -> None:
            run = tracer.run_map[str(run_id)]
            run.extra["metadata"] = Watched(run.extra["metadata"])

    Scripted().invoke("q", {"callbacks": [tracer, Watching()]})
    client.flush()

    assert items == ["usage_metadata"]
    assert server.store.named("Scripted")[0]["extra"]["metadata"]["usage_metadata"]["input_tokens"] == 1_000


@pytest.mark.parametrize("enabled", [False, True])
def test_a_call_is_prepared_by_a_function_that_gives_the_bodys_context(server, monkeypatch, enabled):
    """What a step after it puts into that context is what the body, and what the body starts, finds there."""
    mark: ContextVar[str] = ContextVar("mark", default="none")
    prepare = run_helpers._setup_run  # noqa: SLF001 - the fact is about it
    runs: list[bool] = []

    def prepared(*args: object, **kwargs: object) -> object:
        container = prepare(*args, **kwargs)
        runs.append(container["new_run"] is not None)
        container["context"].run(mark.set, "made")
        return container

    @traceable
    def step() -> str:
        with ContextThreadPoolExecutor(1) as pool:
            return pool.submit(mark.get).result()

    monkeypatch.setattr(run_helpers, "_setup_run", prepared)
    with tracing_context(enabled=enabled, client=server.client()):
        assert (step(), mark.get()) == ("made", "none")

    assert runs == [enabled]
