"""Steps without a finite gradient: skipped, then rolled back once, then the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.health.non_finite import (
    CLEAN_STEPS,
    NonFinite,
    Verdict,
    after,
    explanation,
)

LIMIT = 5


def run(finite: list[bool]) -> tuple[NonFinite, list[Verdict]]:
    state, verdicts = NonFinite(), []
    for step in finite:
        state, verdict = after(state, step, LIMIT)
        verdicts.append(verdict)
        if verdict is Verdict.GIVE_UP:
            break
    return state, verdicts


@given(st.lists(st.booleans(), max_size=200))
def test_the_run_goes_on_while_no_row_is_too_long(finite: list[bool]) -> None:
    """Whatever happens in between; and nothing is forgotten in the count."""
    text = "".join("." if step else "x" for step in finite)
    state, verdicts = run(finite)
    first = text.find("x" * LIMIT)
    if first < 0:
        assert set(verdicts) <= {Verdict.GO_ON}
        assert state.total == text.count("x")
    else:
        assert verdicts[: first + LIMIT - 1] == [Verdict.GO_ON] * (first + LIMIT - 1)
        assert verdicts[first + LIMIT - 1] is Verdict.ROLL_BACK


@given(st.integers(0, CLEAN_STEPS + 50))
def test_a_second_time_soon_after_is_the_end(clean: int) -> None:
    """Long after, it is another accident."""
    _, verdicts = run([False] * LIMIT + [True] * clean + [False] * LIMIT)
    expected = Verdict.GIVE_UP if clean < CLEAN_STEPS else Verdict.ROLL_BACK
    assert verdicts[-1] is expected
    assert verdicts.count(Verdict.ROLL_BACK) == (1 if clean < CLEAN_STEPS else 2)


def test_single_accidents_after_a_roll_back_are_forgiven() -> None:
    """Only a whole row counts, and the clean steps are counted over single ones."""
    accidents = ([True] * 9 + [False]) * (CLEAN_STEPS // 9 + 1)
    _, verdicts = run([False] * LIMIT + accidents + [False] * (LIMIT - 1))
    assert Verdict.GIVE_UP not in verdicts


def test_the_end_tells_its_story() -> None:
    """How many steps, where, and that a roll-back was tried."""
    state, _ = run([False] * LIMIT + [True] * 7 + [False] * LIMIT)
    assert explanation(state, 512) == (
        "the gradient was not finite for 5 steps in a row, up to step 512, 7 finite steps after a "
        "roll-back to the last commit that had left out the data; lower "
        "recipe.optimizer.learningRate or look at the data"
    )
