"""What a guard costs: time per model call and bytes of state, beside the same graph without one.

Every figure is a ratio of two times taken side by side in one process. README.md says how to read them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware, before_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from graphguard import Budget, Spend, guard, model_nodes
from graphguard.ledger import MemoryLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.runnables import Runnable, RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

CALLS: Final = 30
"""Model calls in one invoke."""

NODE_GOAL: Final = 1.25
"""The most that a gate node may cost, times the graph with one no-op node more."""

INLINE_GOAL: Final = 1.15
"""The most that an inline gate may cost, times the bare graph."""

BYTES_GOAL: Final = 500
"""What the serialized state may grow by, however many calls were made."""

_BUDGET: Final = Budget(usd=1_000_000, calls=1_000_000_000)
_TOLD: Final = "The parcel left the warehouse in the morning and is on its way; nothing else is known about it so far."
_SAVERS: Final = ("none", "memory", "sqlite")


class Looping(BaseChatModel):
    """Asks for a tool until it has been called `calls` times in the conversation, then answers."""

    calls: int = CALLS
    max_tokens: int = 100

    @property
    def _llm_type(self) -> str:
        return "looping"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: object) -> dict[str, object]:  # type: ignore[override] # a plain dict
        """Name a listed model, so that calls are priced, and a cap, so that their worst case is known."""
        del stop, kwargs
        return {
            "ls_provider": "openai",
            "ls_model_name": "gpt-4o-mini",
            "ls_model_type": "chat",
            "ls_max_tokens": self.max_tokens,
        }

    def bind_tools(self, tools: Sequence[BaseTool], **kwargs: object) -> Runnable[LanguageModelInput, AIMessage]:  # type: ignore[override] # narrower
        """Offer tools as integrations do: their schemas go along with each call."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _answer(self, messages: list[BaseMessage]) -> ChatResult:
        asked = sum(isinstance(message, AIMessage) for message in messages)
        more = asked + 1 < self.calls
        message = AIMessage(
            _TOLD,
            tool_calls=[{"name": "track", "args": {"parcel": f"p{asked}"}, "id": f"call-{asked}"}] if more else [],
            usage_metadata={"input_tokens": 50 + 60 * asked, "output_tokens": 30, "total_tokens": 80 + 60 * asked},
            response_metadata={"model_name": "gpt-4o-mini", "model_provider": "openai"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> ChatResult:
        del stop, run_manager, kwargs
        return self._answer(messages)

    async def _agenerate(self, messages: list[BaseMessage], *_: object, **__: object) -> ChatResult:
        return self._answer(messages)


class State(TypedDict):
    """A conversation."""

    messages: Annotated[list[BaseMessage], add_messages]


def loop(*, calls: int = CALLS, noop: bool = False, aio: bool = False) -> StateGraph[State]:
    """Give an agent's loop drawn by hand: a model node, a tool node, and maybe a node that does nothing."""
    model = Looping(calls=calls).bind_tools([track])

    def agent(state: State) -> dict[str, object]:
        return {"messages": [model.invoke(state["messages"])]}

    async def aagent(state: State) -> dict[str, object]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def tools(state: State) -> dict[str, object]:
        return {"messages": [ToolMessage(_TOLD, tool_call_id=id_) for id_ in _asked(state)]}

    async def atools(state: State) -> dict[str, object]:
        return tools(state)

    async def anothing(_: State) -> dict[str, object]:
        return {}

    graph = StateGraph(State)
    graph.add_node("agent", aagent if aio else agent)
    graph.add_node("tools", atools if aio else tools)
    first = "agent"
    if noop:
        first = "nothing"
        graph.add_node("nothing", anothing if aio else lambda _: {})
        graph.add_edge("nothing", "agent")
    graph.add_edge(START, first)
    graph.add_edge("tools", first)
    graph.add_conditional_edges("agent", lambda state: "tools" if _asked(state) else END, ["tools", END])
    return graph


def _asked(state: State) -> list[str]:
    last = state["messages"][-1]
    return [str(call["id"]) for call in last.tool_calls] if isinstance(last, AIMessage) else []


@tool
def track(parcel: str) -> str:
    """Say where a parcel is."""
    del parcel
    return _TOLD


@tool("track")
async def atrack(parcel: str) -> str:
    """Say where a parcel is."""
    del parcel
    return _TOLD


@before_model
def nothing(state: object, runtime: object) -> None:
    """Do nothing, in a node of its own before each model call."""
    del state, runtime


@before_model(name="nothing")
async def anothing(state: object, runtime: object) -> None:
    """Do nothing, in a node of its own before each model call."""
    del state, runtime


def _guarded(graph: CompiledStateGraph, gate: str) -> CompiledStateGraph:
    # A ledger of its own, so that no variant's accounts make another's slower.
    new = guard(graph, _BUDGET, gate=gate, ledger=MemoryLedger())
    placed = {name: node.gate for name, node in model_nodes(new).items()}
    assert gate == "inline" or list(placed.values()) == ["node"], placed
    return new


def by_hand(saver: BaseCheckpointSaver[str] | None, *, aio: bool) -> dict[str, CompiledStateGraph]:
    """Give the variants of the hand-drawn loop."""
    bare = loop(aio=aio).compile(checkpointer=saver)
    return {
        "bare": bare,
        "one no-op node": loop(aio=aio, noop=True).compile(checkpointer=saver),
        "gate node": _guarded(bare, "auto"),
        "inline gate": _guarded(bare, "inline"),
    }


def by_langchain(saver: BaseCheckpointSaver[str] | None, *, aio: bool) -> dict[str, CompiledStateGraph]:
    """Give the variants of `create_agent`'s loop."""

    def agent(*middleware: AgentMiddleware) -> CompiledStateGraph:
        return create_agent(Looping(), [atrack if aio else track], middleware=middleware, checkpointer=saver)

    bare = agent()
    return {
        "bare": bare,
        "one no-op node": agent(anothing if aio else nothing),
        "ModelCallLimitMiddleware": agent(ModelCallLimitMiddleware(run_limit=1_000_000)),
        "gate node": _guarded(bare, "node"),
        "inline gate": _guarded(bare, "inline"),
    }


SHAPES: Final[Mapping[str, Callable[..., dict[str, CompiledStateGraph]]]] = {
    "hand-drawn loop": by_hand,
    "create_agent": by_langchain,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds per model call, one entry for each round, by variant."""

    wall: Mapping[str, Sequence[float]]
    cpu: Mapping[str, Sequence[float]]


def ratio(times: Mapping[str, Sequence[float]], name: str, of: str) -> float:
    """Give the median over the rounds of one variant's time by another's, both of the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[of], strict=True))


class Rounds:
    """Runs the variants in turn, and writes down what each took."""

    def __init__(self, variants: Mapping[str, CompiledStateGraph], saver: BaseCheckpointSaver[str] | None) -> None:
        """Measure these, which all use this saver."""
        self.variants = variants
        self.saver = saver
        self.wall: defaultdict[str, list[float]] = defaultdict(list)
        self.cpu: defaultdict[str, list[float]] = defaultdict(list)
        self._run = 0

    def order(self) -> list[str]:
        """Give the names, beginning with another one each round: what comes first finds other caches."""
        names = list(self.variants)
        start = self._run % len(names)
        return [*names[start:], *names[:start]]

    def begin(self) -> tuple[dict[str, object], RunnableConfig, float, float]:
        """Give a new thread's input and config, and the clocks."""
        self._run += 1
        config: RunnableConfig = {"configurable": {"thread_id": f"t{self._run}"}}
        gc.collect()
        return {"messages": [HumanMessage("Where is my parcel?")]}, config, time.perf_counter(), time.process_time()

    def end(self, name: str, result: Mapping[str, object], wall: float, cpu: float) -> None:
        """Write down one run."""
        self.wall[name].append((time.perf_counter() - wall) / CALLS)
        self.cpu[name].append((time.process_time() - cpu) / CALLS)
        messages = result["messages"]
        assert isinstance(messages, list)
        assert sum(isinstance(message, AIMessage) for message in messages) == CALLS

    def run(self, rounds: int) -> Times:
        """Measure `invoke`; the first two rounds don't count."""
        for _ in range(rounds + 2):
            for name in self.order():
                given, config, wall, cpu = self.begin()
                self.end(name, self.variants[name].invoke(given, config), wall, cpu)
                if self.saver is not None:
                    self.saver.delete_thread(f"t{self._run}")
        return self._times()

    async def arun(self, rounds: int) -> Times:
        """Measure `ainvoke`; the first two rounds don't count."""
        for _ in range(rounds + 2):
            for name in self.order():
                given, config, wall, cpu = self.begin()
                self.end(name, await self.variants[name].ainvoke(given, config), wall, cpu)
                if self.saver is not None:
                    await self.saver.adelete_thread(f"t{self._run}")
        return self._times()

    def _times(self) -> Times:
        return Times(
            wall={name: times[2:] for name, times in self.wall.items()},
            cpu={name: times[2:] for name, times in self.cpu.items()},
        )


def measure(shape: str, saver: str, rounds: int) -> Times:
    """Measure one shape with one kind of checkpointer: `"none"`, `"memory"` or `"sqlite"`."""
    with ExitStack() as stack:
        found: BaseCheckpointSaver[str] | None = InMemorySaver() if saver == "memory" else None
        if saver == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            found = stack.enter_context(SqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.sqlite")))
        return Rounds(SHAPES[shape](found, aio=False), found).run(rounds)


async def ameasure(shape: str, saver: str, rounds: int) -> Times:
    """Measure the same with `ainvoke`."""
    async with AsyncExitStack() as stack:
        found: BaseCheckpointSaver[str] | None = InMemorySaver() if saver == "memory" else None
        if saver == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = str(Path(folder) / "checkpoints.sqlite")
            found = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
        return await Rounds(SHAPES[shape](found, aio=True), found).arun(rounds)


def state_bytes(calls: int) -> int:
    """Give the bytes by which a guard makes the saved state grow, after this many calls."""
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    narrowed = Budget(calls=1_000_000_000, model="gpt-4o-mini")
    graph = guard(loop(calls=calls), _BUDGET, narrowed, ledger=MemoryLedger()).compile(checkpointer=InMemorySaver())
    graph.invoke({"messages": [HumanMessage("Where is my parcel?")]}, config)
    values = graph.get_state(config).values
    assert Spend.of(values).calls == calls
    ours = {field: values[field] for field in ("spend", "trip") if field in values}
    return len(JsonPlusSerializer().dumps_typed(ours)[1])


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report: a shape with a checkpointer, a variant, what it is compared with, and the goal."""

    name: str
    ratio: float
    cpu: float
    extra_us: float
    goal: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the goal was missed, by the processor's clock: the wall's measures the neighbours too."""
        return self.goal is not None and self.cpu > self.goal

    def __str__(self) -> str:
        """Give the line as it is printed."""
        goal = "" if self.goal is None else f"  {'MISSED' if self.missed else 'met'}: {self.goal:.2f}"
        return f"  {self.name:<44}{self.ratio:6.2f}{self.cpu:8.2f}{self.extra_us:+9.0f} us{goal}"


def lines(times: Times) -> list[Line]:
    """Give what one case says."""
    wanted = [
        ("one no-op node", "bare", None),
        ("ModelCallLimitMiddleware", "bare", None),
        ("inline gate", "bare", INLINE_GOAL),
        ("gate node", "bare", None),
        ("gate node", "one no-op node", NODE_GOAL),
    ]
    return [
        Line(
            f"{name} / {of}",
            ratio(times.wall, name, of),
            ratio(times.cpu, name, of),
            1e6 * (statistics.median(times.wall[name]) - statistics.median(times.wall[of])),
            goal,
        )
        for name, of, goal in wanted
        if name in times.wall
    ]


def report(shape: str, saver: str, times: Times) -> bool:
    """Print one case; True if it missed a goal."""
    bare = 1e6 * statistics.median(times.wall["bare"])
    print(f"{shape}, checkpointer {saver}: bare {bare:.0f} us per model call")
    found = lines(times)
    for line in found:
        print(line)
    return any(line.missed for line in found)


def report_bytes() -> bool:
    """Print what the state grows by; True if it missed the goal."""
    few, many = state_bytes(CALLS), state_bytes(10 * CALLS)
    missed = many >= BYTES_GOAL
    verdict = "MISSED" if missed else "met"
    print(f"state: +{few} bytes after {CALLS} calls, +{many} after {10 * CALLS}  {verdict}: {BYTES_GOAL}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; give 1 if that was asked for and a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=25, help="rounds per case (default: 25)")
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="only this shape; may be repeated")
    parser.add_argument("--saver", choices=_SAVERS, action="append", help="only this checkpointer; may be repeated")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal was missed")
    parser.add_argument("--aio", action="store_true", help="measure ainvoke instead of invoke")
    asked = parser.parse_args(arguments)
    os.environ["LANGSMITH_TRACING"] = "false"  # tracing costs the same with and without a guard
    print(f"median of {asked.rounds} rounds of {CALLS} model calls each, {'ainvoke' if asked.aio else 'invoke'}")
    print(f"  {'':<44}{'time':>6}{'cpu':>8}{'extra':>9}     goal")
    missed = report_bytes()
    for shape in asked.shape or SHAPES:
        for saver in asked.saver or _SAVERS:
            if asked.aio:
                times = asyncio.run(ameasure(shape, saver, asked.rounds))
            else:
                times = measure(shape, saver, asked.rounds)
            missed |= report(shape, saver, times)
    return int(missed and asked.check)


if __name__ == "__main__":
    sys.exit(main())
