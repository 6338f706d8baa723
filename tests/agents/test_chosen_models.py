"""Models that are chosen at run time are charged at the price of the one that answered; a real shell, real files."""

from __future__ import annotations

from typing import Any

import langchain.agents.middleware as middlewares
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HostExecutionPolicy,
    ShellToolMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy
from langchain.chat_models import init_chat_model
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from graphguard import Budget, MemoryLedger, PriceBook, Spend, Usage, guard
from graphguard.middleware import BudgetMiddleware
from tests.conftest import thread
from tests.needs import FILE_SEARCH, skip_without
from tests.recorded.server import Answer, RecordedServer
from tests.scripted import Scripted, tool_call

CONFIG = thread("t")
HI = {"messages": [HumanMessage("hi")]}
over_modes = pytest.mark.parametrize("mode", ["sync", "async"])


@pytest.fixture(scope="module")
def server():
    """Give a server that answers as OpenAI does."""
    with RecordedServer() as running:
        yield running


def completion(model: str, content: str = "done") -> Answer:
    """Give an answer of a model."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
    return Answer.of({"id": "1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage})


def guarded(kind: str, model: Any, ledger: MemoryLedger, **options: Any) -> Any:
    """Give an agent with a budget, as middleware or by guard."""
    budget = Budget(usd=1, calls=9)
    if kind == "middleware":
        own = options.pop("middleware", [])
        return create_agent(model, middleware=[BudgetMiddleware(budget, ledger=ledger), *own], **options)
    return guard(create_agent(model, **options), budget, ledger=ledger)


over_kinds = pytest.mark.parametrize("kind", ["guard", "middleware"])


@over_kinds
@over_modes
@pytest.mark.parametrize("chosen", ["gpt-5-nano", "gpt-4o"])
async def test_a_configured_model_is_charged_at_its_own_price(chosen, mode, kind, server):
    """A model that the config names is priced by what answered, whatever the agent was made with."""
    lane, ledger = server.lane([completion(chosen)]), MemoryLedger()
    model = init_chat_model(
        "openai:gpt-4o-mini",
        configurable_fields=("model",),
        base_url=f"{lane.url}/v1",
        api_key="none",
        max_tokens=100,
    )
    graph = guarded(kind, model, ledger)
    config = {"configurable": {"model": chosen}}

    graph.invoke(HI, config) if mode == "sync" else await graph.ainvoke(HI, config)

    cost = PriceBook().cost(Usage(input_tokens=1_000, output_tokens=100), chosen, "openai")
    assert ledger.total().nanousd == cost
    assert [charge.model for charge in ledger.charges()] == [chosen]


@over_kinds
async def test_a_model_chosen_by_middleware_is_charged_at_its_own_price(kind):
    """A model that other middleware puts into the request is priced by its name."""
    dear, ledger = Scripted(model_name="gpt-4o"), MemoryLedger()

    class Chooser(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model=dear))

    guarded(kind, Scripted(), ledger, middleware=[Chooser()]).invoke(HI)

    assert [charge.model for charge in ledger.charges()] == ["gpt-4o"]
    assert ledger.total().nanousd == PriceBook().cost(Usage(input_tokens=1_000, output_tokens=100), "gpt-4o", "openai")


class Sum(BaseModel):
    """What came out."""

    total: int


@over_kinds
def test_structured_output_of_the_provider_is_charged(kind, server):
    """An answer in the provider's own structured form counts like any other."""
    lane, ledger = server.lane([completion("gpt-4o-mini", '{"total": 3}')]), MemoryLedger()
    model = init_chat_model("openai:gpt-4o-mini", base_url=f"{lane.url}/v1", api_key="none", max_tokens=100)
    graph = guarded(kind, model, ledger, response_format=ProviderStrategy(Sum))

    assert graph.invoke(HI)["structured_response"] == Sum(total=3)
    assert ledger.total().calls == len(lane.billed) == 1


@over_kinds
def test_a_search_in_files_runs_unchanged(kind, tmp_path):
    """Tools that middleware brings run as they did, and cost nothing."""
    (tmp_path / "notes.md").write_text("hello")
    model, ledger = Scripted(script=[tool_call("glob_search", pattern="*.md"), "done"]), MemoryLedger()
    skip_without(*FILE_SEARCH)
    search = middlewares.FilesystemFileSearchMiddleware(root_path=str(tmp_path), use_ripgrep=False)
    graph = guarded(kind, model, ledger, middleware=[search], checkpointer=InMemorySaver())

    out = graph.invoke(HI, CONFIG)

    assert "notes.md" in out["messages"][2].content
    assert model.billed == ledger.total().calls == Spend.of(graph.get_state(CONFIG)).calls == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # LangChain leaves its pipes open
@over_kinds
def test_a_shell_runs_unchanged(kind, tmp_path):
    """The shell tool's session is there for the whole run, and its output is what it is without a budget."""
    model, ledger = Scripted(script=[tool_call("shell", command="echo here > f; cat f"), "done"]), MemoryLedger()
    shell = ShellToolMiddleware(workspace_root=tmp_path, execution_policy=HostExecutionPolicy())
    graph = guarded(kind, model, ledger, middleware=[shell])

    out = graph.invoke(HI)

    assert "here" in out["messages"][2].content
    assert model.billed == ledger.total().calls == 2
