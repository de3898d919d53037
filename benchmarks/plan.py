"""What `prx-24h` comes to on 8, 16 and 32 GPUs: the plan, its cost, and a day with trouble.

    make bench NAME=plan
    python benchmarks/plan.py --images-per-second 512=200,1024=55 --price 2.5

Nothing is trained. Speeds are stated, not measured. `published` is the rate of the published run
(102.4 million images of 512 px and 10.24 million of 1024 px in 24 h on 32 H200), shared out between
the two by the FLOPs of an image. `aim` is 45 % of an H200's dense bf16 peak by the same formula,
what `benchmarks/gpu.py` has to show. Both leave out what teachers and text encoder compute.

The plan is what `daybreak plan` prints. Below it the same run lives through a day in simulated
time: steps vary by a tenth, a GPU node is lost at a third of the budget and is back at a half (the
only node: the run waits for 3 % of its time), and steps after a start are slow. The decisions are
the trainer's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common.simulated_run import World, live

from daybreak_cli.plans import work_and_parameters
from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.plan.forecast import Forecast, forecast
from daybreak_trainer.plan.limits import Limits
from daybreak_trainer.recipe import Recipe, resolve
from daybreak_trainer.telemetry.devices import peak_flops_per_second

OUT = Path("build/bench/plan.json")
FLEETS, GPUS_PER_NODE = (8, 16, 32), 8
DAY = 86_400.0
ENDING = 600.0
PUBLISHED = {512: 102.4e6, 1024: 10.24e6}
"""Images by resolution; trained in a day on 32 GPUs."""
PUBLISHED_GPUS = 32
DEVICE, AIMED_MFU = "NVIDIA H200", 0.45


def speeds(recipe: Recipe, work: Sequence[float]) -> dict[str, dict[int, float]]:
    """Images/s of one GPU by resolution, by where the figure comes from."""
    by_side = {stage.resolution: flops for stage, flops in zip(recipe.stages, work, strict=True)}
    total = sum(PUBLISHED[side] * flops for side, flops in by_side.items())
    rate = total / DAY / PUBLISHED_GPUS
    peak = peak_flops_per_second(DEVICE)
    assert peak is not None
    return {
        "published": {side: rate / flops for side, flops in by_side.items()},
        "aim": {side: AIMED_MFU * peak / flops for side, flops in by_side.items()},
    }


def plan(
    recipe: Recipe, per_gpu: dict[int, float], gpus: int, price: float, parameters: int
) -> Forecast:
    return forecast(
        recipe,
        Limits(BudgetSettings(duration_seconds=DAY, gpu_hour_price=price)),
        [per_gpu[stage.resolution] * gpus for stage in recipe.stages],
        gpus,
        now=time.time(),
        parameters=parameters,
        keep_last=3,
        ending_seconds=ENDING,
    )


def troubled_day(
    recipe: Recipe, per_gpu: dict[int, float], gpus: int, work: Sequence[float]
) -> dict[str, float]:
    """How the run ends: share of the budget that is used, images, decisions."""
    fewer = max(gpus - GPUS_PER_NODE, GPUS_PER_NODE)
    world = World(
        step_seconds=tuple(s.batch_size / per_gpu[s.resolution] for s in recipe.stages),
        work=tuple(work),
        noise=(0.95, 1.0, 1.1, 0.9, 1.05),
        interruptions=((1 / 3, 0.03 if fewer == gpus else 0.005, fewer), (0.5, 0.005, gpus)),
        cold_steps=20,
        cold_by=3.0,
    )
    lived = live(recipe, world, BudgetSettings(duration_seconds=DAY), ENDING, gpus)
    course = lived.course
    return {
        "used": (lived.seconds + ENDING) / DAY,
        "samples": sum(
            course.steps(index) * stage.batch_size for index, stage in enumerate(recipe.stages)
        ),
        "decisions": len(lived.decisions),
        "rate_at_end": course.factor(course.total_steps - 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images-per-second", metavar="512=SPEED,1024=SPEED", help="of one GPU")
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU-hour")
    chosen = parser.parse_args(arguments)
    recipe = resolve({"preset": "prx-24h"})
    work, parameters = work_and_parameters(recipe)
    cases = speeds(recipe, work)
    if chosen.images_per_second:
        parts = (part.split("=") for part in chosen.images_per_second.split(","))
        cases = {"given": {int(side): float(speed) for side, speed in parts}}
    rows = []
    for source, per_gpu in cases.items():
        stated = ", ".join(f"{speed:.0f} at {side} px" for side, speed in per_gpu.items())
        print(f"\n{source}: {stated} (images/s of a GPU), {chosen.price:.2f} a GPU-hour")
        print(
            f"{'GPUs':>5s}{'stage':>9s}{'steps':>10s}{'images':>14s}{'hours':>8s}{'GPU-h':>8s}"
            f"{'cost':>10s}"
        )
        for gpus in FLEETS:
            found = plan(recipe, per_gpu, gpus, chosen.price, parameters)
            for stage in found.stages:
                print(
                    f"{gpus:5d}{stage.resolution:6d} px{stage.steps:10,d}{stage.samples:14,d}"
                    f"{stage.seconds / 3600:8.2f}{stage.gpu_hours:8.1f}{stage.cost or 0.0:10,.2f}"
                )
            lived = troubled_day(recipe, per_gpu, gpus, work)
            total = sum(stage.samples for stage in found.stages)
            cost = DAY / 3600 * gpus * chosen.price
            print(
                f"{'':5s}in all {total:,} images ({total / sum(PUBLISHED.values()):.0%} of the "
                f"published run's), {cost:,.2f} with start and end; on a troubled day "
                f"{lived['samples']:,.0f}, {lived['used']:.1%} of the budget, "
                f"{lived['decisions']:.0f} decisions"
            )
            rows.append(
                {
                    "speed": source,
                    "gpus": gpus,
                    "images": total,
                    "cost": cost,
                    "troubled": lived,
                    "stages": [vars(stage) for stage in found.stages],
                }
            )
    print(f"\ncommand: make bench NAME=plan (torch {torch.__version__})")
    used = [row["troubled"]["used"] for row in rows]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    document = {"headline": {"least_used": min(used), "most_used": max(used)}, "rows": rows}
    OUT.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
