"""Looks at a run, the cache and the API server's own word, against a small API server over HTTP."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from kubernetes.aio.client.exceptions import ApiException
from one_run_server import (
    INDEX,
    JOB,
    KEY,
    LABELS,
    POD,
    RUN,
    Server,
    between_attempts,
    changed,
    ended,
    serving,
)

from daybreak_operator.cache import Cache
from daybreak_trainer.contract import rfc3339


async def test_a_job_that_the_cache_does_not_know_yet_is_not_replaced() -> None:
    """After a start the run may be known before its Job: the attempt goes on, alone."""
    server, cache = Server(jobs=[JOB], pods=[POD]), Cache()
    cache.run_event(None, RUN)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    attempts = [body["status"]["attempt"] for _, _, body in server.writes]
    assert set(attempts) <= {1}
    assert {method for method, _, _ in server.writes} <= {"PUT"}


@pytest.mark.parametrize("uid", ["job", "another's"])
async def test_only_the_job_that_was_meant_is_deleted(uid: str) -> None:
    """Between the look and the deletion its Job has gone, and somebody has made one of its name."""
    job = changed(JOB)
    job["metadata"]["uid"] = uid
    run = changed(RUN)
    run["spec"]["suspend"] = True
    server, cache = Server(jobs=[job], pods=[POD]), Cache()
    cache.run_event(None, run)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert server.writes[-1][0] == ("DELETE" if uid == "job" else "PUT")
    assert server.jobs == ([] if uid == "job" else [job])


async def test_a_failure_is_judged_by_all_pods() -> None:
    """The cache knows the pod that stopped on request, and not yet the one that crashed before: the
    attempt is charged."""
    other = changed(POD)
    other["metadata"] |= {"name": "r-1-1", "uid": "other", "labels": LABELS | {INDEX: "1"}}
    job = changed(JOB)
    job["spec"]["parallelism"] = 2
    run = changed(RUN)
    run["spec"]["workers"]["nodes"] = 2

    stopped, crashed = ended(POD, 75, 9), ended(other, 137, 1)
    server, cache = Server(jobs=[job], pods=[stopped, crashed]), Cache()
    cache.run_event(None, run)
    cache.child_event("Job", None, job)
    cache.child_event("Pod", None, stopped)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    told = {(s["restarts"], s["lastFailure"]["exitCode"]) for s in server.statuses()}
    assert told == {(1, 137)}


async def test_a_job_whose_deletion_nobody_told_is_missed() -> None:
    """A watch that starts anew tells of no deletion: within ten minutes the cache is compared, and
    the run goes on."""
    server, cache, clock = Server(), Cache(), [0.0]
    cache.run_event(None, RUN)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    async with serving(server, cache, lambda: clock[0]) as controller:
        await controller.reconcile(KEY)
        clock[0] = 600.0
        await controller.reconcile(KEY)
    assert server.statuses()[-1]["attempt"] == 2
    assert cache.children("Job", KEY) == cache.children("Pod", KEY) == []


@pytest.mark.parametrize("told", [True, False])
async def test_the_last_words_of_a_deleted_pod_count(told: bool) -> None:
    """A pod that was deleted ends and is gone before anybody looks: why it ended is known from its
    deletion's event, or from the cache where there was none."""
    server, cache = Server(), Cache()
    condition = {"type": "Failed", "status": "True", "message": "a pod failed"}
    server.jobs = [changed(JOB, conditions=[condition])]
    cache.run_event(None, RUN)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD if told else ended(POD, 75, 9))
    if told:
        cache.child_event("Pod", "DELETED", ended(POD, 75, 9))
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert server.statuses()[-1]["lastFailure"]["exitCode"] == 75
    cache.child_event("Job", "DELETED", JOB)
    assert cache.last_words(KEY) == []


async def test_a_former_run_of_the_same_name_does_not_complete_this_one() -> None:
    """It was deleted when it was complete and is made again: its Job is gone, its pod not quite, or
    only the pod's deletion is told so late. Nothing of it is remembered."""
    former = changed(POD, phase="Succeeded")
    former["metadata"]["uid"] = "former"
    former["metadata"]["name"] = "r-1-0-former"
    former["metadata"]["ownerReferences"][0]["uid"] = "job of the former run"
    server, cache = Server(jobs=[JOB], pods=[former, POD]), Cache()
    cache.run_event(None, RUN)
    cache.child_event("Pod", None, former)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
        cache.child_event("Pod", "DELETED", former)
        assert cache.last_words(KEY) == []
        await controller.reconcile(KEY)
    assert {body["status"]["phase"] for _, _, body in server.writes} == {"Running"}


