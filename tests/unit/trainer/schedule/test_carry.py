"""A run that goes on with other stages: what it was trained on stays, and what is planned follows
from where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daybreak_trainer.plan.decide import Window, replan
from daybreak_trainer.recipe import Recipe, RecipeError, resolve
from daybreak_trainer.schedule.carry import carried
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision


def recipe(*stages: dict[str, Any]) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "schedule": {"warmupSteps": 0, "cooldownShare": 0.2},
            "stages": [{"batchSize": 8, **stage} for stage in stages],
        }
    )


def shares(*stages: tuple[int, float]) -> Recipe:
    return recipe(*({"resolution": side, "share": share} for side, share in stages))


def steps(*stages: tuple[int, int]) -> Recipe:
    return recipe(*({"resolution": side, "steps": number} for side, number in stages))


def taken(
    old: Recipe, new: Recipe, decisions: tuple[Decision, ...], step: int
) -> tuple[Decision, ...]:
    return carried(json.loads(old.to_json()), new, decisions, step)


def planned_anew(new: Recipe, decisions: tuple[Decision, ...], step: int) -> Course:
    """The course after the decision that every attempt begins with, for 1,000 s at 8 images/s."""
    course = Course.of(new, decisions)
    work = [stage.resolution**2 for stage in new.stages]
    window = Window(8.0 * 16**2 / course.stage_at(step).resolution ** 2, 1)
    return course.after(replan(course, decisions, step, 1000.0, window, work, "resumed"))


DECIDED = (
    Decision(
        step=20,
        reason="stage",
        stage_ends=(4000,),
        cooldown_begin=3200.0,
        images_per_second=(8.0,),
        measured=8.0,
        ranks=1,
        done_seconds=(20.0,),
    ),
)


def test_a_stage_is_added_behind_the_one_that_shares_are_in() -> None:
    """One stage was decided on and a recipe of two goes on: its first stage is the old one, and the
    second gets its share of all the time, of which a third is trained already."""
    old, new = shares((16, 1.0)), shares((16, 0.5), (32, 0.5))
    found = taken(old, new, DECIDED, 500)
    assert Course.of(new, found).ends == (4000, 4000)
    course = planned_anew(new, found, 500)
    assert course.ends[0] == pytest.approx(750, abs=30)  # of 1,500 s of 1 s a step
    assert course.steps(1) == pytest.approx(750 / 4, abs=10)  # 4 s a step
    assert course.samples_at(500) == 8 * 500


def test_steps_that_were_taken_are_what_was_decided() -> None:
    """A recipe with steps goes on as one with shares: where it stands, it is in the stage that it
    was in, and its learning rate is where it was."""
    old, new = steps((16, 400), (32, 600)), shares((16, 0.2), (32, 0.3), (64, 0.5))
    found = taken(old, new, (), 500)
    before, after = Course.of(old), Course.of(new, found)
    assert (after.index_at(500), after.ends) == (1, (400, 1000, 1000))
    assert [after.factor(step) for step in (0, 500, 900)] == [
        before.factor(step) for step in (0, 500, 900)
    ]
    course = planned_anew(new, found, 500)
    assert course.ends[0] == 400
    assert course.ends[1] >= 500
    assert course.steps(2) > 0


def test_shares_become_steps_by_counting() -> None:
    """Step 500 is step 500: nothing decided holds any more."""
    assert taken(shares((16, 1.0)), steps((16, 500), (32, 100)), DECIDED, 500) == ()


def test_a_later_stage_may_go_or_be_another() -> None:
    """The run has not been there. Its speeds are not those of the stage that was."""
    two = DECIDED[0].model_copy(
        update={
            "stage_ends": (600, 900),
            "images_per_second": (8.0, 2.0),
            "done_seconds": (20.0, 0.0),
        }
    )
    old = shares((16, 0.5), (32, 0.5))
    fewer = taken(old, shares((16, 1.0)), (two,), 500)
    assert [(d.stage_ends, d.done_seconds) for d in fewer] == [((900,), (20.0,))]
    other = taken(old, shares((16, 0.5), (64, 0.5)), (two,), 500)
    assert [(d.stage_ends, d.images_per_second) for d in other] == [((600, 900), ())]
    assert taken(old, shares((16, 0.7), (32, 0.3)), (two,), 500) == (two,)


def test_before_a_step_was_taken_any_recipe_does() -> None:
    """And before anything was decided, the first stage is open as before."""
    assert taken(steps((16, 9)), shares((64, 1.0)), (), 0) == ()
    assert taken(shares((16, 1.0)), shares((16, 0.5), (32, 0.5)), (), 7) == ()


@pytest.mark.parametrize("new", [shares((32, 1.0)), shares((16, 0.5), (64, 0.5))])
def test_stages_that_the_run_has_been_through_have_to_stay(new: Recipe) -> None:
    """With the field, where it stands and what to do."""
    with pytest.raises(RecipeError, match=r"recipe\.stages\[\d\] was \d+ px .* step 500 .* keep"):
        taken(steps((16, 400), (32, 600)), new, (), 500)


def test_a_stage_that_has_not_begun_may_still_change() -> None:
    """A commit at the step where the first one ended: the second is another, or gone."""
    old = steps((16, 400), (32, 600))
    other = taken(old, shares((16, 0.5), (64, 0.5)), (), 400)
    assert [d.stage_ends for d in other] == [(400, 1000)]
    assert [d.stage_ends for d in taken(old, shares((16, 1.0)), (), 400)] == [(1000,)]
    with pytest.raises(RecipeError, match=r"recipe\.stages\[1\] was 32 px .* step 401"):
        taken(old, shares((16, 0.5), (64, 0.5)), (), 401)


def test_a_recipe_that_cannot_be_read_is_no_guess() -> None:
    """A checkpoint of a version that had other fields."""
    with pytest.raises(RecipeError, match="give each stage steps"):
        carried({"stages": []}, shares((16, 1.0)), DECIDED, 500)
    assert carried({}, steps((16, 900)), DECIDED, 500) == ()
