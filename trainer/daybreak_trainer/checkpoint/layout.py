"""Names of a run's checkpoints in its storage, and the two small JSON files that make them true.

    <storage>/run-<uid>/attempt-0002/CLAIM                   from here on older attempts stop
    <storage>/run-<uid>/attempt-0002/ATTEMPT.json            where the attempt started from
    <storage>/run-<uid>/attempt-0002/step-00001200/...       DCP's files, journal, recipe, data
    <storage>/run-<uid>/attempt-0002/step-00001200/COMMIT.json   written last

A checkpoint without a valid `COMMIT.json` does not exist. Every attempt writes under its own prefix
and every run under its own UID, so a worker that outlives its attempt, or another run in the same
storage, can spoil nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal, Self

import xxhash
from pydantic import Field

from daybreak_trainer.contract import Message
from daybreak_trainer.schedule.decision import Decision

COMMIT = "COMMIT.json"
ATTEMPT = "ATTEMPT.json"
CLAIM = "CLAIM"
HISTORY = "history.jsonl.gz"
RECIPE = "recipe.json"
DATA = "data.json"

FORMAT: Final = 3
"""Of a checkpoint: what is in which file. Another number is refused by name, never guessed at."""


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
    """Names one commit of a run; a later one of a lineage has the greater `order`."""

    attempt: int = Field(ge=1)
    step: int = Field(ge=0)

    @property
    def order(self) -> tuple[int, int]:
        return self.attempt, self.step

    @property
    def folder(self) -> str:
        return f"{attempt_folder(self.attempt)}/{step_folder(self.step)}"


class SealedMessage(Message):
    """A JSON file that carries a digest of itself, so a flipped bit in it is seen."""

    digest: str = Field(default="", description="xxh64 of this message without it.")

    def sealed(self) -> Self:
        """This message with its digest."""
        return self.model_copy(update={"digest": _digest(json.loads(self.to_json()))})

    def seal(self) -> bytes:
        """The file's content."""
        return self.sealed().to_json().encode()

    @classmethod
    def unseal(cls, raw: bytes) -> Self:
        """Raises ValueError where the content is not what `seal` made, or is not for this class."""
        if not is_whole(raw):
            raise ValueError("its digest is another's")
        return cls.model_validate_json(raw)


def is_whole(raw: bytes) -> bool:
    """Whether a sealed file has the content that its digest was taken of, by whatever version."""
    try:
        document = json.loads(raw)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("digest") == _digest(document)


def _digest(document: dict[str, Any]) -> str:
    """Of what is in the file, not of a message read from it: a field that is new since then has a
    default there, which the file does not hold."""
    plain = json.dumps(document | {"digest": ""}, sort_keys=True, separators=(",", ":"))
    return str(xxhash.xxh64(plain.encode()).hexdigest())


class SourceCommit(Message):
    """A commit of another run, which this one began from (`checkpoint.resumeFrom`)."""

    url: str
    uid: str
    point: CommitPoint


class Attempt(SealedMessage):
    """`ATTEMPT.json`: an attempt's place in the run's lineage."""

    uid: str
    attempt: int
    parent: CommitPoint | None = Field(
        default=None, description="The commit it resumed from; null where the run began with it."
    )
    source: SourceCommit | None = Field(
        default=None, description="Where that was, if it was not the recipe's beginning."
    )


class DataPosition(Message):
    """Which samples come next; with the seed and the datasets it decides every later batch."""

    samples: int = Field(default=0, ge=0, description="Positions handed out since the run began.")
    batches: int = Field(default=0, ge=0, description="Global batches handed out.")
    buckets: dict[str, int] = Field(
        default_factory=dict,
        description="The same samples by aspect-ratio bucket: `HxW`, with datasets of several "
        "resolutions `1024px/HxW`.",
    )


class SkippedRange(Message):
    """Positions that were passed over after a roll-back: the one exemption from exactly-once."""

    start: int
    end: int = Field(description="The first position that was trained again.")
    step: int = Field(description="Of the commit that was gone back to.")
    reason: str


class SnapshotRef(Message):
    """A snapshot of the power-function averages (`snapshots`)."""

    point: CommitPoint = Field(description="Attempt and step that it was taken at.")
    samples: int = Field(description="That the weights were trained on.")
    manifest: FileRecord = Field(description="Its `SNAPSHOT.json`.")


class TrainState(Message):
    """Where training stands, apart from tensors. Travels in `COMMIT.json`."""

    step: int = Field(ge=0, description="Optimizer steps done.")
    samples: int = Field(ge=0, description="Samples that the weights were trained on.")
    data: DataPosition = DataPosition()
    skipped: tuple[SkippedRange, ...] = ()
    bad_steps: int = Field(
        default=0, description="Steps in a row without a finite gradient, up to this one."
    )
    training_seconds: float = Field(default=0.0, description="Time in steps, over the whole run.")
    ledger: dict[str, float] = Field(
        default_factory=dict, description="Seconds by cause over the whole run (telemetry.ledger)."
    )
    device_seconds: float = Field(
        default=0.0, description="The ledger's time, times how many devices were held."
    )
    restarts: dict[str, int] = Field(
        default_factory=dict, description="Restarts inside pods over the whole run, by cause."
    )
    rounds: int = Field(
        default=0, description="Of these restarts, those of the attempt that committed this."
    )
    decisions: tuple[Decision, ...] = Field(
        default=(), description="About the run's length, oldest first; none with a fixed recipe."
    )
    snapshots: tuple[SnapshotRef, ...] = Field(
        default=(), description="Averages kept so far, oldest first."
    )
    source: SourceCommit | None = Field(
        default=None,
        description="Where the run began. Steps and samples before it are counted, the time and "
        "devices that they took are not.",
    )
    precision: str = Field(
        default="", description="That its steps were computed in, `bf16` or `fp32`."
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="Of Daybreak, torch, diffusers and Python that wrote it."
    )


class Commit(SealedMessage):
    """`COMMIT.json`: everything needed to trust a checkpoint and to go on from it."""

    format: Literal[3]
    uid: str
    attempt: int
    parent: CommitPoint | None = Field(
        default=None, description="The commit before it in the lineage; absent for the first."
    )
    recipe_hash: str
    dataset_fingerprint: str
    state: TrainState
    world: int = Field(description="Ranks that wrote it; any number may read it.")
    time: str = Field(description="RFC 3339, UTC.")
    files: dict[str, FileRecord]

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def samples(self) -> int:
        return self.state.samples

    @property
    def training_seconds(self) -> float:
        return self.state.training_seconds

    @property
    def point(self) -> CommitPoint:
        return CommitPoint(attempt=self.attempt, step=self.step)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())
