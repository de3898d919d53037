"""A whole run in simulated time, planned by the code that plans real ones.

Steps, waits, saves, interruptions, roll-backs and resizes are made up (`World`), and so are the
ledger and the clock. What is decided, and how the course follows it, is the trainer's own: its
`Replanner`, told and asked in the order in which `train.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from daybreak_trainer.contract import (
    BudgetSettings,
    EvaluationSettings,
    RunSettings,
    StreamSettings,
)
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.limits import Limits, Spent
from daybreak_trainer.plan.reach import Reach
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.replan import Plan, Replanner
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.telemetry.ledger import CAUSES, PRODUCTIVE

_PARAMETERS = 1_000_000
_KEPT_BYTES, _SAFETY, _CLOSING = 20.0 * _PARAMETERS, 1.5, 5.0
"""Of the last commit and the export; what is reserved for them is half as long again, and 5 s."""


@dataclass(frozen=True)
class World:
    """What happens to a run; where times are shares, it is of what the limits give it."""

    step_seconds: tuple[float, ...]
    """Of each stage, on one device."""
    work: tuple[float, ...]
    """What formulas say of it, rightly or not."""
    noise: tuple[float, ...] = (1.0,)
    """Factors on the time of steps, in turn."""
    interruptions: tuple[tuple[float, float, int], ...] = ()
    """(when, time lost, devices from then on)."""
    queued: float = 0.0
    """Time without devices in each interruption, beside what is lost."""
    preempted_every: int | None = None
    """Steps after which an attempt ends, the next one begins and has lost:"""
    start_seconds: float = 0.0
    rollbacks: tuple[float, ...] = ()
    """When the run goes back to its last save."""
    slow_from: float = 1.0
    slow_by: float = 1.0
    cold_steps: int = 0
    """So many steps after an interruption take longer, by:"""
    cold_by: float = 1.0
    data_wait: float = 0.0
    """Beside each step, as a share of its time."""
    save_every: int = 50
    """Steps."""
    save_seconds: float = 0.0
    """Of training, held up by a save."""
    commit_seconds: float | None = None
    """From a save's begin to its commit; None: the planner is not told."""
    evaluate_every: int | None = None
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class Lived:
    course: Course
    """As it was trained."""
    decisions: tuple[Decision, ...]
    step: int
    """At which training ended."""
    reach: Reach | None
    """What the planner last said of that, where stages have steps."""
    seconds: float
    """Holding devices, from the start to the last step; the ending is not in it."""
    device_seconds: float
    now: float
    """Since the start."""