async def test_a_former_runs_worker_is_none_of_this_runs() -> None:
    """It is at work yet, under the same labels; what it says or has become is not asked."""
    former = changed(POD, conditions=[{"type": "Ready", "status": "True"}])
    former["metadata"] |= {"name": "r-1-0-former", "uid": "former"}
    former["metadata"]["ownerReferences"][0]["uid"] = "job of the former run"
    server, cache = Server(jobs=[JOB], pods=[former]), Cache()
    cache.run_event(None, RUN)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, former)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert {body["status"]["workers"]["ready"] for _, _, body in server.writes} == {0}
    assert server.asked.empty()


async def test_a_status_that_waits_is_written_when_its_gap_is_over() -> None:
    """A look says when that is; what is decided is written at once, and what follows done at once,
    for nobody is woken by our own write."""
    server, cache = Server(jobs=[JOB], pods=[POD]), Cache()
    cache.run_event(None, RUN)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    ready = [{"type": "Ready", "status": "True"}]
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
        assert len(server.writes) == 1
        cache.child_event("Pod", "MODIFIED", changed(POD, conditions=ready))
        again = await controller.reconcile(KEY)
        assert again is not None
        assert 0 < again <= 15
        assert len(server.writes) == 1
        cache.child_event("Pod", "MODIFIED", ended(POD, 137, 9))
        server.pods = [ended(POD, 137, 9)]
        await controller.reconcile(KEY)
    (_, path, body), (method, *_) = server.writes[-2:]
    assert (path.rpartition("/")[2], body["status"]["phase"]) == ("status", "Restarting")
    assert method == "DELETE"


async def test_a_later_version_trains_the_recipe_that_the_run_was_given() -> None:
    """What this operator would make of the preset does not matter any more: the words of the first
    attempt go into the next one's ConfigMap, and their hash into its settings."""
    server = Server(configs={"r-recipe-then": {"data": {"recipe.json": "words of then"}}})
    async with serving(server, between_attempts("then")) as controller:
        await controller.reconcile(KEY)
    made = {body["kind"]: body for method, _, body in server.writes if method == "POST"}
    assert made["ConfigMap"]["metadata"]["name"] == "r-recipe-then"
    assert made["ConfigMap"]["data"] == {"recipe.json": "words of then"}
    (container,) = made["Job"]["spec"]["template"]["spec"]["containers"]
    assert json.loads(container["env"][0]["value"])["recipeHash"] == "then"


async def test_what_the_api_server_refuses_is_told_and_tried_again() -> None:
    """A webhook, a quota or a wrong field: in its own words, and no attempt is lost by it."""
    server = Server(refusal="spec.template: quota exceeded")
    server.configs["r-recipe-then"] = {"data": {"recipe.json": "words of then"}}
    async with serving(server, between_attempts("then")) as controller:
        assert await controller.reconcile(KEY) == 0.0
        again = await controller.reconcile(KEY)
    assert again is not None
    assert again > 0
    status = server.writes[-1][2]["status"]
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Pending", 2, 0)
    (running,) = (c for c in status["conditions"] if c["type"] == "Running")
    assert running["reason"] == "ObjectRefused"
    assert running["message"] == "Job r-2: spec.template: quota exceeded"


async def test_a_new_run_has_its_job_in_one_look() -> None:
    """What follows from a status is done as soon as it is stored, and the API server is not asked
    for what it has just answered."""
    server, cache = Server(), Cache()
    cache.run_event(None, changed(RUN, phase="Pending", attempt=0, workers=None))
    server.on_status = lambda: setattr(server, "version", "8")
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    event, status, *children, job = server.written()
    assert (event, status, job) == ("events", "status", "jobs")
    assert sorted(children) == ["configmaps", "networkpolicies", "services"]
    assert not [path for path in server.reads if "/trainingruns/" in path]


