"""The command's options, and the server that it starts."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from graphguard.demo.mistakes import WrongUse
from graphguard.errors import GraphguardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphguard.dashboard.app import Place
    from graphguard.dashboard.asking import Book
    from graphguard.ledger_command.opening import Readable
    from graphguard.placement import AnyGraph

__all__ = ["dashboard"]

_EXIT_CODES: Final = """\b
Exit codes:
  0  stopped by Ctrl-C
  2  wrong use: an option, or a database, ledger or graph that can't be used"""
_GRACE: Final = 5
"""Seconds that requests under way get when it is stopped."""
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


@click.command(epilog=_EXIT_CODES)
@click.option(
    "--db",
    envvar="GRAPHGUARD_DB",
    metavar="FILE",
    help="The checkpointer's SQLite file, or postgresql://… [env: GRAPHGUARD_DB]",
)
@click.option(
    "--ledger",
    required=True,
    envvar="GRAPHGUARD_LEDGER",
    metavar="LEDGER",
    help="The ledger's file, or postgresql://… [env: GRAPHGUARD_LEDGER]",
)
@click.option("--schema", default="graphguard", show_default=True, help="PostgreSQL's schema with the ledger.")
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="ID",
    help="A graph's id in langgraph.json: trips of its threads can be answered, and run on here. May be repeated.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("langgraph.json"),
    show_default=True,
    metavar="FILE",
    help="The langgraph.json.",
)
@click.option("--url", metavar="URL", help="Instead of --db: a LangGraph server, whose threads are shown and answered.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Nobody is asked for a password.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65_535), help="The port; 0 is any.")
def dashboard(
    *,
    db: str | None,
    ledger: str,
    schema: str,
    graphs: Sequence[str],
    config: Path,
    url: str | None,
    host: str,
    port: int,
) -> None:
    """Show live what is spent and by whom, and answer trips that wait.

    Without --graph or --url it only looks. It goes on until Ctrl-C.
    """
    if db is None and url is None:
        raise WrongUse("pass --db with the checkpoints, or --url with a LangGraph server")
    with contextlib.ExitStack() as stack:
        try:
            place = _place(stack, db, (ledger, schema), graphs, config, url)
        except ModuleNotFoundError as error:
            raise WrongUse(f"{error}; pip install 'graphguard[dashboard]' has all that the dashboard needs") from error
        except GraphguardError as error:
            raise WrongUse(str(error)) from error
        _serve(place, host, port)


def _serve(place: Place, host: str, port: int) -> None:
    """Show it until Ctrl-C."""
    import uvicorn  # noqa: PLC0415 - an extra

    from graphguard.dashboard.app import dashboard as app_of  # noqa: PLC0415 - an extra

    class Server(uvicorn.Server):
        """Lets the open tabs go before it waits for them."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await place.close()
            await super().shutdown(sockets)

    with _listening(host, port) as at:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"http://{shown}:{at.getsockname()[1]}/graphguard/ (Ctrl-C stops it)")
        app = app_of(place=place, hosts=[*_LOCAL, host])
        with contextlib.suppress(KeyboardInterrupt):
            Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE)).run(sockets=[at])


def _place(  # noqa: PLR0917 - the options
    stack: contextlib.ExitStack,
    db: str | None,
    ledger: tuple[str, str],
    graphs: Sequence[str],
    config: Path,
    url: str | None,
) -> Place:
    """What is shown, each part of it tried once."""
    from graphguard.dashboard.app import Place  # noqa: PLC0415 - an extra
    from graphguard.dashboard.served import ServedThreads  # noqa: PLC0415 - an extra
    from graphguard.dashboard_command.kept import KeptThreads  # noqa: PLC0415 - `graphguard --help` does not wait for it
    from graphguard.history_command.opening import opened  # noqa: PLC0415 - likewise
    from graphguard.ledger_command.opening import is_server, to_read  # noqa: PLC0415 - likewise
    from graphguard.report.drawing import drawing  # noqa: PLC0415 - likewise
    from graphguard.report.story import Tale  # noqa: PLC0415 - likewise

    book: Book
    if is_server(ledger[0]):  # one pool of connections for all looks
        kept: Readable = stack.enter_context(to_read(*ledger))
        book = lambda: contextlib.nullcontext(kept)  # noqa: E731 - two ways to the same name
    else:  # what a file's reader tells is of the moment at which it was opened
        with to_read(*ledger):
            pass
        book = partial(to_read, *ledger)
    if url is not None:
        return Place(book, ServedThreads(url))
    assert db is not None  # noqa: S101 - checked by who calls
    with opened(db):
        pass
    compiled = [_compiled(graph, config) for graph in graphs]
    one = len(graphs) == 1
    tale = Tale(
        db="$GRAPHGUARD_DB" if "://" in db else db,
        graph=graphs[0] if one else None,
        config=None if config == Path("langgraph.json") else str(config),
    )
    return Place(book, KeptThreads(db, compiled), tale=tale, drawn=drawing(compiled[0]) if one else None)


def _compiled(graph: str, config: Path) -> AnyGraph:
    from langgraph.graph.state import CompiledStateGraph, StateGraph  # noqa: PLC0415 - see _place

    from graphguard.history_command.graphs import graph_of  # noqa: PLC0415 - see _place

    found = graph_of(graph, config)
    compiled = found.compile() if isinstance(found, StateGraph) else found
    if not isinstance(compiled, CompiledStateGraph):
        raise WrongUse(f"{graph!r} in {str(config)!r} is no graph, but a {type(compiled).__name__}")
    return compiled


def _listening(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        WrongUse: It can't be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise WrongUse(f"can't listen on {host}:{port} ({error.strerror}); choose another --port or --host") from error
