"""What a run's life is made of, one rule at a time, in a simulated cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from simulated_history import History, spec_of
from simulated_training import Exit
from training_history import FREE, condition, crash, history

from daybreak_operator.decide import decide
from daybreak_trainer.contract import FINAL_EXIT_CODES, EarlyEnd, Progress, Termination, rfc3339


def names(made: History) -> list[str]:
    return [body["metadata"]["name"] for body in made.api.created]


def test_a_new_run_gets_one_job() -> None:
    """The attempt's number is stored before its Job is made."""
    made = History(spec_of(), 2)
    made.operator.publish()
    made.operator.look()
    assert (made.status["attempt"], made.cluster.jobs) == (1, {})
    made.operator.advance(30)
    assert names(made) == ["r-1"]
    assert made.status["phase"] == "Running"


def test_a_recipe_that_cannot_be_ends_the_run_before_anything_is_made() -> None:
    """At once, and not only when what else is missing has been put right."""
    recipe = {"preset": "smoke", "schedule": {"cooldownShare": 1}}
    storage = {"storage": "s3://c", "secretRef": {"name": "keys"}}
    made = History(spec_of(recipe=recipe, checkpoint=storage), 2)
    made.api.absent.add("keys")
    made.operator.advance(5)
    assert condition(made, "Failed")["reason"] == "InvalidRecipe"
    assert "schedule.cooldownShare" in condition(made, "Failed")["message"]
    assert (made.api.created, made.cluster.objects, made.cluster.pods) == ([], {}, {})


@pytest.mark.parametrize("code", sorted(FINAL_EXIT_CODES))
def test_what_a_restart_cannot_cure_ends_the_run(code: int) -> None:
    """At once, with the worker's own message."""
    made = history()
    crash(made, code, index=1)
    assert made.status["phase"] == "Failed"
    assert made.status["lastFailure"]["message"] == "why"
    assert names(made) == ["r-1"]


@pytest.mark.parametrize(("trained", "phase"), [(30, "Running"), (0, "Failed")])
def test_a_store_that_has_served_a_run_is_waited_for(trained: int, phase: str) -> None:
    """It was made read-only for a while, say. One that refuses a run from the start has wrong keys
    or another fault that stays."""
    made = history(failurePolicy=FREE)
    made.operator.advance(trained)
    assert (made.status.get("checkpoint") is not None) == bool(trained)
    told = Termination(reason="StorageRefused", message="read-only", exit_code=64)
    zero = next(p for p in made.cluster.pods.values() if p.index == 0 and p.runs)
    zero.end(Exit(64, message=told.to_json()), made.cluster.now)
    made.operator.advance(60)
    assert (made.status["phase"], made.status["restarts"]) == (phase, bool(trained))


def test_crashes_are_charged_until_the_limit() -> None:
    """maxRestarts 2: three attempts, then the run fails and says so."""
    made = history(failurePolicy=FREE)
    for _ in range(3):
        crash(made)
    assert condition(made, "Failed")["reason"] == "RestartLimitExceeded"
    assert (made.status["restarts"], names(made)) == (2, ["r-1", "r-2", "r-3"])


def test_the_budget_slides() -> None:
    """What failed before the window does not count."""
    made = history(failurePolicy=FREE | {"window": "90s"})
    for _ in range(4):
        crash(made, then=60)
    assert (made.status["phase"], made.status["restarts"]) == ("Running", 4)


def test_durations_beyond_the_range_of_dates_are_long_ones() -> None:
    """The schema refuses them; a run may have been stored before it did."""
    ever = "99999999h"
    health = spec_of()["healthPolicy"] | {"nodeWindow": ever, "schedulingDeadline": ever}
    made = history(failurePolicy=FREE | {"window": ever}, healthPolicy=health, scaleCooldown=ever)
    made.scale(1)
    crash(made, 139)
    assert (made.status["phase"], made.status["restarts"]) == ("Running", 1)


def test_attempts_without_a_newer_commit_end_the_run() -> None:
    """noProgressLimit in a row."""
    made = history(failurePolicy=FREE | {"maxRestarts": 9, "noProgressLimit": 2})
    crash(made)
    crash(made)
    assert condition(made, "Failed")["reason"] == "NoProgress"


