"""How long a run stands still: from the death of a rank, or of a pod, to its next step.

    make bench NAME=recovery

A small run on two worker pods of the development cluster. Its next step is the first one that a
worker reports after the fault, so all is in it: noticing, ending the other ranks, new processes
(and pods), joining, reading and verifying the checkpoint, opening the data. The first fault of each
kind only warms the caches. Steps that are trained again are not in it: they are the price of the
checkpoint interval.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from daybreak_cli.playground import (
    Playground,
    create_claims,
    create_namespace,
    install_operator,
    progress_of,
)
from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.contract import Progress
from daybreak_trainer.prepare.prepare import prepare

RUN, NAMESPACE = "recovery", "recovery"
WARM_UPS, ROUNDS = 1, 5
AIMS = {"rank_kill_seconds": 20.0, "pod_loss_seconds": 40.0}
_PATIENCE_SECONDS = 180.0
OUT = Path("build/bench/recovery.json")


def main() -> int:
    with tempfile.TemporaryDirectory(dir="build") as scratch:
        folder = Path(scratch).resolve()
        folder.chmod(0o755)  # worker pods run as another user
        prepare("digits", folder / "datasets" / "digits")
        with Cluster(folder / "cluster") as cluster:
            install_operator(cluster)
            create_namespace(cluster, NAMESPACE)
            create_claims(cluster, NAMESPACE, folder)
            place = Playground(cluster, NAMESPACE, folder)
            seconds = measure(place)
    headline = {name: round(statistics.median(each), 1) for name, each in seconds.items()}
    print(f"{'':22s}{'median':>8s}{'worst':>8s}{'aim':>8s}   each, s")
    for name, each in seconds.items():
        listed = " ".join(f"{value:.1f}" for value in each)
        print(f"{name:22s}{headline[name]:8.1f}{max(each):8.1f}{AIMS[name]:8.1f}   {listed}")
    print(f"\ncommand: make bench NAME=recovery (python {sys.version.split()[0]})")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"headline": headline, "seconds": seconds}, indent=2) + "\n")
    return 0


def measure(place: Playground) -> dict[str, list[float]]:
    """Seconds from each fault to the next step."""
    stage = {"resolution": 16, "steps": 1_000_000, "batchSize": 6}
    claims = {"persistentVolumeClaim": {"claimName": "datasets", "subPath": "digits"}}
    place.apply(
        RUN,
        recipe={"preset": "smoke", "stages": [stage]},
        data={"streams": [claims]},
        checkpoint={
            "persistentVolumeClaim": {"claimName": "checkpoints", "subPath": RUN},
            "interval": "3s",
        },
        failurePolicy={"maxRestarts": 1000},
    )
    kinds: dict[str, Callable[[Playground], None]] = {
        "rank_kill_seconds": kill_rank,
        "pod_loss_seconds": lose_pod,
    }
    found: dict[str, list[float]] = {}
    for name, fault in kinds.items():
        each = [one(place, fault) for _ in range(WARM_UPS + ROUNDS)]
        found[name] = each[WARM_UPS:]
    return found


def one(place: Playground, fault: Callable[[Playground], None]) -> float:
    """Waits until the run trains and has a commit of its own, strikes, and waits again."""
    _await(place, lambda p: p.checkpoint is not None and p.checkpoint != p.resumed_from)
    struck = datetime.now(UTC)
    fault(place)

    def trains(progress: Progress) -> bool:
        first = progress.first_step_at
        return first is not None and datetime.fromisoformat(first) > struck

    first = _await(place, trains).first_step_at
    assert first is not None  # `trains` waited for it
    return (datetime.fromisoformat(first) - struck).total_seconds()


def kill_rank(place: Playground) -> None:
    """SIGKILL of the rank in the last worker's pod."""
    pod = place.pods(RUN)[-1]
    # The launcher forks its rank: of the two, the rank is the younger.
    launcher, *_, rank = faults.processes(
        place.cluster, NAMESPACE, pod, match="daybreak_trainer.launch"
    )
    assert rank != launcher, "the launcher has no rank"
    os.kill(rank, signal.SIGKILL)


def lose_pod(place: Playground) -> None:
    """SIGKILL of all that runs in the last worker's pod, its launcher first."""
    faults.kill_process(place.cluster, NAMESPACE, place.pods(RUN)[-1])


def _await(place: Playground, until: Callable[[Progress], bool]) -> Progress:
    """Worker 0's progress as soon as `until` holds, asked of the worker itself."""
    chosen = f"-ldaybreak.dev/run={RUN},batch.kubernetes.io/job-completion-index=0"
    path = "-ojsonpath={range .items[*]}{.status.phase} {.status.podIP}{'\\n'}{end}"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        out = place.cluster.kubectl("get", "pods", "-n", NAMESPACE, chosen, path).stdout
        for line in out.splitlines():
            phase, _, address = line.partition(" ")
            with suppress(OSError, ValueError):
                if phase == "Running" and address and until(progress := progress_of(address)):
                    return progress
        time.sleep(0.1)
    raise TimeoutError(
        f"the run did not get there in {_PATIENCE_SECONDS:.0f} s: {place.events(RUN)}"
    )


if __name__ == "__main__":
    sys.exit(main())
