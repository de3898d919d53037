"""What each trick of the recipe is worth at equal time: `shapes`, held-out prompts, two cores.

    make bench NAME=recipe                 everything that is missing: about two hours
    python benchmarks/recipe.py --only baseline muon --seconds 100

Baseline and best recipe train for 300 s with three seeds, each trick by itself over the baseline
for 100 s with one, beside the baseline for 100 s. Progressive resolution trains 64 px in 200 s with
three seeds: from the start, or from 32 px. The time is that of steps alone, without what a rank
waits for a core; judging comes after.

A cell is written to `build/bench/recipe.jsonl` when it has ended, with what it was made of. Cells
that are there are not run again, so the benchmark resumes; a changed recipe is another cell. An
image's alignment is a judge's verdict on a held-out prompt (docs: evaluate/score.py), the mean over
tags; with 32 prompts a tag it is good to about +-0.035.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from common.timed_training import RANKS, Outcome, rendered, train

from daybreak_trainer.recipe import Recipe, resolve

HERE = Path(__file__).parent
OUT = Path("build/bench/recipe.json")
CELLS = OUT.with_suffix(".jsonl")
DATA = Path("build/bench/recipe-data")
LONG, MIDDLE, SHORT, SEEDS = 300.0, 200.0, 100.0, (0, 1, 2)
AIM = 0.90
_PATIENCE = 900.0


@dataclass(frozen=True)
class Cell:
    arm: str
    seconds: float
    seed: int
    recipe: Recipe

    @property
    def key(self) -> str:
        return f"{self.arm}/{self.seconds:g}s/seed {self.seed}/{self.recipe.hash}"


def arms() -> dict[str, dict[str, Any]]:
    """Overrides of the baseline by arm, from `recipe_arms.yaml`."""
    document: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "recipe_arms.yaml").read_text())
    return document


def recipe_of(arm: str, seed: int) -> Recipe:
    document = arms()
    base = {} if arm.startswith(("best", "64px")) else document["baseline"]
    if arm.startswith("64px"):
        base = document["best"]
    return resolve({**_merged(base, document[arm]), "seed": seed})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def cells() -> list[Cell]:
    """In the order in which they run: what matters most comes first."""
    plan = [(arm, LONG, seed) for seed in SEEDS for arm in ("baseline", "best")]
    plan += [(arm, MIDDLE, seed) for seed in SEEDS for arm in _PROGRESSIVE]
    plan += [("baseline", SHORT, 0)]
    plan += [(arm, SHORT, 0) for arm in arms() if arm not in ("baseline", "best", *_PROGRESSIVE)]
    return [Cell(arm, seconds, seed, recipe_of(arm, seed)) for arm, seconds, seed in plan]


_PROGRESSIVE = ("64px from the start", "64px from 32px")


def run(cell: Cell) -> Outcome:
    """Trains and judges a cell in processes of its own."""
    sides = {stage.resolution for stage in cell.recipe.stages}
    pictures = {side: rendered(DATA, side) for side in sides}
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=train, args=(n, port, cell.recipe, pictures, cell.seconds, results))
        for n in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    try:
        outcome: Outcome = results.get(timeout=cell.seconds + _PATIENCE)
    finally:
        for rank in ranks:
            rank.join(timeout=30)
            rank.kill()
    return outcome


def finished() -> dict[str, dict[str, Any]]:
    """What earlier runs have left, by the cell's key; a torn last line is none."""
    found = {}
    for line in CELLS.read_text().splitlines() if CELLS.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["key"]] = row
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms, once each")
    parser.add_argument("--seconds", type=float, default=SHORT, help="with --only")
    parser.add_argument("--seed", type=int, default=0, help="with --only")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    chosen = parser.parse_args(arguments)
    wanted = cells()
    if chosen.only:
        if unknown := set(chosen.only) - set(arms()):
            parser.error(f"no arm {sorted(unknown)[0]!r}; there are {', '.join(arms())}")
        wanted = [
            Cell(arm, chosen.seconds, chosen.seed, recipe_of(arm, chosen.seed))
            for arm in chosen.only
        ]
    done = finished()
    if chosen.list:
        for cell in wanted:
            print(f"{'done' if cell.key in done else 'to do':6s}{cell.key}")
        return 0
    CELLS.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(wanted, start=1):
        if cell.key in done:
            continue
        print(f"[{number} of {len(wanted)}] {cell.key}", flush=True)
        row = {"key": cell.key, "arm": cell.arm, "seconds": cell.seconds, "seed": cell.seed}
        done[cell.key] = row | asdict(run(cell))
        with CELLS.open("a") as file:
            file.write(json.dumps(done[cell.key]) + "\n")
    report([done[cell.key] for cell in wanted])
    return 0


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"\n{'arm':26s}{'time':>7s}{'seeds':>6s}{'alignment':>18s}{'val. loss':>11s}{'img/s':>8s}"
    )
    table = []
    for arm, seconds in dict.fromkeys((row["arm"], row["seconds"]) for row in rows):
        of_arm = [row for row in rows if (row["arm"], row["seconds"]) == (arm, seconds)]
        scores = [row["alignment"] for row in of_arm]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        entry = {
            "arm": arm,
            "seconds": seconds,
            "seeds": len(scores),
            "alignment": round(statistics.mean(scores), 4),
            "alignment_spread": None if spread is None else round(spread, 4),
            "validation_loss": round(statistics.mean(r["validation_loss"] for r in of_arm), 4),
            "images_per_second": round(statistics.mean(r["images_per_second"] for r in of_arm), 1),
        }
        table.append(entry)
        shown = f"{entry['alignment']:.3f}" + ("" if spread is None else f" +- {spread:.3f}")
        print(
            f"{arm:26s}{seconds:5g} s{len(scores):6d}{shown:>18s}"
            f"{entry['validation_loss']:11.4f}{entry['images_per_second']:8.0f}"
        )
    print(f"\nbest: aim {AIM:.2f}")
    print(f"command: make bench NAME=recipe (torch {torch.__version__})")
    OUT.write_text(json.dumps({"headline": headline(table), "rows": table}, indent=2) + "\n")


def headline(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the runs with three seeds say; without those that have not been run."""
    found = {(row["arm"], row["seconds"]): row["alignment"] for row in table}
    figures = {
        f"{arm}_alignment": found[arm, LONG] for arm in ("baseline", "best") if (arm, LONG) in found
    }
    start, grown = (found.get((arm, MIDDLE)) for arm in _PROGRESSIVE)
    if start is not None and grown is not None:
        figures["progressive_gain"] = round(grown - start, 4)
    return figures


if __name__ == "__main__":
    sys.exit(main())