class _Life:
    def __init__(
        self,
        planned: Recipe,
        world: World,
        budget: BudgetSettings,
        deadline: str | None,
        ending: float,
        devices: int,
        evaluation: EvaluationSettings,
    ) -> None:
        run = RunSettings(
            name="simulated",
            namespace="",
            uid="",
            attempt=1,
            nodes=1,
            master_address="",
            master_port=0,
            recipe_hash=planned.hash,
            streams=(StreamSettings(url="", role="data-0"),),
            checkpoint_url="",
            budget=budget,
            deadline=deadline,
            evaluation=evaluation,
        )
        self._settings = Settings(run, 0, planned, Path(), Path())
        self._world, self._ending, self._devices = world, ending, devices
        self.total = Limits.of(budget, deadline).seconds(Spent(0.0, 0.0, 0.0), devices) or 0.0
        self.now, self.ledger = 0.0, dict.fromkeys((PRODUCTIVE, *CAUSES), 0.0)
        self.state, self.course = RunState(), Course.of(planned)
        self.began, self.saved = 0, (0, self.state.decisions, 0.0)
        self._evaluation_seconds: float | None = None
        self._upcoming, self._rollbacks = list(world.interruptions), list(world.rollbacks)
        self._entered = -1
        self.planner = self._planner()
        self._follow(self.planner.at_resume(self.course, self.state, self.ledger))

    def _planner(self) -> Replanner:
        """An attempt's."""
        planner = Replanner(
            self._settings,
            Rank(0, self._devices, torch.device("cpu")),
            self._world.work,
            _PARAMETERS,
            0,
            tell=lambda plan: plan,
            now=lambda: self.now,
        )
        planner.store_writes(_SAFETY * _KEPT_BYTES / (self._ending - _CLOSING))
        planner.resumed(self.state, sum(self.ledger.values()))
        return planner

    def _follow(self, plan: Plan) -> None:
        if isinstance(plan, Decision):
            self.state.decisions = (*self.state.decisions, plan)
            self.course = self.course.after(plan)
            assert self.course == Course.of(self._settings.recipe, self.state.decisions)

    def _spend(self, account: str, seconds: float) -> None:
        self.ledger[account] += seconds
        self.now += seconds

    def goes_on(self) -> bool:
        return self.state.step < self.planner.last_step(self.course)

    def attempt(self, lost: float, devices: int) -> None:
        """The one before it stopped on request: nothing is trained again."""
        self.state.device_seconds = self.planner.device_seconds(self.ledger)
        self._devices, self.began = devices, self.state.step
        self.planner = self._planner()
        if self._evaluation_seconds is not None:
            self.planner.evaluated(self._evaluation_seconds)
        self._spend("startup", lost)
        self._follow(self.planner.at_resume(self.course, self.state, self.ledger))
        self._entered = -1

    def roll_back(self) -> None:
        step, decisions, productive = self.saved
        in_vain = self.ledger[PRODUCTIVE] - productive
        self.ledger[PRODUCTIVE] -= in_vain
        self.ledger["rolled_back"] += in_vain
        self.state.step, self.state.decisions = step, decisions
        self.course = Course.of(self._settings.recipe, decisions)
        self._follow(self.planner.at_resume(self.course, self.state, self.ledger))
        self._entered = -1

    def happen(self) -> bool:
        """Whether something came between two steps."""
        world, state = self._world, self.state
        if self._upcoming and self.now >= self._upcoming[0][0] * self.total:
            _, lost, devices = self._upcoming.pop(0)
            self.now += world.queued * self.total
            self.attempt(lost * self.total, devices)
            return True
        if world.preempted_every and state.step - self.began >= world.preempted_every:
            self.attempt(world.start_seconds, self._devices)
            return True
        if self._rollbacks and self.now >= self._rollbacks[0] * self.total:
            del self._rollbacks[0]
            self.roll_back()
            return True
        return False

    def take_a_step(self) -> None:
        world, state = self._world, self.state
        stage = self.course.index_at(state.step)
        if stage != self._entered:
            self.planner.enter(state.step, self.ledger)
            self._entered = stage
        slow = world.slow_by if self.now >= world.slow_from * self.total else 1.0
        noise = world.noise[state.step % len(world.noise)]
        is_cold = self.began <= state.step < self.began + world.cold_steps and self.began
        seconds = world.step_seconds[stage] * noise * slow / self._devices
        seconds *= world.cold_by if is_cold else 1.0
        self._spend(PRODUCTIVE, seconds)
        self._spend("data_wait", seconds * world.data_wait)
        state.step += 1
        if state.step % world.save_every == 0:
            self._spend("checkpoint", world.save_seconds)
            self.saved = (state.step, state.decisions, self.ledger[PRODUCTIVE])
            if world.commit_seconds is not None:
                self.planner.committed(world.commit_seconds)
        if world.evaluate_every and state.step % world.evaluate_every == 0:
            self._spend("evaluation", world.evaluation_seconds)
            self._evaluation_seconds = world.evaluation_seconds
            self.planner.evaluated(world.evaluation_seconds)
        self._follow(self.planner.after_step(self.course, state, self.ledger))


def live(
    planned: Recipe,
    world: World,
    budget: BudgetSettings,
    ending: float,
    devices: int = 1,
    *,
    deadline: str | None = None,
    evaluation: EvaluationSettings | None = None,
) -> Lived:
    """`ending` seconds are kept for what follows the last step, beside its `evaluation`; the run
    starts at Unix time 0."""
    judged = evaluation or EvaluationSettings()
    life = _Life(planned, world, budget, deadline, ending, devices, judged)
    while life.goes_on():
        if not life.happen():
            life.take_a_step()
    return Lived(
        life.course,
        life.state.decisions,
        life.state.step,
        life.planner.reach,
        sum(life.ledger.values()),
        life.planner.device_seconds(life.ledger),
        life.now,
    )
