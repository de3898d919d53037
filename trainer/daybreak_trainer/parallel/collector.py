"""Python's garbage collector, run on all ranks at the same step.

Left alone it runs when a rank has made enough objects, on each at another moment, and all ranks
wait in their next collective for the one that is at it.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Self

EVERY_STEPS = 50


class Collector:
    """A context in which garbage is collected by `after_step` alone.

    What is alive when it begins (modules, the model, the dataset's index) is not looked at: with it
    each collection would take some hundred milliseconds. What is made later is, whatever its age.
    """

    def __init__(self, every_steps: int = EVERY_STEPS) -> None:
        self._every = every_steps

    def __enter__(self) -> Self:
        gc.disable()
        gc.collect()
        gc.freeze()
        return self

    def after_step(self, step: int) -> None:
        """Call it on all ranks after every step, with the step's number."""
        if step % self._every == 0:
            gc.collect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.unfreeze()
        gc.enable()
