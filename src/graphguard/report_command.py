"""`graphguard report`: a thread's or a database's story, as a page to keep or as text."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from graphguard.demo.mistakes import WrongUse
from graphguard.errors import GraphguardError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graphguard.history.checkpoints import AnySaver
    from graphguard.ledger_command.opening import Readable
    from graphguard.report.drawing import Drawing
    from graphguard.report.story import Tale
    from graphguard.report.text import Section

__all__ = ["report"]

_EXIT_CODES: Final = """\b
Exit codes:
  0    done, whether or not anything tripped
  2    wrong use: an option, or a database, ledger or graph that can't be used
  130  stopped by Ctrl-C"""
_STOPPED_BY_HAND: Final = 130
_MANY: Final = 20


@click.command(epilog=_EXIT_CODES)
@click.option(
    "--db",
    required=True,
    envvar="GRAPHGUARD_DB",
    metavar="FILE",
    help="The checkpointer's SQLite file, or postgresql://… [env: GRAPHGUARD_DB]",
)
@click.option("--thread", metavar="ID", help="Only this thread; without it, a line for each.")
@click.option(
    "--ledger",
    envvar="GRAPHGUARD_LEDGER",
    metavar="LEDGER",
    help="The ledger's file or postgresql://…, for real money, models and losses. [env: GRAPHGUARD_LEDGER]",
)
@click.option("--schema", default="graphguard", show_default=True, help="PostgreSQL's schema with the ledger.")
@click.option("--graph", metavar="ID", help="The graph's id in langgraph.json, to draw it and to name it in commands.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("langgraph.json"),
    show_default=True,
    metavar="FILE",
    help="The langgraph.json.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one self-contained HTML page instead of text.",
)
def report(
    *,
    db: str,
    thread: str | None,
    ledger: str | None,
    schema: str,
    graph: str | None,
    config: Path,
    output: Path | None,
) -> None:
    """Tell a thread's story, or that of all threads.

    What was spent over its steps, by node, model and branch, what retries cost, and each trip with the command
    that replays it. Only looks: no node runs, no model is called, nothing is written but the page.
    """
    # Loaded when needed, so that `graphguard --help` does not wait for it.
    from graphguard.history_command.opening import opened  # noqa: PLC0415
    from graphguard.ledger_command.opening import to_read  # noqa: PLC0415

    try:
        with ExitStack() as stack:
            book = stack.enter_context(to_read(ledger, schema)) if ledger else None
            saver = stack.enter_context(opened(db))
            tale = _tale(db, graph, config)
            drawing = _drawing(graph, config) if graph and output is not None else None
            page, sections = _told(saver, book, thread, tale, drawing, paged=output is not None)
    except (GraphguardError, ModuleNotFoundError) as error:
        raise WrongUse(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nStopped by you.", err=True)
        sys.exit(_STOPPED_BY_HAND)
    if output is None:
        _show(sections)
        return
    try:
        output.write_text(page, "utf-8")
    except OSError as error:
        raise WrongUse(f"can't write {str(output)!r}: {error.strerror}; name another file with -o") from error
    click.echo(f"Wrote {output} ({len(page.encode()) / 1000:,.0f} kB).")


def _tale(db: str, graph: str | None, config: Path) -> Tale:
    from graphguard.report.story import Tale  # noqa: PLC0415 - see report

    place = "$GRAPHGUARD_DB" if "://" in db else db  # never a password
    return Tale(db=place, graph=graph, config=None if config == Path("langgraph.json") else str(config))


def _told(
    saver: AnySaver, book: Readable | None, thread: str | None, tale: Tale, drawing: Drawing | None, *, paged: bool
) -> tuple[str, Sequence[Section]]:
    """The page, if one is wanted, and the sections of the text."""
    from graphguard.history.checkpoints import threads  # noqa: PLC0415 - see report
    from graphguard.report.database import library  # noqa: PLC0415 - see report
    from graphguard.report.page import library_page, story_page  # noqa: PLC0415 - see report
    from graphguard.report.story import story  # noqa: PLC0415 - see report
    from graphguard.report.text import library_sections, story_sections  # noqa: PLC0415 - see report

    if thread is not None:
        told = story(saver, thread, book)
        return story_page(told, tale, drawing) if paged else "", list(story_sections(told, tale))
    all_told = library((story(saver, name, book) for name in _progress(threads(saver))), book)
    return library_page(all_told, tale) if paged else "", list(library_sections(all_told, tale))


def _drawing(graph: str, config: Path) -> Drawing:
    from langgraph.graph.state import CompiledStateGraph, StateGraph  # noqa: PLC0415 - see report

    from graphguard.history_command.graphs import graph_of  # noqa: PLC0415 - see report
    from graphguard.report.drawing import drawing  # noqa: PLC0415 - see report

    found = graph_of(graph, config)
    compiled = found.compile() if isinstance(found, StateGraph) else found
    if not isinstance(compiled, CompiledStateGraph):
        raise WrongUse(f"{graph!r} in {str(config)!r} is no graph, but a {type(compiled).__name__}")
    return drawing(compiled)


def _show(sections: Iterable[Section]) -> None:
    from graphguard.history_command.tables import show_rows  # noqa: PLC0415 - see report

    for at, (head, body) in enumerate(sections):
        click.echo(f"\n{head}" if at else head)
        lines = [each for each in body if isinstance(each, str)]
        for line in lines:
            click.echo(f"  {line}")
        if not lines:
            show_rows([each for each in body if not isinstance(each, str)])


def _progress(names: Sequence[str]) -> Iterator[str]:
    """Each thread, with a bar on the terminal when there are many."""
    if len(names) < _MANY or not sys.stderr.isatty():
        yield from names
        return
    with click.progressbar(names, label="threads", file=sys.stderr) as bar:
        yield from bar
