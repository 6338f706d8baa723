"""A graph that is killed at one point of its run, and resumed in new processes until it ends.

`python -m tests.recovery.victim FOLDER` forks one process for each attempt, and prints one JSON line for each
kill: what the graph gave, what the provider billed, and what the state and the ledger say.
"""

from __future__ import annotations

import json
import operator
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt

from graphguard import Budget, Spend, SqliteLedger, guard
from tests.scripted import Scripted

T: RunnableConfig = {"configurable": {"thread_id": "t"}}
POINTS = ("saved", "sent", "billed")
"""Where it is killed: after a checkpoint, when a call is held but not sent, when it is billed but not settled."""


class State(TypedDict):
    """What the nodes said."""

    log: Annotated[list[str], operator.add]


@dataclass
class Fate:
    """Kills the process at the nth time that it passes one of the points."""

    point: str
    nth: int
    bills: Path
    passed: dict[str, int] = field(default_factory=dict)

    def passes(self, point: str) -> None:
        """Count, and die if it is time."""
        self.passed[point] = self.passed.get(point, 0) + 1
        if (point, self.passed[point]) == (self.point, self.nth):
            os.kill(os.getpid(), signal.SIGKILL)

    def bill(self) -> None:
        """What the provider does with a request."""
        self.passes("sent")
        with self.bills.open("ab", buffering=0) as bills:
            bills.write(b"call\n")
        self.passes("billed")


class MortalSaver(SqliteSaver):
    """Saves a checkpoint, and may be the last to do so."""

    fate: Fate

    def put(self, *args: Any, **kwargs: Any) -> RunnableConfig:
        """Save."""
        config = super().put(*args, **kwargs)
        self.fate.passes("saved")
        return config


def drawn(model: Scripted) -> StateGraph[State]:
    """A fan-out, a retry, an inner graph as node and one called in a node, a call in an edge, a question."""

    def says(word: str) -> Callable[[object], dict[str, list[str]]]:
        def node(_: object) -> dict[str, list[str]]:
            model.invoke(word)
            return {"log": [word]}

        return node

    def inner(name: str) -> Any:
        graph = StateGraph(State)
        graph.add_node("first", says(f"{name} first"))
        graph.add_node("second", says(f"{name} second"))
        graph.add_edge(START, "first")
        graph.add_edge("first", "second")
        return graph.compile()

    called = inner("called")
    failed = iter([True])

    def flaky(_: State) -> dict[str, list[str]]:
        model.invoke("flaky")
        if next(failed, False):
            raise ConnectionError
        return {"log": ["flaky"]}

    def calls(_: State) -> dict[str, list[str]]:
        return {"log": called.invoke({"log": []})["log"]}

    def asks(_: State) -> dict[str, list[str]]:
        model.invoke("asks")
        return {"log": [f"asks {interrupt('?')}"]}

    def way(_: State) -> str:
        model.invoke("which way")
        return "calls"

    graph = StateGraph(State)
    graph.add_node("plan", says("plan"))
    graph.add_node("part", says("part"))
    graph.add_node("flaky", flaky, retry_policy=RetryPolicy(initial_interval=0.001, retry_on=ConnectionError))
    graph.add_node("nested", inner("nested"))
    graph.add_node("calls", calls)
    graph.add_node("asks", asks)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: [Send("part", {}) for _ in range(3)], ["part"])
    graph.add_edge("part", "flaky")
    graph.add_edge("flaky", "nested")
    graph.add_conditional_edges("nested", way, ["calls"])
    graph.add_edge("calls", "asks")
    graph.add_edge("asks", END)
    return graph


def attempt(folder: Path, fate: Fate) -> None:
    """Begin the run or go on with it, to its end or to its death."""
    model = Scripted(before=fate.bill)
    ledger = SqliteLedger(folder / "ledger.db")
    with MortalSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        assert isinstance(saver, MortalSaver)
        saver.fate = fate
        graph = guard(
            drawn(model),
            Budget(usd=1),
            Budget(usd=2, per="thread"),
            Budget(calls=100, node="asks"),
            ledger=ledger,
        ).compile(checkpointer=saver)
        begun = graph.get_state(T).created_at is not None
        with (folder / "begun").open("a") as told:
            told.write("" if begun else "x")
        if graph.invoke(None if begun else {"log": []}, T).get("__interrupt__"):
            graph.invoke(Command(resume="yes"), T)
        (folder / "points.json").write_text(json.dumps(fate.passed))
    ledger.close()


def in_a_new_process(folder: Path, fate: Fate) -> bool:
    """Attempt, and tell whether the process lived."""
    child = os.fork()
    if not child:
        status = 1
        try:
            attempt(folder, fate)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def killed_at(folder: Path, point: str, nth: int) -> dict[str, object]:
    """One run that is killed once, and what is left of it."""
    folder.mkdir()
    bills = folder / "bills"
    bills.touch()
    attempts = 1
    alive = in_a_new_process(folder, Fate(point, nth, bills))
    while not alive:
        attempts += 1
        alive = in_a_new_process(folder, Fate("", 0, bills))
    model = Scripted()
    now = SqliteLedger(folder / "ledger.db").now()
    ledger = SqliteLedger(folder / "ledger.db", clock=lambda: now + 1e6)
    swept = ledger.sweep()
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        state = guard(drawn(model), Budget(usd=1), ledger=ledger).compile(checkpointer=saver).get_state(T)
    return {
        "point": point,
        "nth": nth,
        "attempts": attempts,
        "inputs": len((folder / "begun").read_text()),
        "log": state.values["log"],
        "billed": len(bills.read_text().splitlines()),
        "state": [Spend.of(state).calls, Spend.of(state).nanousd],
        "ledger": [ledger.total().calls, ledger.total().nanousd],
        "swept": len(swept),
        "asks": next(iter(state.values["spend"]["by"].values()))["calls"],
        "passed": json.loads((folder / "points.json").read_text()) if attempts == 1 else {},
    }


def main() -> None:
    """Kill at every point that an undisturbed run passes."""
    folder = Path(sys.argv[1])
    whole = killed_at(folder / "whole", "", 0)
    sys.stdout.write(json.dumps(whole) + "\n")
    sys.stdout.flush()  # before a fork copies what waits
    passed = whole["passed"]
    assert isinstance(passed, dict)
    for point in POINTS:
        for nth in range(1, passed[point] + 1):
            sys.stdout.write(json.dumps(killed_at(folder / f"{point}-{nth}", point, nth)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
