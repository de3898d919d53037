"""Names of a run's checkpoints in its storage, and the two small JSON files that make them true.

    <storage>/run-<uid>/attempt-0002/ATTEMPT.json            where the attempt started from
    <storage>/run-<uid>/attempt-0002/step-00001200/...       DCP's files, history.jsonl
    <storage>/run-<uid>/attempt-0002/step-00001200/COMMIT.json   written last

A checkpoint without a valid `COMMIT.json` does not exist. Every attempt writes under its own prefix
and every run under its own UID, so a worker that outlives its attempt, or another run in the same
storage, can spoil nothing.
"""

from __future__ import annotations

from pydantic import Field

from daybreak_trainer.contract import Message

COMMIT = "COMMIT.json"
ATTEMPT = "ATTEMPT.json"
HISTORY = "history.jsonl"


def run_folder(uid: str) -> str:
    return f"run-{uid}"


def attempt_folder(attempt: int) -> str:
    return f"attempt-{attempt:04d}"


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


class FileRecord(Message):
    """One file of a checkpoint, as it was while it was written."""

    size: int = Field(ge=0, description="Bytes.")
    xxh64: str


class CommitPoint(Message):
    """Names one commit of a run."""

    attempt: int = Field(ge=1)
    step: int = Field(ge=0)

    @property
    def folder(self) -> str:
        return f"{attempt_folder(self.attempt)}/{step_folder(self.step)}"


class Attempt(Message):
    """`ATTEMPT.json`: an attempt's place in the run's lineage."""

    uid: str
    attempt: int
    parent: CommitPoint | None = Field(
        default=None, description="The commit it resumed from; null where it began afresh."
    )


class DataPosition(Message):
    """Which samples come next; with the seed and the datasets it decides every later batch."""

    samples: int = Field(default=0, ge=0, description="Positions handed out since the run began.")
    batches: int = Field(default=0, ge=0, description="Global batches handed out.")
    buckets: dict[str, int] = Field(
        default_factory=dict, description="The same samples by aspect-ratio bucket, `HxW`."
    )


class SkippedRange(Message):
    """Positions that were passed over after a roll-back: the one exemption from exactly-once."""

    start: int
    end: int = Field(description="The first position that was trained again.")
    reason: str


class TrainState(Message):
    """Where training stands, apart from tensors. Travels in `COMMIT.json`."""

    step: int = Field(ge=0, description="Optimizer steps done.")
    samples: int = Field(ge=0, description="Samples that the weights were trained on.")
    data: DataPosition = DataPosition()
    skipped: tuple[SkippedRange, ...] = ()
    training_seconds: float = Field(default=0.0, description="Time in steps, over the whole run.")
    ledger: dict[str, float] = Field(
        default_factory=dict, description="Seconds by cause over the whole run (telemetry.ledger)."
    )
    restarts: dict[str, int] = Field(
        default_factory=dict, description="Restarts over the whole run, by cause."
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="Of Daybreak, torch, diffusers and Python that wrote it."
    )


class Commit(Message):
    """`COMMIT.json`: everything needed to trust a checkpoint and to go on from it."""

    uid: str
    attempt: int
    step: int = Field(ge=0, description="Optimizer steps done.")
    samples: int = Field(ge=0, description="Samples trained on: the position of the next one.")
    parent: CommitPoint | None = Field(
        default=None, description="The commit before it in the lineage; absent for the first."
    )
    recipe_hash: str
    dataset_fingerprint: str
    training_seconds: float
    world: int = Field(description="Ranks that wrote it; any number may read it.")
    time: str = Field(description="RFC 3339, UTC.")
    files: dict[str, FileRecord]

    @property
    def point(self) -> CommitPoint:
        return CommitPoint(attempt=self.attempt, step=self.step)
