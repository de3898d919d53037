"""Brings batches to the device while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from daybreak_trainer.data.batch import Batch


class DeviceFeed:
    """Iterates over batches with their tensors on `device`.

    On CUDA a batch is copied from pinned memory on a stream of its own. The training loop asks for
    batch n+1 as soon as step n's kernels are queued, so the copy runs beside them, and what is
    queued afterwards waits for it on the device; the host waits for neither. Elsewhere batches
    pass through.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[Batch]:
        if self._device.type != "cuda":
            yield from self._batches
            return
        copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for batch in self._batches:
            with torch.cuda.stream(copies):
                moved = batch.to(self._device)
            compute = torch.cuda.current_stream(self._device)
            compute.wait_stream(copies)
            for tensor in moved.tensors.values():
                # The allocator must not hand its memory to the next copy before compute is done.
                tensor.record_stream(compute)
            yield moved
