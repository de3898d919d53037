"""Whole runs of the real trainer without pods: each rank a process, over gloo."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from free_ports import free_port
from run_settings import run_settings
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    Attempt,
    Commit,
    CommitPoint,
    attempt_folder,
)
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import RANKS_FOLDER, StreamSettings, Termination
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.settings import Settings

SCRIPT = Path(__file__).with_name("one_rank.py")
_SECONDS = 200.0


class Bench:
    """One run's storage, and the means to run attempts of it."""

    def __init__(
        self,
        folder: Path,
        dataset: Path | str,
        context: ForkServerContext,
        recipe: Recipe,
        place: str | None = None,
        secret: Mapping[str, str] | None = None,
        uid: str = "u",
    ) -> None:
        """`place`: URL of the folder of checkpoints and models, instead of a local one; `secret`:
        the keys of the Secret of all stores."""
        folder.mkdir(exist_ok=True)
        self.folder, self.dataset, self.context = folder, dataset, context
        self.recipe, self.place, self.secret = recipe, place or str(folder), secret
        self.uid = uid
        self.storage = Storage(f"{self.place}/checkpoints/run-{uid}", secret)

    def attempt(
        self,
        number: int,
        ranks: int,
        stop_at: int | None = None,
        *,
        nodes: int = 1,
        poisoned: range = range(0),
        **changes: Any,
    ) -> list[int | None]:
        """Runs one attempt to its end; returns the exit codes. Only its last rank wants to stop,
        and only there the samples at the positions `poisoned` make the loss NaN. `changes` replace
        fields of the settings; ranks are told that they are on `nodes` nodes."""
        told = {
            "uid": self.uid,
            "attempt": number,
            "master_port": free_port(),
            "recipe_hash": self.recipe.hash,
            "streams": (StreamSettings(url=str(self.dataset), role="data-0"),),
            "checkpoint_url": f"{self.place}/checkpoints",
            "export_url": f"{self.place}/models",
        }
        run = run_settings(**told | changes)
        processes = []
        for rank in range(ranks):
            work = self.folder / f"work-{number}-{rank}"
            work.mkdir()
            for role in ("checkpoint", "export", "data-0") if self.secret is not None else ():
                mounted = work / "secrets" / role
                mounted.mkdir(parents=True)
                for name, value in (self.secret or {}).items():
                    (mounted / name).write_text(value)
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % (ranks // nodes)),
                "LOCAL_WORLD_SIZE": str(ranks // nodes),
                "GROUP_WORLD_SIZE": str(nodes),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(run.master_port),
            }
            given = {
                "environment": environment,
                "settings": Settings(run, 0, self.recipe, work, work / "secrets"),
                "stop_at": stop_at if rank == ranks - 1 else None,
                "poisoned": poisoned if rank == ranks - 1 else range(0),
            }
            processes.append(self.context.Process(target=runpy.run_path, args=(str(SCRIPT), given)))
        for process in processes:
            process.start()
        for process in processes:
            process.join(_SECONDS)
        return [process.exitcode for process in processes]

    def said(self, number: int, rank: int) -> str:
        """The message of a rank's record."""
        record = self.folder / f"work-{number}-{rank}" / RANKS_FOLDER / f"{rank}.json"
        return Termination.model_validate_json(record.read_text()).message

    def journal(self, attempt: int) -> list[HistoryLine]:
        """Of the attempt's last commit."""
        return history.read(self.last(attempt))

    def tensors(self, attempt: int, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Of the attempt's last commit, by name."""
        place = self.last(attempt)
        reader = FileSystemReader(f"{place.url}")
        metadata = reader.read_metadata().state_dict_metadata
        found = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in metadata.items()
            if wanted(name) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process loads what several wrote is meant
            load(found, storage_reader=reader)
        return found

    def commit(self, attempt: int) -> Commit:
        """The attempt's last."""
        return Commit.unseal(self.last(attempt).read(COMMIT))

    def last(self, attempt: int) -> Storage:
        place = self.storage.child(attempt_folder(attempt))
        return place.child(place.folders()[-1])

    def origin(self, attempt: int) -> CommitPoint | None:
        raw = self.storage.read(f"{attempt_folder(attempt)}/{ATTEMPT}")
        return Attempt.model_validate_json(raw).parent
