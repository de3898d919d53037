"""`make demo`: all of Daybreak on this machine, once, from nothing to a picture.

A control plane comes up, the operator starts under its own ServiceAccount, a dataset is prepared, a
TrainingRun is applied with kubectl, two worker pods train one model, and what comes out lands in
`build/demo/`. The cluster ends with the demo, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from daybreak_cli import playground
from daybreak_cli.errors import CommandError
from daybreak_cli.playground import ROOT, VOLUMES
from daybreak_cli.watch import reason, watch
from daybreak_devcluster.binaries import BinariesNotFoundError
from daybreak_devcluster.cluster import Cluster, KubectlError
from daybreak_devcluster.launch import StartError
from daybreak_trainer.data.errors import DatasetError

NAMESPACE = "demo"

console = Console()


def main() -> int:
    """Runs the demo; returns 0 where its run completed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=("digits", "shapes", "smoke"), default="digits")
    parser.add_argument("--out", type=Path, default=ROOT / "build/demo")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    try:
        _clear(out)
        _prepare(options.run, out)
        with Cluster(out / "cluster", report=_say) as cluster:
            _say(f"Kubernetes {cluster.info.version} is up in {cluster.info.start_seconds:.1f} s")
            _install(cluster, out)
            run = _train(cluster, options.run)
    except KeyboardInterrupt:
        _say("stopped; nothing is left running")
        return 130
    except (BinariesNotFoundError, CommandError, DatasetError, StartError, KubectlError) as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return 1
    return _collect(run, out)


def _say(line: str) -> None:
    """Unwrapped: what is in it may be copied."""
    console.print(f"[bold]==>[/bold] {line}", soft_wrap=True, highlight=False)


def _clear(out: Path) -> None:
    """Makes room; prepared datasets stay, they are the same every time."""
    for name in ("checkpoints", "models", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("result.json", "samples.png"):
        (out / name).unlink(missing_ok=True)
    for name in VOLUMES:
        (out / name).mkdir(parents=True, exist_ok=True)
        # Worker pods run as another user.
        (out / name).chmod(0o777)


def _prepare(run: str, out: Path) -> None:
    from daybreak_trainer.prepare.prepare import prepare

    source = "digits" if run == "smoke" else run
    folder = out / "datasets" / source
    if folder.exists():
        _say(f"the dataset {source} is there already: {folder}")
        return
    with console.status(f"preparing the dataset {source}"):
        card = prepare(source, folder)
    _say(f"prepared {card.samples} images of {source}: {folder}")


def _install(cluster: Cluster, out: Path) -> None:
    """CRD, RBAC and operator; the run's namespace, restricted, with its volumes."""
    playground.install_operator(cluster)
    _say("installed the CRD, RBAC and the operator, which runs under its own ServiceAccount")
    playground.create_namespace(cluster, NAMESPACE)
    playground.create_claims(cluster, NAMESPACE, out)


def _train(cluster: Cluster, name: str) -> dict[str, Any]:
    """Applies the run and follows it to its end; returns it as it was last."""
    manifest = ROOT / f"manifests/examples/{name}.yaml"
    applied = datetime.now(UTC)
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", str(manifest))
    _say(f"kubectl apply -f {manifest.relative_to(ROOT)}")
    run = dict(watch(name, NAMESPACE, cluster.kubeconfig, console))
    if run["status"]["phase"] == "Failed":
        events = cluster.kubectl("get", "events", "-n", NAMESPACE).stdout
        console.print(events, highlight=False)
    run["applied"] = applied
    return run


def _collect(run: dict[str, Any], out: Path) -> int:
    """Copies what the run exported and writes `result.json`."""
    status = run["status"]
    progress = status.get("progress", {})
    first_step = progress.get("firstStepTime")
    evaluation = status.get("evaluation", {})
    seconds = (
        round((datetime.fromisoformat(first_step) - run["applied"]).total_seconds(), 1)
        if first_step
        else None
    )
    result = {
        "run": run["metadata"]["name"],
        "phase": status["phase"],
        "alignment": _number(evaluation.get("alignment")),
        "alignmentByTag": {k: float(v) for k, v in evaluation.get("alignmentByTag", {}).items()},
        "judgeAccuracy": {k: float(v) for k, v in evaluation.get("judgeAccuracy", {}).items()},
        "applyToFirstStepSeconds": seconds,
        "trainingSeconds": _number(progress.get("trainingSeconds")),
        "attempts": status.get("attempt"),
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    if status["phase"] != "Complete":
        console.print(f"demo: the run failed: {reason(run)}", style="red", highlight=False)
        return 1
    exported = out / "models" / run["metadata"]["name"]
    shutil.copytree(exported, out / "model")
    shutil.copy(out / "model" / "samples.png", out / "samples.png")
    _say(f"alignment {result['alignment']} on held-out prompts, {seconds} s to the first step")
    _say(f"look at {out / 'samples.png'}; the model is {out / 'model'}")
    return 0


def _number(text: str | None) -> float | None:
    return float(text) if text is not None else None


if __name__ == "__main__":
    sys.exit(main())
