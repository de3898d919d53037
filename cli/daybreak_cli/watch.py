"""`daybreak watch NAME`: follows one run until it ends, from its status alone.

Reads what `kubectl get trainingrun -o json` reads and nothing else, so it works with read access to
one kind, from anywhere, and shows exactly what the operator knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from daybreak_cli.errors import CommandError

GROUP, VERSION, PLURAL = "daybreak.dev", "v1alpha1", "trainingruns"
TERMINAL = frozenset({"Complete", "Failed"})
_TALKS_FOR_ITSELF = TERMINAL | {"Running"}
_COLOURS = {
    "Pending": "yellow",
    "Running": "cyan",
    "Complete": "green",
    "Failed": "red",
    "Restarting": "yellow",
}

Run = Mapping[str, Any]


def follow(
    name: str, namespace: str | None, kubeconfig: Path | None, every_seconds: float = 1.0
) -> Iterator[Run]:
    """The run as the API server has it, each time it changed, until its phase is terminal.

    Raises:
        CommandError: no cluster, no such run, or no permission; the message says which.
    """
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        config.load_kube_config(config_file=str(kubeconfig) if kubeconfig else None)
        _, context = config.list_kube_config_contexts(str(kubeconfig) if kubeconfig else None)
    except (config.ConfigException, OSError) as error:
        raise CommandError(f"no cluster to ask: {error}; set KUBECONFIG or --kubeconfig") from None
    namespace = namespace or context["context"].get("namespace") or "default"
    api = client.CustomObjectsApi()
    seen, failures = "", 0
    while True:
        try:
            run = api.get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=10
            )
            failures = 0
        except ApiException as error:
            if error.status == 404:
                raise CommandError(f"no TrainingRun {name} in namespace {namespace}") from None
            if error.status in (401, 403):
                raise CommandError(
                    f"not allowed to get trainingruns in namespace {namespace}: {error.reason}"
                ) from None
            failures += 1
        except HTTPError:
            failures += 1
        else:
            if run["metadata"]["resourceVersion"] != seen:
                seen = run["metadata"]["resourceVersion"]
                yield run
            if run.get("status", {}).get("phase") in TERMINAL:
                return
        if failures >= 30:
            raise CommandError(f"the API server has not answered for {failures} tries")
        time.sleep(every_seconds)


def watch(name: str, namespace: str | None, kubeconfig: Path | None, console: Console) -> Run:
    """Shows the run until it ends and returns it as it was last."""
    run: Run | None = None
    if not console.is_terminal:
        last = ""
        for run in follow(name, namespace, kubeconfig):
            if (line := summary(run)) != last:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
                last = line
    else:
        with Live(console=console, refresh_per_second=4) as live:
            for run in follow(name, namespace, kubeconfig):
                live.update(panel(run))
    assert run is not None  # follow yields at least once or raises
    return run


def summary(run: Run) -> str:
    """One line: phase, stage, step, loss, images/s, ETA, cost, and what it waits for."""
    status = run.get("status", {})
    progress = status.get("progress", {})
    parts = [f"{run['metadata']['name']}  {status.get('phase', 'Pending')}"]
    if attempt := status.get("attempt"):
        parts.append(f"attempt {attempt}")
    if stage := status.get("stage"):
        parts.append(f"stage {stage['name']} ({stage['index']}/{stage['of']})")
    if progress.get("totalSteps"):
        parts.append(f"step {progress.get('step', 0)}/{progress['totalSteps']}")
    parts += [f"{label} {progress[key]}" for label, key in _FIGURES if key in progress]
    if eta := progress.get("estimatedCompletionTime"):
        parts.append(f"ends {local_time(eta)}")
    if alignment := status.get("evaluation", {}).get("alignment"):
        parts.append(f"alignment {alignment}")
    if cost := status.get("ledger", {}).get("cost"):
        parts.append(f"cost {cost}")
    if status.get("phase") == "Failed" or (status.get("lastFailure") and not progress):
        parts.append(reason(run))
    elif waits := waiting(run):
        parts.append(waits)
    return "  ".join(parts)


_FIGURES = (("loss", "loss"), ("images/s", "imagesPerSecond"))


def panel(run: Run) -> Group:
    """What a terminal shows: a headline, a bar and a table of figures."""
    status = run.get("status", {})
    progress = status.get("progress", {})
    phase = status.get("phase", "Pending")
    headline = Text.assemble(
        (run["metadata"]["name"], "bold"), "  ", (phase, f"bold {_COLOURS.get(phase, 'white')}")
    )
    figures = Table.grid(padding=(0, 3))
    rows = {
        "attempt": status.get("attempt"),
        "workers": _workers(status),
        "stage": _stage(status),
        "step": f"{progress.get('step', 0)} of {progress['totalSteps']}"
        if progress.get("totalSteps")
        else None,
        "loss": progress.get("loss"),
        "images/s": progress.get("imagesPerSecond"),
        "ends": local_time(progress["estimatedCompletionTime"])
        if progress.get("estimatedCompletionTime")
        else None,
        "checkpoint": _checkpoint(status),
        "goodput": status.get("ledger", {}).get("goodput"),
        "cost": status.get("ledger", {}).get("cost"),
        "alignment": status.get("evaluation", {}).get("alignment"),
        "last failure": status.get("lastFailure", {}).get("message"),
        "now": waiting(run),
        "trouble": _said_by(run, "Degraded", "True"),
    }
    for label, value in rows.items():
        if value is not None:
            # Messages are a worker's words, and no markup.
            figures.add_row(Text(label, style="dim"), Text(str(value)))
    bar = ProgressBar(total=100, completed=float(progress.get("percent", 0)), width=60)
    return Group(headline, bar, figures, *([Text(reason(run), "red")] if phase == "Failed" else []))


def reason(run: Run) -> str:
    """Why the run failed, in the words of its Failed condition, else of its last failure."""
    said = _said_by(run, "Failed", "True")
    return said or str(run.get("status", {}).get("lastFailure", {}).get("message", ""))


def waiting(run: Run) -> str | None:
    """What a run that does not train waits for, in the words of its Running condition."""
    phase = run.get("status", {}).get("phase", "Pending")
    return None if phase in _TALKS_FOR_ITSELF else _said_by(run, "Running", "False")


def _said_by(run: Run, kind: str, value: str) -> str | None:
    for condition in run.get("status", {}).get("conditions", []):
        if (condition["type"], condition["status"]) == (kind, value) and condition.get("message"):
            return f"{condition['reason']}: {condition['message']}"
    return None


def local_time(rfc3339: str) -> str:
    moment = datetime.fromisoformat(rfc3339.replace("Z", "+00:00")).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M")


def _workers(status: Mapping[str, Any]) -> str | None:
    workers = status.get("workers", {})
    return (
        f"{workers.get('ready', 0)} of {workers['desired']} ready"
        if workers.get("desired")
        else None
    )


def _stage(status: Mapping[str, Any]) -> str | None:
    stage = status.get("stage")
    return f"{stage['name']} ({stage['index']} of {stage['of']})" if stage else None


def _checkpoint(status: Mapping[str, Any]) -> str | None:
    checkpoint = status.get("checkpoint")
    return f"step {checkpoint['step']}, {local_time(checkpoint['time'])}" if checkpoint else None
