"""One size of the curve: on a fresh control plane plain Jobs, then as many runs of the operator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audit
from crowd import JOBS, RUNS, Crowd, Times
from hollow import HollowNodes
from process import (
    USER,
    OperatorProcess,
    between,
    control_plane_cpu_seconds,
    count,
    install_rights,
    quantile,
)
from shapes import NODES_A_RUN, SECRETS, plain_job, run
from worker import Pace

from daybreak_cli.playground import create_namespace
from daybreak_devcluster.agent.api import Api, ApiError
from daybreak_devcluster.cluster import Cluster

Json = dict[str, Any]
HOLLOW_NODES, PODS_A_NODE = 20, 500
LIMITS = {
    "kube-apiserver": ("--max-requests-inflight=1600", "--max-mutating-requests-inflight=800"),
    "kube-controller-manager": (
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
        "--concurrent-job-syncs=20",
        # No node is lost here, however late a starved controller manager sees a heartbeat.
        "--node-monitor-grace-period=24h",
    ),
    "kube-scheduler": ("--kube-api-qps=2000", "--kube-api-burst=4000"),
}
"""Of the control plane, the same for both sides: wide enough that CPU is the limit."""
WARM_UPS = 4
AWAY_SHARE = 10
"""One in so many runs ends while the operator is away."""


@dataclass(frozen=True)
class Place:
    cluster: Cluster
    api: Api
    nodes: HollowNodes
    folder: Path
    kubeconfig: Path
    """With the operator's rights."""

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def operator(self, namespace: str) -> OperatorProcess:
        return OperatorProcess(
            self.cluster, self.kubeconfig, namespace, self.folder / "operator.log"
        )


@contextlib.asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    """A fresh control plane with hollow nodes."""
    policy = folder / "audit.json"
    policy.write_text(json.dumps(audit.policy(USER)))
    audit_flags = (f"--audit-policy-file={policy}", f"--audit-log-path={folder / 'audit.log'}")
    flags = LIMITS | {"kube-apiserver": (*LIMITS["kube-apiserver"], *audit_flags)}
    with Cluster(folder / "cluster", nodes=(), flags=flags) as cluster:
        async with (
            Api(cluster.kubeconfig) as api,
            HollowNodes(api, HOLLOW_NODES, PODS_A_NODE, Pace()) as nodes,
        ):
            await nodes.await_ready()
            kubeconfig = await asyncio.to_thread(install_rights, cluster, folder)
            yield Place(cluster, api, nodes, folder, kubeconfig)


@contextlib.asynccontextmanager
async def crowd(at: Place, namespace: str) -> AsyncIterator[Crowd]:
    """In a namespace of its own that has what runs name."""
    await asyncio.to_thread(create_namespace, at.cluster, namespace)
    for name in SECRETS:
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        await at.api.post(f"/api/v1/namespaces/{namespace}/secrets", body)
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    while True:  # until then pods are refused, and the Job controller backs off
        try:
            await at.api.get(account)
            break
        except ApiError as error:
            if error.status != 404:
                raise
        await asyncio.sleep(0.1)
    async with Crowd(at.api, at.nodes, namespace, NODES_A_RUN) as made:
        yield made


def names(runs: int) -> list[str]:
    return [f"run-{number:04d}" for number in range(runs)]


async def warm_up(at: Place) -> Json:
    """A few whole lives, so nothing that comes after pays for cold caches; returns the Job of
    one."""
    operator = at.operator("warm-up")
    try:
        async with crowd(at, "warm-up") as few:
            chosen = names(WARM_UPS)
            await few.create(RUNS, ((name, run(name)) for name in chosen))
            await few.all_started(operator.check)
            await few.all_in("Running", chosen, operator.check)
            job = await at.api.get(f"{JOBS}/namespaces/warm-up/jobs/{chosen[0]}-1")
            await at.nodes.finish([few.job_of(name) for name in chosen])
            await few.all_in("Complete", chosen, operator.check)
            await few.delete_all()
    finally:
        await asyncio.to_thread(operator.stop)
    return job


async def plain(at: Place, runs: int, like: Json) -> Json:
    """As many Jobs of the same shape: what the control plane can do."""
    async with crowd(at, "plain") as jobs:
        before = control_plane_cpu_seconds(at.cluster)
        await jobs.create(JOBS, ((name, plain_job(name, like)) for name in names(runs)))
        await jobs.all_started()
        row = {"side": "plain Jobs", "runs": runs, **start(jobs), **_cost(at, before, runs)}
        await at.nodes.finish([jobs.job_of(name) for name in names(runs)])
        await jobs.delete_all()
    return row