def test_a_commit_resets_what_counts_attempts_without_one() -> None:
    """noProgressLimit and the back-off."""
    made = history(failurePolicy=FREE | {"maxRestarts": 9, "noProgressLimit": 2})
    crash(made, then=80)
    assert made.status["checkpoint"]["step"] > 0
    crash(made)
    assert (made.status["noProgress"], made.status["fruitless"]) == (0, 0)
    assert made.status["phase"] == "Running"


def test_the_back_off_doubles_up_to_its_limit() -> None:
    """While nothing new is committed; runs do not have a quarter of it in common."""
    backoff = {"initial": "10s", "max": "30s"}
    made = history(failurePolicy=FREE | {"maxRestarts": 9, "backoff": backoff})
    ends, waited = [], []
    for _ in range(4):
        crash(made, code=143, then=3)
        ends.append(made.cluster.now)
        number = len(made.api.created)
        while len(made.api.created) == number:
            made.operator.advance(1)
        waited.append(made.cluster.now - ends[-1])
        made.operator.advance(25)
    for seconds, longest in zip(waited, [10, 20, 30, 30], strict=True):
        assert 0.75 * longest - 3 <= seconds <= longest + 3


@pytest.mark.parametrize("code", [75, 143])
def test_stops_on_request_are_free(code: int) -> None:
    """However many."""
    made = history(failurePolicy=FREE)
    for _ in range(5):
        crash(made, code)
    status = made.status
    assert (status["restarts"], status["interruptions"], status["attempt"]) == (0, 5, 6)


def test_out_of_memory_twice_is_final() -> None:
    """A third attempt would end the same way."""
    made = history(failurePolicy=FREE)
    for _ in range(2):
        made.out_of_memory(0)
        made.operator.advance(45)
    assert condition(made, "Failed")["reason"] == "OOMKilled"
    assert "limits.memory" in condition(made, "Failed")["message"]


def test_missing_objects_are_waited_for() -> None:
    """No attempt starts while something the spec names does not exist."""
    made = History(spec_of(), 2)
    made.operator.publish()
    made.operator.look()
    assert made.operator.last is not None
    decision = decide(replace(made.operator.last, missing=("Secret x does not exist.",)))
    assert decision is not None
    assert (decision.status.phase, decision.create_job) == ("Pending", None)
    assert decision.again_seconds is not None


def test_an_end_before_the_last_step_is_an_event() -> None:
    """A new one where it moves, with what helps."""
    made = history()
    seen = made.operator.last
    assert seen is not None
    started = rfc3339(seen.now)
    messages = []
    for step in (None, 1700, 1600):
        end = step and EarlyEnd(step=step, limit="spec.deadline", remedy="put it off")
        told = Progress(
            run_uid=seen.run.uid,
            attempt=1,
            phase="Training",
            total_steps=3000,
            ends_early=end,
            started_at=started,
            updated_at=started,
        )
        decision = decide(replace(seen, progress=told))
        assert decision is not None
        messages.append([note.message for note in decision.events])
    told_of = "spec.deadline ends the run at about step {} of 3000: put it off"
    assert messages == [[], [told_of.format(1700)], [told_of.format(1600)]]


def test_what_another_runs_worker_says_is_not_ours() -> None:
    """Pods that share a network may answer at each other's address."""
    made = history()
    seen = made.operator.last
    assert seen is not None
    assert seen.progress is not None
    other = seen.progress.model_copy(update={"run_uid": "other", "step": 10**6})
    decision = decide(replace(seen, progress=other))
    assert decision is not None
    assert decision.status.progress == seen.run.status.progress


def test_suspend_commits_and_resume_goes_on() -> None:
    """No workers while suspended; the next attempt begins where the last stopped."""
    made = history()
    assert "estimatedCompletionTime" in made.status["progress"]
    made.suspend(True)
    made.operator.advance(1)
    assert (made.status["phase"], condition(made, "Suspended")["status"]) == ("Suspended", "False")
    assert "estimatedCompletionTime" not in made.status["progress"]
    made.operator.advance(59)
    assert condition(made, "Suspended")["status"] == "True"
    assert (made.status["phase"], made.cluster.jobs, made.cluster.pods) == ("Suspended", {}, {})
    step = made.status["checkpoint"]["step"]
    made.suspend(False)
    made.operator.advance(30)
    assert names(made) == ["r-1", "r-2"]
    assert made.status["currentAttempt"]["startStep"] == step > 0
    seen = made.operator.last
    assert seen is not None
    assert seen.progress is not None
    starting = seen.progress.model_copy(update={"step": 0, "first_step_at": None})
    decision = decide(replace(seen, progress=starting))
    assert decision is not None
    assert decision.status.progress is not None
    assert decision.status.progress.step == step, "it looks as if all were lost"
    assert made.status["ledger"]["lostSeconds"]["suspended"] > 30
    told = [note.message for note in made.api.recorded if note.reason == "Resumed"]
    assert told == [f"spec.suspend is false: training goes on from step {step}"]


