"""A thread's checkpoints, newest first, a few at a time: the only reader of checkpointers.

Through LangGraph's public methods alone, so that any checkpointer will do.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from graphguard.errors import HistoryUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

    from graphguard.placement import AnyGraph

__all__ = ["AnySaver", "aeach_checkpoint", "athreads", "each_checkpoint", "saver_of", "thread_of", "threads"]

AnySaver: TypeAlias = "BaseCheckpointSaver[str] | BaseCheckpointSaver[int] | BaseCheckpointSaver[float]"
"""A checkpointer, however it numbers its versions."""

_SQLITE: Final = "langgraph.checkpoint.sqlite"
_FIRST_PAGE: Final = 25
_PAGE: Final = 400
_PAGE_AS_ASKED: Final = 1_600
"""SQLite gives rows as they are asked for, so a page takes no memory, but it sorts a thread's rows for each."""

T = TypeVar("T")
Feed: TypeAlias = "Callable[[CheckpointTuple], Iterable[T]]"
"""What is made of each checkpoint."""


def saver_of(source: AnyGraph | AnySaver) -> AnySaver:
    """The checkpointer of a graph, or the one given.

    Raises:
        HistoryUnavailable: The graph has none of its own, so nothing was kept, or the server keeps it.
    """
    saver = source.checkpointer if isinstance(source, CompiledStateGraph) else source
    if not isinstance(saver, BaseCheckpointSaver):
        problem = (
            "the graph has no checkpointer, so there is no history to read; compile it with checkpointer=..., "
            "or pass the checkpointer itself"
        )
        raise HistoryUnavailable(problem)
    return saver


def thread_of(config: RunnableConfig) -> str:
    """The thread that a config names.

    Raises:
        HistoryUnavailable: It names none.
    """
    thread = config.get("configurable", {}).get("thread_id")
    if thread is None:
        problem = f"the config names no thread; pass {{'configurable': {{'thread_id': ...}}}}, not {config!r}"
        raise HistoryUnavailable(problem)
    return str(thread)


def each_checkpoint(saver: AnySaver, thread: str, feed: Feed[T]) -> Iterator[T]:
    """What is made of a thread's checkpoints, those of subgraphs too, newest first.

    Only what is made of a page is in memory, not the page. No cursor is open between two results, so that a graph
    may run on the same thread meanwhile; but `feed` itself must not ask the checkpointer.

    Raises:
        HistoryUnavailable: The thread is not there.
    """
    if isinstance(saver, InMemorySaver):
        for each in _in_memory(saver, thread):
            yield from feed(each)
        return
    pages = _Pages(saver, thread, feed)
    while pages.more:
        for each in saver.list(pages.config, before=pages.before, limit=pages.size):
            pages.take(each)
        yield from pages.turn()


async def aeach_checkpoint(saver: AnySaver, thread: str, feed: Feed[T]) -> AsyncIterator[T]:
    """The same as `each_checkpoint`, on an event loop."""
    if isinstance(saver, InMemorySaver):
        for each in _in_memory(saver, thread):
            for made in feed(each):
                yield made
        return
    pages = _Pages(saver, thread, feed)
    while pages.more:
        async for each in saver.alist(pages.config, before=pages.before, limit=pages.size):
            pages.take(each)
        for made in pages.turn():
            yield made


class _Pages(Generic[T]):
    """How far a thread was read: a small page first, as most want the newest alone."""

    def __init__(self, saver: AnySaver, thread: str, feed: Feed[T]) -> None:
        self.config: RunnableConfig = {"configurable": {"thread_id": thread}}
        self.before: RunnableConfig | None = None
        self.size = _FIRST_PAGE
        self.more = True
        self._largest = _PAGE_AS_ASKED if type(saver).__module__.startswith(_SQLITE) else _PAGE
        self._thread = thread
        self._feed = feed
        self._made: list[T] = []
        self._count = 0
        self._last = ""

    def take(self, saved: CheckpointTuple) -> None:
        """Note a checkpoint of the page."""
        self._made += self._feed(saved)
        self._count += 1
        self._last = saved.checkpoint["id"]

    def turn(self) -> list[T]:
        """What was made of the page; the next one comes then."""
        if not self._count and self.before is None:
            raise _unknown(self._thread)
        self.more = self._count >= self.size
        self.before = {"configurable": {"thread_id": self._thread, "checkpoint_id": self._last}}
        self.size = min(8 * self.size, self._largest)
        made, self._made, self._count = self._made, [], 0
        return made


def threads(saver: AnySaver) -> list[str]:
    """The names of all threads, the one that was at work last first."""
    if isinstance(saver, InMemorySaver):
        return [str(name) for name in saver.storage]
    # One reading for all, even where a page at a time is the rule: SQLite gives rows as they are asked for.
    found: dict[str, None] = {}
    for each in saver.list(None):
        found.setdefault(str(each.config["configurable"]["thread_id"]))
    return list(found)


async def athreads(saver: AnySaver) -> list[str]:
    """The same as `threads`, on an event loop."""
    if isinstance(saver, InMemorySaver):
        return [str(name) for name in saver.storage]
    found: dict[str, None] = {}
    async for each in saver.alist(None):
        found.setdefault(str(each.config["configurable"]["thread_id"]))
    return list(found)


def _unknown(thread: str) -> HistoryUnavailable:
    return HistoryUnavailable(f"no checkpoint of a thread {thread!r} is there; look at its name, and at which database")


def _in_memory(saver: InMemorySaver, thread: str) -> Iterator[CheckpointTuple]:
    # Its list() goes through one graph's checkpoints after another's.
    name = next((known for known in saver.storage if str(known) == thread), thread)  # as it was given, maybe a number
    spaces = [ns for ns, kept in saver.storage[name].items() if kept] if name in saver.storage else []
    if not spaces:
        raise _unknown(thread)
    lists = [saver.list({"configurable": {"thread_id": name, "checkpoint_ns": ns}}) for ns in spaces]
    yield from heapq.merge(*lists, key=lambda each: each.checkpoint["id"], reverse=True)
