"""How a rank ends: one record the launcher reads, and an exit code that says why.

The record is written before the process ends, so the cause survives even where exit codes do not.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.source import ResumeFromError
from daybreak_trainer.checkpoint.together import FencedError
from daybreak_trainer.contract import RANKS_FOLDER, CheckpointRef, ExitCode, Progress, Termination
from daybreak_trainer.data.errors import BadDataError, DataUnavailableError
from daybreak_trainer.ending import DEVICE_OUT_OF_MEMORY
from daybreak_trainer.export.publish import ExportTakenError
from daybreak_trainer.health.self_test import SelfTestError
from daybreak_trainer.models.pretrained import HubUnreachableError
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.settings import SettingsError
from daybreak_trainer.stores.errors import StorageError, StorageRefusedError

_TRACEBACK_LINES = 12
_PEER_LOST_SIGNS = (
    "Connection closed by peer",  # gloo
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Gloo connectFullMesh failed",
    "NCCL communicator was aborted",  # NCCL
    "NCCL Error 6",
    "ncclRemoteError",
    "remote process exited or there was a network error",
    "remote process exiting prematurely",
    "Connection was likely closed",  # the store of the ranks' launcher
)


class StopRequestedError(Exception):
    """Somebody asked for the end; `checkpoint` is the commit of this stop."""

    def __init__(self, checkpoint: CheckpointRef) -> None:
        super().__init__(f"stopped on request at step {checkpoint.step}")
        self.checkpoint = checkpoint


class NonFiniteLossError(Exception):
    """The loss stayed NaN or infinite past the limit."""


class LimitReachedError(Exception):
    """Time or money was up before the recipe's last step; what was trained is committed, and
    exported where the run has a place for that."""

    def __init__(self, limit: str, step: int, total: int | None, *, exported: bool) -> None:
        """`limit` is the field; `total`, the steps of the whole run, is None before they are
        planned."""
        outcome = "nothing was trained"
        if step:
            kept = "the last commit and the export are" if exported else "the last commit is"
            outcome = f"{kept} of that step"
        super().__init__(
            f"{limit} was used up at step {step} of {total or 'a run not planned yet'}: {outcome}; "
            "raise it while a run goes on, or give the next run fewer steps, or stages shares"
        )


@dataclass
class Standing:
    """How far a rank is; what its record says beside the cause."""

    step: int = 0
    samples: int = 0
    checkpoint: CheckpointRef | None = None
    skipped_checkpoints: tuple[str, ...] = ()
    progress: Progress | None = None


def write_record(work_dir: Path, rank: int, record: Termination) -> None:
    folder = work_dir / RANKS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{rank}.partial"
    partial.write_text(record.to_json())
    partial.replace(folder / f"{rank}.json")


def done(rank: int, standing: Standing) -> Termination:
    return _record("Complete", "training is complete", ExitCode.DONE, rank, standing)


def failure(error: BaseException, rank: int, standing: Standing) -> Termination:
    """The record of an error: what the user can act on without a traceback, the rest with one."""
    if isinstance(error, StopRequestedError):
        standing.checkpoint = error.checkpoint
        return _record("Checkpointed", str(error), ExitCode.CHECKPOINTED, rank, standing)
    for kind, reason, code in (
        (RecipeError, "BadRecipe", ExitCode.BAD_RECIPE),
        (SettingsError, "BadSettings", ExitCode.BAD_RECIPE),
        (BadDataError, "BadData", ExitCode.BAD_DATA),
        (NonFiniteLossError, "NonFiniteLoss", ExitCode.NON_FINITE),
        (ExportTakenError, "ExportTaken", ExitCode.DO_NOT_RESTART),
        (LimitReachedError, "LimitReached", ExitCode.DO_NOT_RESTART),
        (ChangedError, "Changed", ExitCode.BAD_RECIPE),
        (ResumeFromError, "BadResumeFrom", ExitCode.BAD_RECIPE),
        (FencedError, "Fenced", ExitCode.FAILED),
        (StorageRefusedError, "StorageRefused", ExitCode.BAD_RECIPE),
        (StorageError, "StorageFailed", ExitCode.FAILED),
        (DataUnavailableError, "DataUnavailable", ExitCode.FAILED),
        (HubUnreachableError, "HubUnreachable", ExitCode.FAILED),
        (SelfTestError, "BadDevice", ExitCode.FAILED),
    ):
        if isinstance(error, kind):
            return _record(reason, str(error), code, rank, standing)
    text = f"{type(error).__name__}: {error}"
    if any(sign in text for sign in _PEER_LOST_SIGNS):
        message = "another rank went away; its own record says why"
        return _record("PeerLost", message, ExitCode.FAILED, rank, standing)
    if isinstance(error, torch.OutOfMemoryError):
        message = (
            f"{text.splitlines()[0]} -- set compute.deviceBatchSize lower, or "
            "compute.activationCheckpointing: blocks"
        )
        return _record(DEVICE_OUT_OF_MEMORY, message, ExitCode.FAILED, rank, standing)
    lines = traceback.format_exception(error)
    tail = "".join(lines).splitlines()[-_TRACEBACK_LINES:]
    record = _record("TrainerError", text, ExitCode.FAILED, rank, standing)
    return record.model_copy(update={"traceback": "\n".join(tail)})


def _record(
    reason: str, message: str, code: ExitCode, rank: int, standing: Standing
) -> Termination:
    return Termination(
        reason=reason,
        message=message,
        exit_code=int(code),
        rank=rank,
        step=standing.step,
        samples=standing.samples,
        checkpoint=standing.checkpoint,
        skipped_checkpoints=standing.skipped_checkpoints,
        progress=standing.progress,
    )
