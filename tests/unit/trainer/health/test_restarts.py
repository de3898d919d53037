"""Restarts over the whole run, counted once each."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.health.restarts import ENV_RESTARTS, read, total

CAUSES = st.lists(st.sampled_from(["RankKilled", "TrainerError", "PeerLost"]), max_size=8)


@given(CAUSES, CAUSES, st.integers(0, 8))
def test_each_restart_counts_once(before: list[str], causes: list[str], known: int) -> None:
    """Whichever round wrote the commit that is resumed, of this attempt or of the one before."""
    known = min(known, len(causes))
    saved = total(total({}, 0, before), 0, causes[:known])
    counted = total(saved, known, causes)
    assert counted == {cause: (before + causes).count(cause) for cause in {*before, *causes}}


def test_what_the_launcher_told() -> None:
    """Nothing without one."""
    assert read({ENV_RESTARTS: json.dumps(["RankKilled"])}) == ("RankKilled",)
    assert read({}) == ()
