"""What a save costs training: how long it stands still, and how much slower its steps are.

    make bench NAME=checkpoint

One rank trains a model of 67 M parameters with AdamW and averaged weights (1.1 GB of state) on one
thread; the machine's other core is for the writer, as a GPU node's host is. Saved to a folder on
disk, synced, every byte hashed. Synchronous and asynchronous saves take turns.

`slowdown_ratio` is by the clock. On a machine that does other things too most of it is time in
which the training thread waits for a core: `busy_slowdown_ratio` leaves that out (Linux tells it,
in `schedstat`) and keeps what the writer costs through memory and the interpreter's lock.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

from daybreak_trainer.checkpoint.checkpointer import Checkpointer
from daybreak_trainer.checkpoint.history import Journal
from daybreak_trainer.checkpoint.layout import TrainState
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.saves import Outcome
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.parallel.process_group import Rank

WIDTH, BLOCKS, BATCH, ROUNDS, CALM_STEPS = 1024, 8, 48, 5, 3
AIM = 0.1
OUT = Path("build/bench/checkpoint.json")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


class Step(NamedTuple):
    seconds: float
    core_wait_seconds: float
    """Of them, waiting for a core."""


def core_wait_seconds() -> float:
    """That this thread has ever waited for a core."""
    raw = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    return int(raw.split()[1]) / 1e9


class Training:
    def __init__(self) -> None:
        self.model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        for block in self.model:
            fully_shard(block)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.ema = Ema(self.model, 0.999)
        self.inputs = torch.randn(BATCH, WIDTH)
        self.step = 0

    def train(self, before_update: Callable[[], None]) -> Step:
        """One step."""
        start, waited = time.perf_counter(), core_wait_seconds()
        self.model(self.inputs).square().mean().backward()
        before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.step)
        return Step(time.perf_counter() - start, core_wait_seconds() - waited)

    def tensors(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "ema": dict(self.ema.shadow),
        }


class Measured:
    """Seconds of each kind, one number a save or a step."""

    def __init__(self) -> None:
        self.synchronous: list[float] = []
        self.blocked: list[float] = []
        self.outcomes: list[Outcome] = []
        self.calm_steps: list[Step] = []
        self.steps_in_save: list[Step] = []


def measure(training: Training, checkpointer: Checkpointer) -> Measured:
    found = Measured()
    for _ in range(ROUNDS):
        found.calm_steps += [training.train(lambda: None) for _ in range(CALM_STEPS)]
        start = time.perf_counter()
        checkpointer.save_now(state(training), training.tensors(), Journal())
        found.synchronous.append(time.perf_counter() - start)
        checkpointer.close()
        checkpointer.poll()
        found.calm_steps += [training.train(lambda: None) for _ in range(CALM_STEPS)]
        start = time.perf_counter()
        tensors = training.tensors()
        gathering = time.perf_counter() - start
        checkpointer.save(state(training), tensors, Journal())
        steps: list[Step] = []
        while not (outcomes := checkpointer.poll()):
            steps.append(training.train(checkpointer.before_update))
        found.steps_in_save += steps[:-1]  # the save ended in the last
        found.outcomes += outcomes
        found.blocked.append(gathering + outcomes[0].blocked_seconds)
        checkpointer.close()
    return found


def busy(step: Step) -> float:
    return step.seconds - step.core_wait_seconds


def state(training: Training) -> TrainState:
    return TrainState(step=training.step, samples=BATCH * training.step)


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT.parent) as folder:
        storage, rank = Storage(folder), Rank(0, 1, torch.device("cpu"))
        training = Training()
        checkpointer = Checkpointer(storage, Expected("bench", "", ""), 1, 2, rank)
        for _ in range(2):
            training.train(lambda: None)
        start = time.perf_counter()
        checkpointer.save_now(state(training), training.tensors(), Journal())
        first_seconds = time.perf_counter() - start
        found = measure(training, checkpointer)
        resumed = Checkpointer(storage, Expected("bench", "", ""), 2, 2, rank)
        resuming = resume(training, resumed)
    dist.destroy_process_group()
    report(found, first_seconds, resuming)
    return 0


def resume(training: Training, checkpointer: Checkpointer) -> tuple[float, float]:
    """Seconds to verify the newest commit, and to load it."""
    start = time.perf_counter()
    commit = checkpointer.find().commit
    verified = time.perf_counter()
    assert commit is not None  # the one just made
    checkpointer.load(commit, training.tensors())
    return verified - start, time.perf_counter() - verified


def report(found: Measured, first_seconds: float, resuming: tuple[float, float]) -> None:
    median = statistics.median
    if not found.steps_in_save:
        sys.exit("no step fell into a save: the disk is too fast for this state, raise BLOCKS")
    sync, blocked = median(found.synchronous), median(found.blocked)
    saved = found.outcomes[0].bytes
    write = median(outcome.write_seconds for outcome in found.outcomes)
    calm, slowed = (
        (median(step.seconds for step in steps), median(map(busy, steps)))
        for steps in (found.calm_steps, found.steps_in_save)
    )
    rows = {
        "state": f"{saved / 1e9:.2f} GB",
        "first save (synchronous)": f"{first_seconds:.2f} s",
        "training stands still, synchronous": f"{sync:.2f} s",
        "training stands still, asynchronous": f"{blocked:.3f} s",
        "  staging": f"{median(o.staging_seconds for o in found.outcomes):.2f} s",
        "  writing": f"{write:.2f} s ({saved / 1e6 / write:.0f} MB/s)",
        "step outside a save": f"{calm[0]:.3f} s, {calm[1]:.3f} s of it on a core",
        "step during a save": f"{slowed[0]:.3f} s, {slowed[1]:.3f} s of it on a core",
        "resuming: reading every file for its hash": f"{resuming[0]:.2f} s",
        "resuming: filling the state": f"{resuming[1]:.2f} s",
    }
    headline = {
        "stall_ratio": round(blocked / sync, 4),
        "slowdown_ratio": round(slowed[0] / calm[0], 3),
        "busy_slowdown_ratio": round(slowed[1] / calm[1], 3),
    }
    print(
        f"median of {ROUNDS} saves, of {len(found.calm_steps)} steps outside them and "
        f"{len(found.steps_in_save)} steps in them"
    )
    for name, value in (rows | headline).items():
        print(f"{name:44s}{value}{f' (aim: at most {AIM})' if name == 'stall_ratio' else ''}")
    print(f"\ncommand: make bench NAME=checkpoint (torch {torch.__version__})")
    OUT.write_text(json.dumps({"headline": headline, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
