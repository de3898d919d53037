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
from daybreak_trainer.evaluate.validate import TIMESTEPS
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.decide import WARM_STEPS, Window, due, expected, replan
from daybreak_trainer.plan.limits import Limits, Spent, refuse_without_limits
from daybreak_trainer.plan.reserve import Reserve
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.telemetry.ledger import PRODUCTIVE

_STATE_BYTES, _WEIGHT_BYTES = 16, 4
"""Of a parameter: weights, two moments and average in fp32, of which the export has one."""
_OVERHEADS = ("data_wait", "checkpoint", "evaluation")
"""Accounts of the ledger that come and go while a run trains, and tell nothing of its speed."""
_TRAINING = (PRODUCTIVE, "rolled_back", "skipped")


class Replanner:
    """`work` is FLOPs of an image in each stage, in any unit."""

    def __init__(
        self,
        settings: Settings,
        rank: Rank,
        work: Sequence[float],
        parameters: int,
        frozen: int,
    ) -> None:
        """`frozen`: parameters that are exported with the trained ones. Raises RecipeError: stages
        have shares, and nothing says of what."""
        self._recipe, self._rank, self._work = settings.recipe, rank, tuple(work)
        self._limits = Limits.of(settings.run.budget, settings.run.deadline)
        refuse_without_limits(self._recipe, self._limits)
        power = self._recipe.ema.power
        averages = len(power.deviations) if power is not None else 0
        self._reserve = Reserve(
            commit_bytes=_STATE_BYTES * parameters,
            export_bytes=_WEIGHT_BYTES * (parameters * (1 + averages) + frozen),
            judged_passes=_judged(settings.run.evaluation, self._recipe),
            drawn_passes=_drawn(settings.run.evaluation, self._recipe),
        )
        self._judged_seconds: float | None = None
        self._store_bytes_per_second = 0.0
        self._commit_seconds: float | None = None
        self._began, self._marked, self._mark = 0, 0, 0.0
        """The mark is of the clock without overheads."""
        self._device_seconds, self._held = 0.0, 0.0

    def store_writes(self, bytes_per_second: float) -> None:
        """What the start-up's test measured."""
        self._store_bytes_per_second = bytes_per_second

    def committed(self, seconds: float) -> None:
        """A save took so long, from its begin to its commit."""
        self._commit_seconds = max(seconds, self._commit_seconds or 0.0)

    def evaluated(self, seconds: float) -> None:
        """The last evaluation took so long."""
        self._judged_seconds = seconds

    def resumed(self, state: RunState, held_seconds: float) -> None:
        """An attempt begins, of a checkpoint whose ledger held so many seconds."""
        self._device_seconds, self._held = state.device_seconds, held_seconds

    def device_seconds(self, ledger: Mapping[str, float]) -> float:
        """Of the whole run: what a checkpoint says, and since then at today's size."""
        return self._device_seconds + (sum(ledger.values()) - self._held) * self._rank.world

    def enter(self, step: int, ledger: Mapping[str, float]) -> None:
        """Steps are of another stage, or come after a stand-still: speed is measured afresh."""
        self._began = step
        self._started(step, ledger)

    def after_step(
        self, course: Course, state: RunState, ledger: Mapping[str, float]
    ) -> Decision | None:
        """The decision that is made after this step, if one is; the same on all ranks."""
        if self._recipe.is_fixed:
            return None
        if state.step == self._began + WARM_STEPS:
            self._started(state.step, ledger)
        reason = due(course, state.decisions, state.step, self._began)
        if reason is None:
            return None
        box: list[Decision | None] = [None]
        if self._rank.is_first:
            speed = self._measured(course, state.step, ledger)
            box = [self._decided(course, state, ledger, speed, reason)]
        dist.broadcast_object_list(box, src=0)
        self._started(state.step, ledger)
        return box[0]

    def at_resume(
        self, course: Course, state: RunState, ledger: Mapping[str, float]
    ) -> Decision | None:
        """Where an attempt goes on, by the speed that the last one had: what is over already is not
        trained on until it is measured. The same on all ranks."""
        if not state.decisions or state.step >= course.total_steps:
            return None
        box: list[Decision | None] = [None]
        if self._rank.is_first:
            speed = expected(course, state.decisions[-1], state.step, self._rank.world)
            box = [self._decided(course, state, ledger, speed, "resumed")]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _started(self, step: int, ledger: Mapping[str, float]) -> None:
        self._marked, self._mark = step, _training(ledger)

    def _measured(self, course: Course, step: int, ledger: Mapping[str, float]) -> float:
        """Images/s since the mark."""
        seconds = max(1e-9, _training(ledger) - self._mark)
        return (step - self._marked) * course.stage_at(step).batch_size / seconds

    def _decided(
        self,
        course: Course,
        state: RunState,
        ledger: Mapping[str, float],
        measured: float,
        reason: str,
    ) -> Decision:
        spent = Spent(sum(ledger.values()), self.device_seconds(ledger), time.time())
        left = self._limits.seconds(spent, self._rank.world)
        assert left is not None  # refused at the start
        stage, ratio = course.index_at(state.step), self._work
        ending = self._reserve.seconds(
            measured * ratio[stage] / ratio[-1],
            self._store_bytes_per_second or float("inf"),
            self._commit_seconds,
            self._judged_seconds,
        )
        overheads = sum(ledger.get(account, 0.0) for account in _OVERHEADS)
        return replan(
            course,
            state.decisions,
            state.step,
            (left - ending) / (1.0 + overheads / max(1e-9, _training(ledger))),
            Window(measured, self._rank.world),
            self._work,
            reason,
        )


def _training(ledger: Mapping[str, float]) -> float:
    """Seconds of steps, whatever became of them."""
    return sum(ledger.get(account, 0.0) for account in _TRAINING)


def _judged(evaluation: EvaluationSettings, recipe: Recipe) -> float:
    """Forward passes of the evaluation of the last weights, as images."""
    each = len(TIMESTEPS) + (_a_drawing(recipe) if evaluation.extractors.given else 0)
    return float(evaluation.validation_samples * each)


def _a_drawing(recipe: Recipe) -> int:
    """Forward passes of one image; guidance takes two for each step."""
    return recipe.sampling.steps * (2 if recipe.sampling.guidance > 1 else 1)


def _drawn(evaluation: EvaluationSettings, recipe: Recipe) -> float:
    """Forward passes of the evaluation of the export, as images."""
    images = evaluation.images if evaluation.prompts else 0
    if evaluation.benchmark is not None:
        images += len(heldout_prompts(evaluation.benchmark))
    return float(images * _a_drawing(recipe))
