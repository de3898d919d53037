"""What a command cannot do, said to the user without a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")


class CommandError(Exception):
    """The message says what is wrong, where, and what to do; the command exits with `exit_code`.

    Exit codes: 1 the work failed, 2 the call or its input was wrong.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def said_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Errors a user can act on are one line on stderr and an exit code, never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CommandError as error:
            typer.echo(f"daybreak: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return wrapped
