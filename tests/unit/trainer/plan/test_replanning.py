"""Whole runs in simulated time, decided by the code that decides real ones: whatever the speed
does, a run ends inside its budget, uses it, and cools down to its end."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_settings import run_settings
from simulated_run import World, live

from daybreak_trainer.contract import BudgetSettings, EvaluationSettings
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.limits import Limits, Spent
from daybreak_trainer.plan.reach import Reach, Room, reach
from daybreak_trainer.plan.reserve import Reserve
from daybreak_trainer.recipe import Recipe, RecipeError, resolve
from daybreak_trainer.replan import Replanner
from daybreak_trainer.schedule.carry import carried
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState

BUDGET, ENDING = 20_000.0, 100.0


def recipe(shares: list[float], cooldown: float, batch: int = 8) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "stages": [{"resolution": 16, "batchSize": batch, "share": share} for share in shares],
            "schedule": {"warmupSteps": 0, "cooldownShare": cooldown},
        }
    )


def simulate(planned: Recipe, world: World) -> tuple[Course, tuple[Decision, ...], float]:
    """The course that was trained, the decisions, and the time it took without the ending."""
    lived = live(planned, world, BudgetSettings(duration_seconds=BUDGET), ENDING)
    return lived.course, lived.decisions, lived.seconds


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Recipe, World]:
    number = draw(st.integers(1, 3))
    weights = draw(st.lists(st.floats(0.2, 1.0), min_size=number, max_size=number))
    shares = [weight / sum(weights) for weight in weights]
    times = draw(st.lists(st.floats(2.0, 20.0), min_size=number, max_size=number))
    wrong = draw(st.lists(st.floats(0.5, 2.0), min_size=number, max_size=number))
    places = sorted(draw(st.lists(st.floats(0.05, 0.85), max_size=3)))
    return recipe(shares, draw(st.floats(0.05, 0.4))), World(
        step_seconds=tuple(times),
        work=tuple(time * factor for time, factor in zip(times, wrong, strict=True)),
        noise=tuple(draw(st.lists(st.floats(0.8, 1.3), min_size=1, max_size=7))),
        interruptions=tuple(
            (place, draw(st.floats(0.0, 0.03)), draw(st.integers(1, 4))) for place in places
        ),
        slow_from=draw(st.floats(0.1, 0.9)),
        slow_by=draw(st.floats(0.7, 1.6)),
        data_wait=draw(st.floats(0.0, 0.2)),
        save_seconds=draw(st.floats(0.0, 10.0)),
    )


@settings(max_examples=50)
@given(worlds())
def test_a_run_ends_inside_its_budget_and_uses_it(case: tuple[Recipe, World]) -> None:
    """At least 97 % of it, with the ending; the cooldown is complete, and the rate never jumps up
    or falls faster than a cooldown of its own length would."""
    course, decisions, seconds = simulate(*case)
    assert 0.97 * BUDGET <= seconds + ENDING <= BUDGET
    total = course.total_steps
    assert course.progress(total) < 1.0 == course.progress(total + 1)
    factors = [course.factor(step) for step in range(total)]
    begin = course.cooldown[0][0]
    steepest = max(
        (high - low) / (end - start) for (start, low), (end, high) in pairwise(course.cooldown)
    )
    assert begin < total
    assert all(0 <= before - after <= sqrt(steepest) + 1e-9 for before, after in pairwise(factors))
    assert len(decisions) < 150


def test_stages_get_their_shares_and_the_cooldown_its_own() -> None:
    """At a steady speed: three quarters and a quarter of the time, whatever a step costs."""
    world = World(step_seconds=(2.0, 8.0), work=(1.0, 2.0), noise=(1.0,))
    course, _, _ = simulate(recipe([0.75, 0.25], 0.2), world)
    first, second = course.steps(0) * 2.0, course.steps(1) * 8.0
    assert first / (first + second) == pytest.approx(0.75, abs=0.03)
    cooldown = (course.total_steps - course.cooldown[0][0]) * 8.0
    assert cooldown / (first + second) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.7, 0.77])
def test_one_slow_measurement_ends_nothing(at: float) -> None:
    """15 steps with a cold cache after a resume, five times as slow: neither a stage nor the
    cooldown's begin moves by more than that takes, and plans are back with the next measurement."""
    planned, calm = recipe([0.8, 0.2], 0.1), World((2.0, 8.0), (1.0, 2.0), (1.0,))
    course, _, _ = simulate(planned, calm)
    cold = replace(calm, interruptions=((at, 0.0, 1),), cold_steps=15, cold_by=5.0)
    disturbed, decisions, seconds = simulate(planned, cold)
    assert min(d.measured for d in decisions) < 0.5 * decisions[0].measured
    for moved, end in zip(disturbed.ends, course.ends, strict=True):
        assert moved == pytest.approx(end, rel=0.02)
    assert disturbed.cooldown[0][0] == pytest.approx(course.cooldown[0][0], rel=0.02)
    assert 0.97 * BUDGET <= seconds + ENDING <= BUDGET


