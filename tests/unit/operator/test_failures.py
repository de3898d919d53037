"""Why an attempt ended, by what its pods show, and what the user's rules make of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from simulated_history import spec_of

from daybreak_operator.api.policies import FailurePolicy
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.failures import Failure, classify, ruled, stuck
from daybreak_operator.observation import JobView, PodView
from daybreak_trainer.contract import Termination

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(**changes: Any) -> JobView:
    view = {"parallelism": 2, "deleting": False, "failed": None, "worker_zero_done": False}
    given: dict[str, Any] = {"name": "r-1", "owner_uid": "u", "attempt": 1, "suspended": False}
    return JobView(**(given | view | changes))


def pod(
    index: int = 0,
    code: int | None = None,
    told: str | None = None,
    *,
    conditions: tuple[tuple[str, str, str], ...] = (),
    seconds: int = 0,
    deleting: bool = False,
    **status: Any,
) -> PodView:
    """As the API server shows it: ended with `code` and said `told`, or at work."""
    words = Termination(reason=told, message="why", exit_code=code or 0).to_json() if told else ""
    over = code is not None or "reason" in status
    ended = {
        "exitCode": code,
        "reason": status.pop("ended_as", "Error"),
        "message": words,
        "finishedAt": (NOW + timedelta(seconds=seconds)).isoformat(),
    }
    metadata: dict[str, Any] = {
        "name": f"r-1-{index}",
        "uid": f"uid-{index}",
        "labels": {
            "daybreak.dev/attempt": "1",
            "batch.kubernetes.io/job-completion-index": str(index),
        },
    }
    if deleting:
        metadata["deletionTimestamp"] = NOW.isoformat()
    state = {"terminated": ended} if code is not None else {"running": {}}
    body = {
        "metadata": metadata,
        "spec": {"nodeName": f"node-{index}"},
        "status": {
            "phase": "Failed" if over else "Running",
            "conditions": [
                {"type": kind, "status": value, "reason": reason}
                for kind, value, reason in conditions
            ],
            "containerStatuses": [{"name": "trainer", "state": state}],
            **status,
        },
    }
    return PodView.of(body)


def disrupted(reason: str) -> tuple[tuple[str, str, str], ...]:
    return (("DisruptionTarget", "True", reason),)


SILENT = (("Ready", "False", ""), ("ContainersReady", "True", ""))


@pytest.mark.parametrize(
    ("ended", "reason", "kind", "verdict", "blamed"),
    [
        (pod(code=1, told="Broken"), "Broken", "Unknown", "charged", False),
        (pod(code=64, told="BadRecipe"), "BadRecipe", "User", "final", False),
        (pod(code=65, told="BadData"), "BadData", "Data", "final", False),
        (pod(code=77, told="NonFinite"), "NonFinite", "User", "final", False),
        (pod(code=93, told="DoNotRestart"), "DoNotRestart", "User", "final", False),
        (pod(code=76, told="Hang"), "Hang", "Hang", "charged", False),
        (pod(code=75, told="Checkpointed"), "Checkpointed", "Interruption", "uncharged", False),
        (pod(code=143), "WorkerFailed", "Interruption", "uncharged", False),
        (pod(code=137), "WorkerFailed", "Infrastructure", "charged", False),
        (pod(code=134), "WorkerFailed", "Infrastructure", "charged", True),
        (pod(code=139), "WorkerFailed", "Infrastructure", "charged", True),
        (pod(code=1, told="BadDevice"), "BadDevice", "Infrastructure", "charged", True),
        (pod(code=137, ended_as="OOMKilled"), "OOMKilled", "OutOfMemory", "charged", False),
        (pod(code=1, told="OutOfMemory"), "OutOfMemory", "OutOfMemory", "charged", False),
        (
            pod(code=137, ended_as="ContainerStatusUnknown"),
            "NodeLost",
            "Infrastructure",
            "uncharged",
            False,
        ),
        (pod(reason="Evicted"), "Evicted", "Interruption", "uncharged", False),
        (
            pod(reason="UnexpectedAdmissionError"),
            "UnexpectedAdmissionError",
            "Infrastructure",
            "uncharged",
            True,
        ),
        (
            pod(code=137, conditions=disrupted("PreemptionByScheduler")),
            "Preempted",
            "Interruption",
            "uncharged",
            False,
        ),
        (
            pod(code=1, told="Broken", conditions=disrupted("EvictionByEvictionAPI")),
            "Broken",
            "Unknown",
            "uncharged",
            False,
        ),
        (
            pod(code=137, conditions=disrupted("DeletionByTaintManager")),
            "NodeLost",
            "Infrastructure",
            "uncharged",
            False,
        ),
        (pod(deleting=True, conditions=SILENT), "NodeLost", "Infrastructure", "uncharged", True),
    ],
)
def test_each_end_has_its_class(
    ended: PodView, reason: str, kind: str, verdict: str, blamed: bool
) -> None:
    """By termination message, exit code, how the container ended, conditions and node."""
    found = classify(job(), [ended, pod(1)])
    assert found is not None
    assert (found.reason, found.kind, found.verdict) == (reason, kind, verdict)
    assert found.blames_node == blamed


def test_a_node_that_the_operator_knows_to_be_lost() -> None:
    """Where it may read nodes: its pods are going, or have ended without a word."""
    lost = frozenset({"node-0"})
    for gone in (pod(deleting=True), pod(code=137)):
        found = classify(job(), [gone, pod(1)], lost)
        assert found is not None
        assert (found.reason, found.verdict) == ("NodeLost", "uncharged")


def test_the_first_to_fail_is_the_cause() -> None:
    """What follows is collateral."""
    found = classify(job(), [pod(0, 139, seconds=9), pod(1, 1, "Broken", seconds=3)])
    assert found is not None
    assert found.reason == "Broken"


def test_what_no_attempt_can_cure_is_the_cause_whatever_clocks_say() -> None:
    """The clock of a node may be an hour behind."""
    found = classify(job(), [pod(0, 143, seconds=-3600), pod(1, 65, "BadData")])
    assert found is not None
    assert (found.reason, found.verdict) == ("BadData", "final")


def test_peers_that_were_lost_tell_nothing_while_others_may() -> None:
    """Then all of them lost each other; and where one was removed, nobody is to blame."""
    lost = pod(0, 1, "PeerLost")
    assert classify(job(), [lost, pod(1)]) is None
    both = classify(job(), [lost, pod(1, 1, "PeerLost")])
    assert both is not None
    assert (both.reason, both.verdict) == ("PeerLost", "charged")
    removed = classify(job(), [lost])
    assert removed is not None
    assert (removed.reason, removed.verdict) == ("PodsLost", "uncharged")


def test_a_failed_job_without_pods() -> None:
    """Somebody removed them."""
    assert classify(job(), []) is None
    found = classify(job(failed="gone"), [])
    assert found is not None
    assert (found.reason, found.verdict) == ("PodsLost", "uncharged")


RULES: list[tuple[dict[str, Any], bool]] = [
    ({"onExitCodes": {"operator": "In", "values": [3, 42]}}, True),
    ({"onExitCodes": {"operator": "NotIn", "values": [42]}}, False),
    ({"onReasons": ["Broken"]}, True),
    ({"onReasons": ["Other"]}, False),
    ({"onClasses": ["Unknown"]}, True),
    ({"onClasses": ["Hang"]}, False),
    ({"onPodConditions": ["Flaky"]}, True),
    ({"onPodConditions": ["DisruptionTarget"]}, False),
]


@pytest.mark.parametrize(("on", "matches"), RULES)
def test_a_rule_decides_where_it_matches(on: dict[str, Any], matches: bool) -> None:
    """By exit code, reason, class or condition; the first in order."""
    first = {"name": "a", "action": "RestartUncharged", **on}
    last = {"name": "b", "action": "FailRun", "avoidNode": True, "onClasses": ["Unknown", "User"]}
    policy = FailurePolicy.model_validate({"rules": [first, last]})
    failure = Failure(
        "charged", "Broken", "why", "Unknown", exit_code=42, conditions=frozenset({"Flaky"})
    )
    found = ruled(failure, policy)
    assert (found.rule, found.verdict) == (("a", "uncharged") if matches else ("b", "final"))
    assert found.avoid_node != matches


def test_an_end_without_exit_code_matches_no_rule_on_codes() -> None:
    """NotIn neither."""
    rule = {
        "name": "a",
        "action": "FailRun",
        "onExitCodes": {"operator": "NotIn", "values": [1]},
    }
    policy = FailurePolicy.model_validate({"rules": [rule]})
    assert ruled(Failure("uncharged", "NodeLost", "why"), policy).rule is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("ErrImagePull", "ImagePullFailed"), ("CreateContainerConfigError", "ContainerNotStarted")],
)
def test_a_container_that_cannot_start_is_final_in_time(reason: str, expected: str) -> None:
    """With the kubelet's own words."""
    waiting = {"waiting": {"reason": reason, "message": "it is not there"}}
    body = {
        "metadata": {"name": "r-1-0", "uid": "x"},
        "status": {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "True",
                    "lastTransitionTime": NOW.isoformat(),
                }
            ],
            "containerStatuses": [{"name": "trainer", "state": waiting}],
        },
    }
    pods, spec = [PodView.of(body)], TrainingRunSpec.model_validate(spec_of())
    assert stuck(pods, spec, NOW, NOW + timedelta(minutes=2)) is None
    found = stuck(pods, spec, NOW, NOW + timedelta(minutes=4))
    assert found is not None
    assert (found.reason, found.verdict) == (expected, "final")
    assert "it is not there" in found.message


@pytest.mark.parametrize("text", ["", "soon", "2026-01-01", "2026-01-01T00:00:00", "2026-W01-1T0"])
def test_what_is_no_time_is_no_message(text: str) -> None:
    """A worker that says such things is not heard: a status with them would be refused, and the run
    could not be decided on any more."""
    told = Termination(reason="Broken", message="why", exit_code=1)
    commit = {"step": 1, "time": text, "url": "s3://c/1"}
    raw = json.dumps(json.loads(told.to_json()) | {"checkpoint": commit})
    assert Termination.decode(told.to_json()) == told
    assert Termination.decode(raw) is None


@pytest.mark.parametrize("text", ["x", "-1", "1e9", "٣", "9" * 5000])
def test_a_pod_that_somebody_labelled_is_no_trouble(text: str) -> None:
    """Any pod of the namespace may carry a run's label, with whatever else."""
    labels = {"daybreak.dev/attempt": text, "batch.kubernetes.io/job-completion-index": text}
    seen = PodView.of({"metadata": {"name": "p", "uid": "u", "labels": labels}})
    assert (seen.attempt, seen.index) == (0, 0)
