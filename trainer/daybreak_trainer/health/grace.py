"""The grace period: what is left of it for a commit after somebody asked for the end."""

from __future__ import annotations

_MARGIN_SECONDS = 5.0
"""Kept for killing ranks that did not leave and for the termination message."""
_SAVES_IN_A_GRACE = 3.0
"""A save under contention takes a multiple of its usual time, and the step under way ends first."""


def usable_seconds(grace_seconds: float) -> float:
    """Of the pod's grace period, from SIGTERM on: the ranks' part. The rest is the launcher's."""
    return grace_seconds - min(_MARGIN_SECONDS, grace_seconds / 2)


def seconds_left(grace_seconds: float, requested_at: float, now: float) -> float:
    """Until the launcher kills ranks that are still there; both times on one clock."""
    return max(0.0, requested_at + usable_seconds(grace_seconds) - now)


def grace_is_short(save_seconds: float, grace_seconds: float) -> bool:
    """Whether a stop may well end without its commit, judged by how long a save took."""
    return save_seconds * _SAVES_IN_A_GRACE > usable_seconds(grace_seconds)