async def test_no_job_is_made_from_a_view_that_may_be_old() -> None:
    """The run's watch told of something while our status was being written."""
    server, cache = Server(), Cache()
    run = changed(RUN, phase="Pending", attempt=0, workers=None)
    cache.run_event(None, run)

    def edited() -> None:
        server.version = "9"
        newer = changed(run, attempt=1)
        newer["metadata"]["resourceVersion"] = "8"
        cache.run_event("MODIFIED", newer)

    server.on_status = edited
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert [path for path in server.reads if "/trainingruns/" in path]
    assert "jobs" not in server.written()


async def test_a_recipe_that_is_lost_is_not_replaced_by_another() -> None:
    """All checkpoints would be passed over, and the run would begin again without a word."""
    server = Server()
    async with serving(server, between_attempts("then")) as controller:
        await controller.reconcile(KEY)
    (status,) = server.statuses()
    assert (status["phase"], status["recipeHash"]) == ("Failed", "then")
    (event,) = [body for method, _, body in server.writes if method == "POST"]
    assert event["reason"] == "InvalidRecipe"
    assert "ConfigMap r-recipe-then" in event["message"]


async def test_many_events_do_not_add_up_to_many_looks() -> None:
    """However often a run was looked at because of an event, a young one is polled once a
    second."""
    server, cache = Server(jobs=[JOB], pods=[POD]), Cache()
    young = RUN["status"]["currentAttempt"] | {"createdTime": rfc3339(datetime.now(UTC))}
    cache.run_event(None, changed(RUN, currentAttempt=young))
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    async with serving(server, cache) as controller:
        controller.start()
        for _ in range(8):
            controller.enqueue(KEY)
            await asyncio.sleep(0.1)  # events that come one after the other
        while not server.asked.empty():
            server.asked.get_nowait()
        first, *_, last = [await server.asked.get() for _ in range(4)]
    assert last - first > 2


async def test_looks_that_keep_failing_are_told_in_the_run() -> None:
    """A webhook that does not answer is the API server's error, and nothing of the run's is wrong:
    but its user must be able to see why nothing happens."""
    said = 'failed calling webhook "mjob.kb.io": no endpoints'
    server = Server(refusal=said, refusal_status=500)
    server.configs["r-recipe-then"] = {"data": {"recipe.json": "words of then"}}
    cache = between_attempts("then")
    server.run = dict(cache.runs[KEY])
    async with serving(server, cache) as controller:
        controller.start()
        while not (told := [body for method, _, body in server.writes if method == "PATCH"]):
            await asyncio.sleep(0.05)
        (condition,) = told[0]["status"]["conditions"]
        assert (condition["type"], condition["reason"]) == ("Degraded", "ReconcileFailed")
        assert said in condition["message"]
        assert len(told) == 1
        server.refusal = None
        while "jobs" not in server.written():
            await asyncio.sleep(0.05)
        job = changed(JOB)
        job["metadata"] |= {"name": "r-2", "labels": LABELS | {"daybreak.dev/attempt": "2"}}
        server.jobs = [job]
        cache.child_event("Job", "ADDED", job)
        controller.enqueue(KEY)
        while server.written()[-1] != "status":
            await asyncio.sleep(0.05)
    (degraded,) = (c for c in server.statuses()[-1]["conditions"] if c["type"] == "Degraded")
    assert degraded["status"] == "False"


@pytest.mark.parametrize("gone", [True, False])
async def test_a_run_that_does_not_exist_any_more_is_forgotten(gone: bool) -> None:
    """A watch that was cut off for long may never tell of its end. But an API server that does not
    serve the CRD yet answers 404 too, and then nothing is known."""
    server, cache = Server(), Cache()
    server.no_run = {"details": {"name": "r", "kind": "trainingruns"}} if gone else {}
    cache.run_event(None, changed(RUN, phase="Pending", attempt=0, workers=None))
    async with serving(server, cache) as controller:
        if gone:
            await controller.reconcile(KEY)
        else:
            with pytest.raises(ApiException):
                await controller.reconcile(KEY)
    assert (KEY in cache.runs) is not gone


