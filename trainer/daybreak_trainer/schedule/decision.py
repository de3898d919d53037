"""What a run decided about its own length, at one step; kept in its checkpoints."""

from __future__ import annotations

from pydantic import Field

from daybreak_trainer.contract import Message


class Decision(Message):
    """From `step` on the run's stages end where this says. A run that is resumed follows the
    decisions in its checkpoint, so every rank and every attempt has one course."""

    step: int = Field(ge=0, description="Optimizer steps done when it was made.")
    reason: str = Field(description="Why then: stage, resumed or periodic.")
    stage_ends: tuple[int, ...] = Field(
        min_length=1, description="Step at which each stage of the recipe ends."
    )
    cooldown_begin: float = Field(description="Step from which the learning rate falls.")
    next_step: int = Field(default=0, description="Step after which to decide again.")
    images_per_second: tuple[float, ...] = Field(
        default=(), description="Of each stage, over all ranks: what the plan counts on."
    )
    measured: float = Field(
        default=0.0,
        description="Images/s in the steps before it, whether it counts on them or not.",
    )
    ranks: int = Field(default=0, description="How many there were.")
    done_seconds: tuple[float, ...] = Field(
        default=(), description="That each stage was trained so far, as if on so many ranks."
    )

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.stage_ends[-1]
