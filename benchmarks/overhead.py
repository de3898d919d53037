"""What Daybreak adds to a step: its own, against a bare loop over the same model.

    make bench NAME=overhead

Daybreak's step is the real one: `Trainer.one_step` and `Trainer.act`, on a trainer as
`rank_main.main` builds it, over a small dataset on disk, resumed and begun as for a run. All that a
run does around a step is there: heartbeat, agreement between ranks, checks, journal, progress,
metrics, log, ledger, garbage collection. Only the loader is replaced, by batches that lie in
memory, and no save is due: those two have benchmarks of their own.

The bare loop is plain PyTorch: the same model without FSDP, the same loss, clipping, AdamW and
average; noise for the whole batch at once, captions as token ids, and no look at the loss. A third
loop is the bare one with FSDP2 around the model as Daybreak has it, which tells FSDP's share.

What is added is partly the same for every step (`added_cpu_milliseconds`: calls from Python),
partly copies of the weights by FSDP, which cost the same for few tokens as for many. So a ratio
holds for steps like this one: some tenths of a second, as those of a large run are, and 4,096
tokens, of which a large run has more on each device.

The loops take turns in one process, some steps each. A ratio is of two turns of one round, and the
median of all rounds counts. What Daybreak does by the clock (files every half second, memory every
five) it does more often a step than in a run, for its clock goes on in the others' turns. On a
machine that is busy with other things the ratio of CPU time says more than that of wall time. No
loop pays for automatic garbage collection, which a bare loop would.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

scratch = tempfile.TemporaryDirectory()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch.name  # read at import, as in a pod

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from common.engine import alone, batches  # noqa: E402
from torch import nn  # noqa: E402

from daybreak_trainer.allocator import keep_freed_memory  # noqa: E402
from daybreak_trainer.checkpoint.layout import DataPosition  # noqa: E402
from daybreak_trainer.contract import ComputeSettings, RunSettings, StreamSettings  # noqa: E402
from daybreak_trainer.data.batch import Batch  # noqa: E402
from daybreak_trainer.data.feed import DeviceFeed  # noqa: E402
from daybreak_trainer.health.heartbeat import Heartbeat  # noqa: E402
from daybreak_trainer.models import text_to_image  # noqa: E402
from daybreak_trainer.models.text import TextTower  # noqa: E402
from daybreak_trainer.optim import build as optimizers  # noqa: E402
from daybreak_trainer.optim.ema import Ema  # noqa: E402
from daybreak_trainer.parallel.agreement import StepAgreement  # noqa: E402
from daybreak_trainer.parallel.collector import Collector  # noqa: E402
from daybreak_trainer.parallel.process_group import Rank  # noqa: E402
from daybreak_trainer.parallel.shard import mesh_of, shard  # noqa: E402
from daybreak_trainer.prepare.prepare import prepare  # noqa: E402
from daybreak_trainer.rank import Standing  # noqa: E402
from daybreak_trainer.rank_stop import StopFlag  # noqa: E402
from daybreak_trainer.recipe import Recipe, resolve  # noqa: E402
from daybreak_trainer.settings import Settings  # noqa: E402
from daybreak_trainer.telemetry import log  # noqa: E402
from daybreak_trainer.train import Trainer  # noqa: E402

BATCH, BATCHES = 16, 4
TURN_STEPS, TURNS = 5, 21
AIM = 1.03
RECIPE = resolve(
    {
        "preset": "smoke",
        "denoiser": {"hiddenSize": 128, "depth": 3, "heads": 4, "patchSize": 8, "mlpRatio": 3.5},
        "text": {"maxTokens": 32, "hiddenSize": 128, "depth": 1, "heads": 4},
        "stages": [{"resolution": 128, "steps": 1_000_000, "batchSize": BATCH}],
        "precision": "fp32",
    }
)
OUT = Path("build/bench/overhead.json")
CPU = torch.device("cpu")
SAMPLES = 16
"""In the dataset that the trainer is built over, and does not read."""

Loop = Callable[[int], None]
"""Trains so many steps."""


def settings_of(recipe: Recipe, folder: Path) -> Settings:
    """Of a run that saves at its end only."""
    prepare("shapes", folder / "dataset", resolution=recipe.stages[0].resolution, count=SAMPLES)
    run = RunSettings(
        name="overhead",
        namespace="benchmarks",
        uid="overhead",
        attempt=1,
        nodes=1,
        master_address="127.0.0.1",
        master_port=1,
        recipe_hash=recipe.hash,
        streams=(StreamSettings(url=str(folder / "dataset"), role="data-0"),),
        checkpoint_url=str(folder / "checkpoints"),
    )
    work = folder / "work"
    work.mkdir()
    return Settings(run, 0, recipe, work, work / "secrets")


def from_memory(data: Sequence[Batch]) -> Iterator[Batch]:
    """These batches again and again, as the next ones of the run."""
    size = data[0].global_size
    for step, batch in enumerate(itertools.cycle(data)):
        start = step * size
        yield Batch(
            step=step,
            positions=batch.indices + start,
            indices=batch.indices,
            tensors=batch.tensors,
            captions=batch.captions,
            global_size=size,
            own=size,
            bucket=batch.bucket,
            after=DataPosition(samples=start + size),
        )


@contextmanager
def daybreak(settings: Settings, rank: Rank, data: Sequence[Batch]) -> Iterator[Loop]:
    """The steps of `Trainer.train`, as it takes them."""
    standing, flag = Standing(), StopFlag()
    context = {"run": settings.run.name, "rank": rank.rank}
    log.configure(lambda: {**context, "step": standing.step})
    trainer = Trainer(settings, rank, standing, flag, Heartbeat(settings.work_dir, 0))
    trainer.restorer.resume()
    trainer.warm_up()
    agreement = StepAgreement(dist.group.WORLD, own_values=1)
    feed = iter(DeviceFeed(from_memory(data), rank.device))
    trainer.progress.phase("Training")
    with Collector() as garbage:
        trainer.ledger.begin_steps()
        trainer.meters.pause()

        def train(steps: int) -> None:
            for _ in range(steps):
                trainer.act(trainer.one_step(feed, agreement), agreement)
                garbage.after_step(trainer.step)

        yield train
    trainer.recorder.agreed(agreement.drain())
    trainer.saver.close()


def bare(recipe: Recipe, model: nn.Module, text: TextTower, data: Sequence[Batch]) -> Loop:
    """A loop as one would write it for one device."""
    (optimizer,) = optimizers.build(model, recipe.optimizer, torch.float32)
    ema = Ema(model, recipe.ema.decay)
    limit = recipe.optimizer.clip_norm
    assert limit is not None
    inputs = [(b.tensors["image"], *text.tokenize(b.captions, CPU)) for b in data]
    objective = recipe.objective
    done = 0

    def train(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            pixels, ids, mask = inputs[done % len(inputs)]
            images = pixels.float() / 127.5 - 1.0
            t = torch.sigmoid(torch.randn(len(images)))
            wide = t[:, None, None, None]
            noised = (1.0 - wide) * images + wide * torch.randn_like(images)
            weight = 1.0 / t.clamp_min(objective.timestep_floor).square()
            error = (
                (model(noised, t, mask, input_ids=ids).output - images).square().mean(dim=(1, 2, 3))
            )
            (weight * error).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            done += 1
            ema.update(done)
            optimizer.zero_grad(set_to_none=True)

    return train


@dataclass
class Seconds:
    """A step's, one for each turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(loops: dict[str, Loop], turns: int, steps: int) -> dict[str, Seconds]:
    seconds = {name: Seconds() for name in loops}
    for loop in loops.values():
        loop(steps)  # memory and threads are there
    for turn in range(turns):
        # Every other round goes backwards: what drifts is in no loop's favour.
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            loops[name](steps)
            seconds[name].wall.append((time.perf_counter() - wall) / steps)
            seconds[name].cpu.append((time.process_time() - cpu) / steps)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def added(ours: list[float], theirs: list[float]) -> float:
    """Milliseconds a step."""
    return 1e3 * statistics.median(a - b for a, b in zip(ours, theirs, strict=True))