def test_days_of_suspension_are_not_held_after_an_upgrade() -> None:
    """A version from before `releasedTime` has left it out where its workers were long gone."""
    made = history()
    made.suspend(True)
    made.operator.advance(60)
    before = made.status["ledger"]
    old = dict(made.status)
    old["currentAttempt"] = {k: v for k, v in old["currentAttempt"].items() if k != "releasedTime"}
    made.down(10)
    made.operator.advance(86400)
    made.api._write({**made.api.run, "status": old})  # type: ignore[dict-item]
    made.operator.advance(10)
    made.suspend(False)
    made.operator.advance(1)
    after = made.status["ledger"]
    assert after["lostSeconds"]["suspended"] > 86400
    assert after["lostSeconds"]["stopping"] == before["lostSeconds"]["stopping"] > 0


def failed_at_work() -> History:
    """A run that has just failed by a limit, while its workers commit."""
    made = history(activeDeadline="70s")
    while made.status["phase"] != "Failed":
        made.operator.advance(1)
    assert any(not pod.over for pod in made.cluster.pods.values())
    return made


def test_a_failed_run_holds_its_devices_until_its_last_worker_is_gone() -> None:
    """Its ledger is closed then, once; while they go, condition Admitted says so."""
    made = failed_at_work()
    before = made.status["ledger"]["heldSeconds"]
    assert condition(made, "Admitted")["reason"] == "Stopping"
    made.operator.advance(60)
    assert condition(made, "Admitted")["reason"] == "NotAdmitted"
    assert "releasedTime" in made.status["currentAttempt"]
    assert made.status["ledger"]["heldSeconds"] > before


def test_the_ledger_of_a_run_that_failed_before_an_upgrade_stays_closed() -> None:
    """An earlier version closed it at once, and left `releasedTime` out."""
    made = failed_at_work()
    told = condition(made, "Admitted") | {"reason": "NotAdmitted", "message": ""}
    others = [c for c in made.status["conditions"] if c["type"] != "Admitted"]
    old = made.status | {"conditions": [told, *others]}
    made.operator.advance(60)
    made.down(10)
    old |= {"checkpoint": made.status["checkpoint"]}
    made.api._write({**made.api.run, "status": old})  # type: ignore[dict-item]
    made.operator.advance(60)
    assert made.status["ledger"] == old["ledger"]
    assert made.status["currentAttempt"] == old["currentAttempt"]


def test_a_new_leader_that_knows_no_pods_yet_closes_no_ledger() -> None:
    """It asks the API server first: what is closed stays closed."""
    made = failed_at_work()
    made.operator.start()
    for kind in ("Job", "Pod"):
        made.late((kind, 20))
    made.operator.publish()
    made.operator.look()
    assert any(not pod.over for pod in made.cluster.pods.values())
    assert "releasedTime" not in made.status["currentAttempt"]
    made.operator.advance(60)
    assert "releasedTime" in made.status["currentAttempt"]


def test_a_resize_is_a_new_attempt_at_the_new_size() -> None:
    """After a commit, not charged."""
    made = history(4)
    made.scale(3)
    made.operator.advance(40)
    assert [body["spec"]["parallelism"] for body in made.api.created] == [2, 3]
    assert (made.status["restarts"], made.status["scaling"]["reason"]) == (0, "Requested")
    assert made.status["currentAttempt"]["startStep"] > 0


def test_a_run_whose_size_is_refused_starts_at_the_size_it_gets_then() -> None:
    """A quota or policy that has no room for eight nodes is no reason to ask for eight again."""
    made = History(spec_of(workers={"nodes": 8}), 2)
    made.refuse(("Job", 20))
    made.operator.advance(10)
    assert condition(made, "Running")["reason"] == "ObjectRefused"
    made.scale(2)
    made.operator.advance(90)
    assert [body["spec"]["parallelism"] for body in made.api.created] == [2]
    assert (made.status["phase"], made.status["attempt"]) == ("Running", 1)