def test_money_is_spent_whatever_the_size() -> None:
    """On one device, on four and on two: all of it, with the ending, and no more."""
    world = World((8.0,), (1.0,), interruptions=((0.2, 0.01, 4), (0.4, 0.01, 2)))
    budget = BudgetSettings(gpu_hour_price=3600.0, max_cost=BUDGET)
    lived = live(recipe([1.0], 0.2), world, budget, ENDING)
    assert 0.97 * BUDGET <= lived.device_seconds + 2 * ENDING <= BUDGET


def test_a_deadline_counts_what_no_budget_does() -> None:
    """Time in queues."""
    world = World((4.0,), (1.0,), interruptions=((0.3, 0.0, 1), (0.6, 0.0, 1)), queued=0.1)
    deadline = "1970-01-01T05:33:20Z"  # BUDGET
    lived = live(recipe([1.0], 0.2), world, BudgetSettings(), ENDING, deadline=deadline)
    assert 0.97 * BUDGET <= lived.now + ENDING <= BUDGET
    assert lived.seconds == pytest.approx(lived.now - 0.2 * BUDGET)


def test_saves_and_evaluations_are_expected_to_go_on() -> None:
    """A fifth of the time here: the plan knows from its first decisions on."""
    world = World((4.0,), (1.0,), data_wait=0.05, save_every=40, save_seconds=8.0)
    world = replace(world, evaluate_every=100, evaluation_seconds=60.0)
    course, decisions, seconds = simulate(recipe([1.0], 0.2), world)
    assert 0.97 * BUDGET <= seconds + ENDING <= BUDGET
    early = next(decision for decision in decisions if decision.step > 300)
    assert early.total == pytest.approx(course.total_steps, rel=0.05)


def test_a_commit_that_takes_longer_than_the_store_promised_gets_its_time() -> None:
    """What is kept for the end grows with what was measured: by 1.5 times the difference."""
    planned, world = recipe([1.0], 0.2), World((4.0,), (1.0,))
    _, _, usual = simulate(planned, world)
    _, _, slow = simulate(planned, replace(world, commit_seconds=400.0))
    promised = (ENDING - 5.0) / 1.5 * 16 / 20  # of commit and export, 16 bytes a parameter of 20
    assert usual - slow == pytest.approx(1.5 * (400.0 - promised), abs=8.0)


def test_a_run_goes_back_and_ends_in_time() -> None:
    """Two times 45 steps near the end are trained again, in time that others then have not: the
    commit's own plan knows nothing of it."""
    world = World((20.0,), (1.0,), save_every=50, rollbacks=(0.5, 0.975))
    lived = live(recipe([1.0], 0.2), world, BudgetSettings(duration_seconds=BUDGET), ENDING)
    assert 0.95 * BUDGET <= lived.seconds + ENDING <= BUDGET
    assert [d.reason for d in lived.decisions].count("resumed") >= 2


@pytest.mark.parametrize("every", [1, 7, 19])
def test_a_run_that_is_always_preempted_too_soon_to_measure_ends_in_time(every: int) -> None:
    """It has the speed of the steps that it came to."""
    world = World((4.0, 8.0), (1.0, 2.0), preempted_every=every, start_seconds=20.0)
    lived = live(recipe([0.5, 0.5], 0.2), world, BudgetSettings(duration_seconds=BUDGET), ENDING)
    assert 0.9 * BUDGET <= lived.seconds + ENDING <= BUDGET + 20.0
    assert 0 < lived.course.ends[0] < lived.course.total_steps == lived.step


