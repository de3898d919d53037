"""Plans the run while it runs: what it has measured, what is left of its limits, and what has to be
kept for its end, turned into decisions that all ranks follow.

`plan.decide` says when and what. Here are the effects: clocks, and one rank that tells the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from daybreak_trainer.contract import EvaluationSettings
from daybreak_trainer.evaluate.score import heldout_prompts
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.decide import WARM_STEPS, believed, decide, due
from daybreak_trainer.plan.limits import Limits, Spent, refuse_without_limits
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState

_SAFETY = 1.5
_ENDING_SECONDS = 5.0
"""For what is the same in every run: to close a store, to write small files."""
_FORWARD_OF_TRAINING = 1 / 3
"""FLOPs of a forward pass over those of a training step."""
_STATE_BYTES, _WEIGHT_BYTES = 16, 4
"""Of a parameter: weights, two moments and average in fp32, of which the export has one."""


class Replanner:
    """`work` is FLOPs of an image in each stage, in any unit."""

    def __init__(
        self, settings: Settings, rank: Rank, work: Sequence[float], parameters: int
    ) -> None:
        """Raises RecipeError: stages have shares, and nothing says of what."""
        self._recipe, self._rank, self._work = settings.recipe, rank, tuple(work)
        self._limits = Limits.of(settings.run.budget, settings.run.deadline)
        refuse_without_limits(self._recipe, self._limits)
        self._evaluation = settings.run.evaluation
        self._parameters = parameters
        self._store_bytes_per_second = 0.0
        self._commit_seconds: float | None = None
        self._began, self._marked, self._mark = 0, 0, 0.0
        self._device_seconds, self._held = 0.0, 0.0

    def store_writes(self, bytes_per_second: float) -> None:
        """What the start-up's test measured."""
        self._store_bytes_per_second = bytes_per_second

    def committed(self, seconds: float) -> None:
        """A save took so long, from its begin to its commit."""
        self._commit_seconds = max(seconds, self._commit_seconds or 0.0)

    def resumed(self, state: RunState, held_seconds: float) -> None:
        """An attempt begins, of a checkpoint whose ledger held so many seconds."""
        self._device_seconds, self._held = state.device_seconds, held_seconds

    def device_seconds(self, ledger: Mapping[str, float]) -> float:
        """Of the whole run: what a checkpoint says, and since then at today's size."""
        return self._device_seconds + (sum(ledger.values()) - self._held) * self._rank.world

    def enter(self, step: int) -> None:
        """Steps are of another stage, or come after a stand-still: speed is measured afresh."""
        self._began = step
        self._started(step)

    def after_step(
        self, course: Course, state: RunState, ledger: Mapping[str, float]
    ) -> Decision | None:
        """The decision that is made after this step, if one is; the same on all ranks."""
        if self._recipe.is_fixed:
            return None
        if state.step == self._began + WARM_STEPS:
            self._started(state.step)
        reason = due(course, state.decisions, state.step, self._began)
        if reason is None:
            return None
        box = [self._decided(course, state, ledger, reason) if self._rank.is_first else None]
        dist.broadcast_object_list(box, src=0)
        self._started(state.step)
        return box[0]

    def _started(self, step: int) -> None:
        self._marked, self._mark = step, time.monotonic()

    def _decided(
        self, course: Course, state: RunState, ledger: Mapping[str, float], reason: str
    ) -> Decision:
        batch = course.stage_at(state.step).batch_size
        seconds = max(1e-9, time.monotonic() - self._mark)
        measured = (state.step - self._marked) * batch / seconds
        speeds = believed(course, state.decisions, state.step, measured, self._work)
        spent = Spent(sum(ledger.values()), self.device_seconds(ledger), time.time())
        left = self._limits.seconds(spent, self._rank.world)
        assert left is not None  # refused at the start
        return decide(course, state.step, left - self._ending(speeds[-1]), speeds, reason)

    def _ending(self, images_per_second: float) -> float:
        """Seconds from the last step to the end: a commit, the export, its evaluation."""
        speed = self._store_bytes_per_second or float("inf")
        commit = self._commit_seconds
        if commit is None:
            commit = _STATE_BYTES * self._parameters / speed
        export = _WEIGHT_BYTES * self._parameters / speed
        drawing = _drawn(self._evaluation, self._recipe) * _FORWARD_OF_TRAINING / images_per_second
        return _SAFETY * (commit + export + drawing) + _ENDING_SECONDS


def _drawn(evaluation: EvaluationSettings, recipe: Recipe) -> float:
    """Forward passes of the evaluation at the end, as images; guidance takes two for each step."""
    images = evaluation.images if evaluation.prompts else 0
    if evaluation.benchmark is not None:
        images += len(heldout_prompts(evaluation.benchmark))
    return images * recipe.sampling.steps * (2 if recipe.sampling.guidance > 1 else 1)
