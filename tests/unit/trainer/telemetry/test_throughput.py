"""Images a second, MFU and HFU are what the last steps were, or are not given at all."""

from __future__ import annotations

import mmap

import pytest
import torch

from daybreak_trainer.models.flops import SampleFlops
from daybreak_trainer.telemetry.devices import peak_of
from daybreak_trainer.telemetry.memory import memory_use
from daybreak_trainer.telemetry.throughput import ThroughputMeter

SAMPLE = SampleFlops(trained=10.0, blocks=8.0, frozen=5.0)
SMALL_SAMPLE = SampleFlops(trained=4.0, blocks=3.0, frozen=5.0)


def test_flops_are_counted_by_bucket_over_devices_and_time() -> None:
    """Two devices; the first step's length is not known, so it does not count."""
    meter = ThroughputMeter(devices=2, checkpointing="blocks", peak_flops_per_second=1000.0)
    meter.step(10.0, images=99, flops=SAMPLE)
    assert meter.throughput() is None
    meter.step(12.0, images=100, flops=SAMPLE, data_seconds=0.5)
    meter.step(14.0, images=60, flops=SMALL_SAMPLE, data_seconds=0.3)
    figures = meter.throughput()
    assert figures is not None
    assert figures.images_per_second == 40
    assert figures.images_per_second_per_device == 20
    assert figures.data_wait_ratio == pytest.approx(0.2)
    assert figures.mfu == pytest.approx((100 * 30 + 60 * 12) / 4 / 2 / 1000)
    assert figures.hfu == pytest.approx((100 * 38 + 60 * 15) / 4 / 2 / 1000)
    assert figures.device_flops_per_second == pytest.approx((100 * 43 + 60 * 20) / 4 / 2)


@pytest.mark.parametrize(
    ("peak", "checkpointing", "known"),
    [
        (None, "none", ("device",)),
        (1000.0, "budget", ("mfu",)),
        (1000.0, "none", ("mfu", "hfu", "device")),
    ],
)
def test_what_is_not_known_is_not_given(
    peak: float | None, checkpointing: str, known: tuple[str, ...]
) -> None:
    """No MFU without the device's peak, no HFU where nobody knows what is computed again."""
    meter = ThroughputMeter(1, checkpointing, peak)  # type: ignore[arg-type]
    for end in (0.0, 1.0):
        meter.step(end, images=1, flops=SAMPLE)
    figures = meter.throughput()
    assert figures is not None
    given = {"mfu": figures.mfu, "hfu": figures.hfu, "device": figures.device_flops_per_second}
    assert tuple(name for name, value in given.items() if value is not None) == known


def test_only_the_last_steps_count_and_a_pause_is_no_step() -> None:
    meter = ThroughputMeter(1, "none", None, window_steps=2)
    for end, images in ((0.0, 1), (1.0, 1), (2.0, 8), (3.0, 8)):
        meter.step(end, images, SAMPLE)
    figures = meter.throughput()
    assert figures is not None
    assert figures.images_per_second == 8
    meter.pause()
    meter.step(100.0, 4, SAMPLE)
    assert meter.throughput() is None
    meter.step(101.0, 4, SAMPLE)
    figures = meter.throughput()
    assert figures is not None
    assert figures.images_per_second == 4


def test_a_cpu_has_no_peak_and_no_device_memory() -> None:
    """What it has is the process's memory."""
    device = torch.device("cpu")
    assert peak_of(device, torch.bfloat16) is None
    before = memory_use(device)
    assert (before.allocated, before.reserved, before.peak) == (None, None, None)
    with mmap.mmap(-1, 64 << 20) as held:  # what was freed before would not count again
        held.write(b"1" * len(held))
        assert memory_use(device).resident - before.resident > (32 << 20)
