"""What to do about steps whose loss or gradient is not finite. Pure, over what all ranks agreed on,
so all decide alike at the same step.

Such a step is skipped on all ranks: its weights stay. One is an accident; many in a row mean that
the weights are where the next batch overflows too, and then only older weights help. So past the
limit the run goes back to its last commit, once, and leaves out the data from there on: were it the
data's fault, it would only happen again. If it does happen again, the recipe is at fault, and a new
attempt would end the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

REMEDY = "lower recipe.optimizer.learningRate or look at the data"
CLEAN_STEPS = 1000
"""Finite steps after a roll-back from which on another incident is a new one. AdamW's second
moment, with the usual decay of 0.999, has then forgotten the gradients of the first."""


class Verdict(StrEnum):
    GO_ON = "go on"
    ROLL_BACK = "roll back"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class NonFinite:
    """What is remembered between steps."""

    in_a_row: int = 0
    total: int = 0
    """In this process."""
    clean_steps: int | None = None
    """Finite steps since the last roll-back; None where there was none lately."""


def after(state: NonFinite, finite: bool, limit: int) -> tuple[NonFinite, Verdict]:
    """The state after one more agreed step, and what follows from it: `limit` steps in a row
    without a finite gradient are too many."""
    if finite:
        clean = None if state.clean_steps is None else state.clean_steps + 1
        clean = None if clean == CLEAN_STEPS else clean
        return replace(state, in_a_row=0, clean_steps=clean), Verdict.GO_ON
    state = replace(state, in_a_row=state.in_a_row + 1, total=state.total + 1)
    if state.in_a_row < limit:
        return state, Verdict.GO_ON
    if state.clean_steps is not None:
        return state, Verdict.GIVE_UP
    return replace(state, in_a_row=0, clean_steps=0), Verdict.ROLL_BACK


def explanation(state: NonFinite, step: int) -> str:
    """The message of the end of a run that gives up at `step`."""
    return (
        f"the gradient was not finite for {state.in_a_row} steps in a row, up to step {step}, "
        f"{state.clean_steps} finite steps after a roll-back to the last commit that had left out "
        f"the data; {REMEDY}"
    )
