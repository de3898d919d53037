"""What all ranks agree on after every step, without a step waiting for it.

The numbers of step k are copied to the host while step k + 1 is computed; then they are posted,
with the host's own wishes at step k, as a small asynchronous all-reduce on the host's group; the
sum is read after step k + 2. By then both are long done: neither the device nor another rank is
waited for. All ranks read the same values after the same step, so all act on them at the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class StepNumbers:
    """What a step leaves behind, scalars on the device."""

    loss_share: Tensor
    """This rank's sum of sample losses over the global batch's size; all ranks' add up to the
    loss."""
    norm: Tensor
    """Of the global gradient before clipping; the same on all ranks."""
    finite: Tensor
    """Bool: whether this rank took the step."""
    part_names: tuple[str, ...] = ()
    """Of the parts of the loss; the same on all ranks."""
    part_shares: Tensor | None = None
    """`(parts,)`, as `loss_share`, each before its weight."""


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
    gradient_norm: float
    """Before clipping."""
    finite: bool
    """Whether the step was taken: loss and gradient were finite on all ranks."""
    by_rank: tuple[tuple[float, ...], ...]
    """What each rank said of itself (`exchange`'s `own`)."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of the loss, by name, each before its weight; mean over the global batch."""
    evaluation_due: bool = False


@dataclass(frozen=True)
class _Said:
    """One rank's part for a step that is not posted yet."""

    step: int
    flags: tuple[bool, bool, bool]
    signature: int
    own: tuple[float, ...]
    numbers: Tensor
    """Loss share, norm, finite and the shares of parts, on the host when `copied` has passed."""
    copied: torch.cuda.Event | None
    part_names: tuple[str, ...]


@dataclass(frozen=True)
class _Posted:
    step: int
    part_names: tuple[str, ...]
    integers: Tensor
    floats: Tensor
    works: tuple[dist.Work, dist.Work]


class StepAgreement:
    """`own_values` is how many floats each rank says about itself each step."""

    def __init__(self, group: dist.ProcessGroup | None, own_values: int = 0) -> None:
        self._group, self._own_values = group, own_values
        self._rank = dist.get_rank() if group is None else group.rank()
        self._world = dist.get_world_size() if group is None else group.size()
        self._said: _Said | None = None
        self._posted: deque[_Posted] = deque()

    def exchange(
        self,
        step: int,
        *,
        stop: bool,
        checkpoint_due: bool,
        signature: int,
        numbers: StepNumbers,
        own: Sequence[float] = (),
        evaluation_due: bool = False,
    ) -> list[Agreed]:
        """Takes this rank's part for `step`; returns what was agreed for the step two before, once
        there is one."""
        if len(own) != self._own_values:
            raise ValueError(f"{self._own_values} own values were announced, not {len(own)}")
        done = [self._read()] if self._posted else []
        self._post()
        host, copied = _on_its_way(numbers)
        self._said = _Said(
            step,
            (stop, checkpoint_due, evaluation_due),
            signature,
            tuple(own),
            host,
            copied,
            numbers.part_names,
        )
        return done

    def drain(self) -> list[Agreed]:
        """Everything that is pending, in order; waits for it."""
        self._post()
        done = []
        while self._posted:
            done.append(self._read())
        return done

    def _post(self) -> None:
        if self._said is None:
            return
        said, self._said = self._said, None
        if said.copied is not None:
            said.copied.synchronize()  # the device is busy with the step after it
        loss, norm, finite, *parts = said.numbers.tolist()
        integers = torch.tensor(
            [*said.flags, finite == 0.0, _as_int64(said.signature)], dtype=torch.int64
        )
        begin = 2 + len(parts)
        floats = torch.zeros(begin + self._world * self._own_values, dtype=torch.float64)
        floats[0] = loss
        if self._rank == 0:
            floats[1] = norm
        floats[2:begin] = torch.tensor(parts, dtype=torch.float64)
        start = begin + self._rank * self._own_values
        floats[start : start + self._own_values] = torch.tensor(said.own, dtype=torch.float64)
        works = (
            dist.all_reduce(integers, group=self._group, async_op=True),
            dist.all_reduce(floats, group=self._group, async_op=True),
        )
        self._posted.append(_Posted(said.step, said.part_names, integers, floats, works))

    def _read(self) -> Agreed:
        posted = self._posted.popleft()
        for work in posted.works:
            work.wait()
        stop, checkpoint_due, evaluation_due, not_finite, signature = posted.integers.tolist()
        begin = 2 + len(posted.part_names)
        loss, norm, *parts = posted.floats[:begin].tolist()
        rows = posted.floats[begin:].reshape(self._world, self._own_values).tolist()
        return Agreed(
            step=posted.step,
            stop=stop > 0,
            checkpoint_due=checkpoint_due > 0,
            signature=signature % 2**64,
            loss=loss,
            gradient_norm=norm,
            finite=not_finite == 0,
            by_rank=tuple(tuple(row) for row in rows),
            parts=dict(zip(posted.part_names, parts, strict=True)),
            evaluation_due=evaluation_due > 0,
        )


def _on_its_way(numbers: StepNumbers) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and when it will be there: at once on a CPU."""
    stacked = torch.stack(
        [t.detach().double() for t in (numbers.loss_share, numbers.norm, numbers.finite)]
    )
    if numbers.part_shares is not None:
        stacked = torch.cat([stacked, numbers.part_shares.detach().double()])
    if not stacked.is_cuda:
        return stacked, None
    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
    host.copy_(stacked, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return host, copied


def _as_int64(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned
