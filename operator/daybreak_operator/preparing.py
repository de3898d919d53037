"""`data.prepare`: the dataset is made before the first attempt. Pure."""

from __future__ import annotations

from daybreak_operator.decision import Decision
from daybreak_operator.draft import Draft


def prepared(draft: Draft) -> Decision | None:
    """What is to be done until the data is there; None when it is, or nothing was asked for."""
    return None
