"""Which Jobs and pods are a run's. Pure.

Anybody may put a run's label on a pod, so the label only finds them: who controls an object says
whose it is. Pods outlive their Jobs, though, where somebody orphans them, and a former run of the
same name leaves its own behind: those are not the run's workers, but they may write where its
workers write, so they are waited for until they have ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from daybreak_operator.api.run import KIND, TrainingRun
from daybreak_operator.observation import (
    JOB_NAME,
    JobView,
    PodView,
    PreparationView,
    owner_uid,
    prepares,
)

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Children:
    jobs: tuple[JobView, ...]
    """Of attempts."""
    pods: tuple[PodView, ...]
    preparation: PreparationView | None


def children(run: TrainingRun, jobs: Sequence[Body], pods: Iterable[Body]) -> Children:
    """Of what carries the run's label: its Jobs, their pods, and strays that are at work. How a
    stray ended tells nothing of ours."""
    ours = {b["metadata"]["uid"]: b for b in jobs if owner_uid(b["metadata"]) == run.uid}
    others = {b["metadata"]["uid"]: b for b in jobs if b["metadata"]["uid"] not in ours}
    views = []
    for body in pods:
        if owner_uid(body["metadata"]) in ours:
            views.append(PodView.of(body))
        elif _is_stray(run, body["metadata"], others):
            view = PodView.of(body)
            views += [] if view.over else [replace(view, stray=True)]
    preparing = [body for body in ours.values() if prepares(body["metadata"])]
    attempts = [body for body in ours.values() if not prepares(body["metadata"])]
    return Children(
        tuple(JobView.of(body) for body in attempts),
        tuple(views),
        PreparationView.of(preparing[0], views) if preparing else None,
    )


def _is_stray(run: TrainingRun, pod: Body, others: Mapping[str, Body]) -> bool:
    """Whether a pod that none of the run's Jobs controls was made by one of them, or by a Job of a
    former run of its name. A Job that nobody controls may be one that was orphaned with its run:
    like one that is gone, it is known by its name."""
    owner = _controller(pod)
    job = others.get(owner.get("uid", ""))
    if job is not None and (former := _controller(job["metadata"])):
        return (former.get("kind"), former.get("name")) == (KIND, run.name)
    if not owner:
        name = (pod.get("labels") or {}).get(JOB_NAME, "")
    else:
        name = owner.get("name", "") if owner.get("kind") == "Job" else ""
    return re.fullmatch(rf"{re.escape(run.name)}-([0-9]+|prepare)", name) is not None


def _controller(metadata: Body) -> Body:
    owners = metadata.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})