def test_hours_are_counted_of_the_devices_that_an_attempt_gets() -> None:
    """Which may be fewer than those that a quota had refused it."""
    eight, four = ({"limits": {"nvidia.com/gpu": count}} for count in (8, 4))
    made = History(spec_of(workers={"resources": eight}), 2)
    made.refuse(("Job", 20))
    made.operator.advance(10)
    made.api.edit(workers={"image": "i", "nodes": 2, "resources": four})
    made.operator.advance(90)
    (body,) = made.api.created
    (worker,) = body["spec"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] in (4, "4")
    assert made.status["currentAttempt"]["devicesPerNode"] == 4
    ledger = made.status["ledger"]
    assert ledger["deviceSeconds"] == 2 * 4 * ledger["heldSeconds"] > 0


def test_a_second_resize_waits_for_the_cooldown() -> None:
    """And says so."""
    made = history(4)
    made.scale(3)
    made.operator.advance(40)
    made.scale(1)
    made.operator.advance(5)
    assert condition(made, "Degraded")["reason"] == "ScaleCooldown"
    assert len(made.api.created) == 2
    made.operator.advance(60)
    assert [body["spec"]["parallelism"] for body in made.api.created] == [2, 3, 1]


@pytest.mark.parametrize("readable", [True, False])
def test_a_run_goes_on_smaller_and_grows_back(readable: bool) -> None:
    """With the nodes there are, down to minNodes; back when one is free and the operator may see
    it, else at the next restart."""
    made = history(2, {"nodes": 2, "minNodes": 1}, readable_nodes=readable)
    made.node_down(1)
    made.operator.advance(400)
    assert made.status["currentAttempt"]["nodes"] == 1
    assert made.status["scaling"]["reason"] == "NodesLost"
    made.node_up(1)
    made.operator.advance(100 if readable else 30)
    if not readable and made.status["phase"] == "Running":
        assert made.status["currentAttempt"]["nodes"] == 1
        crash(made, 75)
    if made.status["phase"] != "Complete":
        assert made.status["currentAttempt"]["nodes"] == 2
        assert made.status["scaling"]["reason"] == "GrownBack"


def test_without_min_nodes_workers_that_hold_nodes_in_vain_give_them_back() -> None:
    """And the run tries again until there are enough."""
    made = history(1, {"nodes": 2})
    made.operator.advance(120)
    assert made.status["lastFailure"]["reason"] == "Unschedulable"
    assert made.status["restarts"] == 0


def test_queueing_kills_no_run() -> None:
    """Workers that all wait are queued, and the condition says for what."""
    made = history(0, activeDeadline="10m")
    made.operator.advance(4000)
    assert made.status["phase"] == "Queued"
    admitted = condition(made, "Admitted")
    assert admitted["reason"] == "Unschedulable"
    assert "0 nodes are available; each of spec.workers.nodes (2) asks for" in admitted["message"]


def test_pods_that_a_deleted_job_left_behind_are_waited_for_until_they_end() -> None:
    """Nobody removes them, so the next attempt begins when they are at work no more."""
    made = history()
    made.delete_job("Orphan")
    made.operator.advance(20)
    assert names(made) == ["r-1"]
    assert "r-1-0 has lost its Job" in condition(made, "Running")["message"]
    made.operator.advance(160)
    assert made.operator.decision is not None
    assert made.operator.decision.again_seconds == 15  # each look asks for two lists
    for pod in made.cluster.pods.values():
        pod.end(Exit(143), made.cluster.now)
    made.operator.advance(20)
    assert names(made) == ["r-1", "r-2"]


def test_a_status_that_was_lost_makes_no_second_job() -> None:
    """The one that is there is the run's, and goes on."""
    made = history()
    made.api._write({**made.api.run, "status": {}})  # type: ignore[dict-item]
    made.operator.advance(350)
    assert names(made) == ["r-1"]
    assert (made.status["phase"], made.status["attempt"]) == ("Complete", 1)


def test_an_old_view_of_the_run_makes_no_job_again() -> None:
    """What the API server would refuse as a status, it has to be asked about where none is
    written."""
    made = History(spec_of(workers={"nodes": 1}), 2)
    operator = made.operator
    for _ in range(2):  # the number, the Job
        operator.publish()
        operator.look()
    operator.publish()
    operator.late_until["Run"] = 60.0
    made.cluster.tick(1)
    operator.publish()
    operator.look()  # the Job is on record, and the operator does not hear of that
    made.delete_job("Background")
    operator.advance(30)
    assert names(made) == ["r-1"]
    operator.advance(60)
    assert names(made) == ["r-1", "r-2"]


