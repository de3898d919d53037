"""What Daybreak adds to a step: its own, against a bare loop over the same model.

    make bench NAME=overhead

Daybreak's step is `TrainStep` with all that the training loop does around it (agreement between
ranks, phases, ledger, metrics, garbage collection), on a rank that is alone. The bare loop is plain
PyTorch: the same model without FSDP, the same loss, clipping, AdamW and average; noise for the
whole batch at once, captions as token ids, and no look at the loss. Batches lie in memory for both.
A third loop is the bare one with FSDP2 around the model, which tells FSDP's share: copies of the
weights, which cost the same for few tokens as for many. A step here has 4,096 tokens; one of a
large run has ten times as many on each device.

The loops take turns in one process, a few steps each. A ratio is of two turns that follow each
other, and the median of all turns counts. On a machine that is busy with other things the ratio of
CPU time says more than that of wall time. No loop pays for automatic garbage collection, which a
bare loop would.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

scratch = tempfile.TemporaryDirectory()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch.name  # read at import, as in a pod

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from common.engine import Engine, MemoryBatch, alone, batches  # noqa: E402
from torch import nn  # noqa: E402

from daybreak_trainer.contract import ComputeSettings  # noqa: E402
from daybreak_trainer.data.signature import signature  # noqa: E402
from daybreak_trainer.models import flops, text_to_image  # noqa: E402
from daybreak_trainer.models.text import TextTower  # noqa: E402
from daybreak_trainer.optim import build as optimizers  # noqa: E402
from daybreak_trainer.optim.ema import Ema  # noqa: E402
from daybreak_trainer.parallel.agreement import StepAgreement  # noqa: E402
from daybreak_trainer.parallel.collector import Collector  # noqa: E402
from daybreak_trainer.parallel.process_group import Rank  # noqa: E402
from daybreak_trainer.parallel.shard import mesh_of, shard  # noqa: E402
from daybreak_trainer.recipe import Recipe, resolve  # noqa: E402
from daybreak_trainer.telemetry.ledger import Ledger  # noqa: E402
from daybreak_trainer.telemetry.memory import memory_use  # noqa: E402
from daybreak_trainer.telemetry.metrics import train_metrics  # noqa: E402
from daybreak_trainer.telemetry.phases import StepTimer  # noqa: E402
from daybreak_trainer.telemetry.throughput import ThroughputMeter  # noqa: E402

BATCH, BATCHES = 16, 4
TURN_STEPS, TURNS = 1, 25
AIM = 1.03
LEARNING_RATE = 1e-4
RECIPE = resolve(
    {
        "preset": "smoke",
        "denoiser": {"hiddenSize": 256, "depth": 3, "heads": 4, "patchSize": 8, "mlpRatio": 3.5},
        "text": {"maxTokens": 32, "hiddenSize": 128, "depth": 1, "heads": 4},
        "stages": [{"resolution": 128, "steps": 1000, "batchSize": BATCH}],
        "precision": "fp32",
    }
)
OUT = Path("build/bench/overhead.json")
CPU = torch.device("cpu")

Loop = Callable[[int], None]
"""Trains so many steps."""


def daybreak(recipe: Recipe, rank: Rank, data: Sequence[MemoryBatch], collector: Collector) -> Loop:
    """The steps of `train`, but for saves, evaluation and the loader."""
    timer, ledger, metrics = StepTimer(rank.device), Ledger(), train_metrics()
    engine = Engine(recipe, rank, ComputeSettings(), timer)
    agreement = StepAgreement(dist.group.WORLD)
    meter = ThroughputMeter(rank.world, "none", None)
    side = recipe.stages[0].resolution
    sample = flops.per_sample(recipe, height=side, width=side)
    done = 0
    ledger.begin_steps()

    def train(steps: int) -> None:
        nonlocal done
        timer.begin()
        meter.pause()
        for _ in range(steps):
            with timer.phase("data"), ledger.during("data_wait"):
                batch = data[done % len(data)]
            numbers = engine.step.run(batch, LEARNING_RATE)
            done += 1
            for agreed in agreement.exchange(
                done,
                stop=False,
                checkpoint_due=False,
                signature=signature(batch.positions, batch.indices),
                numbers=numbers,
            ):
                metrics.run(
                    step=agreed.step,
                    total_steps=recipe.total_steps,
                    samples=agreed.step * BATCH,
                    training_seconds=0.0,
                    loss=agreed.loss,
                    images_per_second=1.0,
                    gradient_norm=agreed.gradient_norm,
                    learning_rate=LEARNING_RATE,
                )
            timer.finish(done)
            ledger.step_finished(done)
            for times in timer.ready():
                metrics.step(images=batch.own, seconds=times.total_seconds)
                metrics.speed.phases(times)
                meter.step(time.monotonic(), BATCH, sample, times.seconds["data"])
            if (throughput := meter.throughput()) is not None:
                metrics.speed.throughput(throughput)
            metrics.speed.memory(rank.rank, memory_use(rank.device))
            metrics.goodput.ledger(ledger.seconds())
            collector.after_step(done)

    return train


def bare(recipe: Recipe, model: nn.Module, text: TextTower, data: Sequence[MemoryBatch]) -> Loop:
    """A loop as one would write it for one device."""
    (optimizer,) = optimizers.build(model, recipe.optimizer)
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
            error = (model(noised, t, mask, input_ids=ids) - images).square().mean(dim=(1, 2, 3))
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


def main(turns: int = TURNS, steps: int = TURN_STEPS, recipe: Recipe = RECIPE) -> int:
    data = batches(recipe, BATCHES, BATCH, CPU)
    with alone(CPU) as rank, Collector() as collector:
        model, text = text_to_image.build(recipe, [])
        wrapped = copy.deepcopy(model)
        compute = ComputeSettings()
        shard(wrapped, wrapped.units, mesh_of(rank, compute), torch.float32, compute)
        loops = {
            "daybreak": daybreak(recipe, rank, data, collector),
            "bare": bare(recipe, model, text, data),
            "bare with FSDP2": bare(recipe, wrapped, text, data),
        }
        seconds = measure(loops, turns, steps)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, batch {BATCH} at {recipe.stages[0].resolution} px, "
        f"fp32, {torch.get_num_threads()} thread(s), {turns} turns of {steps} steps\n"
        f"{'':16s}{'wall':>10s}{'CPU':>10s}{'wall ratio':>12s}{'CPU ratio':>12s}"
    )
    ours = seconds["daybreak"]
    for name, theirs in seconds.items():
        wall, cpu = statistics.median(theirs.wall), statistics.median(theirs.cpu)
        over = (ratio(ours.wall, theirs.wall), ratio(ours.cpu, theirs.cpu))
        print(f"{name:16s}{wall:8.3f} s{cpu:8.3f} s{over[0]:12.3f}{over[1]:12.3f}")
    print(f"\ndaybreak over bare: aim {AIM:.2f}")
    print(f"command: make bench NAME=overhead (torch {torch.__version__})")
    bare_, fsdp = seconds["bare"], seconds["bare with FSDP2"]
    headline = {
        "step_ratio": round(ratio(ours.wall, bare_.wall), 4),
        "step_cpu_ratio": round(ratio(ours.cpu, bare_.cpu), 4),
        "step_cpu_ratio_over_fsdp": round(ratio(ours.cpu, fsdp.cpu), 4),
    }
    each = {name: asdict(turns_of) for name, turns_of in seconds.items()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"headline": headline, "seconds": each}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