@pytest.mark.parametrize("status", [429, 500])
async def test_events_that_cannot_be_written_stop_nothing_for_long(status: int) -> None:
    """Their rate may be limited, or they may be kept in an etcd of their own that is away."""
    server, cache = Server(event_refusal=status), Cache()
    cache.run_event(None, changed(RUN, phase="Pending", attempt=0, workers=None))
    async with serving(server, cache) as controller:
        controller.start()
        while "jobs" not in server.written():
            await asyncio.sleep(0.05)
    assert "events" not in server.written()


async def test_nodes_are_read_once_for_all_runs_that_wait_for_one() -> None:
    """A hundred runs that lost nodes must not list the whole cluster's pods a hundred times."""
    server, cache = Server(jobs=[JOB], pods=[POD]), Cache()
    server.pods = [POD | {"spec": POD["spec"] | {"nodeName": "gone"}}]
    scaling = {"nodes": 1, "reason": "NodesLost", "time": "2026-01-01T00:00:00Z"}
    for name in ("r", "s", "t"):
        run = changed(RUN, scaling=scaling)
        run["metadata"] |= {"name": name, "uid": name}
        run["spec"]["workers"] = {"image": "i", "nodes": 2, "minNodes": 1}
        cache.run_event(None, run)
    async with serving(server, cache) as controller:
        await asyncio.gather(*(controller.reconcile(("n", name)) for name in ("r", "s", "t")))
    assert server.reads.count("/api/v1/nodes") == 1
    assert server.reads.count("/api/v1/pods") == 1


async def test_a_free_node_is_one_runs_to_grow_back_on() -> None:
    """Others that lost one too do not stop for it, nor for those that it leaves meanwhile."""
    server, cache, clock = Server(), Cache(), [0.0]
    ready = {"allocatable": {"pods": "1"}, "conditions": [{"type": "Ready", "status": "True"}]}
    scaling = {"nodes": 1, "reason": "NodesLost", "time": "2026-01-01T00:00:00Z"}
    for name in ("r", "s"):
        run, job, pod = changed(RUN, scaling=scaling), changed(JOB), changed(POD, podIP=None)
        run["metadata"] |= {"name": name, "uid": name}
        run["spec"]["workers"] = {"image": "i", "nodes": 2, "minNodes": 1}
        for body, owner in ((job, name), (pod, f"{name}-job")):
            metadata = body["metadata"]
            metadata["labels"] |= {"daybreak.dev/run": name}
            metadata["ownerReferences"][0]["uid"] = owner
        job["metadata"] |= {"name": f"{name}-1", "uid": f"{name}-job"}
        pod["metadata"] |= {"name": f"{name}-1-0", "uid": f"{name}-pod"}
        pod["spec"]["nodeName"] = f"of-{name}"
        server.jobs.append(job)
        server.pods.append(pod)
        cache.run_event(None, run)
        cache.child_event("Job", None, job)
        cache.child_event("Pod", None, pod)
    names = ("of-r", "of-s", "spare")
    server.nodes = [{"metadata": {"name": name}, "spec": {}, "status": ready} for name in names]
    async with serving(server, cache, lambda: clock[0]) as controller:
        await controller.reconcile(("n", "r"))
        clock[0] = 30.0
        server.pods = [pod for pod in server.pods if pod["spec"]["nodeName"] != "of-r"]
        await controller.reconcile(("n", "s"))
    deleted = [path for method, path, _ in server.writes if method == "DELETE"]
    assert [path.rpartition("/")[2] for path in deleted] == ["r-1"]
    assert server.reads.count("/api/v1/nodes") == 2


async def test_a_standby_knows_everything_and_does_nothing() -> None:
    """Until it leads: then it looks at every run that it knows."""
    server, cache = Server(), Cache()
    cache.run_event(None, changed(RUN, phase="Pending", attempt=0, workers=None))
    async with serving(server, cache) as controller:
        controller.enqueue(KEY)
        await asyncio.sleep(0.1)
        assert (len(controller.queue), server.writes) == (0, [])
        controller.start()
        while not server.writes:
            await asyncio.sleep(0.01)


