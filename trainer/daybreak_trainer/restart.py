"""Whether a round of the gang is followed by another, in the same pods. Pure.

A round is one life of the ranks. Every launcher sees how all nodes' rounds ended and decides from
that alone, so all decide alike without asking each other again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from daybreak_trainer.contract import ExitCode, Message, Termination
from daybreak_trainer.ending import DEVICE_OUT_OF_MEMORY, OUT_OF_MEMORY, PEER_LOST

ON_PURPOSE = frozenset(
    {
        ExitCode.DONE,
        ExitCode.BAD_RECIPE,
        ExitCode.BAD_DATA,
        ExitCode.CHECKPOINTED,
        ExitCode.HUNG,
        ExitCode.NON_FINITE,
        ExitCode.DO_NOT_RESTART,
        ExitCode.TERMINATED,
    }
)
"""Never followed by a restart in place. A hang is no crash: what makes a rank hang (a device, a
driver, a mount) outlives its process, so the pod is replaced."""
_MET_AGAIN = frozenset({"BadDevice", "StartFailed", "Fenced", OUT_OF_MEMORY, DEVICE_OUT_OF_MEMORY})
"""Reasons that other ranks in the same pods would meet again."""


class Stalled(Message):
    """A node's likeliest culprit when a clock ran out."""

    silent_seconds: float
    frozen: bool
    alone: bool = False
    """It waits for no other rank."""


class NodeEnd(Message):
    """How one node's part of a round ended; launchers exchange these."""

    termination: Termination
    stopped: bool = False
    commit_step: int = -1
    """The newest commit that the node knows of."""
    stalled: Stalled | None = None
    left_behind: bool = False
    """A rank that SIGKILL did not end holds its device and may write: none starts beside it."""


@dataclass(frozen=True)
class Restarts:
    """Of this attempt's ranks, in their pods."""

    causes: tuple[str, ...] = ()
    """Reasons, oldest first: the next round's number is their count."""
    first: str = ""
    """What the first cause's message said."""
    since_commit: int = 0
    commit_step: int = -1

    @property
    def sentence(self) -> str:
        """For the message of the attempt's end; empty where there was no restart."""
        if not self.causes:
            return ""
        times = "once" if len(self.causes) == 1 else f"{len(self.causes)} times"
        counts = ", ".join(
            reason if number == 1 else f"{number} × {reason}"
            for reason, number in Counter(self.causes).items()
        )
        return f"; ranks were restarted in place {times} before ({counts}; first: {self.first})"


@dataclass(frozen=True)
class Again:
    """All nodes start their ranks again."""

    restarts: Restarts
    cause: Termination


@dataclass(frozen=True)
class Over:
    """All nodes' pods end. `culprit` is the node whose rank hung, if any did."""

    culprit: int | None = None


def decide(ends: Sequence[NodeEnd | None], restarts: Restarts, budget: int) -> Again | Over:
    """What follows a round. `ends` is by node, None where a node did not say how it ended;
    `budget` is how often ranks are restarted without a new commit in between."""
    known = [end for end in ends if end is not None]
    stalled = {n: e.stalled for n, e in enumerate(ends) if e is not None and e.stalled is not None}
    if stalled:
        return Over(max(stalled, key=lambda n: _suspicion(stalled[n])))
    if len(known) < len(ends) or any(_is_last(end) for end in known):
        return Over()
    commit_step = max(restarts.commit_step, *(end.commit_step for end in known))
    spent = restarts.since_commit if commit_step == restarts.commit_step else 0
    if spent >= budget:
        return Over()
    causes = [end.termination for end in known if end.termination.reason != PEER_LOST]
    cause = (causes or [known[0].termination])[0]
    return Again(
        Restarts(
            causes=(*restarts.causes, cause.reason),
            first=restarts.first or cause.message,
            since_commit=spent + 1,
            commit_step=commit_step,
        ),
        cause,
    )


def _suspicion(stalled: Stalled) -> tuple[bool, bool, float]:
    return stalled.frozen, stalled.alone, stalled.silent_seconds


def _is_last(end: NodeEnd) -> bool:
    return (
        end.stopped
        or end.left_behind
        or end.termination.exit_code in ON_PURPOSE
        or end.termination.reason in _MET_AGAIN
    )
