"""The demo's three programmes: the scripted agent, a live one, and recorded runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from langgraph.checkpoint.memory import InMemorySaver
from langsmith import tracing_context
from rich.text import Text

from graphguard.demo.agent import TASK, recorded_scene, shop_scene
from graphguard.demo.checkpoints import demo_saver
from graphguard.demo.mistakes import ModelFailed, WrongUse
from graphguard.demo.models import first_sentence
from graphguard.demo.question import budget_text, money
from graphguard.demo.scripted import PRICED_AS, RunawayModel
from graphguard.demo.story import play

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from langchain_core.language_models import BaseChatModel
    from langgraph.checkpoint.sqlite import SqliteSaver

    from graphguard.demo.agent import Scene
    from graphguard.demo.question import Asker
    from graphguard.demo.recordings import RecordedRun
    from graphguard.demo.screen import Screen
    from graphguard.demo.story import Ended, OnTrip

__all__ = ["Stage", "live_act", "recorded_act", "scripted_act"]


@dataclass(frozen=True)
class Stage:
    """What all programmes need: settings, made once.

    Attributes:
        screen: Where everything is shown.
        db: The checkpoint file.
        replaced: Whether an older one was there.
        budget_usd: The budget.
        on_trip: What a trip does.
        ask: Who answers when it interrupts.
    """

    screen: Screen
    db: Path
    replaced: bool
    budget_usd: Decimal
    on_trip: OnTrip
    ask: Asker


def scripted_act(stage: Stage) -> None:
    """Show the scripted agent twice: without a budget, and with one."""
    _open(
        stage,
        f"The model is a script that loops as runaway agents do: no network, no key, no bill. Its tokens are "
        f"counted from the text and priced as {PRICED_AS}'s.",
        "Real are the LangGraph graph, its tools, their SQLite database, the budget and the checkpoints.",
        f"Task: {TASK}",
    )
    # The words of a script are nobody's trace, whatever the shell's settings say.
    with tracing_context(enabled=False), demo_saver(stage.db) as saver:
        bare, kept = _twice(stage, saver, shop_scene(RunawayModel()))
    _compare(stage, bare, kept, "gave up by itself, as scripted")
    again = "" if stage.on_trip == "end" else "graphguard demo --on-trip end --budget 0.02"
    _close(
        stage, 'threads "unguarded" and "guarded"', again or "graphguard demo --model openai:gpt-4o-mini --budget 0.01"
    )


def live_act(stage: Stage, model: BaseChatModel, name: str) -> None:
    """Show the shop's agent with a live model, with a budget only: without one, nothing would limit its bill.

    Raises:
        ModelFailed: the provider refused or could not be reached.
    """
    _open(
        stage,
        f"The model is {name}, live: its provider bills you, up to {budget_text(stage.budget_usd)} unless you raise "
        "the budget. The run without a budget is left out for that reason.",
        "The graph, its tools and their SQLite database are those of the scripted demo.",
        f"Task: {TASK}",
    )
    with demo_saver(stage.db) as saver:
        try:
            kept = _guarded(stage, saver, shop_scene(model))
        except WrongUse:
            raise
        except Exception as error:  # a provider's package raises what it likes
            raise ModelFailed(f"{name} failed: {first_sentence(error)}; check its name and its key") from error
    stage.screen.heading("The end")
    if kept.how == "finished":
        stage.screen.say(Text(kept.words))
    stage.screen.table([(_with(stage), str(kept.calls), money(kept.spent_usd), _ending(kept, "finished within it"))])
    _close(stage, 'thread "guarded"', "graphguard demo")


def recorded_act(stage: Stage, runs: Sequence[RecordedRun], file: Path) -> None:
    """Show recorded runs: what they cost, and where the budget would have stopped them."""
    models = ", ".join(sorted({run.model for run in runs}))
    _open(
        stage,
        f"{len(runs)} recorded agent run{'s' if len(runs) > 1 else ''} from {file.name}. No model is called: answers, "
        "tool results and user turns are the recorded ones.",
        f"The recording carries no usage: tokens are counted from the text, four bytes to a token, and priced as "
        f"{models}'s.",
    )
    with tracing_context(enabled=False), demo_saver(stage.db) as saver:
        if len(runs) == 1:
            bare, kept = _twice(stage, saver, recorded_scene(runs[0]))
            _compare(stage, bare, kept, "ran to its recorded end")
        else:
            _all(stage, saver, runs)
    threads = 'threads "unguarded" and "guarded"' if len(runs) == 1 else "a thread for each run, named by its id"
    _close(
        stage,
        threads,
        shlex.join(["graphguard", "demo", "--trajectory", str(file), "--budget", str(2 * stage.budget_usd)]),
    )


def _twice(stage: Stage, saver: SqliteSaver, scene: Scene) -> tuple[Ended, Ended]:
    """Run a scene without a budget, then with one, call by call."""
    stage.screen.heading("guard(graph), without a budget: calls are only counted")
    bare = play(scene, saver, thread="unguarded", limit_usd=None, on_trip="end", ask=stage.ask)
    return stage.screen.tell(bare, keep_all=False, scale_usd=stage.budget_usd), _guarded(stage, saver, scene)


def _guarded(stage: Stage, saver: SqliteSaver, scene: Scene) -> Ended:
    """Run a scene with the budget."""
    stage.screen.heading(f'guard(graph, Budget(usd="{stage.budget_usd}"), on_trip="{stage.on_trip}")')
    kept = play(scene, saver, thread="guarded", limit_usd=stage.budget_usd, on_trip=stage.on_trip, ask=stage.ask)
    ended = stage.screen.tell(kept, keep_all=True)
    if ended.how == "stopped":
        stage.screen.say(Text(f"Last message of the run: {ended.words}"))
    return ended


def _all(stage: Stage, saver: SqliteSaver, runs: Sequence[RecordedRun]) -> None:
    """Run each recording without a budget, then with one, a line for each."""
    stage.screen.heading(f'guard(graph, Budget(usd="{stage.budget_usd}"), on_trip="{stage.on_trip}"), each run alone')
    stage.screen.columns("run", "calls", "no budget", "with it", "how it ended")
    bares, kepts = [], []
    for run in runs:
        scene = recorded_scene(run)
        bare = play(scene, InMemorySaver(), thread=run.name, limit_usd=None, on_trip="end", ask=stage.ask)
        kept = play(scene, saver, thread=run.name, limit_usd=stage.budget_usd, on_trip=stage.on_trip, ask=stage.ask)
        bares.append(stage.screen.tell_briefly(bare))
        kepts.append(stage.screen.tell_briefly(kept))
        stage.screen.columns(
            run.name,
            str(bares[-1].calls),
            money(bares[-1].spent_usd),
            money(kepts[-1].spent_usd),
            _ending(kepts[-1], "within the budget"),
        )
    stopped = sum(kept.how != "finished" for kept in kepts)
    raised = sum(kept.raises > 0 for kept in kepts)
    most = max(kept.spent_usd for kept in kepts)
    stage.screen.heading("All together")
    words = f"{stopped} of {len(runs)} stopped; none spent more than {money(most)}"
    stage.screen.table(
        [
            ("no budget", _calls(bares), money(_spent(bares)), "to their recorded ends"),
            (_with(stage), _calls(kepts), money(_spent(kepts)), f"{words}; {raised} raised" if raised else words),
        ]
    )


def _compare(stage: Stage, bare: Ended, kept: Ended, bare_ended: str) -> None:
    """Show both runs of one scene side by side."""
    stage.screen.heading("Side by side")
    stage.screen.table(
        [
            ("no budget", str(bare.calls), money(bare.spent_usd), bare_ended),
            (_with(stage), str(kept.calls), money(kept.spent_usd), _ending(kept, "finished within the budget")),
        ]
    )


def _ending(ended: Ended, finished: str) -> str:
    """Say how a run with a budget ended."""
    by = {"finished": finished, "stopped": f"stopped at call {ended.calls + 1}", "raised": "stopped by BudgetExceeded"}
    text = by[ended.how]
    if ended.raises and ended.limit_usd is not None:
        text += f"; budget raised to {budget_text(ended.limit_usd)}"
    return f"{text}; a model has no known price" if ended.unpriced else text


def _with(stage: Stage) -> str:
    return f"budget {budget_text(stage.budget_usd)}"


def _calls(runs: Sequence[Ended]) -> str:
    return str(sum(run.calls for run in runs))


def _spent(runs: Sequence[Ended]) -> Decimal:
    return sum((run.spent_usd for run in runs), Decimal(0))


def _open(stage: Stage, *lines: str) -> None:
    """Say what is going to be shown, and what of it is real."""
    stage.screen.heading("graphguard demo")
    stage.screen.say(*(Text(line) for line in lines))
    if stage.replaced:
        stage.screen.say(Text(f"Replacing the older demo file {stage.db}.", style="dim"))


def _close(stage: Stage, threads: str, following: str) -> None:
    """Say where the checkpoints are, and what to try next."""
    stage.screen.say(Text())
    stage.screen.say_whole(Text(f"Checkpoints: {stage.db} ({threads})"))
    stage.screen.say_whole(Text.assemble("Try next:    ", (following, "bold")))