def test_an_eviction_ends_the_attempt_and_is_not_charged() -> None:
    """The next one queues again."""
    made = history(queue=True)
    made.cluster.admits = False
    made.evict(0)
    made.operator.advance(60)
    status = made.status
    assert (status["phase"], status["restarts"], status["interruptions"]) == ("Queued", 0, 1)
    assert names(made) == ["r-1", "r-2"]


def test_two_failures_of_a_node_keep_the_run_off_it() -> None:
    """By the affinity of the next Job; the run trains elsewhere."""
    made = history(3, {"nodes": 1}, failurePolicy=FREE)
    crash(made, 139)
    crash(made, 139)
    terms = made.api.created[-1]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert "node-0" in str(terms)
    (pod,) = made.cluster.pods.values()
    assert pod.node is not None
    assert pod.node.name == "node-1"


def test_a_suspect_node_is_none_to_grow_back_on() -> None:
    """The next attempt would keep off it, and hold the others in vain."""
    made = history(2, {"nodes": 2, "minNodes": 1}, failurePolicy=FREE)
    crash(made, 139, index=1)
    crash(made, 139, index=1)
    made.operator.advance(90)
    assert made.status["scaling"]["reason"] == "NodesLost"
    attempts = len(made.api.created)
    made.operator.advance(150)
    assert (len(made.api.created), made.status["phase"]) == (attempts, "Running")


def test_a_run_with_no_other_nodes_goes_back_to_its_suspects() -> None:
    """After schedulingDeadline: it would wait for ever."""
    made = history(1, {"nodes": 1}, failurePolicy=FREE)
    crash(made, 139)
    crash(made, 139)
    assert made.status["phase"] == "Queued"
    made.operator.advance(200)
    assert made.status["phase"] == "Running"


def test_a_dead_nodes_pod_is_forced_and_the_run_goes_on() -> None:
    """Nobody else would ever end it."""
    made = history(3)
    made.node_down(0)
    made.operator.advance(320)
    assert made.status["phase"] in ("Running", "Starting", "Complete")
    assert made.status["lastFailure"]["reason"] == "NodeLost"
    assert made.status["restarts"] == 0


def test_a_pod_that_was_to_end_before_its_node_was_known_to_be_dead_is_forced_soon() -> None:
    """It never started: only the taint manager's mark shows that its node will not end it."""
    made = History(spec_of(), 3)
    made.node_down(0)
    made.operator.advance(5)
    made.suspend(True)
    made.operator.advance(60)
    assert condition(made, "Suspended")["status"] == "False"
    made.operator.advance(90)
    assert condition(made, "Suspended")["status"] == "True"
    assert not made.cluster.pods


def test_a_start_that_takes_too_long_is_a_hang() -> None:
    """From admission on."""
    made = History(spec_of(), 2)
    made.operator.advance(10)
    made.hang(0)
    made.operator.advance(310)
    assert made.status["lastFailure"]["reason"] == "StartupDeadlineExceeded"
    assert made.status["lastFailure"]["class"] == "Hang"


def test_a_hang_is_ended_where_the_launcher_does_not() -> None:
    """After its own clock would have run out."""
    made = history()
    made.hang(0)
    made.operator.advance(230)
    assert made.status["phase"] == "Running"
    made.operator.advance(60)
    assert made.status["lastFailure"]["reason"] == "Hang"


def test_a_ready_worker_that_cannot_be_reached_is_left_alone() -> None:
    """The network may be at fault, and it trains."""
    made = history()
    made.unreachable(10**6)
    made.operator.advance(150)
    assert condition(made, "Degraded")["reason"] == "WorkerSilent"
    made.operator.advance(300)
    assert (made.status["phase"], made.status["attempt"]) == ("Complete", 1)


def test_a_worker_on_a_node_that_went_silent_has_not_hung() -> None:
    """It could not be reached before, so its clock has run out when its node is missed: that is not
    charged."""
    made = history(2, {"nodes": 1})
    made.unreachable(200)
    made.operator.advance(150)
    made.node_down(0)
    made.operator.advance(150)
    assert made.status["lastFailure"]["reason"] == "NodeLost"
    assert (made.status["restarts"], made.status["interruptions"]) == (0, 1)


