"""What bounds a run: time holding devices, money, and the clock on the wall. The tightest wins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.recipe import Recipe, RecipeError

SECONDS_PER_HOUR = 3600.0
MAX_COST = "spec.budget.maxCost"
"""The limit that is not one of time: more devices use it up sooner."""


@dataclass(frozen=True)
class Spent:
    """What a run has used so far."""

    held_seconds: float
    """Time in which it held devices."""
    device_seconds: float
    """The same, times how many it held."""
    unix_time: float
    """Now."""


@dataclass(frozen=True)
class Limits:
    budget: BudgetSettings
    deadline_unix_time: float | None = None

    @classmethod
    def of(cls, budget: BudgetSettings, deadline: str | None) -> Limits:
        """`deadline` is RFC 3339. Raises RecipeError: it is not."""
        return cls(budget, _unix_time(deadline) if deadline else None)

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.seconds(Spent(0.0, 0.0, 0.0), 1) is not None

    def left(self, spent: Spent, devices: int) -> dict[str, float]:
        """Seconds for which `devices` may be held from now on, all ending included, by the field
        that says so; may be below zero."""
        found: dict[str, float] = {}
        budget = self.budget
        if budget.duration_seconds is not None:
            found["spec.budget.duration"] = budget.duration_seconds - spent.held_seconds
        if budget.max_cost is not None and budget.gpu_hour_price is not None:
            affordable = budget.max_cost / budget.gpu_hour_price * SECONDS_PER_HOUR
            found[MAX_COST] = (affordable - spent.device_seconds) / devices
        if self.deadline_unix_time is not None:
            found["spec.deadline"] = self.deadline_unix_time - spent.unix_time
        return found

    def seconds(self, spent: Spent, devices: int) -> float | None:
        """By the tightest of them. None where nothing is limited."""
        return min(self.left(spent, devices).values(), default=None)


def _unix_time(deadline: str) -> float:
    """Of RFC 3339, section 5.6: letters may be small, and a leap second is the 60th."""
    text, leaps = re.subn(r"(T\d\d:\d\d):60", r"\1:59", deadline.strip().upper())
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError("it has no offset")
    except ValueError as error:
        raise RecipeError(
            f"spec.deadline is {deadline!r}: {error}; write it as RFC 3339 with an offset, such as "
            '"2026-12-01T08:00:00Z" or "2026-12-01T09:00:00+01:00"'
        ) from None
    return time.timestamp() + leaps


def refuse_without_limits(recipe: Recipe, limits: Limits) -> None:
    """Raises RecipeError: stages have shares, and nothing says of what."""
    if not recipe.is_fixed and not limits.any:
        raise RecipeError(
            "recipe.stages have shares of the run's time, and nothing says how long that is: set "
            "spec.budget.duration, spec.budget.maxCost or spec.deadline, or give each stage steps"
        )