def test_a_limit_that_is_passed_before_the_first_step_is_heeded() -> None:
    """Nothing is measured, and nothing has to be."""
    world = World((4.0,), (1.0,), interruptions=((0.0, 1.1, 1),))
    lived = live(recipe([1.0], 0.2), world, BudgetSettings(duration_seconds=BUDGET), ENDING)
    assert (lived.step, lived.decisions) == (0, ())
    assert lived.reach is not None
    assert lived.reach.limit == "spec.budget.duration"


def fixed(*steps: int, batch: int = 8) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "stages": [{"resolution": 16, "batchSize": batch, "steps": number} for number in steps],
            "schedule": {"warmupSteps": 0, "cooldownShare": 0.2},
        }
    )


@pytest.mark.parametrize("every", [None, 7])
def test_steps_that_do_not_fit_end_at_the_limit(every: int | None) -> None:
    """The course stays the recipe's. After the first measurement it is known how many of them fit,
    and what helps: not more devices, which spend the money as much faster as they train."""
    planned, budget = fixed(1000, 2000), BudgetSettings(gpu_hour_price=3600.0, max_cost=9000.0)
    world = World((4.0, 7.0), (4.0, 7.0), (0.9, 1.1), preempted_every=every)
    lived = live(planned, world, budget, ENDING)
    assert lived.course == Course.of(planned)
    assert lived.decisions == ()
    assert lived.step == pytest.approx(1000 + (9000 - ENDING - 4000) / 7, abs=4)
    assert lived.seconds + ENDING <= 9000
    assert lived.reach is not None
    assert (lived.reach.limit, lived.reach.devices) == ("spec.budget.maxCost", None)
    assert lived.reach.remedy.startswith("raise spec.budget.maxCost")


def test_how_far_a_course_of_steps_gets_is_said_early() -> None:
    """By what each stage's steps take."""
    course, deadline = Course.of(fixed(1000, 2000)), "spec.deadline"

    def found(by_limit: dict[str, float]) -> Reach:
        return reach(course, 20, Room(2, by_limit, 100.0), 80.0, [2.0, 8 / 7])

    short = found({deadline: 8920.0})
    assert short.last_step == 1000 + (8920 - 980 * 4) // 7
    assert short.devices == ceil(2 * (980 * 4 + 2000 * 7) / 8920) == 5
    assert short.remedy.startswith("take 5 devices, raise spec.deadline")
    ample = found({deadline: 20_000.0})
    assert (ample.last_step, ample.devices) == (3000, None)
    over = found({deadline: -1.0})
    assert (over.last_step, over.devices) == (20, None)


@pytest.mark.parametrize(("money", "devices"), [(10_000.0, None), (18_000.0, None), (18_100.0, 5)])
def test_more_devices_are_named_only_where_there_is_money_for_them(
    money: float, devices: int | None
) -> None:
    """All steps take 17,920 s on two, however many there are, and each of three more is paid for
    50 s of ending. Below that money is the limit, or becomes it."""
    by_limit = {"spec.deadline": 8920.0, "spec.budget.maxCost": money}
    course = Course.of(fixed(1000, 2000))
    found = reach(course, 20, Room(2, by_limit, 100.0), 80.0, [2.0, 8 / 7])
    assert (found.limit, found.devices) == ("spec.deadline", devices)


@pytest.mark.parametrize("planned", [recipe([1.0], 0.2, 500), fixed(10_000, batch=500)])
def test_one_slow_measurement_ends_no_run(planned: Recipe) -> None:
    """100,000 passes are drawn from the export: 50 s at 1,000 images/s, and 1,000 s by one
    measurement with a cold cache, when there are 700 s left."""
    drawn = planned.sampling.model_copy(update={"steps": 50, "guidance": 3.0})
    planned = planned.model_copy(update={"sampling": drawn})
    budget, world = BudgetSettings(duration_seconds=3000.0), World((0.5,), (1.0,))
    cold = replace(world, interruptions=((0.7, 0.0, 1),), cold_steps=20, cold_by=20.0)
    judged = EvaluationSettings(prompts=("a",), images=1000)
    lived = live(planned, cold, budget, ENDING, evaluation=judged)
    assert 0.97 * 3000 <= lived.seconds + ENDING + 50 <= 3000


