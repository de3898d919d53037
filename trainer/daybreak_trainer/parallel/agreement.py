"""What all ranks agree on after every step, without a step waiting for it.

Each step posts a small asynchronous all-reduce on the host's group and reads the result one step
later: whether anybody was asked to stop, whether a checkpoint is due, the loss of the global batch,
and a signature of the samples it was computed on. All ranks read the same numbers after the same
step, so all act on them at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Agreed:
    """The sum over ranks for one finished step."""

    step: int
    stop: bool
    checkpoint_due: bool
    signature: int
    """Sum modulo 2^64 of a hash of every (position, dataset index) in the global batch."""
    loss: float
    """Mean over the global batch."""


class StepAgreement:
    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._pending: tuple[int, Tensor, Tensor, tuple[dist.Work, dist.Work]] | None = None

    def exchange(
        self, step: int, *, stop: bool, checkpoint_due: bool, signature: int, loss_share: Tensor
    ) -> Agreed | None:
        """Posts this rank's part for `step` and returns what was agreed for the step before.

        `loss_share` is a scalar: this rank's sum of sample losses over the global batch size.
        """
        agreed = self.drain()
        flags = torch.tensor([stop, checkpoint_due, _as_int64(signature)], dtype=torch.int64)
        loss = loss_share.detach().double().cpu().reshape(1)
        works = (
            dist.all_reduce(flags, group=self._group, async_op=True),
            dist.all_reduce(loss, group=self._group, async_op=True),
        )
        self._pending = (step, flags, loss, works)
        return agreed

    def drain(self) -> Agreed | None:
        """What was posted last, once; None where nothing is pending."""
        if self._pending is None:
            return None
        step, flags, loss, works = self._pending
        self._pending = None
        for work in works:
            work.wait()
        stop, due, signature = flags.tolist()
        return Agreed(step, stop > 0, due > 0, signature % 2**64, float(loss))


def _as_int64(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned
