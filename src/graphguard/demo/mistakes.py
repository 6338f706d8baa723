"""The error of somebody who called the demo wrongly: one line that says what to do, exit code 2."""

from __future__ import annotations

import click

__all__ = ["ModelFailed", "WrongUse"]


class WrongUse(click.ClickException):
    """Something in the command line, or in a file it names, can't be used."""

    exit_code = 2

    def __init__(self, problem: str) -> None:
        """Say what is wrong and what to do, in one line."""
        super().__init__(" ".join(problem.split()))

    def __reduce__(self) -> tuple[type[WrongUse], tuple[str]]:
        """Rebuild from the text."""
        return type(self), (self.message,)


class ModelFailed(WrongUse):
    """A live model's provider refused or could not be reached; the command was right."""

    exit_code = 1
