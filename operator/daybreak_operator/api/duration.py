"""Go-style durations (`90s`, `10m`, `1h30m`) and intervals, which may also be `2000steps`."""

from __future__ import annotations

import re
from dataclasses import dataclass

DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
INTERVAL_PATTERN = r"^(([0-9]+(\.[0-9]+)?(ms|s|m|h))+|[1-9][0-9]*steps)$"
LONGEST_HOURS = 87_600
"""Ten years. What is longer means "never", and would leave the range of dates."""
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    """Seconds of a duration that the schema has accepted; ten years where it is longer: a run may
    have been stored before the schema refused that."""
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(duration))
    return min(total, LONGEST_HOURS * _SECONDS["h"])


@dataclass(frozen=True)
class Interval:
    """Either is set, never both."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Interval:
        if text.endswith("steps"):
            return cls(steps=int(text.removesuffix("steps")))
        return cls(seconds=seconds(text))
