"""The grace period: what is left of it for a commit after somebody asked for the end.

SIGTERM ........ usable ............ abandoned ......... told ........... grace
ranks commit     they are killed     no longer waited    message is       SIGKILL to
                                     for after that      written          the pod
"""

from __future__ import annotations

_MARGIN_SECONDS = 5.0
"""Kept for killing ranks that did not leave, for hearing of other nodes, and for the termination
message."""
_ABANDON_SHARE = 0.6
_TELL_SHARE = 0.4
"""Of the margin, what is left at that moment; the last call to another node's store may take a
second longer."""
_SAVES_IN_A_GRACE = 3.0
"""A save under contention takes a multiple of its usual time, and the step under way ends first."""


def usable_seconds(grace_seconds: float) -> float:
    """Of the pod's grace period, from SIGTERM on: the ranks' part. The rest is the launcher's."""
    return grace_seconds - _margin(grace_seconds)


def abandon_seconds(grace_seconds: float) -> float:
    """From SIGTERM on: until ranks that even SIGKILL has not ended are waited for."""
    return grace_seconds - _margin(grace_seconds) * _ABANDON_SHARE


def tell_seconds(grace_seconds: float) -> float:
    """From SIGTERM on: until other nodes are waited for; then the pod says how it ended."""
    return grace_seconds - _margin(grace_seconds) * _TELL_SHARE


def grace_is_short(save_seconds: float, grace_seconds: float) -> bool:
    """Whether a stop may well end without its commit, judged by how long a save took."""
    return save_seconds * _SAVES_IN_A_GRACE > usable_seconds(grace_seconds)


def _margin(grace_seconds: float) -> float:
    return min(_MARGIN_SECONDS, grace_seconds / 2)
