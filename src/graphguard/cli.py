"""The command line: `graphguard`, and `python -m graphguard`."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper

import click

from graphguard.calibrate_command import calibrate
from graphguard.check_command.command import check
from graphguard.dashboard_command.command import dashboard
from graphguard.demo.command import demo
from graphguard.history_command.command import COMMANDS
from graphguard.ledger_command.command import ledger
from graphguard.report_command import report

__all__ = ["graphguard", "main"]


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    """Print the version and those of what it stands on."""
    if not value or ctx.resilient_parsing:
        return
    click.echo(
        f"graphguard {_version('graphguard')} (langgraph {_version('langgraph')}, Python {platform.python_version()})"
    )
    ctx.exit()


def _version(package: str) -> str:
    """Give an installed package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show versions and exit."
)
def graphguard() -> None:
    """Budgets for LangGraph agents: no model call starts that the budget can't pay for."""


graphguard.add_command(calibrate)
graphguard.add_command(check)
graphguard.add_command(dashboard)
graphguard.add_command(demo)
graphguard.add_command(ledger)
graphguard.add_command(report)
for command in COMMANDS:
    graphguard.add_command(command)


def main() -> None:
    """Run the command line, and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that lacks a letter gets a question mark for it, not a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    graphguard(prog_name="graphguard")
