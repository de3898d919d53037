"""One log line about the steps now and then, for a person who follows the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.phases import StepTimes

_EVERY_SECONDS = 30.0
_DIGITS = 4


class StepLog:
    """Logs `step_finished` at most every `every_seconds`, and the first step at once."""

    def __init__(
        self, every_seconds: float = _EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._clock = every_seconds, clock
        self._last = float("-inf")

    def step(
        self,
        step: int,
        *,
        loss: float,
        parts: Mapping[str, float] | None = None,
        gradient_norm: float | None = None,
        images_per_second: float | None = None,
        times: StepTimes | None = None,
    ) -> None:
        """`parts` of the loss, by name; `times` are of the last step whose times are known."""
        now = self._clock()
        if now - self._last < self._every:
            return
        self._last = now
        figures: dict[str, float | None] = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "images_per_second": images_per_second,
        }
        if parts is not None and len(parts) > 1:
            figures |= {f"{name}_loss": value for name, value in parts.items()}
        if times is not None:
            figures["step_seconds"] = times.total_seconds
            figures |= {f"{phase}_seconds": value for phase, value in times.seconds.items()}
        known: dict[str, Any] = {
            name: float(f"{value:.{_DIGITS}g}")
            for name, value in figures.items()
            if value is not None
        }
        log.event("step_finished", step=step, **known)
