"""How fast a large denoiser trains on this machine's GPU.

    make bench NAME=gpu                            on a machine with a GPU; half an hour
    .venv/bin/python benchmarks/gpu.py --dry-run   the same with a tiny model on the CPU: a test

Trains the PRX of 1.2 B parameters (diffusers' own sizes: width 1792, 16 blocks, 28 heads) on one
device, at 256 and at 1,024 tokens an image, with and without compilation of the blocks and
activation checkpointing, and compiled with each trick of the recipe that needs no other model, as
published: TREAD, SPRINT, deferred masking, shared modulation, stratified timesteps, Muon. All goes
through the engine's own `shard` and `TrainStep`. For each it looks for the largest batch that fits,
and prints images/s, MFU, memory and the attention kernel. Images lie in the device's memory; a rank
that is alone has nothing to wait for. MFU counts the FLOPs that are left with the trick.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import diffusers
import torch
from common.engine import Engine, alone, batches

from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.models import flops
from daybreak_trainer.models.tricks import Tricks
from daybreak_trainer.parallel.attention import AttentionCall, backend
from daybreak_trainer.parallel.precision import compute_dtype, has_bf16, name
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.recipe import Recipe, resolve
from daybreak_trainer.telemetry.devices import peak_of

RESULTS, OUT = Path("benchmarks/results"), Path("build/bench/gpu.json")
NO_GPU = 2
"""Exit code where there is none."""
LEARNING_RATE = 1e-4
STEPS, WARM_UPS = 10, 3
LARGEST_BATCH = 1024
_TEXT = {"kind": "joint", "maxTokens": 256, "hiddenSize": 768, "depth": 6, "heads": 12}
_PRX = {
    "kind": "prx",
    "hiddenSize": 1792,
    "depth": 16,
    "heads": 28,
    "patchSize": 16,
    "mlpRatio": 3.5,
    "bottleneckSize": None,
}


PLAIN = "none"


@dataclass(frozen=True)
class Way:
    """How a step is computed, and with which trick of `Plan.tricks`."""

    compute: ComputeSettings
    trick: str = PLAIN


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    denoiser: dict[str, object]
    text: dict[str, object]
    resolutions: tuple[int, ...]
    ways: tuple[Way, ...]
    largest_batch: int
    steps: int
    warm_ups: int

    def recipe(self, resolution: int, trick: str = PLAIN) -> Recipe:
        over = tricks(cast(int, self.denoiser["depth"]))[trick]
        stage = {"resolution": resolution, "steps": 1000, "batchSize": 1}
        return resolve(
            {
                "preset": "smoke",
                "denoiser": {**self.denoiser, **over.get("denoiser", {})},
                "text": self.text,
                "objective": over.get("objective", {}),
                "optimizer": over.get("optimizer", {}),
                "stages": [stage, {**stage, "routing": False}],  # the second is not reached
                "precision": "auto",
            }
        )


def tricks(depth: int) -> dict[str, dict[str, dict[str, object]]]:
    """What each changes of the recipe, in a model of `depth` blocks. Routed are the blocks from the
    third to the last but one (PRX's run), in small models the first."""
    first = min(2, depth - 2)
    routed = {"first": first, "last": max(first, depth - 2)}
    return {
        PLAIN: {},
        "tread": {"objective": {"routing": {"kind": "tread", "share": 0.5, **routed}}},
        "sprint": {"objective": {"routing": {"kind": "sprint", "share": 0.75, **routed}}},
        "masking": {"objective": {"masking": {"share": 0.75, "mixerDepth": min(4, depth - 1)}}},
        "shared modulation": {"denoiser": {"sharedModulation": True}},
        "stratified": {"objective": {"stratified": True}},
        "muon": {"optimizer": {"kind": "muon"}},
    }


FULL = Plan(
    denoiser=_PRX,
    text=_TEXT,
    resolutions=(256, 512),
    ways=(
        *(
            Way(ComputeSettings(compile=compiled, activation_checkpointing=again))
            for compiled in ("none", "blocks")
            for again in ("none", "blocks")
        ),
        *(Way(ComputeSettings(compile="blocks"), trick) for trick in tricks(16) if trick != PLAIN),
    ),
    largest_batch=LARGEST_BATCH,
    steps=STEPS,
    warm_ups=WARM_UPS,
)
DRY = Plan(
    denoiser={**_PRX, "hiddenSize": 32, "depth": 2, "heads": 4, "patchSize": 8},
    text={**_TEXT, "maxTokens": 8, "hiddenSize": 16, "depth": 1, "heads": 2},
    resolutions=(16, 32),
    ways=(
        Way(ComputeSettings()),
        Way(ComputeSettings(activation_checkpointing="blocks")),
        *(Way(ComputeSettings(), trick) for trick in tricks(2) if trick != PLAIN),
    ),
    largest_batch=4,
    steps=2,
    warm_ups=1,
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    tokens: int
    trick: str
    compile: str
    checkpointing: str
    attention: str
    batch: int
    images_per_second: float
    step_seconds: float
    tflops: float
    """Model FLOPs a second, in 10^12."""
    mfu: float | None
    hfu: float | None
    peak_gib: float | None


def largest_batch(fits: Callable[[int], bool], most: int, guess: int = 1) -> int:
    """The largest batch up to `most` that fits, to a factor of 1.5: a power of two times `guess`,
    or one and a half times that; 0 where not even one image fits."""
    best = min(guess, most)
    while best and not fits(best):
        best //= 2
    if best >= guess:
        while best * 2 <= most and fits(best * 2):
            best *= 2
    between = best + best // 2
    return between if best > 1 and between <= most and fits(between) else best


class Bench:
    """One way to compute, tried with one batch after the other."""

    def __init__(self, recipe: Recipe, compute: ComputeSettings, rank: Rank) -> None:
        self.recipe, self.compute, self.rank = recipe, compute, rank
        self._engine: Engine | None = None

    def fits(self, batch: int) -> bool:
        """Two steps of it: in the second one the optimizer's state is there too."""
        try:
            self.seconds(batch, steps=1, warm_ups=1)
        except torch.OutOfMemoryError:
            pass  # while the error is handled, its traceback holds the memory
        else:
            return True
        self.close()
        return False

    def seconds(self, batch: int, steps: int, warm_ups: int) -> float:
        """A step's, the mean of `steps`; the host waits for the last one only."""
        if self._engine is None:
            self._engine = Engine(self.recipe, self.rank, self.compute)
        data = batches(self.recipe, 2, batch, self.rank.device)
        start = 0.0
        for number in range(warm_ups + steps):
            if number == warm_ups:
                synchronize(self.rank)
                start = time.perf_counter()
            self._engine.step.run(data[number % len(data)], LEARNING_RATE)
        synchronize(self.rank)
        return (time.perf_counter() - start) / steps

    def close(self) -> None:
        """Lets go of memory and graphs."""
        self._engine = None
        torch._dynamo.reset()
        release()


def measure(plan: Plan, resolution: int, way: Way, rank: Rank, guess: int) -> Row | None:
    """None where not even one image fits. `guess` is a batch that may fit."""
    bench = Bench(plan.recipe(resolution, way.trick), way.compute, rank)
    batch = largest_batch(bench.fits, plan.largest_batch, guess)
    if not batch:
        return None
    release()
    step = bench.seconds(batch, plan.steps, plan.warm_ups)
    peak_bytes = torch.cuda.max_memory_allocated() if rank.device.type == "cuda" else None
    bench.close()
    return row(bench.recipe, way, rank, batch, step, peak_bytes)


def synchronize(rank: Rank) -> None:
    if rank.device.type == "cuda":
        torch.cuda.synchronize(rank.device)


def release() -> None:
    """Unused memory goes back, and the peak is counted afresh."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def row(
    recipe: Recipe,
    way: Way,
    rank: Rank,
    batch: int,
    step: float,
    peak_bytes: int | None,
) -> Row:
    side, model, compute = recipe.stages[0].resolution, recipe.denoiser, way.compute
    left = Tricks.of(recipe, recipe.stages[0])
    sample = flops.per_sample(recipe, height=side, width=side, tricks=left)
    dtype = compute_dtype(recipe.precision, has_bf16(rank.device))
    peak = peak_of(rank.device, dtype)
    hardware = sample.hardware(compute.activation_checkpointing)
    tokens = (side // model.patch_size) ** 2
    call = AttentionCall(
        heads=model.heads,
        head_dim=model.hidden_size // model.heads,
        queries=tokens,
        keys=tokens + recipe.text.max_tokens,
        masked=True,
    )
    return Row(
        tokens=tokens,
        trick=way.trick,
        compile=compute.compile,
        checkpointing=compute.activation_checkpointing,
        attention=backend(call, rank.device, dtype),
        batch=batch,
        images_per_second=batch / step,
        step_seconds=step,
        tflops=sample.model * batch / step / 1e12,
        mfu=None if peak is None else sample.model * batch / step / peak,
        hfu=None if peak is None or hardware is None else hardware * batch / step / peak,
        peak_gib=None if peak_bytes is None else peak_bytes / 2**30,
    )


def conditions(plan: Plan, device: torch.device) -> dict[str, str]:
    """What the figures hold under."""
    recipe = plan.recipe(plan.resolutions[0])
    cuda = device.type == "cuda"
    model = recipe.denoiser
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
        "driver": asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "power limit": asked("nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none" if cuda else "none",
        "diffusers": diffusers.__version__,
        "commit": asked("git", "describe", "--always", "--dirty"),
        "model": f"PRX, width {model.hidden_size}, {model.depth} blocks, {model.heads} heads, "
        f"patches of {model.patch_size} px; text of {recipe.text.max_tokens} tokens",
        "training": f"{name(compute_dtype('auto', has_bf16(device)))}, fp32 master "
        f"weights, AdamW, average, one device, mean of {plan.steps} steps after {plan.warm_ups}",
        "command": "make bench NAME=gpu",
    }


def asked(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def table(rows: Sequence[Row], under: dict[str, str]) -> str:
    """The page: the figures and what they hold under."""
    lines = [
        f"# {under['device']}",
        "",
        "| tokens | trick | compile | activations again | attention | batch | images/s | step, s "
        "| TFLOP/s | MFU | HFU | peak, GiB |",
        "|---" * 12 + "|",
    ]
    for r in rows:
        mfu, hfu = ("-" if v is None else f"{v:.1%}" for v in (r.mfu, r.hfu))
        gib = "-" if r.peak_gib is None else f"{r.peak_gib:.1f}"
        lines.append(
            f"| {r.tokens} | {r.trick} | {r.compile} | {r.checkpointing} | {r.attention} "
            f"| {r.batch} | {r.images_per_second:.1f} | {r.step_seconds:.3f} | {r.tflops:.1f} "
            f"| {mfu} | {hfu} | {gib} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in under.items()), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How fast a large denoiser trains on this GPU.")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on the CPU")
    dry = parser.parse_args(arguments).dry_run
    if not dry and not torch.cuda.is_available():
        print(
            "no GPU here: nothing was measured. `benchmarks/gpu.py --dry-run` tries the same code "
            "with a tiny model on the CPU",
            file=sys.stderr,
        )
        return NO_GPU
    device, plan = (torch.device("cpu"), DRY) if dry else (torch.device("cuda", 0), FULL)
    rows = []
    with alone(device) as rank:
        for resolution in plan.resolutions:
            fitted: dict[str, int] = {}  # what fits does not depend much on compilation
            for way in plan.ways:
                again = way.compute.activation_checkpointing
                made = measure(plan, resolution, way, rank, fitted.get(again, 1))
                if made is not None:
                    if way.trick == PLAIN:
                        fitted[again] = made.batch
                    rows.append(made)
                    print(
                        f"{made.tokens} tokens: {made.images_per_second:.1f} images/s", flush=True
                    )
    under = conditions(plan, device)
    page = table(rows, under)
    print(page)
    if not dry:
        name = re.sub(r"[^a-z0-9]+", "-", under["device"].lower()).strip("-")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"gpu-{name}.md").write_text(page)
    plain = [r.mfu or 0.0 for r in rows if (r.tokens, r.trick) == (1024, PLAIN)]
    best = max(plain, default=0.0)
    document = {
        "headline": {"mfu_1024": round(best, 4)} if best else {},
        "conditions": under,
        "rows": [asdict(r) for r in rows],
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
