"""A run of one rank that saves to `gated_store`, attempt after attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak_trainer.checkpoint.checkpointer import Checkpointer
from daybreak_trainer.checkpoint.history import HistoryLine, Journal
from daybreak_trainer.checkpoint.layout import DataPosition, TrainState
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.parallel.process_group import Rank

EXPECTED = Expected(
    "u", "r", "d", recipe={"optimizer": {"learningRate": 1e-4}}, data={"data-0": "64 samples"}
)
SHARD = "__0_0.distcp"


class Run:
    """A run's storage, a state that changes with every step, and its attempts."""

    def __init__(self, folder: Path, rank: Rank) -> None:
        self.storage = Storage(f"gated://{folder}/store")
        self.run = self.storage.child("run-u")
        self._rank = rank
        self.tensors: dict[str, Any] = {
            "model": {"weight": torch.zeros(50, 20), "empty": torch.zeros(0, 4)},
            "optimizer": {"state": {"weight": {"step": torch.tensor(0.0)}}, "param_groups": [{}]},
        }

    def attempt(
        self, number: int, expected: Expected = EXPECTED, timeout_seconds: float = 30.0
    ) -> Checkpointer:
        return Checkpointer(
            self.storage, expected, number, 3, self._rank, timeout_seconds=timeout_seconds
        )

    def started(self, number: int, expected: Expected = EXPECTED) -> Checkpointer:
        checkpointer = self.attempt(number, expected)
        checkpointer.begin(checkpointer.find())
        return checkpointer

    def at(self, step: int) -> TrainState:
        """Trains up to `step`: every number of the state is the step's."""
        weight: Tensor = self.tensors["model"]["weight"]
        weight.fill_(step)
        self.tensors["optimizer"]["state"]["weight"]["step"].fill_(step)
        return TrainState(step=step, samples=5 * step, data=DataPosition(samples=5 * step))

    def save(self, checkpointer: Checkpointer, step: int) -> None:
        checkpointer.save(self.at(step), self.tensors, journal(step))
        checkpointer.before_update()

    def weight(self) -> float:
        values = self.tensors["model"]["weight"].unique().tolist()
        assert len(values) == 1
        return float(values[0])

    def resumed(self, number: int) -> float:
        """The step that the tensors are of after an attempt has resumed."""
        checkpointer = self.attempt(number)
        search = checkpointer.find()
        checkpointer.begin(search)
        self.at(999)
        assert search.commit is not None
        lines = list(checkpointer.load(search.commit, self.tensors))
        assert [line.step for line in lines] == list(range(1, search.commit.step + 1))
        assert self.weight() == search.commit.step
        return self.weight()


def journal(step: int) -> Journal:
    return Journal(HistoryLine(n, 5 * n - 5, 5, "0", 0.5, 1) for n in range(1, step + 1))
