"""What the steps of the search for binaries have in common."""

from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line for the person who waits."""


class StepError(Exception):
    """A step of the search could not provide the programs; the message says why."""
