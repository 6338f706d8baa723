"""What the commands share: options, opening the database, how mistakes are said, and what is printed."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import click

from graphguard.demo.mistakes import WrongUse
from graphguard.errors import GraphguardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from langchain_core.runnables import RunnableConfig

    from graphguard.history.checkpoints import AnySaver

__all__ = [
    "EXIT_CODES",
    "any_thread",
    "config_of",
    "mistakes",
    "one_thread",
    "opened_db",
    "place",
    "print_json",
    "show_table",
]

F = TypeVar("F", bound="Callable[..., object]")

EXIT_CODES: Final = """\b
Exit codes:
  0    done, whether or not there was anything to show
  2    wrong use: an option, or a database that can't be used
  130  stopped by Ctrl-C"""
_STOPPED_BY_HAND: Final = 130


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


place = _options(
    click.option(
        "--db",
        required=True,
        envvar="GRAPHGUARD_DB",
        metavar="FILE",
        help="The checkpointer's SQLite file, or postgresql://… [env: GRAPHGUARD_DB]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document. USD are decimal strings."),
)
one_thread = click.option("--thread", required=True, metavar="ID", help="The thread.")
any_thread = click.option("--thread", metavar="ID", help="Only this thread; without it, all of them.")


def config_of(thread: str) -> RunnableConfig:
    """Give the config of a thread."""
    return {"configurable": {"thread_id": thread}}


@contextmanager
def opened_db(db: str) -> Iterator[AnySaver]:
    """Give the checkpointer of a database; what a person must put right is said."""
    # Loaded when needed, so that `graphguard --help` does not wait for it; so are all others of the history.
    from graphguard.history_command.opening import opened  # noqa: PLC0415

    with mistakes(), opened(db) as saver:
        yield saver


@contextmanager
def mistakes() -> Iterator[None]:
    """What a person must put right, in one line and without a traceback."""
    try:
        yield
    except GraphguardError as error:
        raise WrongUse(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nStopped by you.", err=True)
        sys.exit(_STOPPED_BY_HAND)


def print_json(db: str, thread: str | None, **told: object) -> None:
    """Print one document; of an address, never the password."""
    place = db.partition("@")[2] or db if "://" in db else db
    click.echo(json.dumps({"db": place, "thread": thread, **told}, indent=2, ensure_ascii=False))


def show_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a table."""
    from graphguard.history_command.tables import show_rows  # noqa: PLC0415 - see opened_db

    show_rows(rows)