def test_a_run_that_stays_slow_ends_with_the_second_measurement() -> None:
    """Of steps whose number is fixed too, and before its time is up."""
    world = World((4.0,), (1.0,), slow_from=0.5, slow_by=10.0)
    lived = live(fixed(10_000), world, BudgetSettings(duration_seconds=BUDGET), ENDING)
    assert 0.97 * BUDGET <= lived.seconds + ENDING <= BUDGET


def test_steps_that_fit_are_all_taken() -> None:
    """And not one fewer, where the limit is near."""
    world = World((4.0,), (1.0,))
    lived = live(fixed(1000), world, BudgetSettings(duration_seconds=4000.5 + ENDING), ENDING)
    assert lived.step == 1000
    assert lived.reach is not None
    free = live(fixed(1000), world, BudgetSettings(), ENDING)
    assert (free.step, free.reach) == (1000, None)


def test_the_end_keeps_time_for_all_that_follows_the_last_step() -> None:
    """Commit, export, validation and drawing, half as long again, and 5 s; what was measured counts
    where it was, of an evaluation not less than passes of the last stage take."""
    reserve = Reserve(commit_bytes=1600, export_bytes=1000, judged_passes=60, drawn_passes=30)
    assert reserve.seconds(1.0, 100.0) == pytest.approx(1.5 * (16 + 10 + 20 + 10) + 5)
    assert reserve.seconds(1.0, 100.0, 4.0, 50.0) == pytest.approx(1.5 * (4 + 10 + 50 + 10) + 5)
    assert reserve.seconds(1.0, 100.0, 4.0, 3.0) == pytest.approx(1.5 * (4 + 10 + 20 + 10) + 5)


def replanner(planned: Recipe, folder: Path, budget: BudgetSettings) -> Replanner:
    run = run_settings(budget=budget)
    settings, rank = Settings(run, 0, planned, folder, folder), Rank(0, 1, torch.device("cpu"))
    work = [1.0] * len(planned.stages)
    return Replanner(settings, rank, work, 1, 0, tell=lambda plan: plan)


def test_one_slow_commit_distorts_no_plan(tmp_path: Path) -> None:
    """Of the last five the median counts, and of two the longer: a store that has become slow is
    believed with its third slow commit, one that is well again with its third quick one."""
    planner = replanner(fixed(9), tmp_path, BudgetSettings())
    assert planner.commit_seconds is None
    found = []
    for seconds in (2.0, 600.0, 3.0, 2.0, 2.0, 60.0, 60.0, 60.0, 2.0, 2.0, 2.0):
        planner.committed(seconds)
        found.append(planner.commit_seconds)
    assert found == [2.0, 600.0, 3.0, 3.0, 2.0, 3.0, 3.0, 60.0, 60.0, 60.0, 2.0]


@pytest.mark.parametrize(
    "budget",
    [
        BudgetSettings(duration_seconds=4000.0),
        BudgetSettings(gpu_hour_price=3.6, max_cost=4.0),  # 4,000 s of one device
    ],
)
def test_time_that_no_checkpoint_knows_of_counts(tmp_path: Path, budget: BudgetSettings) -> None:
    """Attempts that died before they committed held devices all the same: an attempt that is told
    so by the operator has no time left where a checkpoint alone would give it some. Commits say
    what the ledger does, or the next attempt would count it twice."""
    planned, state = fixed(9), RunState(step=3, device_seconds=1000.0)
    ledger, lasts = {"productive": 1000.0}, []
    for missed in (0.0, 3500.0):
        planner = replanner(planned, tmp_path, budget)
        planner.resumed(state, 1000.0, missed)
        plan = planner.at_resume(Course.of(planned), state, ledger)
        assert isinstance(plan, Reach)
        lasts.append(plan.last_step)
        assert planner.device_seconds(ledger) == 1000.0
    assert lasts == [9, 3]


