"""A trainer without a model: it steps, commits, says how far it is, and ends as contracted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from daybreak_trainer.contract import CheckpointRef, Progress, Termination, rfc3339

START = datetime(2026, 1, 1, tzinfo=UTC)
TOTAL_STEPS, STEPS_PER_SECOND, BATCH = 240, 1.0, 8
STARTUP_SECONDS, COMMIT_SECONDS, STOP_SECONDS, PEER_SECONDS = 15, 30, 8, 20
PREPARE_SECONDS, PREPARE_STOP_SECONDS = 90, 2
WATCHDOG_SECONDS = 600
"""Longer than the operator waits: both ways out of a hang are tried."""


@dataclass(frozen=True)
class Exit:
    code: int | None
    reason: str = "Error"
    message: str = ""


@dataclass(frozen=True)
class Commit:
    step: int
    samples: int
    productive: float
    time: float
    attempt: int
    parent: Commit | None

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(step=self.step, time=_stamp(self.time), url=f"s3://c/{self.step}")


@dataclass
class Storage:
    """Commits by run UID; the newest is where an attempt begins."""

    commits: dict[str, list[Commit]] = field(default_factory=dict)
    prepared: defaultdict[tuple[str, int], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    """Seconds of work by run UID and index, of those that prepare its data."""

    def newest(self, uid: str) -> Commit | None:
        return max(self.commits.get(uid, []), key=lambda commit: commit.step, default=None)


@dataclass
class Preparation:
    """The pods that prepare a run's data, each by itself; it goes on where one before it was."""

    uid: str
    size: int
    storage: Storage

    def advance(self, pods: Sequence[Any], now: float, seconds: float) -> int:
        """Lets time pass; 0, for nothing trains."""
        for pod in pods:
            if not pod.runs:
                continue
            self.storage.prepared[self.uid, pod.index] += seconds
            if self.storage.prepared[self.uid, pod.index] >= PREPARE_SECONDS:
                pod.end(Exit(0, "Completed"), now)
            elif pod.deleted_at is not None and now - pod.deleted_at >= PREPARE_STOP_SECONDS:
                told = Termination(reason="Terminated", message="told to stop", exit_code=143)
                pod.end(Exit(143, message=told.to_json()), now)
        return 0

    @property
    def done(self) -> bool:
        told = (self.storage.prepared[self.uid, index] for index in range(self.size))
        return all(seconds >= PREPARE_SECONDS for seconds in told)


@dataclass
class Gang:
    """The workers of one attempt."""

    uid: str
    attempt: int
    size: int
    storage: Storage
    skew: float
    hung: bool = False
    begun_at: float | None = None
    first_step_at: float | None = None
    parent: Commit | None = None
    step: float = 0.0
    productive: float = 0.0
    told_at: float = 0.0
    committed_at: float = 0.0
    stopping_at: float | None = None
    broken_at: float | None = None

    def advance(self, pods: Sequence[Any], now: float, seconds: float) -> int:
        """Lets time pass; 1 if the gang made steps."""
        live = [pod for pod in pods if pod.runs]
        asked = any(pod.deleted_at is not None for pod in live)
        if asked and self.stopping_at is None:
            self.stopping_at = now
        whole = len(live) == self.size
        if self.stopping_at is not None and now - self.stopping_at >= STOP_SECONDS:
            self._stop(live, now, committed=whole and self.first_step_at is not None)
            return 0
        if self.begun_at is None:
            if whole and not asked:
                self.begun_at = self.told_at = now
            elif live and now - min(pod.started_at for pod in live) >= WATCHDOG_SECONDS:
                self._lose_peers(live, now)
            return 0
        if not whole:
            self._lose_peers(live, now)
            return 0
        if self.hung and now - self.told_at >= WATCHDOG_SECONDS:
            for pod in live:
                pod.end(Exit(76, "Error", self._last_words("Hang", 76, now, pod)), now)
        if self.hung or now - self.begun_at < STARTUP_SECONDS:
            return 0
        self._train(live, now, seconds)
        return 1

    def _train(self, live: Sequence[Any], now: float, seconds: float) -> None:
        if self.first_step_at is None:
            self.first_step_at = self.committed_at = now
            self.parent = self.storage.newest(self.uid)
            if self.parent is not None:
                self.step, self.productive = self.parent.step, self.parent.productive
        self.step = min(self.step + seconds * STEPS_PER_SECOND, TOTAL_STEPS)
        self.productive += seconds
        self.told_at = now
        done = self.step >= TOTAL_STEPS
        if done or now - self.committed_at >= COMMIT_SECONDS:
            self._commit(now)
        if done:
            for pod in live:
                pod.end(Exit(0, "Completed", self._last_words("Complete", 0, now, pod)), now)

    def _commit(self, now: float) -> None:
        samples = (self.parent.samples if self.parent else 0) + BATCH * (
            int(self.step) - (self.parent.step if self.parent else 0)
        )
        commit = Commit(
            int(self.step), samples, self.productive, now + self.skew, self.attempt, self.parent
        )
        if self.parent is None or commit.step > self.parent.step:
            self.storage.commits.setdefault(self.uid, []).append(commit)
            self.parent = commit
        self.committed_at = now

    def _stop(self, live: Sequence[Any], now: float, *, committed: bool) -> None:
        if committed:
            self._commit(now)
        code, reason = (75, "Checkpointed") if committed else (143, "Terminated")
        for pod in live:
            pod.end(Exit(code, "Error", self._last_words(reason, code, now, pod)), now)

    def _lose_peers(self, live: Sequence[Any], now: float) -> None:
        if self.broken_at is None:
            self.broken_at = now
        if now - self.broken_at >= PEER_SECONDS:
            for pod in live:
                pod.end(Exit(1, "Error", self._last_words("PeerLost", 1, now, pod)), now)

    def _last_words(self, reason: str, code: int, now: float, pod: Any) -> str:
        return Termination(
            reason=reason,
            message="why",
            exit_code=code,
            step=int(self.step),
            checkpoint=self.parent.ref if self.parent else None,
            progress=self.progress(now) if pod.index == 0 else None,
        ).to_json()

    def progress(self, now: float) -> Progress:
        first = self.first_step_at
        return Progress(
            run_uid=self.uid,
            attempt=self.attempt,
            phase="Starting" if first is None else "Training",
            step=int(self.step),
            total_steps=TOTAL_STEPS,
            samples=BATCH * int(self.step),
            started_at=_stamp((self.begun_at or now) + self.skew),
            first_step_at=None if first is None else _stamp(first + self.skew),
            checkpoint=self.parent.ref if self.parent else None,
            ledger={"productive": self.productive, "checkpoint": 0.0},
            estimated_completion_time=None if first is None else self._expected_end(),
            updated_at=_stamp(self.told_at + self.skew),
        )

    def _expected_end(self) -> str:
        left = (TOTAL_STEPS - self.step) / STEPS_PER_SECOND
        return _stamp(self.told_at + self.skew + left)


def _stamp(seconds: float) -> str:
    return rfc3339(START + timedelta(seconds=seconds))
