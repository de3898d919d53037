"""Plans the run while it runs: what it has measured, what is left of its limits, and what has to be
kept for its end, turned into what all ranks follow. That is a `Decision` where stages have shares,
and where they have steps, how far the run gets (`Replanner.reach`).

`plan.decide` and `plan.reach` say when and what. Here are the effects: clocks, and one rank that
tells the others.

Of two measurements in a row the faster says what has to be kept for the end, and how far steps
get. So one that is slow, of a cold cache say, ends no run; it is looked at again as soon as if it
did.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median_high

import torch.distributed as dist

from daybreak_trainer.contract import EvaluationSettings
from daybreak_trainer.evaluate.score import heldout_prompts
from daybreak_trainer.evaluate.validate import TIMESTEPS
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.decide import (
    WARM_STEPS,
    Window,
    average,
    due,
    expected,
    next_after,
    replan,
)
from daybreak_trainer.plan.limits import Limits, Spent, refuse_without_limits
from daybreak_trainer.plan.reach import Reach, Room, reach
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
_KEPT = (PRODUCTIVE, "skipped")
"""Of the steps that a run has come to, whether they changed weights or not."""
_TRAINING = (*_KEPT, "rolled_back")
_COMMITS = 5
"""So many of the last ones say how long the last of all will take."""

Plan = Decision | Reach | None


def from_first(plan: Plan) -> Plan:
    """Rank 0's, on all ranks."""
    box = [plan]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class Replanner:
    """`work` is FLOPs of an image in each stage, in any unit."""

    def __init__(
        self,
        settings: Settings,
        rank: Rank,
        work: Sequence[float],
        parameters: int,
        frozen: int,
        *,
        tell: Callable[[Plan], Plan] = from_first,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`frozen`: parameters that are exported with the trained ones; `now`: Unix time. Raises
        RecipeError: stages have shares, and nothing says of what."""
        self._recipe, self._rank, self._work = settings.recipe, rank, tuple(work)
        self._tell, self._now = tell, now
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
        self.reach: Reach | None = None
        """How far the run gets; None while that is not known, where nothing limits it, and where
        decisions say so."""
        self.has_new_end = False
        """The commit that is gone on from did not know how long the run is now: it was made with
        another recipe, or for another run."""
        self._work_per_second: float | None = None
        """By the last measurement of this attempt, where stages have steps."""
        self._judged_seconds: float | None = None
        self._store_bytes_per_second = 0.0
        self._commits: deque[float] = deque(maxlen=_COMMITS)
        """Seconds that the last ones took."""
        self._began, self._marked, self._mark = 0, 0, 0.0
        """The mark is of the clock without overheads."""
        self._device_seconds, self._held = 0.0, 0.0
        self._missed, self._missed_device_seconds = 0.0, 0.0
        """Time holding devices that no checkpoint knows of."""

    def store_writes(self, bytes_per_second: float) -> None:
        """What the start-up's test measured."""
        self._store_bytes_per_second = bytes_per_second

    def committed(self, seconds: float) -> None:
        """A save took so long, from its begin to its commit."""
        self._commits.append(seconds)

    @property
    def commit_seconds(self) -> float | None:
        """What a commit takes: the median of the last ones, the longer of two, so that a store's
        bad moment shortens no plan, and one that has become slow is believed; None before one."""
        return median_high(self._commits) if self._commits else None

    def evaluated(self, seconds: float) -> None:
        """The last evaluation took so long."""
        self._judged_seconds = seconds

    def resumed(self, state: RunState, held_seconds: float, missed_seconds: float = 0.0) -> None:
        """An attempt begins, of a checkpoint whose ledger held so many seconds. The run has held
        devices for `missed_seconds` more than its ledger can know: they count against its limits,
        as if on as many devices as it had on average, and are no part of what commits say, for the
        next attempt is told of them again."""
        self._device_seconds, self._held = state.device_seconds, held_seconds
        known = self._device_seconds / held_seconds if held_seconds else 0.0
        self._missed = missed_seconds
        self._missed_device_seconds = missed_seconds * (known or self._rank.world)

    def device_seconds(self, ledger: Mapping[str, float]) -> float:
        """Of the whole run: what a checkpoint says, and since then at today's size."""
        return self._device_seconds + (sum(ledger.values()) - self._held) * self._rank.world

    def last_step(self, course: Course) -> int:
        """Where training ends: at the course's end, or at the limit before it."""
        ends = course.total_steps
        return ends if self.reach is None else min(ends, self.reach.last_step)

    def enter(self, step: int, ledger: Mapping[str, float]) -> None:
        """Steps are of another stage, or come after a stand-still: speed is measured afresh."""
        self._began = step
        self._started(step, ledger)

    def after_step(self, course: Course, state: RunState, ledger: Mapping[str, float]) -> Plan:
        """What is decided or found after this step, if anything is; the same on all ranks."""
        if not self._limits.any:
            return None
        if state.step == self._began + WARM_STEPS:
            self._started(state.step, ledger)
        reason = due(course, self._next_step(state), state.step, self._began)
        is_unplanned = not self._recipe.is_fixed and not state.decisions
        if reason is None and not is_unplanned:
            return None
        plan: Plan = None
        if reason is None:  # the first steps of a run: no speed is known, but the time is
            return self._told(self._unmeasured(state, ledger) if self._rank.is_first else None)
        if self._rank.is_first:
            speed = self._measured(course, state.step, ledger)
            plan = self._planned(course, state, ledger, speed, reason)
        self._started(state.step, ledger)
        return self._told(plan)

    def at_resume(self, course: Course, state: RunState, ledger: Mapping[str, float]) -> Plan:
        """Where an attempt goes on, or training after a roll-back, by the speed that there was
        before: what is over already is not trained on until it is measured. The same on all
        ranks."""
        open_again = self.has_new_end and not self._recipe.is_fixed
        is_over = state.step >= course.total_steps and not open_again
        if not self._limits.any or is_over:
            return None
        plan: Plan = None
        if self._rank.is_first:
            speed = self._before(course, state, ledger)
            if speed is not None:
                plan = self._planned(course, state, ledger, speed, "resumed")
            else:
                plan = self._unmeasured(state, ledger)
        return self._told(plan)

    def _told(self, plan: Plan) -> Plan:
        plan = self._tell(plan)
        if isinstance(plan, Reach):
            self.reach = plan
        return plan

    def _next_step(self, state: RunState) -> int:
        if self._recipe.is_fixed:
            return 0 if self.reach is None else self.reach.next_step
        return state.decisions[-1].next_step if state.decisions else 0

    def _started(self, step: int, ledger: Mapping[str, float]) -> None:
        self._marked, self._mark = step, _seconds(ledger, _TRAINING)

    def _measured(self, course: Course, step: int, ledger: Mapping[str, float]) -> float:
        """Images/s since the mark."""
        seconds = max(1e-9, _seconds(ledger, _TRAINING) - self._mark)
        return (step - self._marked) * course.stage_at(step).batch_size / seconds

    def _before(self, course: Course, state: RunState, ledger: Mapping[str, float]) -> float | None:
        """Images/s on today's ranks: the last decision's, else the average of all steps."""
        world = self._rank.world
        if not self._recipe.is_fixed:
            known = self._measured_before(course, state)
            if known is not None:
                return known
        begin = state.source.point.step if state.source is not None else 0
        known = average(course, begin, state.step, _seconds(ledger, _KEPT), self._work)
        if known is None or not self._device_seconds:
            return known
        return known * world * self._held / self._device_seconds

    def _unmeasured(self, state: RunState, ledger: Mapping[str, float]) -> Reach | None:
        """Nothing was trained yet: all that can be said is that a limit is passed."""
        left = self._left(ledger)
        limit = min(left, key=lambda field: left[field])
        return Reach(state.step, state.step, state.step, limit) if left[limit] <= 0 else None

    def _left(self, ledger: Mapping[str, float]) -> dict[str, float]:
        """Seconds by limit, all ending included."""
        spent = Spent(
            sum(ledger.values()) + self._missed,
            self.device_seconds(ledger) + self._missed_device_seconds,
            self._now(),
        )
        return self._limits.left(spent, self._rank.world)

    def _room(self, course: Course, step: int, ledger: Mapping[str, float], speed: float) -> Room:
        """To train from `step` on, if its stage has this speed."""
        ending = self._reserve.seconds(
            speed * self._work[course.index_at(step)] / self._work[-1],
            self._store_bytes_per_second or float("inf"),
            self.commit_seconds,
            self._judged_seconds,
        )
        trained, overheads = _seconds(ledger, _TRAINING), _seconds(ledger, _OVERHEADS)
        a_second = 1.0 + overheads / max(1e-9, trained)
        by_limit = {field: (left - ending) / a_second for field, left in self._left(ledger).items()}
        return Room(self._rank.world, by_limit, ending / a_second)

    def _planned(
        self,
        course: Course,
        state: RunState,
        ledger: Mapping[str, float],
        measured: float,
        reason: str,
    ) -> Decision | Reach:
        step, world, work = state.step, self._rank.world, self._work
        stage, trained = course.index_at(step), _seconds(ledger, _TRAINING)
        believed = max(measured, self._measured_before(course, state) or 0.0)
        room = self._room(course, step, ledger, believed)
        plan: Decision | Reach
        if self._recipe.is_fixed:
            self._work_per_second = measured * work[stage]
            speeds = [believed * work[stage] / other for other in work]
            plan = reach(course, step, room, trained, speeds)
        else:
            window = Window(measured, world)
            plan = replan(course, state.decisions, step, room.seconds, window, work, reason)
        if believed == measured:
            return plan
        left = max(0.0, self._room(course, step, ledger, measured).seconds)
        a_step = course.stage_at(step).batch_size / measured
        again = min(plan.next_step, next_after(step, trained + left, left, a_step))
        if isinstance(plan, Reach):
            return replace(plan, next_step=again)
        return plan.model_copy(update={"next_step": again})

    def _measured_before(self, course: Course, state: RunState) -> float | None:
        """Images/s on today's ranks in the stage of the next step, by the measurement before; None
        where there was none."""
        if self._recipe.is_fixed:
            known = self._work_per_second
            return None if known is None else known / self._work[course.index_at(state.step)]
        if not state.decisions:
            return None
        return expected(course, state.decisions[-1], state.step, self._rank.world)


def _seconds(ledger: Mapping[str, float], accounts: Sequence[str]) -> float:
    return sum(ledger.get(account, 0.0) for account in accounts)


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