def test_an_image_that_is_not_there_fails_the_run_with_its_cause() -> None:
    """After imagePullDeadline; until then it is said in condition Degraded."""
    made = History(spec_of(), 2)
    made.image(False)
    made.operator.advance(60)
    assert condition(made, "Degraded")["reason"] == "ImagePullBackOff"
    made.operator.advance(180)
    assert condition(made, "Failed")["reason"] == "ImagePullFailed"
    assert "no such image" in condition(made, "Failed")["message"]


@pytest.mark.parametrize(
    ("limit", "reason", "seconds"),
    [
        ({"activeDeadline": "100s"}, "DeadlineExceeded", 150),
        ({"deadline": "2026-01-01T00:02:00Z"}, "DeadlineExceeded", 800),
        ({"budget": {"duration": "1m"}}, "BudgetExhausted", 800),
        ({"budget": {"gpuHourPrice": "60", "maxCost": "2"}}, "BudgetExhausted", 800),
    ],
)
def test_limits_end_a_run_whose_workers_do_not(
    limit: dict[str, Any], reason: str, seconds: int
) -> None:
    """Ten minutes after those that workers know of themselves. What the last of them take to go is
    in the ledger as well."""
    health = spec_of()["healthPolicy"] | {"startupDeadline": "2h"}
    made = History(spec_of(healthPolicy=health, **limit), 2)
    made.operator.advance(5)
    made.image(True)
    for job in made.cluster.jobs.values():
        job.gang.told_at = 10**6  # the watchdog of its launcher hangs too
        job.gang.hung = True
    made.operator.advance(seconds)
    assert condition(made, "Failed")["reason"] == reason
    made.operator.advance(120)
    assert not [pod for pod in made.cluster.pods.values() if not pod.over]
    ledger = made.status["ledger"]
    assert abs(ledger["heldSeconds"] - made.held_seconds) <= 4
    assert ledger["accountedUntil"] > made.status["completionTime"]


def test_a_deadline_that_has_passed_says_what_to_do() -> None:
    """Its class is that of the trainer's LimitReached: another attempt would not cure it."""
    made = history(deadline="2020-01-01T00:00:00Z")
    failure = made.status["lastFailure"]
    assert (failure["reason"], failure["class"]) == ("DeadlineExceeded", "User")
    assert "create it again with a later one, and with checkpoint.resumeFrom" in failure["message"]


