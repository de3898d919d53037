"""Takes a run's decisions over to a recipe with other stages (`checkpoint.acceptChanges`).

What is trained is trained: the new recipe describes the whole run, with the stages that it has been
through at its front, and the last of these may go on. With `steps` that is a matter of counting:
step 5,000 of the old recipe is step 5,000 of the new one. With shares the steps at which stages
ended are in the decisions, and where the old recipe had steps, these are what was decided.

A cooldown that has begun goes on to the new end. One that is over, for the run had come to its
end, is past too: the learning rate is as high again as the new recipe has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daybreak_trainer.recipe import Recipe, RecipeError, parse
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision


def carried(
    document: Mapping[str, Any], new: Recipe, decisions: Sequence[Decision], step: int
) -> tuple[Decision, ...]:
    """The decisions of a run that was trained for `step` steps with the recipe that `document`
    holds, as `new` follows them; what is still to come is planned afresh when the attempt begins.

    Raises:
        RecipeError: `new` has not got the stages that the run has been through, or this version
            cannot read the old recipe.
    """
    if new.is_fixed or not step:
        return ()
    try:
        old = parse(document)
    except RecipeError as error:
        raise RecipeError(
            f"recipe.stages have shares, and the recipe.json of the checkpoint of step {step}, "
            f"which says what they were before, cannot be read by this version ({error}); give "
            "each stage steps"
        ) from None
    course = Course.of(old, decisions)
    current = course.index_at(step - 1)  # of the last step that was taken
    for number in range(current + 1):
        had = old.stages[number].resolution
        has = new.stages[number].resolution if number < len(new.stages) else None
        if had != has:
            raise RecipeError(
                f"recipe.stages[{number}] was {had} px when the checkpoint of step {step} was "
                f"made, and is {'not there' if has is None else f'{has} px'} now: keep the stages "
                f"that the run has been through, up to stages[{current}], at their place, and put "
                "what is new behind them; a small share ends a stage at once"
            )
    if old.is_fixed:
        decisions = [_as_decided(course)]
    if step >= course.total_steps:
        decisions = [d.model_copy(update={"cooldown_begin": float(d.total)}) for d in decisions]
    same = [s.resolution for s in old.stages] == [s.resolution for s in new.stages]
    return tuple(decisions) if same else tuple(_with(d, len(new.stages)) for d in decisions)


def _as_decided(course: Course) -> Decision:
    """A fixed course as a decision before its first step."""
    begin = course.cooldown[0][0] if course.cooldown else float(course.total_steps)
    return Decision(step=0, reason="recipe", stage_ends=course.ends, cooldown_begin=begin)


def _with(decision: Decision, stages: int) -> Decision:
    """With so many stages: those behind the old ones have no steps, and all have no speed, until
    that is decided. The run's end, and so the cooldown, stays where it was."""
    ends, total = decision.stage_ends[: stages - 1], decision.total
    done = decision.done_seconds
    return decision.model_copy(
        update={
            "stage_ends": (*ends, *(total,) * (stages - len(ends))),
            "images_per_second": (),
            "done_seconds": (*done, *(0.0,) * stages)[:stages] if done else (),
        }
    )
