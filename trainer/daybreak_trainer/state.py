"""Where a run stands, apart from tensors: what commits, records and progress are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daybreak_trainer.checkpoint.layout import (
    DataPosition,
    SkippedRange,
    SnapshotRef,
    SourceCommit,
    TrainState,
)
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.health import restarts
from daybreak_trainer.schedule.decision import Decision


@dataclass
class RunState:
    """Equal on every rank after every step, but for the seconds."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples that the weights were trained on."""
    data: DataPosition = field(default_factory=DataPosition)
    """Which samples come next."""
    skipped: tuple[SkippedRange, ...] = ()
    training_seconds: float = 0.0
    device_seconds: float = 0.0
    """Of the run when it was committed last."""
    restarts: dict[str, int] = field(default_factory=dict)
    """Restarts inside pods, by cause."""
    rounds: int = 0
    """Of them, those of this attempt."""
    decisions: tuple[Decision, ...] = ()
    """About the run's length, oldest first."""
    snapshots: tuple[SnapshotRef, ...] = ()
    """Power-function averages kept so far, oldest first."""
    source: SourceCommit | None = None
    """Another run's commit, where this run began with it."""

    def trained(self, batch: Batch) -> None:
        """A step on `batch` was taken."""
        self.step += 1
        self.samples += batch.global_size
        self.data = batch.after

    def restore(self, state: TrainState) -> None:
        """Goes on from a commit."""
        self.step, self.samples, self.data = state.step, state.samples, state.data
        self.skipped, self.training_seconds = state.skipped, state.training_seconds
        self.restarts, self.rounds = dict(state.restarts), state.rounds
        self.decisions, self.device_seconds = state.decisions, state.device_seconds
        self.snapshots, self.source = state.snapshots, state.source

    def restarted(self, causes: Sequence[str], same_attempt: bool) -> None:
        """`causes` are those of this attempt so far, oldest first; where the commit that was gone
        on from is of this attempt too, it knows the first of them."""
        known = self.rounds if same_attempt else 0
        self.restarts = restarts.total(self.restarts, known, causes)
        self.rounds = len(causes)

    def roll_back(self, state: TrainState, reason: str) -> SkippedRange:
        """Weights go back to a commit, data does not: what was trained on since is passed over.

        The range is remembered, for it is what the run's exactly-once does not hold for.
        """
        passed = SkippedRange(
            start=state.data.samples, end=self.data.samples, step=state.step, reason=reason
        )
        self.step, self.samples = state.step, state.samples
        self.decisions, self.snapshots = state.decisions, state.snapshots
        self.skipped = (*self.skipped, passed)
        return passed

    def snapshot(
        self,
        ledger: Mapping[str, float],
        device_seconds: float,
        bad_steps: int,
        precision: str,
    ) -> TrainState:
        """`bad_steps` in a row had no finite gradient; steps are computed in `precision`."""
        return TrainState(
            step=self.step,
            samples=self.samples,
            data=self.data,
            skipped=self.skipped,
            bad_steps=bad_steps,
            training_seconds=self.training_seconds,
            ledger=dict(ledger),
            device_seconds=device_seconds,
            restarts=dict(self.restarts),
            rounds=self.rounds,
            decisions=self.decisions,
            snapshots=self.snapshots,
            source=self.source,
            precision=precision,
        )
