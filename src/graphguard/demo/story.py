"""One run of a scene, told as it happens: calls, warnings, trips, answers, the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from langchain_core.messages import AIMessage
from langgraph.graph import MessagesState
from langgraph.types import Command

from graphguard.budget import Budget
from graphguard.demo.question import Question, budget_text, money
from graphguard.errors import BudgetExceeded
from graphguard.guard import guard
from graphguard.ledger import MemoryLedger
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.messages import AnyMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

    from graphguard.demo.agent import Scene
    from graphguard.demo.question import Asker

__all__ = ["Answered", "Called", "Ended", "Happening", "OnTrip", "Tripped", "Warned", "describe", "play"]

OnTrip: TypeAlias = Literal["end", "interrupt", "raise"]
"""What a trip does, as in `guard(on_trip=...)`."""

MOST_STEPS = 10_000
"""LangGraph's own brake, far out of the way: its default differs between versions."""


@dataclass(frozen=True)
class Called:
    """The model was called.

    Attributes:
        number: 1 for the run's first call.
        did: What the model did, in one line.
        spent_usd: Spent by the run so far.
        limit_usd: The limit in force; None without a budget.
    """

    number: int
    did: str
    spent_usd: Decimal
    limit_usd: Decimal | None


@dataclass(frozen=True)
class Warned:
    """A share of the budget is spent.

    Attributes:
        share: The share that was crossed, above 0 and up to 1.
    """

    share: float


@dataclass(frozen=True)
class Tripped:
    """The budget had no room for the next call.

    Attributes:
        reason: A sentence: what was reached, and where.
        question: What the run asks; None if it doesn't ask.
    """

    reason: str
    question: Question | None


@dataclass(frozen=True)
class Answered:
    """The question was answered.

    Attributes:
        limit_usd: The new limit; None to stop.
    """

    limit_usd: Decimal | None


@dataclass(frozen=True)
class Ended:
    """The run is over.

    Attributes:
        how: `"finished"` by the agent, `"stopped"` by the budget, or `"raised"`, stopped by an exception.
        calls: Model calls made.
        spent_usd: What they cost.
        limit_usd: The limit at the end; None without a budget.
        raises: How often the limit was raised.
        unpriced: Whether a model without a known price was called, so that `spent_usd` is too low.
        words: The last message.
    """

    how: Literal["finished", "stopped", "raised"]
    calls: int
    spent_usd: Decimal
    limit_usd: Decimal | None
    raises: int
    unpriced: bool
    words: str


Happening: TypeAlias = Called | Warned | Tripped | Answered | Ended


def play(
    scene: Scene,
    saver: BaseCheckpointSaver[str],
    *,
    thread: str,
    limit_usd: Decimal | None,
    on_trip: OnTrip,
    ask: Asker,
) -> Iterator[Happening]:
    """Run a scene and give what happens, in order; the last is `Ended`.

    Args:
        scene: The graph and its input.
        saver: Where checkpoints go.
        thread: The thread's id.
        limit_usd: The budget; None only meters.
        on_trip: What a trip does.
        ask: Who is asked when a trip interrupts.
    """
    ledger = MemoryLedger()
    budgets = [] if limit_usd is None else [Budget(usd=limit_usd)]
    graph = guard(scene.graph, *budgets, on_trip=on_trip, ledger=ledger).compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": thread}, "recursion_limit": MOST_STEPS}
    given: MessagesState | Command[str] = MessagesState(messages=cast("list[AnyMessage]", list(scene.messages)))
    raises = 0
    while True:
        try:
            for happening in _follow(graph, given, config, ledger):
                yield replace(happening, limit_usd=limit_usd) if isinstance(happening, Called) else happening
        except BudgetExceeded as refused:
            yield Tripped(_reason(refused.trip), None)
            yield _ended("raised", ledger, limit_usd, raises, str(refused))
            return
        snapshot = graph.get_state(config)
        trip = Trip.of(snapshot)
        if not snapshot.interrupts:
            break
        question = Question.of(snapshot.interrupts[0].value, nth=raises + 1)
        yield Tripped(_reason(trip) if trip else question.reason, question)
        answer = ask(question)
        yield Answered(answer)
        if answer is not None:
            raises, limit_usd = raises + 1, answer
        given = Command(resume=question.resume(answer))
    if trip is not None and trip.mode == "end":
        yield Tripped(_reason(trip), None)
    stopped = trip is not None and trip.answer != "raised"
    words = snapshot.values["messages"][-1].text
    yield _ended("stopped" if stopped else "finished", ledger, limit_usd, raises, words)


def describe(message: AIMessage) -> str:
    """Give what a model did, in one printable line.

    >>> describe(AIMessage("Well.", tool_calls=[{"name": "look_up", "args": {"name": "Mira"}, "id": "1"}]))
    'look_up "Mira"'
    """
    if message.tool_calls:
        did = " + ".join(f"{call['name']} {_arguments(call['args'])}".strip() for call in message.tool_calls)
    else:
        did = f"says: {message.text}"
    # What a model says goes to a terminal: no line breaks and no control characters.
    return " ".join("".join(letter if letter.isprintable() else " " for letter in did).split())


def _reason(trip: Trip) -> str:
    """Say what was reached, in amounts rounded for a screen; `Trip.reason` has them exactly."""
    if trip.spent_usd is None or trip.limit_usd is None or not trip.needed_usd or trip.kind != "spent" or trip.note:
        return trip.reason
    needed = trip.needed_usd.quantize(Decimal("0.0001"), ROUND_CEILING)
    spent, limit = money(trip.spent_usd), budget_text(trip.limit_usd)
    uncapped = "" if trip.capped else ", and more, as its output has no cap"
    return f"{spent} of {limit} spent, and the next call may cost up to ${needed}{uncapped}"


def _arguments(arguments: Mapping[str, object]) -> str:
    """Give a tool call's arguments without their names."""
    return ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in arguments.values())


def _follow(
    graph: CompiledStateGraph[MessagesState, None, MessagesState, MessagesState],
    given: MessagesState | Command[str],
    config: RunnableConfig,
    ledger: MemoryLedger,
) -> Iterator[Called | Warned]:
    """Stream a graph until it ends or waits, and give its calls and warnings."""
    calls = ledger.total().calls
    warned: list[Warned] = []
    for mode, chunk in graph.stream(given, config, stream_mode=["updates", "custom"]):
        if not isinstance(chunk, Mapping):
            continue
        if mode == "custom":
            if chunk.get("type") == "budget" and chunk.get("event") == "warning":
                # It comes while the call's node still runs; people read the call first.
                warned.append(Warned(share=float(chunk["share"])))
            continue
        for message in _answers(chunk.get("agent")):
            total = ledger.total()
            # A gate may speak through the node too, without a call.
            if total.calls > calls:
                calls = total.calls
                yield Called(calls, describe(message), total.usd, None)
                yield from warned
                warned.clear()
    yield from warned


def _answers(update: object) -> Iterator[AIMessage]:
    """Give the model's messages in what a node wrote."""
    parts = update if isinstance(update, list) else [update]
    for part in parts:
        if isinstance(part, Mapping):
            yield from (message for message in part.get("messages", ()) if isinstance(message, AIMessage))


def _ended(
    how: Literal["finished", "stopped", "raised"],
    ledger: MemoryLedger,
    limit_usd: Decimal | None,
    raises: int,
    words: str,
) -> Ended:
    """Give the end of a run, with the ledger's total."""
    total = ledger.total()
    return Ended(how, total.calls, total.usd, limit_usd, raises, unpriced=bool(total.unpriced), words=words)
