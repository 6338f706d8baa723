"""Threads of a checkpoint database, for a dashboard that stands alone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from langgraph.types import Command

from graphguard.dashboard.asking import Answered, Question, Refused, standing
from graphguard.errors import GraphguardError
from graphguard.guard import settings_of
from graphguard.history_command.graphs import with_saver
from graphguard.history_command.opening import opened, opened_async
from graphguard.report.story import story

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.dashboard.asking import Asker, Book, Standing
    from graphguard.history.checkpoints import AnySaver
    from graphguard.placement import AnyGraph
    from graphguard.report.story import Story

__all__ = ["KeptThreads"]

_log = logging.getLogger("graphguard.dashboard")
_CHUNK: Final = 200
"""Checkpoints that are read in one go."""
_AGAIN: Final = 50
"""Threads at work last that are looked at each time: a question is written beside a checkpoint that is there."""
_NOT_ASKED: Final = "It was answered elsewhere, or the thread is of a graph that --graph does not name."
_INTERRUPT: Final = "__interrupt__"


class KeptThreads:
    """The threads of one database.

    Args:
        db: The database, as typed after `--db`.
        graphs: The graphs that run on when a trip is answered; none makes it read-only.
    """

    def __init__(self, db: str, graphs: Sequence[AnyGraph] = ()) -> None:
        """Begin knowing no thread."""
        self.answers = bool(graphs)
        self._db = db
        self._graphs = graphs
        # Which graph a thread is of is not kept, so budgets are told of one graph alone.
        settings = settings_of(graphs[0]) if len(graphs) == 1 else None
        self._budgets = settings.budgets if settings is not None else ()
        self._look = _Look()
        self._reading = asyncio.Lock()
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._failed: dict[tuple[str, str], str] = {}

    async def waiting(self, asker: Asker) -> Sequence[Question]:  # noqa: ARG002 - here nobody is told apart
        """The questions that wait, the oldest first."""
        async with self._reading:
            questions = await asyncio.to_thread(self._asked)
        return [
            replace(
                question,
                going_on=(question.thread, question.id) in self._running,
                error=self._failed.get((question.thread, question.id), question.error),
            )
            for question in questions
        ]

    def _asked(self) -> list[Question]:
        with opened(self._db) as saver:
            self._look.again(saver)
        return sorted(self._look.questions, key=lambda question: question.time or "")

    async def standings(self, asker: Asker, threads: Sequence[str]) -> Mapping[str, Standing]:  # noqa: ARG002 - see waiting
        """How these threads stand."""
        async with self._reading:
            return await asyncio.to_thread(self._standings, threads)

    def _standings(self, threads: Sequence[str]) -> dict[str, Standing]:
        with opened(self._db) as saver:
            self._look.values(saver, threads)
        known = {
            thread: standing(self._look.newest[thread][1], self._budgets)
            for thread in threads
            if thread in self._look.newest
        }
        return {thread: stands for thread, stands in known.items() if stands is not None}

    async def story(self, asker: Asker, thread: str, book: Book) -> Story:  # noqa: ARG002 - see waiting
        """One thread's story."""
        return await asyncio.to_thread(self._story, thread, book)

    def _story(self, thread: str, book: Book) -> Story:
        with opened(self._db) as saver, book() as ledger:
            return story(saver, thread, ledger)

    async def answer(self, asker: Asker, thread: str, question: str, answer: object) -> None:  # noqa: ARG002 - see waiting
        """Answer, and let the graph run on in this process."""
        if not self._graphs:
            raise Refused("This dashboard is read-only; start it with --graph, or with --url, to answer.")
        key = (thread, question)
        if key in self._running or any(name == thread for name, _ in self._running):
            raise Answered
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._go_on(key, answer, begun))
        self._running[key] = task
        self._failed.pop(key, None)
        task.add_done_callback(lambda _: self._running.pop(key, None))
        await begun

    async def _go_on(self, key: tuple[str, str], answer: object, begun: asyncio.Future[None]) -> None:
        thread, question = key
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        try:
            async with opened_async(self._db) as saver:
                for each in self._graphs:
                    graph: AnyGraph = with_saver(each, saver)
                    snapshot = await graph.aget_state(config)
                    if question in {interrupt.id for interrupt in snapshot.interrupts}:
                        break
                else:
                    begun.set_exception(Refused(_NOT_ASKED))
                    return
                begun.set_result(None)
                await graph.ainvoke(Command(resume={question: answer}), config)
        except Exception as error:  # noqa: BLE001 - the user's own graph may raise anything, and a person must read it
            _log.exception("the run of thread %r failed", thread)
            self._failed[key] = f"the run failed: {type(error).__name__}: {error}"
            if not begun.done():
                begun.set_exception(Refused(str(error)) if isinstance(error, GraphguardError) else error)

    async def close(self) -> None:
        """Stop the runs that are under way; their threads keep what was done, and can be gone on with."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class _Look:
    """What was seen of a database: the newest checkpoint of each thread, and what is asked there."""

    def __init__(self) -> None:
        self.newest: dict[str, tuple[str, object]] = {}  # by thread: id and graphguard's own fields
        self._asked: dict[str, tuple[Question, ...]] = {}
        self._last = ""
        self._back: RunnableConfig | None = None  # behind it lies what was not read yet
        self._over = False

    @property
    def questions(self) -> list[Question]:
        """All questions that wait, as far as was read."""
        return [question for questions in self._asked.values() for question in questions]

    def again(self, saver: AnySaver) -> None:
        """Read what is new, the threads at work last, and a further part of what lies behind."""
        known, lately = self._last, sorted(self.newest, key=lambda thread: self.newest[thread][0], reverse=True)
        for saved in saver.list(None, limit=_CHUNK):
            if saved.checkpoint["id"] <= known:
                break
            self._last = max(self._last, saved.checkpoint["id"])
            self._note(saved)
            if not known:
                self._behind(saved)
        self.values(saver, dict.fromkeys([*self._asked, *lately[:_AGAIN]]))
        if known and not self._over:
            count = 0
            for saved in saver.list(None, before=self._back, limit=_CHUNK):
                count += 1
                self._note(saved)
                self._behind(saved)
            self._over = count < _CHUNK

    def values(self, saver: AnySaver, threads: Iterable[str]) -> None:
        """Read the newest checkpoint of some threads."""
        for thread in threads:
            saved = saver.get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
            if saved is None:
                self.newest.pop(thread, None)
                self._asked.pop(thread, None)
            else:
                self._note(saved)

    def _behind(self, saved: CheckpointTuple) -> None:
        self._back = {"configurable": {"thread_id": "", "checkpoint_id": saved.checkpoint["id"]}}

    def _note(self, saved: CheckpointTuple) -> None:
        conf, own = saved.config["configurable"], saved.checkpoint["id"]
        thread = str(conf["thread_id"])
        if conf.get("checkpoint_ns") or own < self.newest.get(thread, ("", None))[0]:
            return
        channels = saved.checkpoint["channel_values"]
        self.newest[thread] = (own, {name: channels[name] for name in ("spend", "trip") if name in channels})
        found = [
            Question.of(thread, str(interrupt.id), interrupt.value, saved.checkpoint["ts"])
            for _, channel, value in saved.pending_writes or ()
            if channel == _INTERRUPT
            for interrupt in (value if isinstance(value, (list, tuple)) else (value,))
            if hasattr(interrupt, "id")
        ]
        questions = tuple({each.id: each for each in found if each is not None}.values())
        if questions:
            self._asked[thread] = questions
        else:
            self._asked.pop(thread, None)