def test_time_that_is_up_before_anything_is_measured_ends_the_run(tmp_path: Path) -> None:
    """With shares, whose first decision takes twenty steps: a slow one of them may take hours."""
    planned, state = recipe([1.0], 0.2), RunState()
    planner = replanner(planned, tmp_path, BudgetSettings(duration_seconds=4000.0))
    planner.resumed(state, 0.0)
    planner.enter(0, {})
    course, plans = Course.of(planned), []
    for state.step, seconds in ((1, 3000.0), (2, 4500.0)):
        plans.append(planner.after_step(course, state, {"productive": seconds}))
    assert plans == [None, Reach(2, 2, 2, "spec.budget.duration")]
    assert planner.last_step(course) == 2


def test_a_finished_run_goes_on_only_with_another_recipe(tmp_path: Path) -> None:
    """A commit of the last step, of a run that was stopped while it exported: as it is, it has
    nothing to decide. With a stage and budget added, the stage gets steps, and its learning rate,
    which had come down, is up again and comes down to the new end."""
    old, new = recipe([1.0], 0.2), recipe([0.5, 0.5], 0.2)
    end = Decision(step=20, reason="stage", stage_ends=(4000,), cooldown_begin=3200.0)
    budget = BudgetSettings(duration_seconds=9000.0)
    ledger = {"productive": 4000.0}

    def resumed(planned: Recipe, decisions: tuple[Decision, ...]) -> Replanner:
        state.decisions = decisions
        planner = replanner(planned, tmp_path, budget)
        planner.resumed(state, 4000.0)
        return planner

    state = RunState(step=4000, device_seconds=4000.0)
    planner = resumed(old, (end,))
    assert planner.at_resume(Course.of(old, (end,)), state, ledger) is None
    decisions = carried(json.loads(old.to_json()), new, (end,), 4000)
    planner, course = resumed(new, decisions), Course.of(new, decisions)
    planner.has_new_end = True
    plan = planner.at_resume(course, state, ledger)
    assert isinstance(plan, Decision)
    after = course.after(plan)
    assert after.ends[0] == 4000
    assert after.total_steps == pytest.approx(9000, rel=0.01)
    assert [after.factor(step) for step in (4000, 7000)] == [1.0, 1.0]
    assert after.progress(8200) > 0.0


def test_the_tightest_limit_wins() -> None:
    """Time, money and the wall clock, each as seconds from now for so many devices."""
    budget = BudgetSettings(duration_seconds=7200, gpu_hour_price=2.0, max_cost=20.0)
    spent = Spent(held_seconds=600, device_seconds=4800, unix_time=1000.0)
    assert Limits(budget).seconds(spent, 8) == (10 * 3600 - 4800) / 8
    assert Limits(budget).seconds(spent, 4) == 6600
    assert Limits.of(budget, "1970-01-01T00:20:00Z").seconds(spent, 4) == 200
    assert Limits(BudgetSettings()).seconds(spent, 4) is None


@pytest.mark.parametrize(
    ("deadline", "unix_time"),
    [
        ("1970-01-01t00:20:00z", 1200.0),
        ("1970-01-01T01:20:00.5+01:00", 1200.5),
        ("1971-12-31T23:59:60Z", 2 * 365 * 86400.0),
    ],
)
def test_a_deadline_is_rfc_3339(deadline: str, unix_time: float) -> None:
    """All of it: small letters, fractions, offsets and leap seconds."""
    assert Limits.of(BudgetSettings(), deadline).deadline_unix_time == unix_time


@pytest.mark.parametrize("deadline", ["1970-01-01T00:20:00", "tomorrow", "1970-13-01T00:00:00Z"])
def test_a_deadline_that_is_none_is_refused_with_the_remedy(deadline: str) -> None:
    """Where it is no time, or one of no place."""
    with pytest.raises(RecipeError, match=r"spec\.deadline.*write it as RFC 3339 with an offset"):
        Limits.of(BudgetSettings(), deadline)
