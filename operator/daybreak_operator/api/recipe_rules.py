"""What `kubectl apply` refuses of a recipe: what a user's own words contradict, whatever the preset
says. The trainer's rules (`daybreak_trainer.recipe.rules`) see preset and words together and know
more; what they refuse becomes the run's condition, before any pod is made."""

from __future__ import annotations

from daybreak_trainer.recipe import presets, resolve

RECIPE: tuple[tuple[str, str], ...] = (
    (
        "!has(self.stages) || self.stages.all(s, has(s.steps)) || self.stages.all(s, has(s.share))",
        "recipe.stages: give all of them steps, or all of them a share of the run's time",
    ),
    (
        "!has(self.stages) || !self.stages.exists(s, has(s.steps) && has(s.share))",
        "recipe.stages: a stage has either steps or a share of the run's time",
    ),
    (
        "!has(self.stages) || !self.stages.all(s, has(s.share)) || "
        "(self.stages.map(s, s.share).sum() > 0.999999 && "
        "self.stages.map(s, s.share).sum() < 1.000001)",
        "recipe.stages: their shares must add up to 1",
    ),
    (
        "!has(self.stages) || !has(self.denoiser) || !has(self.denoiser.patchSize) || "
        "self.stages.all(s, s.resolution % self.denoiser.patchSize == 0)",
        "recipe.stages: each resolution must be a multiple of recipe.denoiser.patchSize",
    ),
    (
        "!has(self.denoiser) || !has(self.denoiser.hiddenSize) || !has(self.denoiser.heads) || "
        "self.denoiser.hiddenSize % self.denoiser.heads == 0",
        "recipe.denoiser.heads must divide recipe.denoiser.hiddenSize",
    ),
    (
        "!has(self.stages) || self.stages[0].warmupSteps == 0",
        "recipe.stages[0].warmupSteps: the first stage's warm-up is recipe.schedule.warmupSteps",
    ),
)
"""CEL and message, on `spec.recipe`."""


def shares_need_a_limit(limited: str) -> tuple[str, str]:
    """CEL and message, on `spec`; `limited` is CEL for whether it has a limit."""
    planned = [f"'{name}'" for name in presets() if not resolve({"preset": name}).is_fixed]
    has_shares = (
        "(has(self.recipe.stages) ? self.recipe.stages.exists(s, has(s.share)) : "
        f"self.recipe.preset in [{', '.join(planned)}])"
    )
    return (
        f"!{has_shares} || {limited}",
        "recipe.stages have shares of the run's time, and nothing says how long that is: set "
        "budget.duration, budget.maxCost or deadline, or give each stage steps",
    )
