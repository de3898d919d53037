"""What the parts of a trainer share: what it was given, whom it tells, where its run stands."""

from __future__ import annotations

import logging

from daybreak_trainer.checkpoint.history import Journal
from daybreak_trainer.contract import EarlyEnd
from daybreak_trainer.health.heartbeat import Heartbeat
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.reach import Reach, is_news
from daybreak_trainer.progress import ProgressReporter
from daybreak_trainer.rank import Standing
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.ledger import Ledger, process_started
from daybreak_trainer.telemetry.metrics import train_metrics


class RunContext:
    """Built once for a process. `state` moves with every step; `course` and `journal` are replaced
    by a decision, a resume or a roll-back, so they are looked up here whenever they are needed."""

    def __init__(
        self, settings: Settings, rank: Rank, standing: Standing, heartbeat: Heartbeat
    ) -> None:
        self.settings, self.rank = settings, rank
        self.standing, self.heartbeat = standing, heartbeat
        self.metrics = train_metrics()
        self.ledger = Ledger(started=process_started())
        self.progress = ProgressReporter(settings, rank, standing)
        self.state = RunState()
        self.course = Course.of(settings.recipe)
        self.journal = Journal()
        self._told: EarlyEnd | None = None
        """What was last said of an end before the recipe's."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    @property
    def stage(self) -> int:
        """Number, from 0, of the stage that the next step belongs to."""
        return self.course.index_at(self.step)

    def follow(self, decision: Decision) -> None:
        """From here on."""
        before = self.course.without_steps
        self.state.decisions = (*self.state.decisions, decision)
        self.course = self.course.after(decision)
        self.progress.planned(self.course)
        if not self.rank.is_first:
            return
        log.event("plan_decided", **decision.model_dump())
        for stage in sorted(self.course.without_steps - before):
            log.event("stage_without_steps", level=logging.WARNING, stage=stage + 1)

    def reaches(self, reach: Reach) -> None:
        """The course stays; it is said where the run will not get to its end, and again where that
        moves by more than noise."""
        total = self.course.total_steps
        fitting = min(reach.last_step, total)
        if fitting == total:
            self.progress.reaches(fitting, None)
            return
        if is_news(self._told.step if self._told is not None else None, fitting, total):
            self._told = EarlyEnd(step=fitting, limit=reach.limit, remedy=reach.remedy)
            self._warn(reach)
        self.progress.reaches(fitting, self._told)

    def _warn(self, reach: Reach) -> None:
        if self.rank.is_first:
            log.event(
                "steps_do_not_fit",
                level=logging.WARNING,
                limit=reach.limit,
                fitting_steps=reach.last_step,
                total_steps=self.course.known_steps,
                devices=self.rank.world,
                needed_devices=reach.devices,
                remedy=reach.remedy,
            )
