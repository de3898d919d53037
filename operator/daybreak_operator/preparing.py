"""`data.prepare`: the dataset is made before the first attempt. Pure.

Its Job is made once, under a name of its own, and made again where somebody deleted it, the run was
suspended meanwhile, or a dead node holds one of its pods: pods go on where those before them were
stopped. When it is done, that is on record, and the data is not looked at again.
"""

from __future__ import annotations

from daybreak_operator.api.status import PreparationStatus
from daybreak_operator.children.prepare import prepare_job
from daybreak_operator.conditions import Truth
from daybreak_operator.decision import Decision, JobRef, concluded
from daybreak_operator.draft import Draft
from daybreak_operator.ending import fail, overdue
from daybreak_operator.hang import told_of_silence
from daybreak_operator.observation import PreparationView
from daybreak_operator.remedies import of_placement, of_start

_POLL_SECONDS = 15.0
_QUEUE_SECONDS = 30.0


def prepared(draft: Draft) -> Decision | None:
    """What is to be done until the data is there; None when it is, or nothing was asked for."""
    run, view = draft.observation.run, draft.observation.preparation
    known = run.status.preparation
    if run.spec.data.prepare is None or (known is not None and known.state == "Done"):
        return None
    if view is not None and view.done:
        draft.values["preparation"] = PreparationStatus(state="Done", message="the data is there")
        draft.note("Normal", "DataPrepared", "the data is there")
        return None
    if view is not None and view.failed is not None:
        draft.values["preparation"] = PreparationStatus(state="Failed", message=view.failed)
        return fail(draft, "PreparationFailed", view.failed)
    if known is None:
        draft.values["preparation"] = PreparationStatus(state="Running")
        draft.values["start_time"] = run.status.start_time or draft.now
        draft.note("Normal", "PreparingData", "the data is prepared before the first attempt")
        draft.settle("Preparing", "PreparingData", "the data is prepared")
        return concluded(draft, 0.0)
    if view is None:
        return Decision(run.status, create_job=prepare_job(run), again_seconds=_POLL_SECONDS)
    if stuck := overdue(draft.observation):
        # Its finalizer would keep them and the Job wait for them: it is made anew.
        why = f"pod {stuck[0].name} did not end in its grace period: the Job is made anew"
        draft.note("Warning", "PodForced", why)
        draft.settle("Preparing", "PreparingData", why)
        return concluded(draft, _POLL_SECONDS, delete_jobs=_unless_going(view), delete_pods=stuck)
    if view.suspended:
        return _queued(draft, view)
    text = f"Job {view.name} prepares the data"
    if view.lacks_pods:
        text += f"; not all its pods are there: `kubectl describe job {view.name}` says why"
    draft.settle("Preparing", "PreparingData", text)
    told_of_silence(draft, [pod for pod in draft.observation.pods if pod.prepares])
    _told_what_it_waits_for(draft)
    return concluded(draft, _POLL_SECONDS)


def _queued(draft: Draft, view: PreparationView) -> Decision:
    text = f"Job {view.name}, which prepares the data, waits for its queue to admit it"
    if (why := draft.observation.queue_says) is not None:
        text += f": {why}"
    draft.settle("Preparing", "Queued", text)
    draft.truths["Admitted"] = Truth("False", "Queued", text)
    return concluded(draft, _QUEUE_SECONDS)


def _told_what_it_waits_for(draft: Draft) -> None:
    """Condition Degraded: what a pod waits for. Nothing ends it, for it holds up nobody else."""
    spec = draft.observation.run.spec
    for pod in sorted(draft.observation.pods, key=lambda pod: pod.name):
        if not pod.prepares or pod.over:
            continue
        if pod.waiting and pod.stuck:
            reason = pod.waiting.partition(":")[0]
            why = f"in a new run {of_start(spec, pod)}: {pod.waiting}"
        elif pod.waiting:
            reason, why = "PreparationWaits", pod.waiting
        elif pod.unschedulable:
            reason = "PreparationWaits"
            why = f"{pod.unschedulable}; {of_placement(spec, pod)}"
        else:
            continue
        draft.degraded(reason, f"pod {pod.name}: {why}")


def paused(draft: Draft) -> Decision:
    """The run is suspended: its Job goes, and what it has made so far stays."""
    view = draft.observation.preparation
    if any(pod.prepares and not pod.over for pod in draft.observation.pods):
        draft.truths["Suspended"] = Truth("False", "Stopping", "pods that prepare the data go")
    if view is None or view.done:
        return concluded(draft)
    stuck = overdue(draft.observation)
    return concluded(draft, _POLL_SECONDS, delete_jobs=_unless_going(view), delete_pods=stuck)


def _unless_going(view: PreparationView) -> tuple[JobRef, ...]:
    return () if view.deleting else (JobRef.of(view),)
