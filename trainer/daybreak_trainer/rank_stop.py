"""How ranks stop on request: one hears SIGTERM, all commit after the same step, and leave.

`stop` is the launcher's part.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from daybreak_trainer.rank import StopRequestedError
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.saver import Saver
from daybreak_trainer.telemetry import log


class StopFlag:
    """Set by SIGTERM; what follows is agreed on by all ranks (`StepAgreement`)."""

    def __init__(self) -> None:
        self.requested_at: float | None = None
        """On the monotonic clock."""
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    @property
    def is_set(self) -> bool:
        return self.requested_at is not None


class RankStop:
    """Every method is called by every rank, at the same step."""

    def __init__(self, context: RunContext, flag: StopFlag, saver: Saver) -> None:
        self._context, self._flag, self._saver = context, flag, saver

    def heed(self) -> None:
        """Between steps, where all ranks can wait for each other: leaves if any was asked to.

        Raises:
            StopRequestedError: one was; the state is committed.
        """
        wish = torch.tensor(int(self._flag.is_set))
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        if wish:
            self.leave()

    def leave(self) -> NoReturn:
        """Commits, and ends this rank.

        Raises:
            StopRequestedError: always, once the state is committed.
        """
        reference = self._saver.commit()
        self._context.progress.phase("Stopping")
        if self._flag.requested_at is not None:
            seconds = time.monotonic() - self._flag.requested_at
            self._context.metrics.health.stop(seconds)
            log.event("stopped", step=reference.step, seconds=round(seconds, 2))
        self._saver.close()
        raise StopRequestedError(reference)
