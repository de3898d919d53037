"""What a hollow worker says: a trainer's messages, made from the clock and without training.

A run's settings are read from its pod's environment, as the trainer reads them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from daybreak_trainer.contract import (
    ENV_RUN,
    CheckpointRef,
    ExitCode,
    Progress,
    RunSettings,
    StageProgress,
    Termination,
    rfc3339,
)

Json = dict[str, Any]
BATCH, TOTAL_STEPS = 64, 10_000


@dataclass(frozen=True)
class Pace:
    """How a worker's steps follow from the time since its start."""

    first_step_seconds: float = 1.0
    step_seconds: float = 0.5
    commit_seconds: float = 60.0


@dataclass(frozen=True)
class Worker:
    """Worker 0 of one attempt."""

    run_uid: str
    attempt: int
    pace: Pace
    started: float
    """Unix time."""

    @classmethod
    def of(cls, pod: Json, pace: Pace) -> Worker:
        """The worker of a pod that begins now; a plain Job's pod has the same environment."""
        environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
        run = RunSettings.model_validate_json(environment[ENV_RUN]["value"])
        return cls(run.uid, run.attempt, pace, time.time())

    def progress(self, now: float | None = None) -> Progress:
        """What it answers at a Unix time."""
        now = time.time() if now is None else now
        trained = now - self.started - self.pace.first_step_seconds
        step = int(trained / self.pace.step_seconds) + 1 if trained >= 0 else 0
        commits = int(max(trained, 0.0) // self.pace.commit_seconds)
        rate = BATCH / self.pace.step_seconds
        return Progress(
            run_uid=self.run_uid,
            attempt=self.attempt,
            phase="Training" if step else "Starting",
            stage=StageProgress(name="stage-1", index=1, of=1),
            step=step,
            total_steps=TOTAL_STEPS,
            samples=step * BATCH,
            images_per_second=rate if step else None,
            loss=1.0 / step if step else None,
            started_at=_time(self.started),
            first_step_at=_time(self.started + self.pace.first_step_seconds) if step else None,
            checkpoint=self._commit(commits) if commits else None,
            estimated_completion_time=_time(self.started + TOTAL_STEPS * self.pace.step_seconds),
            training_seconds=max(trained, 0.0),
            updated_at=_time(now),
        )

    def _commit(self, number: int) -> CheckpointRef:
        seconds = number * self.pace.commit_seconds
        step = int(seconds / self.pace.step_seconds)
        url = f"s3://runs/run-{self.run_uid}/attempt-{self.attempt:04d}/step-{step:08d}"
        return CheckpointRef(step=step, time=_time(self.started + seconds), url=url)

    def last_words(self) -> Termination:
        """Its termination message when all steps are trained."""
        end = self.progress()
        url = f"s3://runs/run-{self.run_uid}/attempt-{self.attempt:04d}/step-{TOTAL_STEPS:08d}"
        last = CheckpointRef(step=TOTAL_STEPS, time=end.updated_at, url=url)
        changes = {"phase": "Done", "step": TOTAL_STEPS, "checkpoint": last}
        samples = TOTAL_STEPS * BATCH
        return Termination(
            reason="Done",
            message="all steps are trained",
            exit_code=ExitCode.DONE,
            step=TOTAL_STEPS,
            samples=samples,
            checkpoint=last,
            progress=end.model_copy(update={**changes, "samples": samples}),
        )


def follower_words() -> Termination:
    """The termination message of the other workers."""
    return Termination(reason="Done", message="all steps are trained", exit_code=ExitCode.DONE)


def stopped_words() -> Termination:
    """Of a worker that was asked to stop."""
    text = "stopped on request"
    return Termination(reason="Terminated", message=text, exit_code=ExitCode.TERMINATED)


def _time(unix: float) -> str:
    return rfc3339(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=unix))
