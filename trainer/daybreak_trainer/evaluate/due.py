"""When the weights are judged next, so that judging stays a small part of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from daybreak_trainer.parallel.agreement import Agreed

LARGEST_SHARE = 0.05
"""Of the time that judging takes where it comes by time; where it comes by steps, the run says."""


class EvaluationDue:
    """By time, which rank 0 tells the others, or by steps, which every rank counts alike."""

    def __init__(
        self,
        every_seconds: float | None,
        every_steps: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_seconds, self._every_steps, self._clock = every_seconds, every_steps, clock
        self._ended, self._took = clock(), 0.0
        self._evaluated = 0

    def by_time(self) -> bool:
        """Put off where the last one took long, until it is a twentieth of the time."""
        if self._every_seconds is None:
            return False
        pause = max(self._every_seconds, self._took * (1 / LARGEST_SHARE - 1))
        return self._clock() - self._ended >= pause

    def by_steps(self, step: int) -> bool:
        """After `step` steps of the run."""
        return self._every_steps is not None and step % self._every_steps == 0

    def after(self, step: int, done: Iterable[Agreed]) -> bool:
        """After `step` steps of the run, when all ranks have agreed on `done`. What was said before
        the last evaluation, and is heard of after it, was answered by it."""
        said = any(agreed.evaluation_due and agreed.step > self._evaluated for agreed in done)
        return said or self.by_steps(step)

    def took(self, step: int, seconds: float) -> None:
        """An evaluation after `step` steps ended now."""
        self._evaluated, self._ended, self._took = step, self._clock(), seconds

    def rolled_back(self, step: int) -> None:
        """Steps after `step` are trained again."""
        self._evaluated = min(self._evaluated, step)
