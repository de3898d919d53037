"""One rank that trains a small sharded model and saves beside it, for `test_ranks_that_save.py`.

Run by `runpy` with two globals: `environment`, as torchrun would set it, and `told`, what to do.
Leaves what it saw in `<folder>/seen-<attempt>-<rank>.json`, and the whole state of every step that
was saved in `<folder>/state-<step>.pt`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

environment: dict[str, str] = globals()["environment"]
os.environ.update(environment)

import gated_store  # noqa: E402 (as in a pod, the environment comes first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from gated_store import Rule  # noqa: E402
from looked_at_clock import LookedAtClock  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from daybreak_trainer.checkpoint import together  # noqa: E402
from daybreak_trainer.checkpoint.checkpointer import Checkpointer  # noqa: E402
from daybreak_trainer.checkpoint.history import HistoryLine, Journal  # noqa: E402
from daybreak_trainer.checkpoint.layout import TrainState  # noqa: E402
from daybreak_trainer.checkpoint.lineage import Expected  # noqa: E402
from daybreak_trainer.checkpoint.saves import Outcome  # noqa: E402
from daybreak_trainer.checkpoint.staging import flattened  # noqa: E402
from daybreak_trainer.checkpoint.storage import Storage, StorageError  # noqa: E402
from daybreak_trainer.checkpoint.together import RanksLostError  # noqa: E402
from daybreak_trainer.optim.ema import Ema  # noqa: E402
from daybreak_trainer.parallel.process_group import Rank, joined  # noqa: E402

Told = dict[str, Any]
RELEASED = threading.Event()
CLOCK = LookedAtClock()
told: Told = globals()["told"]
ACTIONS: dict[str, Callable[[], object]] = {
    "kill": gated_store.kill,
    "slow": lambda: time.sleep(0.05),
    "takes 0.8 s of its clock": lambda: CLOCK.passes(0.8),
    "hang": lambda: time.sleep(3600),
    "wait": lambda: RELEASED.wait(),
}


@dataclass
class Training:
    """Steps of a model whose parameters no number of ranks divides evenly."""

    rank: Rank
    width: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(7, self.width), nn.GELU(), nn.Linear(self.width, 3))
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.ema = Ema(self.model, 0.9)
        self.journal = Journal()
        self.step = 0

    def state(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "ema": dict(self.ema.shadow),
        }

    def train(self, before_update: Callable[[], None]) -> None:
        generator = torch.Generator().manual_seed(1000 + self.step)
        inputs = torch.randn(8, 7, generator=generator)
        self.model(inputs).square().mean().backward()
        before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.step)
        self.journal.append(HistoryLine(self.step, 8 * self.step - 8, 8, "0", 0.0, self.rank.world))

    def whole(self) -> dict[str, Tensor]:
        """The state as one process would have it; a collective."""
        return {
            name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
            for name, t in flattened(self.state()).items()
        }


def resume(checkpointer: Checkpointer, training: Training, folder: Path) -> dict[str, Any]:
    search = checkpointer.find()
    checkpointer.begin(search)
    seen: dict[str, Any] = {"resumed": None, "skipped": search.skipped}
    if search.commit is not None:
        state = training.state()
        training.journal = checkpointer.load(search.commit, state)
        set_optimizer_state_dict(
            training.model, training.optimizer, optim_state_dict=state["optimizer"]
        )
        training.step = search.commit.step
        saved = torch.load(folder / f"state-{training.step}.pt")
        loaded = training.whole()
        seen["resumed"] = training.step
        seen["equal"] = saved.keys() == loaded.keys() and all(
            torch.equal(saved[name], loaded[name]) for name in saved
        )
        seen["journal"] = [line.step for line in training.journal]
    return seen


def save(checkpointer: Checkpointer, training: Training, folder: Path) -> None:
    whole = training.whole()
    if training.rank.is_first:
        torch.save(whole, folder / f"state-{training.step}.pt")
    state = TrainState(step=training.step, samples=8 * training.step)
    checkpointer.save(state, training.state(), training.journal)


def find_again(checkpointer: Checkpointer) -> str:
    """What a search says while the store of one rank hangs, or after a rank is gone."""
    try:
        checkpointer.find()
    except (StorageError, RanksLostError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def save_at_last(checkpointer: Checkpointer, training: Training) -> int:
    """The commit of the end, once the store answers again; asked for twice, it is made once, and by
    what rank 0 wants of it, whatever another one does."""
    while find_again(checkpointer):
        time.sleep(0.05)
    state = TrainState(step=training.step, samples=8 * training.step)
    made = checkpointer.save_now(state, training.state(), training.journal)
    other = state.model_copy(update={"step": state.step + training.rank.rank})
    assert checkpointer.save_now(other, training.state(), training.journal) == made
    return made.step


def plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "step": outcome.step,
        "committed": outcome.commit is not None,
        "error": outcome.error,
        "give_up": outcome.give_up,
    }


def run(rank: Rank, told: Told) -> None:
    """Trains `steps` steps, saves after those in `save_at`, and then waits for what is in
    flight."""
    folder = Path(told["folder"])
    if told.get("own_clock"):
        together.time = CLOCK  # type: ignore[attr-defined]
    training = Training(rank, told.get("width", 11))
    checkpointer = Checkpointer(
        Storage(f"gated://{folder}/store"),
        Expected("u", "r", "d"),
        told["attempt"],
        told.get("keep_last", 2),
        rank,
        timeout_seconds=told.get("timeout_seconds", 60.0),
    )
    seen = resume(checkpointer, training, folder)
    seen["outcomes"], seen["steps_in_flight"] = [], 0
    save_at = [training.step + number for number in told["save_at"]]
    try:
        for _ in range(told["steps"]):
            training.train(checkpointer.before_update)
            seen["outcomes"] += map(plain, checkpointer.poll())
            seen["steps_in_flight"] += len(seen["outcomes"]) == 0 and training.step > save_at[0]
            if training.step in save_at:
                is_last = training.step == save_at[-1]
                if training.step == save_at[told.get("rule_at", -1)] and rank.rank == told.get(
                    "rule_rank"
                ):
                    gated_store.RULES += [
                        Rule(**rule | {"action": ACTIONS[rule["action"]]}) for rule in told["rules"]
                    ]
                save(checkpointer, training, folder)
                if is_last and told.get("kill_after_save") == rank.rank:
                    gated_store.kill()
                if told.get("wait") or not is_last:
                    seen["outcomes"] += map(plain, checkpointer.wait())
    except RuntimeError as error:  # a peer is gone
        seen["training_ended"] = str(error)
    mark = time.monotonic()
    seen["outcomes"] += map(plain, checkpointer.wait())
    seen["waited_seconds"] = time.monotonic() - mark
    seen["training_step"] = training.step
    if told.get("find_again") or "training_ended" in seen:
        seen["found_again"] = find_again(checkpointer)
    if told.get("release_rank") == rank.rank:
        RELEASED.set()
    if told.get("save_at_last"):
        dist.barrier()
        seen["saved_at_last"] = save_at_last(checkpointer, training)
    (folder / f"seen-{told['attempt']}-{rank.rank}.json").write_text(json.dumps(seen))
    if "training_ended" in seen:
        sys.exit(1)
    checkpointer.close()
    dist.barrier()


with joined() as rank:
    run(rank, told)
