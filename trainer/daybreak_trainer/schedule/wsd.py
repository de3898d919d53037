"""The learning rate over a run: warm-up, stable, decay (arXiv 2405.18392)."""

from __future__ import annotations

from math import sqrt

from daybreak_trainer.recipe.optimizer import Schedule


def factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Factor on the learning rate for optimizer step `step` (0-based) of `total_steps`; 0..1.

    Linear warm-up, constant, then `1 - sqrt(progress)` to zero over the last `cooldown_share`.
    """
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    cooldown_steps = schedule.cooldown_share * total_steps
    into_cooldown = step + 1 - (total_steps - cooldown_steps)
    if into_cooldown <= 0:
        return warmup
    return warmup * (1.0 - sqrt(min(1.0, into_cooldown / (cooldown_steps + 1.0))))