async def operated(at: Place, runs: int, hold_seconds: float) -> Json:
    """Runs under the operator: their start, a steady time, a restart, their end."""
    namespace, chosen = "runs", names(runs)
    operator = at.operator(namespace)
    try:
        await asyncio.to_thread(operator.await_ready)
        async with crowd(at, namespace) as made:
            idle_cpu = operator.cpu_seconds()
            before = control_plane_cpu_seconds(at.cluster)
            await made.create(RUNS, ((name, run(name)) for name in chosen))
            await made.all_started(operator.check)
            cost = _cost(at, before, runs)
            calls_to_start = audit.calls(at.audit_log, namespace).by_kind
            await made.all_in("Running", chosen, operator.check)
            row: Json = {
                "side": "operator",
                "runs": runs,
                **start(made),
                **cost,
                "api_calls_to_start_by_kind": {k: n / runs for k, n in calls_to_start.items()},
                "apply_to_status_running_seconds": _p50_p99(
                    [_since(times, times.running) for times in made.times.values()]
                ),
                "cpu_seconds_per_run_to_start": (operator.cpu_seconds() - idle_cpu) / runs,
            }
            row |= await _steady(at, operator, hold_seconds)
            cpu = operator.cpu_seconds() - idle_cpu
            row["rss_mib"] = operator.peak_rss_mib()
            await asyncio.to_thread(operator.stop)
            away, rest = chosen[::AWAY_SHARE], [n for i, n in enumerate(chosen) if i % AWAY_SHARE]
            await at.nodes.finish([made.job_of(name) for name in away])
            operator, row["restart_to_caught_up_seconds"] = await _restart(
                at, made, namespace, runs, away
            )
            row["rss_after_restart_mib"] = operator.peak_rss_mib()
            at_end = asyncio.get_running_loop().time()
            await at.nodes.finish([made.job_of(name) for name in rest])
            await made.all_in("Complete", rest, operator.check)
            row["completed_per_second"] = len(rest) / (asyncio.get_running_loop().time() - at_end)
            await asyncio.sleep(5.0)  # what it writes afterwards counts as well
            # An operator's own start, before it has a run, is paid once for all of them.
            row["cpu_seconds_per_run"] = (cpu + operator.cpu_seconds() - idle_cpu) / runs
            row |= _counts(at, made, namespace, runs)
    finally:
        await asyncio.to_thread(operator.stop)
    return row


async def _steady(at: Place, operator: OperatorProcess, seconds: float) -> Json:
    """All runs train and nothing else happens. The first seconds belong to the start."""
    await asyncio.sleep(min(15.0, seconds / 2))
    before, cpu = await asyncio.to_thread(operator.reconciles), operator.cpu_seconds()
    polls = at.nodes.answers.polls
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(operator.reconciles)
    seen = between(before, after)
    return {
        "reconcile_p50_seconds": quantile(seen, 0.5),
        "reconcile_p99_seconds": quantile(seen, 0.99),
        "reconciles_per_second": count(seen) / seconds,
        "polls_per_second": (at.nodes.answers.polls - polls) / seconds,
        "steady_cores": (operator.cpu_seconds() - cpu) / seconds,
    }


async def _restart(
    at: Place, made: Crowd, namespace: str, runs: int, away: Sequence[str]
) -> tuple[OperatorProcess, float]:
    """A new process; how long it takes from its start until it has looked at every run and those
    that ended meanwhile are Complete."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    operator = at.operator(namespace)
    await asyncio.to_thread(operator.await_ready)
    await made.all_in("Complete", away, operator.check)
    while count(await asyncio.to_thread(operator.reconciles)) < runs:
        operator.check()
        await asyncio.sleep(0.1)
    return operator, loop.time() - began


def start(made: Crowd) -> Json:
    """How fast they came up, from the first creation on."""
    all_times = list(made.times.values())
    took = max(_since_begin(made, times.started) for times in all_times)
    return {
        "seconds_to_start": took,
        "started_per_second": len(all_times) / took,
        "apply_to_job_seconds": _p50_p99([_since(times, times.job) for times in all_times]),
        "apply_to_running_seconds": _p50_p99([_since(times, times.started) for times in all_times]),
        "load": os.getloadavg()[0],
    }


def _cost(at: Place, before: dict[str, float], runs: int) -> Json:
    """What the control plane has used since then."""
    used = {n: s - before[n] for n, s in control_plane_cpu_seconds(at.cluster).items()}
    return {
        "control_plane_cpu_seconds_per_run_to_start": sum(used.values()) / runs,
        "control_plane_cpu_to_start_by_process": {name: s / runs for name, s in used.items()},
    }


def _counts(at: Place, made: Crowd, namespace: str, runs: int) -> Json:
    told = audit.calls(at.audit_log, namespace)
    return {
        "api_calls_per_run": told.total / runs,
        "api_calls_by_kind": {k: n / runs for k, n in told.by_kind.most_common()},
        "api_seconds_per_run": told.seconds / runs,
        "writes_per_run": (told.writes - made.progress_writes) / runs,
        "progress_writes_per_run": made.progress_writes / runs,
        "events_per_run": told.events / runs,
    }


def _since(times: Times, end: float | None) -> float:
    assert end is not None  # waited for
    return end - times.applied


def _since_begin(made: Crowd, end: float | None) -> float:
    assert end is not None  # waited for
    return end - made.began


def _p50_p99(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[round(0.5 * last)], "p99": ordered[round(0.99 * last)]}
