"""Facts about LangChain's agents and LangGraph's functional API that the middleware and the workflows rely on."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, after_agent
from langchain.agents.middleware.types import ModelResponse, PrivateStateAttr
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import tool
from langchain_core.tracers.context import register_configure_hook
from langgraph._internal import _constants as keys
from langgraph.channels import BinaryOperatorAggregate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from tests.conftest import thread
from tests.scripted import Scripted

CONFIG = thread("t")


@tool
def x() -> str:
    """Never run."""
    raise AssertionError


class Known(BinaryOperatorAggregate):
    """A channel that knows something."""

    knows: str = "nothing"

    def copy(self) -> Any:
        new = super().copy()
        new.knows = self.knows
        return new

    def from_checkpoint(self, checkpoint: Any) -> Any:
        new = super().from_checkpoint(checkpoint)
        new.knows = self.knows
        return new


def test_a_channel_in_an_instances_state_schema_is_the_agents_channel():
    """`create_agent` takes `state_schema` from the middleware object, and a channel object in it as it is."""
    found: list[Any] = []

    class Looks(AgentMiddleware):
        def __init__(self) -> None:
            super().__init__()
            field = Known(dict, lambda old, new: {**old, **new})
            field.knows = "me"
            fields = {"kept": NotRequired[Annotated[dict[str, object], field, PrivateStateAttr]]}
            self.state_schema = TypedDict("Fields", fields)

        def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
            read = get_config()["configurable"][keys.CONFIG_KEY_READ]
            found.extend(part["kept"] for part in read.args if isinstance(part, dict) and "kept" in part)
            return {"kept": {"a": 1}}

    out = create_agent(Scripted(), middleware=[Looks()]).invoke({"messages": "hi"})

    assert [channel.knows for channel in found] == ["me"]
    assert set(out) == {"messages"}


def test_a_jump_written_by_the_model_node_leads_to_the_end_of_the_agent():
    """`jump_to` among the model node's own writes is read by its edge, and `after_agent` hooks run."""
    ended: list[bool] = []

    class Stops(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            get_config()["configurable"][keys.CONFIG_KEY_SEND]([("jump_to", "end")])
            return ModelResponse(result=[AIMessage("", tool_calls=[{"name": "x", "args": {}, "id": "1"}])])

    @after_agent
    def bye(state: Any, runtime: Any) -> None:
        ended.append(True)

    create_agent(Scripted(), [x], middleware=[Stops(), bye]).invoke({"messages": "hi"})

    assert ended == [True]


def test_a_configure_hook_is_asked_with_get_at_each_run():
    """What is registered needs no more than `get()`, which is called whenever a run is configured."""
    started: list[str] = []

    class Hears(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            started.append("call")

    class Sometimes:
        on = True

        def get(self) -> Hears | None:
            return Hears() if self.on else None

    source = Sometimes()
    register_configure_hook(source, inheritable=False)
    Scripted().invoke("hi")
    source.on = False
    Scripted().invoke("hi")

    assert started == ["call"]


def test_tasks_are_started_through_the_config_and_known_by_their_functions_name():
    """A `@task` is started by the function in the config in force, which may be replaced, under its own name."""
    saver, started = InMemorySaver(), []

    @task
    def say() -> str:
        return str(get_config()["metadata"]["langgraph_node"])

    @entrypoint(checkpointer=saver)
    def story(given: str) -> str:
        config = get_config()
        start = config["configurable"][keys.CONFIG_KEY_CALL]

        def starting(func: Any, *args: Any, **kwargs: Any) -> Any:
            started.append(func.__name__)
            return start(func, *args, **kwargs)

        changed = {**config, "configurable": {**config["configurable"], keys.CONFIG_KEY_CALL: starting}}
        token = var_child_runnable_config.set(changed)
        try:
            return say().result()
        finally:
            var_child_runnable_config.reset(token)

    assert story.invoke("go", CONFIG) == "say"
    assert started == ["say"]


def test_what_a_task_writes_is_saved_with_its_result_and_applied_after_the_entrypoints_own_writes():
    """Writes to other channels go with a finished task across an interrupt, are applied once, and come last."""
    saver = InMemorySaver()

    @task
    def say() -> str:
        get_config()["configurable"][keys.CONFIG_KEY_SEND]([("log", ["task"])])
        return "said"

    @entrypoint(checkpointer=saver)
    def story(given: str) -> str:
        said = say().result()
        answer = interrupt("well?")
        get_config()["configurable"][keys.CONFIG_KEY_SEND]([("log", ["entrypoint"])])
        return said + answer

    log = BinaryOperatorAggregate(list, lambda old, new: [*old, *new])
    log.key = "log"
    story.channels["log"] = log
    story.invoke("go", CONFIG)

    assert story.invoke(Command(resume="!"), CONFIG) == "said!"
    assert saver.get_tuple(CONFIG).checkpoint["channel_values"]["log"] == ["entrypoint", "task"]


def test_a_subgraph_without_memory_is_not_shown_as_one():
    """LangGraph lists no subgraph for a node whose graph has `checkpointer=False`."""
    inner = StateGraph(MessagesState)
    inner.add_node("a", lambda state: {})
    inner.add_edge(START, "a")
    builder = StateGraph(MessagesState)
    builder.add_node("sub", inner.compile(checkpointer=False))
    builder.add_edge(START, "sub")

    assert list(builder.compile().get_subgraphs()) == []
