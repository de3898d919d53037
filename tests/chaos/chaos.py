"""Runs that train through everything that can befall them: `make chaos`.

    python tests/chaos/chaos.py --minutes 30 --runs 10 --real 2

A development cluster of three nodes of its own, an operator with its own rights behind a proxy that
fails some of its calls, and so many runs at a time, of which some really train and the others have
scripted workers. Faults strike at random until the time is over; then the runs come to their end.
Each has to complete with every global batch once in its lineage, and a ledger that adds up. Exits 1
where one does not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from api_proxy import ApiProxy, Fault, now_and_then
from crashing_operator import Plan
from faults_at_random import Mischief, Victim
from lives import Stage, operator_kubeconfig, set_up, template
from rich.console import Console
from rich.table import Table
from runs import install_rights
from scripted_worker import samples
from verdict import wrong

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.nodespec import numbered_nodes
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve

_NODES = 3
_BATCH = 6
_STEP_SECONDS = 0.5
_SHARE_OF_TIME = 0.8
"""Of the time that faults strike, what an undisturbed scripted run would take."""
_REAL_STEPS_PER_MINUTE = 60
_TO_THE_END_SECONDS = 1800
_API_FAULTS = (
    Fault(status=429, retry_after=1),
    Fault(status=500),
    Fault(lost=True),
    Fault(delay_seconds=3),
)
Json = dict[str, Any]


@dataclass(frozen=True)
class Options:
    minutes: float
    runs: int
    real: int
    seed: int


def main() -> int:
    options = _options()
    print(f"seed {options.seed}", flush=True)
    dice = Random(options.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daybreak-chaos-")))
        folder.chmod(0o755)
        cluster = stack.enter_context(Cluster(folder / "state", numbered_nodes(_NODES)))
        install_rights(cluster)
        proxy = stack.enter_context(ApiProxy(cluster))
        kubeconfig = operator_kubeconfig(cluster, folder, proxy.url)
        stage = stack.enter_context(set_up(cluster, "chaos", folder / "chaos", kubeconfig))
        if options.real:
            shutil.rmtree(folder / "chaos/datasets")
            prepare("digits", folder / "chaos/datasets", count=200, shard_bytes=1 << 14)
        stage.operate(Plan())
        victims = _apply(stage, options)
        proxy.chooses = now_and_then(20, Random(options.seed), *_API_FAULTS)
        mischief = Mischief(stage, proxy, cluster, victims, dice)
        mischief.go_on(options.minutes * 60)
        print(f"{time.strftime('%H:%M:%S')} no more faults; the runs go on to their end")
        proxy.chooses = lambda _: None
        well = _report(stage, victims, mischief, options)
        if refused := [c for c in proxy.never_allowed if not c.startswith("GET /api/v1/")]:
            print(f"the operator had no right to: {refused}")
            well = False
        if not well:
            shutil.copy(folder / "chaos/operator/log", "chaos-operator.log")
            print("the operator's log: chaos-operator.log")
    return 0 if well else 1


def _options() -> Options:
    parser = argparse.ArgumentParser(description="Runs that train through random faults.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults strike")
    parser.add_argument("--runs", type=int, default=10, help="at the same time")
    parser.add_argument("--real", type=int, default=2, help="how many of them really train")
    parser.add_argument("--seed", type=int, default=Random().randrange(1 << 16))
    return Options(**vars(parser.parse_args()))


def _steps(kind: str, minutes: float) -> int:
    if kind == "real":
        return max(60, int(minutes * _REAL_STEPS_PER_MINUTE))
    return int(minutes * 60 * _SHARE_OF_TIME / _STEP_SECONDS)


def _apply(stage: Stage, options: Options) -> list[Victim]:
    victims = []
    for number in range(options.runs):
        kind = "real" if number < options.real else "scripted"
        victim = Victim(f"{kind}-{number}", kind, 2 if kind == "real" else 3)
        stage.apply(victim.name, **_spec(victim, _steps(kind, options.minutes), number))
        victims.append(victim)
    return victims


def _spec(victim: Victim, steps: int, number: int) -> Json:
    """Every other run may go on smaller when nodes are lost."""
    workers: Json = {"image": "ghcr.io/daybreak/trainer:0.1.0", "nodes": 2, "processesPerNode": 1}
    if number % 2:
        workers["minNodes"] = 1
    if victim.kind == "scripted":
        workers["template"] = template({"*": {"step_seconds": _STEP_SECONDS}})
    else:  # several ranks share this machine's cores
        one_thread = {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
        workers["template"] = {"spec": {"containers": [one_thread]}}
    return {
        "workers": workers,
        "recipe": _recipe(steps),
        "scaleCooldown": "0s",
        "terminationGracePeriod": "30s",
        "failurePolicy": {
            "maxRestarts": 1000,
            "noProgressLimit": 0,
            "backoff": {"initial": "1s", "max": "10s"},
        },
        # Two of three nodes that are dropped now and then would soon be avoided for a day.
        "healthPolicy": {"schedulingDeadline": "20s", "nodeFailures": 0},
    }


def _recipe(steps: int) -> Json:
    stage = {"resolution": 16, "steps": steps, "batchSize": _BATCH}
    return {"preset": "smoke", "stages": [stage]}


def _report(stage: Stage, victims: list[Victim], mischief: Mischief, options: Options) -> bool:
    """Waits for all ends and prints the table; whether all is well."""
    table = Table(title=f"chaos: {options.minutes:g} minutes, seed {options.seed}")
    for column in ("run", "attempts", "interruptions", "restarts charged", "faults", "goodput"):
        table.add_column(column, justify="left" if column in ("run", "faults") else "right")
    table.add_column("samples", justify="right")
    table.add_column("verdict")
    well = True
    of_real: dict[int, str] = {}
    deadline = time.monotonic() + _TO_THE_END_SECONDS
    for victim in victims:
        steps = _steps(victim.kind, options.minutes)
        problems = _problems(stage, victim, steps, deadline, of_real)
        well = well and not problems
        status = stage.get(victim.name).get("status", {})
        suffered = " ".join(f"{k}:{n}" for k, n in sorted(victim.suffered.items()))
        table.add_row(
            victim.name,
            str(status.get("attempt")),
            str(status.get("interruptions")),
            str(status.get("restarts")),
            suffered,
            status.get("ledger", {}).get("goodput"),
            str(status.get("progress", {}).get("samples")),
            "; ".join(problems) or "ok",
        )
    around = ", ".join(f"{name} {count}" for name, count in sorted(mischief.around.items()))
    table.caption = (
        f"to all of them: {around}; calls of the operator that failed on purpose: "
        + str(sum(call.faulty for call in mischief.proxy.calls))
    )
    Console(width=180).print(table)
    return well


def _problems(
    stage: Stage, victim: Victim, steps: int, deadline: float, of_real: dict[int, str]
) -> list[str]:
    while time.monotonic() < deadline:  # after that, the verdict says it
        if stage.get(victim.name).get("status", {}).get("phase") in ("Complete", "Failed"):
            break
        time.sleep(1.0)
    try:
        journal = stage.journal(victim.name)
    except (IndexError, OSError, ValueError) as error:
        return [f"its last commit cannot be read: {error!r}"]
    if victim.kind == "real":
        # The same recipe and data: what the first of them trained on, all of them have to.
        of_first = {step: signature for step, _, _, signature in journal}
        for step, signature in of_first.items():
            of_real.setdefault(step, signature)
        return wrong(stage.get(victim.name), journal, steps, _BATCH, lambda step: of_real[step])
    seed = resolve(_recipe(steps)).seed
    return wrong(
        stage.get(victim.name),
        journal,
        steps,
        _BATCH,
        lambda step: samples(seed, (step - 1) * _BATCH, _BATCH),
    )


if __name__ == "__main__":
    sys.exit(main())
