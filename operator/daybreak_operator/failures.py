"""Why an attempt ended, and what that means for the run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from daybreak_operator.observation import JobView, PodView
from daybreak_trainer.contract import (
    FINAL_EXIT_CODES,
    UNCHARGED_EXIT_CODES,
    CheckpointRef,
    Progress,
)

Verdict = Literal["final", "charged", "uncharged"]
_PEER_LOST = "PeerLost"


@dataclass(frozen=True)
class Failure:
    verdict: Verdict
    reason: str
    message: str
    exit_code: int | None = None
    pod: str | None = None
    step: int = 0
    progress: Progress | None = None
    checkpoint: CheckpointRef | None = None


def classify(job: JobView, pods: Sequence[PodView]) -> Failure | None:
    """The cause of an attempt's end, or None while there is none or it is not clear yet.

    The first failed pod tells, except where it only lost its peers: then one that says more does,
    and while others are still ending, they are waited for.
    """
    failed = [pod for pod in pods if pod.phase == "Failed" or pod.exit_code not in (None, 0)]
    if not failed:
        return _job_failure(job) if not any(not pod.over for pod in pods) else None
    telling = [pod for pod in failed if not _lost_peers(pod)]
    if not telling and any(not pod.over for pod in pods):
        return None
    return _of_pod(min(telling or failed, key=_end))


def _end(pod: PodView) -> tuple[datetime, bool, int]:
    """Sorts by time, in whole seconds: of pods that ended in the same one, those that were only
    told to stop come last, for the failure of another is what stops them."""
    end = pod.finished_at or datetime.max.replace(tzinfo=UTC)
    return (end, pod.exit_code in UNCHARGED_EXIT_CODES, pod.index)


def _lost_peers(pod: PodView) -> bool:
    return pod.termination is not None and pod.termination.reason == _PEER_LOST


def _job_failure(job: JobView) -> Failure | None:
    if job.failed is None:
        return None
    return Failure("uncharged", "PodsLost", job.failed or "the attempt's pods are gone")


def _of_pod(pod: PodView) -> Failure:
    told = pod.termination
    code = pod.exit_code
    if told is not None:
        reason, message, step = told.reason, told.message, told.step
    else:
        reason = "Disrupted" if pod.disrupted else "WorkerFailed"
        ended = f"exit code {code}" if code is not None else "no exit code"
        message = pod.disrupted or pod.message or f"pod {pod.name} ended with {ended}"
        step = 0
    return Failure(
        verdict=_verdict(code, pod.disrupted is not None),
        reason=reason,
        message=message,
        exit_code=code,
        pod=pod.name,
        step=step,
        progress=told.progress if told else None,
        checkpoint=told.checkpoint if told else None,
    )


def _verdict(code: int | None, disrupted: bool) -> Verdict:
    if code in FINAL_EXIT_CODES:
        return "final"
    if disrupted or code is None or code in UNCHARGED_EXIT_CODES:
        return "uncharged"
    return "charged"
