"""The course of a run: which stage a step belongs to, and how high its learning rate is.

A recipe whose stages have `steps` has one course. A recipe with shares of a budget has one for
every list of decisions, and each decision changes what comes after it alone.

The rate goes up, along and down (WSD, arXiv 2405.18392): a linear warm-up, the stage's own factor
after a warm-up of its own, and at the end `1 - sqrt(progress)`. The progress of the cooldown is
piecewise linear in steps. A decision in the middle of a cooldown bends the line where it is, so the
rate does not jump, and the line still reaches 1 when the last step is done, neither before (a step
would be lost) nor after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.stages import Stage
from daybreak_trainer.schedule.decision import Decision

OPEN = 2**53
"""Where the first stage ends before anything was decided."""


@dataclass(frozen=True)
class Course:
    """Steps are counted from 0: step `s` is the one that is taken when `s` steps are done."""

    recipe: Recipe
    ends: tuple[int, ...]
    """Step at which each stage ends; a stage without steps ends where the one before it does."""
    cooldown: tuple[tuple[float, float], ...]
    """(steps done, progress), rising, from progress 0 to 1; empty without a cooldown."""
    images_per_second: tuple[float, ...] = ()
    """Of each stage, where that was decided on."""

    @classmethod
    def of(cls, recipe: Recipe, decisions: Sequence[Decision] = ()) -> Course:
        """A fixed recipe's course; else the one that its decisions, oldest first, lead to. Before
        the first of these the first stage is open."""
        if recipe.is_fixed:
            ends, total = [], 0
            for stage in recipe.stages:
                total += stage.steps or 0
                ends.append(total)
            share = recipe.schedule.cooldown_share
            begin = total - share * total
            return cls(recipe, tuple(ends), ((begin, 0.0), (total + 1.0, 1.0)) if share else ())
        course = cls(recipe, (OPEN,) * len(recipe.stages), ())
        for decision in decisions:
            course = course.after(decision)
        return course

    def after(self, decision: Decision) -> Course:
        """This course up to the decision's step, and the decided one from there on."""
        at, end = float(decision.step), decision.total + 1.0
        progress = self.progress(decision.step)
        if progress > 0.0:
            past = [knot for knot in self.cooldown if knot[0] < at]
            knots = (*past, (at, progress), (end, 1.0))
        elif self.recipe.schedule.cooldown_share:
            knots = (
                (min(max(decision.cooldown_begin, at), float(decision.total)), 0.0),
                (end, 1.0),
            )
        else:
            knots = ()
        return Course(self.recipe, decision.stage_ends, knots, decision.images_per_second)

    @property
    def is_open(self) -> bool:
        """Whether the run's end is not decided yet."""
        return self.ends[-1] >= OPEN

    @property
    def total_steps(self) -> int:
        return self.ends[-1]

    @property
    def known_steps(self) -> int | None:
        """Steps of the whole run; None before they are decided."""
        return None if self.is_open else self.total_steps

    @property
    def without_steps(self) -> frozenset[int]:
        """Stages, from 0, that there is no time for; none before that is decided."""
        stages = range(len(self.ends))
        return frozenset() if self.is_open else frozenset(n for n in stages if not self.steps(n))

    def begin(self, stage: int) -> int:
        """Step at which a stage begins."""
        return self.ends[stage - 1] if stage else 0

    def steps(self, stage: int) -> int:
        return self.ends[stage] - self.begin(stage)

    def index_at(self, step: int) -> int:
        """Number, from 0, of the stage that a step belongs to; the last one's at the end."""
        for index, end in enumerate(self.ends):
            if step < end:
                return index
        return len(self.ends) - 1

    def stage_at(self, step: int) -> Stage:
        return self.recipe.stages[self.index_at(step)]

    def samples_at(self, step: int) -> int:
        """Samples seen when `step` steps are done."""
        return sum(
            max(0, min(step, end) - self.begin(index)) * stage.batch_size
            for index, (stage, end) in enumerate(zip(self.recipe.stages, self.ends, strict=True))
        )

    def seconds_left(
        self, step: int, images_per_second: float, last_step: int | None = None
    ) -> float | None:
        """Training time from `step` on, at this speed now, to the end, or to `last_step` where that
        comes first; None before the end is decided."""
        if self.is_open:
            return None
        current = self.index_at(step)
        speeds = self.images_per_second or (1.0,) * len(self.ends)
        until = self.total_steps if last_step is None else last_step
        ahead = sum(
            max(0, min(end, until) - max(step, self.begin(index))) * stage.batch_size / speed
            for index, (stage, end, speed) in enumerate(
                zip(self.recipe.stages, self.ends, speeds, strict=True)
            )
        )
        return ahead * speeds[current] / images_per_second

    def progress(self, step: float) -> float:
        """Of the cooldown when `step` steps are done: 0 before it, 1 behind the last step."""
        if not self.cooldown or step <= self.cooldown[0][0]:
            return 0.0
        for (begin, low), (end, high) in pairwise(self.cooldown):
            if step < end:
                return low + (high - low) * (step - begin) / (end - begin)
        return 1.0

    def learning_rate(self, step: int) -> float:
        """Of step `step`."""
        return self.recipe.optimizer.learning_rate * self.factor(step)

    def factor(self, step: int) -> float:
        """On `optimizer.learningRate` in step `step`: positive, and zero from the end on."""
        index = self.index_at(step)
        stage = self.recipe.stages[index]
        rate = _risen(step, self.recipe.schedule.warmup_steps) * stage.learning_rate_factor
        rate *= _risen(step - self.begin(index), stage.warmup_steps)
        return rate * (1.0 - sqrt(self.progress(step + 1)))


def _risen(step: int, warmup_steps: int) -> float:
    """Linear over so many steps, of which the last has the full rate; 0..1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
