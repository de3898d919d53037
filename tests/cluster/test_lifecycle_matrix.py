"""Every way a run's life can go, on the real control plane with the scripted worker.

All runs live in one namespace at the same time, under one operator that has the rights of its own
ServiceAccount and reaches the API server through a proxy, which counts what it is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_proxy import ApiProxy
from crashing_operator import Plan
from kubernetes import client
from lives import (
    FAILS_AT,
    HOLDS_AT,
    STEPS,
    Json,
    Stage,
    operator_kubeconfig,
    own_operators,
    set_up,
    spec,
)
from scripted_worker import SETTINGS

from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.contract import rfc3339

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_OPTIONAL = {"GET /api/v1/nodes", "GET /api/v1/pods"}
"""Reads that the operator does without where it is not allowed them."""
_SECRET = "correct-horse-battery-staple"
_AT_ONCE: Json = {"backoff": {"initial": "0s"}}
_HOSTILE = (
    "\"quotes\" 'and' \\ backslashes",
    "two\nlines: - {a: b}",
    "$(DAYBREAK_POD_NAME) $$5 ${HOME} `id`",
    "{{ .Values.x }} {0} %s </script>\u202e",
    "\x01" * 1000,  # the longest in JSON
    *("\U0001f308" * 1024 for _ in range(14)),
)
HOLDS: Json = {"hold_at": HOLDS_AT}


def fails(code: int = 1, words: str = "told", at: int = FAILS_AT) -> Json:
    return {"fail_at": at, "exit_code": code, "last_words": words}


@dataclass(frozen=True)
class Case:
    """A run and how it has to end; nobody touches it in between."""

    script: dict[int | str, Json]
    phase: str
    reason: str = ""
    """Of condition Failed."""
    failure: tuple[str, str] | None = None
    """Reason and class of the last failure."""
    attempts: int = 1
    restarts: int = 0
    interruptions: int = 0
    nodes: int = 1
    changes: Json = field(default_factory=dict)


def _charged(code: int, kind: str, words: str = "told", reason: str = "ScriptedFailure") -> Case:
    script: dict[int | str, Json] = {1: fails(code, words)}
    return Case(script, "Complete", failure=(reason, kind), attempts=2, restarts=1)


def _uncharged(code: int, words: str, reason: str) -> Case:
    script: dict[int | str, Json] = {1: fails(code, words)}
    failure = (reason, "Interruption")
    return Case(script, "Complete", failure=failure, attempts=2, interruptions=1)


def _final(code: int, kind: str) -> Case:
    failure = ("ScriptedFailure", kind)
    return Case({"*": fails(code)}, "Failed", "ScriptedFailure", failure)


def _ruled(action: str, **rule: Any) -> Json:
    policy = {"rules": [{"name": "ours", "action": action, **rule}]}
    return {"failurePolicy": _AT_ONCE | policy}


CASES: dict[str, Case] = {
    "code-1": _charged(1, "Unknown"),
    "code-64": _final(64, "User"),
    "code-65": _final(65, "Data"),
    "code-75": _uncharged(75, "told", "ScriptedFailure"),
    "code-76": _charged(76, "Hang"),
    "code-77": _final(77, "User"),
    "code-93": _final(93, "User"),
    "code-134": _charged(134, "Infrastructure"),
    "code-137": _charged(137, "Infrastructure", "none", "WorkerFailed"),
    "code-139": _charged(139, "Infrastructure", "none", "WorkerFailed"),
    "code-143": _uncharged(143, "none", "WorkerFailed"),
    "garbage": _charged(1, "Unknown", "garbage", "WorkerFailed"),
    "a-follower": Case(
        {1: fails()},
        "Complete",
        failure=("ScriptedFailure", "Unknown"),
        attempts=2,
        restarts=1,
        nodes=2,
    ),
    "no-progress": Case(
        {"*": fails()},
        "Failed",
        "NoProgress",
        ("ScriptedFailure", "Unknown"),
        attempts=2,
        restarts=1,
        changes={"failurePolicy": _AT_ONCE | {"noProgressLimit": 2}},
    ),
    "limited": Case(
        {"*": fails()},
        "Failed",
        "RestartLimitExceeded",
        ("ScriptedFailure", "Unknown"),
        attempts=2,
        restarts=1,
        changes={"failurePolicy": _AT_ONCE | {"maxRestarts": 1, "noProgressLimit": 0}},
    ),
    "window": Case(
        {1: fails(), 2: fails()},
        "Complete",
        failure=("ScriptedFailure", "Unknown"),
        attempts=3,
        restarts=2,
        changes={"failurePolicy": _AT_ONCE | {"maxRestarts": 1, "window": "1ms"}},
    ),
    "rule-final": Case(
        {"*": fails()},
        "Failed",
        "ScriptedFailure",
        ("ScriptedFailure", "Unknown"),
        changes=_ruled("FailRun", onExitCodes={"operator": "In", "values": [1]}),
    ),
    "rule-free": Case(
        {1: fails(64)},
        "Complete",
        failure=("ScriptedFailure", "User"),
        attempts=2,
        interruptions=1,
        changes=_ruled("RestartUncharged", onClasses=["User"]),
    ),
    "no-start": Case(
        {"*": {"hold_at": 0}},
        "Failed",
        "RestartLimitExceeded",
        ("StartupDeadlineExceeded", "Hang"),
        changes={
            "failurePolicy": {"maxRestarts": 0},
            "healthPolicy": {"startupDeadline": "5s"},
        },
    ),
    "no-image": Case(
        {},
        "Failed",
        "ImagePullFailed",
        ("ImagePullFailed", "User"),
        changes={"healthPolicy": {"imagePullDeadline": "3s"}},
    ),
    "active": Case({"*": HOLDS}, "Failed", "DeadlineExceeded", changes={"activeDeadline": "8s"}),
    "budget": Case(
        {"*": fails() | {"step_seconds": 0.3}},
        "Failed",
        "BudgetExhausted",
        ("BudgetExhausted", "User"),
        restarts=1,
        changes={"budget": {"duration": "3s"}},
    ),
    "smaller": Case(
        {"1": {"hold_at": 10}},  # a real worker 0 would wait for the other
        "Complete",
        attempts=2,
        nodes=2,
        changes={"healthPolicy": {"schedulingDeadline": "3s"}},
    ),
    "answers-huge": Case({"*": {"answers": "huge"}}, "Complete"),
    "answers-html": Case({"*": {"answers": "html"}}, "Complete"),
    "answers-redirect": Case({"*": {"answers": "redirect"}}, "Complete"),
    "answers-slow": Case({"*": {"answers": "slow"}}, "Complete"),
}


def _case_spec(name: str, case: Case) -> Json:
    changes = spec(case.nodes, case.script) | {"failurePolicy": _AT_ONCE} | case.changes
    if name == "no-image":
        changes["workers"]["image"] = "missing.invalid/trainer:0.1.0"
    if name == "smaller":  # one of the two finds room on a node of 8 CPUs
        changes["workers"] |= {"minNodes": 1, "resources": {"requests": {"cpu": "5"}}}
    return changes


@pytest.fixture(scope="module")
def stage(devcluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("matrix")
    with own_operators(devcluster), ApiProxy(devcluster) as proxy:
        kubeconfig = operator_kubeconfig(devcluster, folder, proxy.url)
        with set_up(devcluster, "matrix", folder / "matrix", kubeconfig) as played:
            played.operate(Plan())
            yield played
            log = played.log()
        assert set(proxy.never_allowed) <= _OPTIONAL
        assert "Traceback" not in log
        assert _SECRET not in log


@pytest.fixture(scope="module")
def played(stage: Stage) -> Stage:
    """All cases at once."""
    for name, case in CASES.items():
        stage.apply(name, **_case_spec(name, case))
    return stage


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_as_its_failures_say(played: Stage, name: str) -> None:
    """Every failure class, limit and rule: what is charged, what is final, and what is said."""
    case, status = CASES[name], played.end(name)
    told = {key: status.get(key) for key in ("lastFailure", "conditions", "ledger")}
    assert status["phase"] == case.phase, told
    if case.reason:
        (failed,) = [c for c in status["conditions"] if c["type"] == "Failed"]
        assert (failed["status"], failed["reason"]) == ("True", case.reason)
        assert failed["message"]
    if case.failure is not None:
        failure = status["lastFailure"]
        assert (failure["reason"], failure["class"]) == case.failure, failure
    assert status["attempt"] == case.attempts, told
    assert status.get("restarts", 0) == case.restarts, told
    assert status.get("interruptions", 0) == case.interruptions, told
    if case.phase == "Complete":
        assert [line[0] for line in played.journal(name)] == list(range(1, STEPS + 1))
    run = played.get(name)
    ledger = run["status"]["ledger"]  # a failed run's goes on until its last worker is gone
    assert _wall_seconds(run) == ledger["productiveSeconds"] + sum(ledger["lostSeconds"].values())


def _wall_seconds(run: Json) -> int:
    created = datetime.fromisoformat(run["metadata"]["creationTimestamp"])
    until = datetime.fromisoformat(run["status"]["ledger"]["accountedUntil"])
    return int((until - created).total_seconds())


def test_out_of_memory_twice_is_final(stage: Stage) -> None:
    """Once may be bad luck; a second time a third attempt would end the same way."""
    stage.apply("memory", **spec(1, {"*": HOLDS}), failurePolicy=_AT_ONCE)
    for attempt in (1, 2):
        stage.until("memory", lambda s: _running(s, attempt))  # noqa: B023
        (pod,) = stage.live_pods("memory")
        faults.run_out_of_memory(stage.bench.cluster, stage.bench.namespace, pod)
    status = stage.end("memory")
    assert status["lastFailure"]["reason"] == "OOMKilled"
    assert status["lastFailure"]["class"] == "OutOfMemory"
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Failed", 2, 1)
    (failed,) = [c for c in status["conditions"] if c["type"] == "Failed"]
    assert "workers.resources.limits.memory" in failed["message"]


def _running(status: Json, attempt: int) -> bool:
    return status.get("phase") == "Running" and status.get("attempt") == attempt


def test_suspending_commits_and_resuming_goes_on(stage: Stage) -> None:
    """Nothing is held while a run is suspended, nothing is charged, no sample is lost."""
    stage.apply("suspended", **spec(2, {1: HOLDS}))
    stage.until("suspended", lambda s: _running(s, 1))
    stage.patch("suspended", suspend=True)
    status = stage.until("suspended", lambda s: s["phase"] == "Suspended")
    stage.wait_for_pods_to_go("suspended")
    assert status["currentAttempt"]["endedTime"]
    stage.patch("suspended", suspend=False)
    status = stage.end("suspended")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Complete", 2, 0)
    assert status.get("interruptions", 0) == 0
    assert [line[0] for line in stage.journal("suspended")] == list(range(1, STEPS + 1))


def test_scaling_goes_on_with_the_same_batches(stage: Stage) -> None:
    """1 → 3 → 2 workers: each global batch once, in the same order as of a run nobody scaled."""
    script: dict[int | str, Json] = {1: {"hold_at": 10}, 2: {"hold_at": 20}}
    stage.apply("scaled", **spec(1, script), scaleCooldown="0s")
    stage.apply("steady", **spec(1, {}))
    for attempt, nodes in ((1, 3), (2, 2)):
        stage.until("scaled", lambda s: _running(s, attempt) and s["progress"]["step"] >= 10)  # noqa: B023
        stage.scale("scaled", nodes)
    status = stage.end("scaled")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Complete", 3, 0)
    assert status["scaling"]["nodes"] == 2
    assert stage.end("steady")["phase"] == "Complete"
    assert stage.journal("scaled") == stage.journal("steady")


def test_a_deadline_holds_for_a_run_that_cannot_start(stage: Stage) -> None:
    """It waits for a claim, and the wait has an end."""
    later = {"persistentVolumeClaim": {"claimName": "absent"}, "interval": "20steps"}
    deadline = rfc3339(datetime.now(UTC) + timedelta(seconds=5), "seconds")
    stage.apply("late", **spec(1, {}), checkpoint=later, deadline=deadline)
    status = stage.end("late")
    assert status["phase"] == "Failed"
    (failed,) = [c for c in status["conditions"] if c["type"] == "Failed"]
    assert failed["reason"] == "DeadlineExceeded"


def test_what_the_end_leaves_is_as_the_user_says(stage: Stage) -> None:
    """cleanPodPolicy with a worker that does not end by itself, and the time to live."""
    stays: dict[int | str, Json] = {1: {"stays": True}}
    for policy in ("Running", "All", "None"):
        stage.apply(
            f"clean-{policy.lower()}",
            **spec(2, stays),
            cleanPodPolicy=policy,
            terminationGracePeriod="2s",
        )
    stage.apply("brief", **spec(1, {}), ttlSecondsAfterFinished=0)
    for policy in ("running", "all", "none"):
        assert stage.end(f"clean-{policy}")["phase"] == "Complete"
    stage.wait_until_gone("trun", "brief")
    assert stage.bench.folder.joinpath("checkpoints/brief").exists()
    stage.wait_until_gone("job", "clean-all-1")
    stage.wait_for_pods_to_go("clean-running")
    assert stage.job_names("clean-running") == ["clean-running-1"]
    assert len(stage.live_pods("clean-none")) == 1
    stage.delete("clean-none")


def test_a_terminal_run_is_never_begun_again(stage: Stage) -> None:
    """Its Job is deleted by hand, and it is written to; another run's whole life later there is
    no new Job."""
    stage.apply("done", **spec(1, {}))
    stage.end("done")
    stage.delete_job("done-1", "foreground")
    stage.patch("done", suspend=True)
    stage.patch("done", suspend=False)
    stage.apply("next", **spec(1, {}))
    stage.end("next")
    assert stage.job_names("done") == []
    assert stage.get("done")["status"]["phase"] == "Complete"


def test_a_run_of_another_controller_is_left_alone(stage: Stage) -> None:
    """No status, no children; handing it over is refused."""
    stage.apply("theirs", **spec(1, {}), managedBy="kueue.x-k8s.io/multikueue")
    stage.apply("ours", **spec(1, {}), managedBy="daybreak.dev/operator")
    assert stage.end("ours")["phase"] == "Complete"
    assert "status" not in stage.get("theirs")
    assert stage.job_names("theirs") == []
    with pytest.raises(client.ApiException, match="managedBy is immutable"):
        stage.patch("theirs", managedBy=None)


def test_a_run_is_deleted_in_any_phase(stage: Stage) -> None:
    """Nothing of it stays, whatever it was doing."""
    absent = {"persistentVolumeClaim": {"claimName": "absent"}, "interval": "20steps"}
    slow = {"failurePolicy": {"backoff": {"initial": "1h", "max": "1h"}}}
    runs: dict[str, Json] = {
        "Pending": spec(1, {}) | {"checkpoint": absent},
        "Queued": spec(2, {}),
        "Starting": spec(1, {"*": {"hold_at": 0}}),
        "Running": spec(2, {"*": HOLDS}),
        "Restarting": spec(1, {"*": fails()}) | slow,
        "Suspended": spec(1, {}) | {"suspend": True},
        "Complete": spec(1, {}),
        "Failed": spec(1, {"*": fails(64)}),
    }
    runs["Queued"]["workers"]["resources"] = {"requests": {"cpu": "1000"}}
    for phase, changes in runs.items():
        stage.apply(f"when-{phase.lower()}", **changes)
    for phase in runs:
        if phase == "Restarting":  # not only on the way there
            stage.until("when-restarting", lambda s: s.get("nextAttemptTime"))
        status = stage.until(f"when-{phase.lower()}", lambda s: s.get("phase") == phase)  # noqa: B023
        if phase == "Queued":
            (admitted,) = [c for c in status["conditions"] if c["type"] == "Admitted"]
            assert (admitted["status"], admitted["reason"]) == ("False", "Unschedulable")
    for phase in runs:
        stage.delete(f"when-{phase.lower()}")
    for phase in runs:
        stage.wait_until_nothing_is_left(f"when-{phase.lower()}")


def test_an_evicted_pod_commits_and_costs_no_restart(stage: Stage) -> None:
    """Through the eviction API, as `kubectl drain` does."""
    stage.apply("evicted", **spec(1, {1: HOLDS}))
    stage.until("evicted", lambda s: _running(s, 1) and s["progress"]["step"] >= HOLDS_AT)
    (pod,) = stage.live_pods("evicted")
    stage.evict(pod)
    status = stage.end("evicted")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Complete", 2, 0)
    assert status["lastFailure"]["class"] == "Interruption"
    assert status["currentAttempt"]["startStep"] >= HOLDS_AT


def test_what_users_write_stays_text(stage: Stage) -> None:
    """Prompts and environment arrive letter by letter; a name may be as long as it can be."""
    name = "n" * 45
    changes = spec(1, {})
    container = changes["workers"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "HOSTILE", "value": _HOSTILE[3]})
    stage.apply(name, **changes, evaluation={"prompts": list(_HOSTILE)})
    status = stage.end(name)
    assert status["phase"] == "Complete", status
    (told,) = (stage.bench.folder / "checkpoints" / name).glob(f"run-*/attempt-*/{SETTINGS}")
    assert tuple(json.loads(told.read_text())["evaluation"]["prompts"]) == _HOSTILE


def test_secrets_are_only_mounted(stage: Stage) -> None:
    """What a Secret holds is in no status, Event, ConfigMap, Job or pod."""
    core = client.CoreV1Api(stage.api)
    metadata = client.V1ObjectMeta(name="credentials")
    core.create_namespaced_secret(
        stage.bench.namespace, client.V1Secret(metadata=metadata, string_data={"key": _SECRET})
    )
    stream = {"url": "s3://bucket/data", "secretRef": {"name": "credentials"}}
    stage.apply("secretive", **spec(1, {1: fails()}), data={"streams": [stream]})
    assert stage.end("secretive")["phase"] == "Complete"
    kinds = "trun,jobs,pods,configmaps,services,networkpolicies,events"
    shown = stage.bench.cluster.kubectl("get", kinds, "-n", stage.bench.namespace, "-o", "json")
    for form in (_SECRET, base64.b64encode(_SECRET.encode()).decode()):
        assert form not in shown.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"seed": 7}}, "recipe is immutable"),
        ({"checkpoint": {"persistentVolumeClaim": {"claimName": "x"}}}, "is immutable"),
        ({"workers": {"minNodes": 3}}, "workers.nodes must not be below workers.minNodes"),
        ({"cleanPodPolicy": "Some"}, "cleanPodPolicy"),
    ],
)
def test_a_change_that_means_nothing_is_refused(stage: Stage, changes: Json, message: str) -> None:
    """By the API server, in words, while the run goes on."""
    name = f"fixed-{abs(hash(message)) % 1000}"
    stage.apply(name, **spec(1, {"*": HOLDS}))
    with pytest.raises(client.ApiException, match=message):
        stage.patch(name, **changes)
    stage.delete(name)


def test_nodes_that_are_of_no_use_are_given_back(stage: Stage) -> None:
    """One of two workers finds no node: the other's is released, free of charge, and the run tries
    again, for it has no minNodes."""
    changes = spec(2, {"*": HOLDS})
    changes["workers"]["resources"] = {"requests": {"memory": "10Gi"}}  # a node has 16
    health = {"schedulingDeadline": "3s"}
    stage.apply("halved", **changes, healthPolicy=health, failurePolicy=_AT_ONCE)
    status = stage.until("halved", lambda s: s.get("attempt") == 2)
    failure = status["lastFailure"]
    assert (failure["reason"], failure["class"]) == ("Unschedulable", "Interruption")
    assert "Insufficient memory" in failure["message"]
    assert (status["restarts"], status["interruptions"]) == (0, 1)
    stage.delete("halved")


@pytest.mark.e2e
def test_workers_that_hang_are_ended(stage: Stage) -> None:
    """Their own watchdog has two minutes to do it first; the scripted ones have none."""
    stage.apply(
        "hangs",
        **spec(1, {1: HOLDS}),
        healthPolicy={"progressDeadline": "1s"},
        failurePolicy=_AT_ONCE,
    )
    status = stage.until("hangs", lambda s: s.get("attempt") == 2)
    assert (status["lastFailure"]["reason"], status["lastFailure"]["class"]) == ("Hang", "Hang")
    assert status["restarts"] == 1
    assert stage.end("hangs")["phase"] == "Complete"