@pytest.mark.parametrize("deadline", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:60-01:00"])
def test_a_deadline_at_the_end_of_all_time_is_none(deadline: str) -> None:
    """People write it for "never"."""
    assert history(deadline=deadline).status["phase"] == "Running"


@pytest.mark.parametrize("policy", ["Running", "All", "None"])
def test_a_run_that_a_limit_ends_names_its_last_commit(policy: str) -> None:
    """Which its workers make when they are asked to end, after the run has failed: another run
    resumes from there."""
    made = history(activeDeadline="70s", cleanPodPolicy=policy)
    made.operator.advance(120)
    assert condition(made, "Failed")["reason"] == "DeadlineExceeded"
    last = made.cluster.storage.newest(made.api.run["metadata"]["uid"])  # type: ignore[index]
    assert last is not None
    assert made.status["checkpoint"]["step"] == last.step > made.status["progress"]["step"]


@pytest.mark.parametrize("policy", ["Running", "All", "None"])
@pytest.mark.parametrize("code", [0, 65])
def test_what_remains_when_a_run_is_over(policy: str, code: int) -> None:
    """All: nothing. Else: the Job and the pods that ended, with their logs; none at work."""
    made = history(cleanPodPolicy=policy)
    if code:
        crash(made, code)
    made.operator.advance(350)
    assert made.status["phase"] == ("Failed" if code else "Complete")
    assert not [pod for pod in made.cluster.pods.values() if not pod.over]
    assert bool(made.cluster.jobs) == (policy != "All")


def test_a_run_is_deleted_when_its_time_to_live_is_over() -> None:
    """And everything with it."""
    made = history(ttlSecondsAfterFinished=100)
    made.operator.advance(300)
    assert made.status["phase"] == "Complete"
    made.operator.advance(120)
    assert made.api.run is None
    assert (made.cluster.jobs, made.cluster.pods) == ({}, {})


def test_another_controllers_run_is_left_alone() -> None:
    """managedBy."""
    made = history(managedBy="kueue.x-k8s.io/multikueue")
    assert (made.api.created, made.api.statuses) == ([], [])


def test_a_sidecar_does_not_keep_a_run_from_completing() -> None:
    """The trainer's own container says that it is done."""
    made = history()
    seen = made.operator.last
    assert seen is not None
    pods = tuple(replace(pod, exit_code=0) for pod in seen.pods)
    decision = decide(replace(seen, pods=pods))
    assert decision is not None
    assert decision.status.phase == "Complete"


def test_where_nothing_happens_nothing_is_written() -> None:
    """Not even as time goes by."""
    made = history()
    made.hang(0)
    made.operator.advance(10)
    written = len(made.api.statuses)
    made.operator.advance(100)
    assert len(made.api.statuses) == written


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_clocks_of_workers_do_not_move_the_ledger(skew: float) -> None:
    """An hour ahead or behind: the accounts are those of our clock."""
    made = history(skew=skew)
    made.operator.advance(350)
    ledger = made.status["ledger"]
    assert made.status["phase"] == "Complete"
    assert abs(ledger["heldSeconds"] - made.held_seconds) <= 5
    assert ledger["productiveSeconds"] > 200
    assert ledger["lostSeconds"]["startup"] < 30


def test_decisions_are_the_same_for_the_same_observation() -> None:
    """Pure, and an observation of what was decided changes nothing more."""
    made = history()
    assert made.api.run is not None
    seen = made.operator.last
    assert seen is not None
    assert decide(seen) == decide(seen)


def test_a_lost_peer_waits_for_the_cause() -> None:
    """A pod that only lost its peer does not decide while the other is still ending."""
    made = history()
    told = Termination(reason="PeerLost", message="why", exit_code=1)
    zero = next(pod for pod in made.cluster.pods.values() if pod.index == 0)
    zero.end(Exit(1, message=told.to_json()), made.cluster.now)
    made.operator.publish()
    made.operator.look()
    assert "lastFailure" not in made.status
    crash(made, 65, index=1)
    assert made.status["lastFailure"]["reason"] == "BadData"
    assert made.status["phase"] == "Failed"


def test_a_pod_that_prepares_is_no_worker_of_an_attempt() -> None:
    """Whatever number somebody has put on it."""
    made = history()
    seen = made.operator.last
    assert seen is not None
    other = replace(seen.pods[0], uid="other", phase="Failed", exit_code=65, prepares=True)
    decision = decide(replace(seen, pods=(other, *seen.pods)))
    assert decision is not None
    assert decision.status.phase == "Running"


def test_between_attempts_there_are_no_workers() -> None:
    """An autoscaler reads the run's size from the scale subresource: none while it is suspended and
    when it has ended. Pods that have prepared the data are none of them."""
    made = history()
    assert made.status["workers"]["desired"] == 2
    made.suspend(True)
    made.operator.advance(60)
    assert made.status["phase"] == "Suspended"
    assert (made.status["workers"]["desired"], made.status["workers"]["summary"]) == (0, "0/2")
    assert made.status["workers"]["selector"] == "daybreak.dev/run=r,!daybreak.dev/role"
    made.suspend(False)
    made.operator.advance(60)
    assert made.status["workers"]["summary"] == "2/2"
    crash(made, 65)
    assert (made.status["phase"], made.status["workers"]["ready"]) == ("Failed", 0)


def test_an_upgrade_ends_no_attempt_that_trains() -> None:
    """An earlier version kept no times of an attempt; that worker 0 does not answer the first
    question is no late start."""
    made = history()
    seen = made.operator.last
    assert seen is not None
    assert seen.run.status.phase == "Running"
    then = seen.run.status.model_copy(update={"current_attempt": None, "ledger": None})
    old = replace(
        seen,
        run=replace(seen.run, status=then),
        progress=None,
        now=seen.now + timedelta(hours=3),
    )
    decision = decide(old)
    assert decision is not None
    assert (decision.status.phase, decision.delete_jobs) == ("Running", ())


def test_a_job_whose_end_a_new_watch_does_not_tell_is_missed_soon() -> None:
    """Its deletion is under way when the watch begins anew: ten minutes with a Job that does not
    exist would be ten minutes of nodes that do nothing."""
    made = History(spec_of(workers={"nodes": 1}), 2)
    made.operator.advance(5)
    made.out_of_memory(0)
    made.operator.advance(1)
    made.delete_job("Background")
    made.relist("Job")
    made.operator.advance(60)
    assert (made.status["attempt"], made.status["phase"]) == (2, "Running")
