"""A whole run in simulated time, planned and planned anew by the code that plans real ones.

Steps, interruptions and resizes are made up (`World`); when a decision is due, what it decides and
how the course follows it are the trainer's own (`plan/decide.py`, `schedule/course.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from daybreak_trainer.plan.decide import Window, due, replan
from daybreak_trainer.plan.limits import Limits, Spent
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision


@dataclass(frozen=True)
class World:
    """What happens to a run of a budget; times are shares of it."""

    step_seconds: tuple[float, ...]
    """Of each stage, on one device."""
    work: tuple[float, ...]
    """What formulas say of it, rightly or not."""
    noise: tuple[float, ...] = (1.0,)
    """Factors on the time of steps, in turn."""
    interruptions: tuple[tuple[float, float, int], ...] = ()
    """(when, time lost, devices from then on)."""
    slow_from: float = 1.0
    slow_by: float = 1.0
    cold_steps: int = 0
    """So many steps after an interruption take longer, by:"""
    cold_by: float = 1.0


@dataclass(frozen=True)
class Lived:
    course: Course
    """As it was trained."""
    decisions: tuple[Decision, ...]
    seconds: float
    """From the start to the last step; the ending is not in it."""


def live(planned: Recipe, world: World, budget: Limits, ending: float, devices: int = 1) -> Lived:
    """`budget` limits the duration; `ending` seconds of it are kept for what follows the last
    step."""
    course, decisions = Course.of(planned), list[Decision]()
    total = budget.seconds(Spent(0.0, 0.0, 0.0), devices)
    assert total is not None
    now, step, began = 0.0, 0, 0
    mark, marked = 0.0, 0
    upcoming = list(world.interruptions)
    while step < course.total_steps:
        if upcoming and now >= upcoming[0][0] * total:
            _, lost, devices = upcoming.pop(0)
            now, began = now + lost * total, step
            mark, marked = now, step
        stage = course.index_at(step)
        slow = world.slow_by if now >= world.slow_from * total else 1.0
        noise = world.noise[step % len(world.noise)]
        cold = world.cold_by if began <= step < began + world.cold_steps and began else 1.0
        now += world.step_seconds[stage] * noise * slow * cold / devices
        step += 1
        if step == course.ends[stage]:
            mark, marked = now, step
            continue
        if (reason := due(course, decisions, step, began)) is not None:
            speed = (step - marked) * planned.stages[stage].batch_size / (now - mark)
            left = budget.seconds(Spent(now, now, now), devices)
            assert left is not None
            window = Window(speed, devices)
            decision = replan(course, decisions, step, left - ending, window, world.work, reason)
            decisions.append(decision)
            course = course.after(decision)
            assert course == Course.of(planned, decisions)
            mark, marked = now, step
    return Lived(course, tuple(decisions), now)
