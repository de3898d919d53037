"""How fast training is over the last steps, in images, and as a share of what the device could do.

MFU and HFU as in PaLM (arXiv 2204.02311, appendix B): the FLOPs that the model needs, or that the
hardware computes, over the device's peak in the same time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daybreak_trainer.models.flops import Checkpointing, SampleFlops

_WINDOW_STEPS = 50


@dataclass(frozen=True)
class Throughput:
    images_per_second: float
    """Over all ranks."""
    images_per_second_per_device: float
    data_wait_ratio: float
    """Share of the time in which this rank waited for data, 0..1."""
    device_flops_per_second: float | None
    """Everything that one device computes, frozen encoders included; None with a memory budget."""
    mfu: float | None
    """0..1; None where the device's peak is not known."""
    hfu: float | None
    """0..1; None as `mfu`, and with a memory budget."""


@dataclass(frozen=True)
class _Step:
    end: float
    images: int
    data_seconds: float
    model: float
    hardware: float | None
    device: float | None


class ThroughputMeter:
    """Looks at the last steps; those may be of several buckets, each with FLOPs of its own."""

    def __init__(
        self,
        devices: int,
        checkpointing: Checkpointing,
        peak_flops_per_second: float | None,
        window_steps: int = _WINDOW_STEPS,
    ) -> None:
        self._devices, self._checkpointing = devices, checkpointing
        self._peak = peak_flops_per_second
        self._steps: deque[_Step] = deque(maxlen=window_steps + 1)

    def pause(self) -> None:
        """Training stands still; what comes next is measured afresh."""
        self._steps.clear()

    def step(self, end: float, images: int, flops: SampleFlops, data_seconds: float = 0.0) -> None:
        """A step of `images` over all ranks that ended at `end`, in seconds on any one clock."""
        hardware, device = flops.hardware(self._checkpointing), flops.device(self._checkpointing)
        self._steps.append(
            _Step(
                end,
                images,
                data_seconds,
                images * flops.model,
                None if hardware is None else images * hardware,
                None if device is None else images * device,
            )
        )

    def throughput(self) -> Throughput | None:
        """None before the second step: a step is measured from the end of the one before."""
        if len(self._steps) < 2:
            return None
        first, *steps = self._steps
        seconds = steps[-1].end - first.end
        if seconds <= 0:
            return None
        images = sum(step.images for step in steps) / seconds
        model = self._per_device([step.model for step in steps], seconds)
        hardware = self._per_device([step.hardware for step in steps], seconds)
        return Throughput(
            images_per_second=images,
            images_per_second_per_device=images / self._devices,
            data_wait_ratio=min(1.0, sum(step.data_seconds for step in steps) / seconds),
            device_flops_per_second=self._per_device([step.device for step in steps], seconds),
            mfu=self._of_peak(model),
            hfu=self._of_peak(hardware),
        )

    def _per_device(self, flops: list[float] | list[float | None], seconds: float) -> float | None:
        known = [value for value in flops if value is not None]
        return sum(known) / seconds / self._devices if len(known) == len(flops) else None

    def _of_peak(self, flops_per_second: float | None) -> float | None:
        if flops_per_second is None or self._peak is None:
            return None
        return flops_per_second / self._peak