async def test_a_look_under_way_may_end_and_no_other_begins() -> None:
    """At SIGTERM: what was begun is written whole, and what came later is left to the next one."""
    server, cache = Server(), Cache()
    server.seconds = 0.3
    for name in ("r", "s"):
        run = changed(RUN, phase="Pending", attempt=0, workers=None)
        run["metadata"] |= {"name": name, "uid": name}
        cache.run_event(None, run)
    async with serving(server, cache) as controller:
        later = cache.runs.pop(("n", "s"))
        controller.start()
        while not server.writes:
            await asyncio.sleep(0.01)
        cache.runs["n", "s"] = later
        controller.queue.close()
        controller.enqueue(("n", "s"))
        await controller.drain(10.0)
    assert [method for method, *_ in server.writes][-1] == "PUT"
    assert all("/trainingruns/s/" not in path for _, path, _ in server.writes)


async def test_while_new_runs_wait_progress_is_not_written() -> None:
    server, cache = Server(jobs=[JOB], pods=[POD]), Cache()
    cache.run_event(None, RUN)
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, POD)
    async with serving(server, cache, progress_seconds=0.0) as controller:
        await controller.reconcile(KEY)
        controller.queue.add(("n", "new"), first=True)
        ready = changed(POD, conditions=[{"type": "Ready", "status": "True"}])
        cache.child_event("Pod", "MODIFIED", ready)
        await controller.reconcile(KEY)
        assert server.written() == ["status"]
        await controller.queue.get()
        await controller.reconcile(KEY)
        assert server.written() == ["status", "status"]


async def test_a_run_that_cannot_be_read_says_so_and_keeps_its_status() -> None:
    """An Event and a condition, once for one problem; the rest of the status may be a newer
    version's."""
    running = {
        **{"type": "Running", "status": "True", "reason": "Training", "message": ""},
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    run = changed(RUN, fromTheFuture=1, conditions=[running])
    server, cache = Server(run=run), Cache()
    cache.run_event(None, run)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
        (_, _, event), (method, path, patch) = server.writes
        assert event["reason"] == "InvalidRun"
        assert "fromTheFuture" in event["message"]
        assert (method, path.rpartition("/")[2]) == ("PATCH", "status")
        assert patch["metadata"] == {"resourceVersion": "7"}
        assert set(patch["status"]) == {"phase", "conditions"}
        kept, told = patch["status"]["conditions"]
        assert kept == running
        assert (told["type"], told["status"], told["reason"]) == ("Degraded", "True", "InvalidRun")
        cache.run_event("MODIFIED", changed(run, conditions=[kept, told]))
        await controller.reconcile(KEY)
        # Of a run that is over nobody would take it back, when a newer operator leads.
        cache.run_event("MODIFIED", changed(run, phase="Complete"))
        await controller.reconcile(KEY)
    assert len(server.writes) == 2


async def test_what_a_conflict_kept_from_being_told_is_told_later() -> None:
    """The change that won may be one that the watch has brought already: no event comes then."""
    run = changed(RUN, fromTheFuture=1)
    server, cache = Server(run=run, status_refusals=[409]), Cache()
    cache.run_event(None, run)
    async with serving(server, cache) as controller:
        again = await controller.reconcile(KEY)
        assert again is not None
        assert await controller.reconcile(KEY) is None
    assert server.writes[-1][2]["status"]["conditions"][0]["reason"] == "InvalidRun"


@pytest.mark.parametrize("name", ["keys/log", "..", "a..b"])
async def test_a_name_that_is_a_path_is_not_asked_for(name: str) -> None:
    """It would be another object's; a run that was stored with it is told what is wrong."""
    run = changed(RUN, phase="Pending", attempt=0, workers=None, currentAttempt=None)
    run["spec"]["checkpoint"] |= {"secretRef": {"name": name}}
    server, cache = Server(), Cache()
    cache.run_event(None, run)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    (_, _, event), _ = server.writes
    assert (event["reason"], server.reads) == ("InvalidRun", [])
    assert "checkpoint.secretRef.name" in event["message"]


async def test_an_event_that_is_refused_stops_nothing() -> None:
    """A quota for Events must not keep a run from being decided on."""
    server = Server(event_refusal=403)
    server.configs["r-recipe-then"] = {"data": {"recipe.json": "words of then"}}
    cache = between_attempts("then")
    run = json.loads(json.dumps(cache.runs[KEY]))
    run["spec"]["suspend"] = False
    run["status"]["currentAttempt"]["endedTime"] = "2026-01-01T00:00:03Z"
    cache.run_event("MODIFIED", run)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert server.written()[0] == "status"
    assert server.written()[-1] == "jobs"