def main(turns: int = TURNS, steps: int = TURN_STEPS, recipe: Recipe = RECIPE) -> int:
    keep_freed_memory()  # as ranks on CPUs do; here it helps the bare loops as much
    data = batches(recipe, BATCHES, recipe.stages[0].batch_size, CPU)
    with tempfile.TemporaryDirectory() as folder, alone(CPU) as rank:
        settings = settings_of(recipe, Path(folder))
        with daybreak(settings, rank, data) as ours:
            model, text = text_to_image.build(recipe, [])
            wrapped = copy.deepcopy(model)
            compute = ComputeSettings()
            shard(wrapped, wrapped.units, mesh_of(rank, compute), torch.float32, compute)
            loops = {
                "daybreak": ours,
                "bare": bare(recipe, model, text, data),
                "bare with FSDP2": bare(recipe, wrapped, text, data),
            }
            seconds = measure(loops, turns, steps)
    report(seconds, recipe, sum(p.numel() for p in model.parameters()), turns, steps)
    return 0


def report(
    seconds: dict[str, Seconds], recipe: Recipe, parameters: int, turns: int, steps: int
) -> None:
    stage = recipe.stages[0]
    print(
        f"{parameters / 1e6:.1f} M parameters, batch {stage.batch_size} at {stage.resolution} px, "
        f"fp32, {torch.get_num_threads()} thread(s), {turns} turns of {steps} steps\n"
        f"{'':16s}{'wall':>10s}{'CPU':>10s}{'wall ratio':>12s}{'CPU ratio':>12s}{'CPU added':>12s}"
    )
    ours, bare_, fsdp = (seconds[name] for name in ("daybreak", "bare", "bare with FSDP2"))
    for name, theirs in seconds.items():
        wall, cpu = statistics.median(theirs.wall), statistics.median(theirs.cpu)
        over = (ratio(ours.wall, theirs.wall), ratio(ours.cpu, theirs.cpu))
        more = added(ours.cpu, theirs.cpu)
        print(f"{name:16s}{wall:8.4f} s{cpu:8.4f} s{over[0]:12.3f}{over[1]:12.3f}{more:9.2f} ms")
    print(f"\ndaybreak over bare: aim {AIM:.2f}")
    print(f"command: make bench NAME=overhead (torch {torch.__version__})")
    headline = {
        "step_ratio": round(ratio(ours.wall, bare_.wall), 4),
        "step_ratio_over_fsdp": round(ratio(ours.wall, fsdp.wall), 4),
        "step_cpu_ratio": round(ratio(ours.cpu, bare_.cpu), 4),
        "step_cpu_ratio_over_fsdp": round(ratio(ours.cpu, fsdp.cpu), 4),
        "added_cpu_milliseconds": round(added(ours.cpu, bare_.cpu), 2),
        "added_cpu_milliseconds_over_fsdp": round(added(ours.cpu, fsdp.cpu), 2),
    }
    each = {name: asdict(turns_of) for name, turns_of in seconds.items()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"headline": headline, "seconds": each}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
