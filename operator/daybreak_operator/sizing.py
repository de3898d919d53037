"""How many nodes a run has: what its user wants, what there is, and how often that may change."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import ScalingStatus
from daybreak_operator.draft import Draft

Reason = Literal["Requested", "NodesLost", "GrownBack"]


def next_size(draft: Draft) -> int:
    """Nodes of an attempt that is about to be made.

    A run that went on smaller tries its full size again at its first restart after the cooldown,
    or takes what is known to be free.
    """
    run, wanted = draft.observation.run, draft.observation.run.spec.workers.nodes
    shrunk = reduced(run)
    if shrunk is None:
        return wanted
    # The user may have raised minNodes since.
    least = max(shrunk.nodes, run.spec.workers.min_nodes or 1)
    attempt = run.status.current_attempt
    if attempt is None or attempt.nodes != shrunk.nodes or cooling(run, draft.observation.now):
        return min(least, wanted)
    free = draft.observation.free_nodes
    if free is None:
        return wanted
    # What was free a moment ago may be from when the last attempt's pods were still there.
    return min(wanted, max(free, least))


def reduced(run: TrainingRun) -> ScalingStatus | None:
    """The size that the run was reduced to, if it is smaller than what is wanted."""
    scaling = run.status.scaling
    if scaling is None or scaling.reason != "NodesLost":
        return None
    return scaling if scaling.nodes < run.spec.workers.nodes else None


def growth(run: TrainingRun, now: datetime) -> int:
    """How many nodes the run's attempt stops for as soon as they are free."""
    attempt = run.status.current_attempt
    if reduced(run) is None or cooling(run, now) or run.spec.suspend or attempt is None:
        return 0
    at_work = attempt.admitted_time is not None and attempt.ended_time is None
    return run.spec.workers.nodes - attempt.nodes if at_work else 0


def changed(draft: Draft, nodes: int, reason: Reason) -> None:
    """Notes a new size; the next change has to wait for the cooldown."""
    draft.values["scaling"] = ScalingStatus(nodes=nodes, reason=reason, time=draft.now)


def grown(run: TrainingRun, nodes: int) -> Reason:
    """Why a reduced run gets a larger size: one that is not all it wants is still reduced."""
    return "GrownBack" if nodes >= run.spec.workers.nodes else "NodesLost"


def _accepted(draft: Draft) -> None:
    """The size that a run was reduced to is the one it is to have: a larger one is asked for anew
    then, and need not wait until nodes are known to be free."""
    scaling = draft.stored.scaling
    if scaling is not None and scaling.reason == "NodesLost":
        draft.values["scaling"] = scaling.model_copy(update={"reason": "Requested"})


def cooling(run: TrainingRun, now: datetime) -> bool:
    """Whether the size changed so lately that it may not change again yet."""
    if run.status.scaling is None:
        return False
    since = datetime.fromisoformat(run.status.scaling.time)
    return now - since < timedelta(seconds=seconds(run.spec.scale_cooldown))


def resize(draft: Draft, nodes: int, *, admitted: bool) -> tuple[int, Reason] | None:
    """The size to go to from a live attempt of `nodes`, or None. What has to wait for the cooldown
    is said in condition Degraded; an attempt that nothing was spent on changes at once."""
    run, now = draft.observation.run, draft.observation.now
    wanted = run.spec.workers.nodes
    if wanted == nodes:
        _accepted(draft)
        return None
    if wanted > nodes and reduced(run) is not None:
        draft.degraded("FewerNodes", f"the run trains on {nodes} of {wanted} nodes")
        free = draft.observation.free_nodes
        # Workers that wait for nodes themselves will take the free ones.
        if not admitted or not free or cooling(run, now):
            return None
        larger = min(wanted, nodes + free)
        if larger < (run.spec.workers.min_nodes or 1):
            return None
        return larger, grown(run, larger)
    if admitted and cooling(run, now):
        draft.degraded(
            "ScaleCooldown",
            f"the change from {nodes} to {wanted} node(s) waits until scaleCooldown "
            f"({run.spec.scale_cooldown}) has passed since the last one",
        )
        return None
    return wanted, "Requested"
