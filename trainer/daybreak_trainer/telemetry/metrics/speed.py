"""How fast a step is, what of the device it uses, and where its time goes."""

from __future__ import annotations

from daybreak_trainer.telemetry.memory import MemoryUse
from daybreak_trainer.telemetry.metrics.family import (
    LONG,
    SHORT,
    counter,
    histogram,
    process_gauge,
    run_gauge,
)
from daybreak_trainer.telemetry.phases import PHASES, StepTimes
from daybreak_trainer.telemetry.throughput import Throughput


class SpeedMetrics:
    def __init__(self) -> None:
        self._steps = counter("steps", "Steps done by this pod's ranks.")
        self._images = counter("images", "Images trained on by this pod's ranks.")
        self._seconds = histogram("step_seconds", "Duration of an optimizer step.", LONG)
        by_phase = histogram(
            "step_phase_seconds", "Time of a step by phase, of this pod's ranks.", SHORT, "phase"
        )
        self._by_phase = {name: by_phase.labels(name) for name in PHASES}
        self._per_device = run_gauge(
            "images_per_second_per_device", "Images trained a second, on one device."
        )
        self._data_wait = run_gauge(
            "data_wait_ratio", "Share of the last steps in which rank 0 waited for data."
        )
        self._mfu = run_gauge(
            "mfu_ratio", "Model FLOPs over the device's peak; only for devices whose peak is known."
        )
        self._hfu = run_gauge("hfu_ratio", "The same with what is computed again to save memory.")
        self._flops = run_gauge(
            "device_flops_per_second", "FLOPs a second on one device, frozen encoders included."
        )
        self._text_tokens = run_gauge(
            "text_tokens_per_caption", "Tokens of a caption before it is cut, by the data's sample."
        )
        self._text_cut = run_gauge(
            "text_cut_ratio", "Share of captions that are longer than the recipe's tokens."
        )
        self._text_flops = run_gauge(
            "text_flops_ratio", "Share of a step's FLOPs that the text encoder takes."
        )
        memory = {
            "resident": "Host memory of the rank's process.",
            "allocated": "Device memory in tensors.",
            "reserved": "Device memory that the rank holds.",
            "peak": "Most device memory in tensors so far.",
        }
        self._memory = {
            kind: process_gauge(f"memory_{kind}_bytes", text, "rank")
            for kind, text in memory.items()
        }

    def step(self, *, images: int, seconds: float) -> None:
        """One finished step of this rank; `images` are its own."""
        self._steps.inc()
        self._images.inc(images)
        self._seconds.observe(seconds)

    def phases(self, times: StepTimes) -> None:
        """One step of this rank by phase."""
        for phase, seconds in times.seconds.items():
            self._by_phase[phase].observe(seconds)

    def throughput(self, throughput: Throughput) -> None:
        """On rank 0, over the last steps."""
        for gauge, value in (
            (self._per_device, throughput.images_per_second_per_device),
            (self._data_wait, throughput.data_wait_ratio),
            (self._mfu, throughput.mfu),
            (self._hfu, throughput.hfu),
            (self._flops, throughput.device_flops_per_second),
        ):
            if value is not None:
                gauge.set(value)

    def text(self, *, tokens: float | None, cut_ratio: float | None, flops_ratio: float) -> None:
        """On rank 0, before the first step; None where the data does not say."""
        for gauge, value in (
            (self._text_tokens, tokens),
            (self._text_cut, cut_ratio),
            (self._text_flops, flops_ratio),
        ):
            if value is not None:
                gauge.set(value)

    def memory(self, rank: int, use: MemoryUse) -> None:
        for kind, value in (
            ("resident", use.resident),
            ("allocated", use.allocated),
            ("reserved", use.reserved),
            ("peak", use.peak),
        ):
            if value is not None:
                self._memory[kind].labels(str(rank)).set(value)
