"""How many runs the operator takes, and what each costs it, beside plain Jobs of the same shape.

    make bench NAME=operator
    python benchmarks/operator --runs 100 300 --hold 30

The control plane is real (etcd, API server, controller manager, scheduler); the nodes are hollow:
they report every pod Running and Ready as soon as it is bound, and answer the operator's progress
polls. For each size a fresh control plane: a few runs to warm up, then plain Indexed Jobs with the
spec that the operator gives its own, created at once, then as many TrainingRuns on four nodes each.
A run has started when all its pods are Ready, and so has a Job: the Jobs' rate is the limit that
the control plane sets on this machine, and the hollow nodes cost both sides the same.

After the start the runs train for a while (steady state), one in ten ends while the operator is
away, a new operator catches up, and all end. Calls are counted in the API server's audit log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import LIMITS, operated, place, plain, warm_up

Json = dict[str, Any]
OUT = Path("build/bench/operator.json")
CURVE = (100, 300, 1000, 2000)
JUDGED = 1000
"""The size that the aims are for."""
AIMS = {
    "start_rate_ratio": "≥ 0.67",
    "reconcile_p99_seconds": "< 1",
    "rss_mib": "< 300",
    "writes_per_run": "≤ 12",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=CURVE, metavar="N")
    parser.add_argument(
        "--hold", type=float, default=90.0, metavar="SECONDS", help="length of the steady state"
    )
    chosen = parser.parse_args(arguments)
    rows: list[Json] = []
    heading()
    for runs in chosen.runs:
        asyncio.run(measure(runs, chosen.hold, rows))
    document = summary(rows)
    print(f"\nlimits of the control plane: {json.dumps(LIMITS)}")
    for name, value in document["headline"].items():
        print(f"{name}: {value} (aim {AIMS[name]})")
    print(f"exponents over the curve (1: linear): {json.dumps(document['exponents'])}")
    command = " ".join(["python benchmarks/operator", *(sys.argv[1:] if not arguments else ())])
    print(f"command: {command} (python {sys.version.split()[0]})")
    return 0


async def measure(runs: int, hold_seconds: float, rows: list[Json]) -> None:
    """Appends both sides' rows, and writes all there are after each."""
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="build") as scratch:
        async with place(Path(scratch).resolve()) as at:
            like = await warm_up(at)
            for side in ("plain Jobs", "operator"):
                rows.append(
                    await (
                        plain(at, runs, like)
                        if side == "plain Jobs"
                        else operated(at, runs, hold_seconds)
                    )
                )
                show(rows[-1])
                write(summary(rows))


def heading() -> None:
    print(
        f"{'':10s}{'runs':>6s}{'started/s':>10s}{'to Job p50/p99':>16s}{'Running p50/p99':>17s}"
        f"{'rec. p99':>9s}{'calls':>7s}{'writes':>7s}{'CPU s/run':>10s}{'RSS MiB':>8s}"
        f"{'restart s':>10s}{'load':>6s}"
    )


def show(row: Json) -> None:
    def pair(name: str) -> str:
        return f"{row[name]['p50']:.1f}/{row[name]['p99']:.1f}"

    text = (
        f"{row['side']:10s}{row['runs']:6d}{row['started_per_second']:10.2f}"
        f"{pair('apply_to_job_seconds'):>16s}{pair('apply_to_running_seconds'):>17s}"
    )
    if "writes_per_run" in row:
        text += (
            f"{row['reconcile_p99_seconds']:9.3f}{row['api_calls_per_run']:7.1f}"
            f"{row['writes_per_run']:7.1f}{row['cpu_seconds_per_run']:10.3f}{row['rss_mib']:8.0f}"
            f"{row['restart_to_caught_up_seconds']:10.1f}"
        )
    else:
        text += " " * 51
    print(f"{text}{row['load']:6.1f}", flush=True)


def summary(rows: Sequence[Json]) -> Json:
    """What is written: the headline is of the size that the aims are for, or of the largest."""
    sides = {
        side: {row["runs"]: row for row in rows if row["side"] == side}
        for side in ("plain Jobs", "operator")
    }
    ours, limit = sides["operator"], sides["plain Jobs"]
    headline = {}
    if ours:
        size = JUDGED if JUDGED in ours else max(ours)
        row = ours[size]
        ratio = row["started_per_second"] / limit[size]["started_per_second"]
        headline = {
            "start_rate_ratio": round(ratio, 3),
            **{name: round(row[name], 3) for name in list(AIMS)[1:]},
        }
    return {
        "headline": headline,
        "exponents": exponents(ours),
        "limits": LIMITS,
        "rows": list(rows),
    }


def exponents(by_size: dict[int, Json]) -> dict[str, float]:
    """How what all runs together cost grows with their number: the slope of log over log, from
    the smallest size to the largest."""
    if len(by_size) < 2:
        return {}
    small, large = min(by_size), max(by_size)
    ratio = math.log(large / small)
    totals = ("cpu_seconds_per_run", "cpu_seconds_per_run_to_start", "api_calls_per_run")
    found = {
        name.replace("_per_run", ""): 1
        + math.log(by_size[large][name] / by_size[small][name]) / ratio
        for name in totals
    }
    seconds = [by_size[size]["seconds_to_start"] for size in (small, large)]
    found["seconds_to_start"] = math.log(seconds[1] / seconds[0]) / ratio
    return {name: round(value, 3) for name, value in found.items()}


def write(document: Json) -> None:
    OUT.parent.mkdir(parents=True, exist_ok=True)
    partial = OUT.with_suffix(".new")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(OUT)


if __name__ == "__main__":
    sys.exit(main())
