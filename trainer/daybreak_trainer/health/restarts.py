"""Restarts of ranks in their pods, as the ranks know of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

ENV_RESTARTS = "DAYBREAK_RESTARTS"
"""A rank's environment: why ranks of this attempt were restarted in place, a JSON list of reasons,
oldest first."""


def read(environment: Mapping[str, str]) -> tuple[str, ...]:
    """This attempt's causes; none for ranks that no launcher started."""
    return tuple(json.loads(environment.get(ENV_RESTARTS, "[]")))


def total(saved: Mapping[str, int], known: int, causes: Sequence[str]) -> dict[str, int]:
    """Restarts by cause over the whole run. `saved` is what the resumed commit counted; the ranks
    that wrote it knew the first `known` of this attempt's `causes` (none if another attempt wrote
    it), so only the rest is added."""
    return dict(Counter(saved) + Counter(causes[known:]))
