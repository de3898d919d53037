"""Nodes that only report: whatever is bound to them is Running and Ready at once, and ends when it
is told to.

They do towards the API server what a kubelet does: register, renew a Lease, write pod status, and
confirm deletions. Nothing is started. One watch serves all nodes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from answers import Answers
from worker import Pace, Worker, follower_words, stopped_words

from daybreak_devcluster.agent.api import STRATEGIC, Api, ApiError, persistently
from daybreak_devcluster.agent.node import Node
from daybreak_devcluster.agent.status import now
from daybreak_trainer.contract import ExitCode, Termination

Json = dict[str, Any]
JobKey = tuple[str, str]
"""Namespace and name of a Job."""
_BOUND = "/api/v1/pods?fieldSelector=spec.nodeName!%3D"
_JOB, _INDEX = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"
_AT_A_TIME = 32
_SUBNETS = range(96, 224)
"""Second place of a pod's address; the rest counts."""


@dataclass
class HollowPod:
    job: JobKey
    index: int
    name: str
    node: str
    container: str
    image: str
    address: str = ""
    started: str = ""
    worker: Worker | None = None
    """Of worker 0."""
    ready_at: float | None = None
    """When the API server had confirmed that it is ready (monotonic clock)."""
    over: bool = False
    leaving: bool = False

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.job[0]}/pods/{self.name}"


class HollowNodes:
    """`async with HollowNodes(api, 20, 500) as nodes:` registers them and serves their pods."""

    def __init__(self, api: Api, count: int, pods_each: int, pace: Pace) -> None:
        capacity = {"cpu": "10000", "memory": "100Ti", "pods": str(pods_each)}
        self._api, self._pace = api, pace
        self._nodes = [Node(api, f"hollow-{n}", "127.0.0.1", capacity) for n in range(count)]
        self._pods: dict[str, HollowPod] = {}
        """By UID."""
        self.jobs: dict[JobKey, dict[int, HollowPod]] = {}
        """Newest pod of each index."""
        self.answers = Answers()
        self._addresses = _addresses()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes = asyncio.Semaphore(_AT_A_TIME)

    async def __aenter__(self) -> HollowNodes:
        await asyncio.gather(*(node.register(log_port=1) for node in self._nodes))
        for node in self._nodes:
            self._spawn(node.heartbeat())
        self._spawn(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.answers.close_all()

    async def await_ready(self) -> None:
        """Returns when the control plane lets pods onto every node."""
        while True:
            listed = await self._api.get("/api/v1/nodes")
            if not any(body["spec"].get("taints") for body in listed["items"]):
                return
            await asyncio.sleep(0.2)

    def started_at(self, job: JobKey, pods: int) -> float | None:
        """When the last of a Job's pods was ready (monotonic clock); None where one is not yet."""
        found = self.jobs.get(job, {})
        times = [pod.ready_at for pod in found.values() if pod.ready_at is not None]
        return max(times) if len(times) == pods else None

    async def finish(self, jobs: list[JobKey]) -> None:
        """Every pod of these Jobs has trained all steps: worker 0 of a Job first, then the
        others."""
        await asyncio.gather(*(self._finish(job) for job in jobs))

    async def _finish(self, job: JobKey) -> None:
        for _, pod in sorted(self.jobs[job].items()):
            words = pod.worker.last_words() if pod.worker is not None else follower_words()
            await self._end(pod, words)

    def check(self) -> None:
        """Raises what a background task failed with."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()

    # --- pods ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for kind, thing in self._api.watch(_BOUND):
            if kind == "LISTED":
                bodies = thing["items"]
                for uid in set(self._pods) - {body["metadata"]["uid"] for body in bodies}:
                    self._forget(uid)
            elif kind == "DELETED":
                self._forget(thing["metadata"]["uid"])
                continue
            else:
                bodies = [thing]
            for body in bodies:
                self._take(body)

    def _take(self, body: Json) -> None:
        metadata = body["metadata"]
        pod = self._pods.get(metadata["uid"])
        if pod is None:
            labels, container = metadata.get("labels") or {}, body["spec"]["containers"][0]
            pod = self._pods[metadata["uid"]] = HollowPod(
                job=(metadata["namespace"], labels.get(_JOB, metadata["name"])),
                index=int(labels.get(_INDEX, 0)),
                name=metadata["name"],
                node=body["spec"]["nodeName"],
                container=container["name"],
                image=container["image"],
            )
            self.jobs.setdefault(pod.job, {})[pod.index] = pod
            if "deletionTimestamp" not in metadata:
                self._spawn(self._begin(pod, body))
        if "deletionTimestamp" in metadata and not pod.leaving:
            pod.leaving = True
            self._spawn(self._leave(pod))

    async def _begin(self, pod: HollowPod, body: Json) -> None:
        async with self._writes:
            pod.address, pod.started = next(self._addresses), now()
            if pod.index == 0:
                worker = pod.worker = Worker.of(body, self._pace)
                while True:
                    try:
                        await self.answers.open(pod.address, lambda: worker.progress().to_json())
                        break
                    except OSError:  # another cluster's worker on this machine has it
                        pod.address = next(self._addresses)
            if await self._write(pod, _running(pod)):
                pod.ready_at = time.monotonic()

    async def _leave(self, pod: HollowPod) -> None:
        """A deletion is confirmed when the worker has ended."""
        if not pod.over:
            await self._end(pod, stopped_words())
        async with self._writes:
            try:
                options = {"gracePeriodSeconds": 0}
                await persistently(lambda: self._api.delete(pod.path, options))
            except ApiError as error:
                if error.status != 404:
                    raise

    async def _end(self, pod: HollowPod, words: Termination) -> None:
        pod.over = True
        self.answers.close(pod.address)
        async with self._writes:
            await self._write(pod, _ended(pod, words))

    async def _write(self, pod: HollowPod, status: Json) -> bool:
        """Whether the pod was still there."""
        path = f"{pod.path}/status"
        try:
            await persistently(lambda: self._api.patch(path, {"status": status}, STRATEGIC))
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def _forget(self, uid: str) -> None:
        if (pod := self._pods.pop(uid, None)) is None:
            return
        self.answers.close(pod.address)
        members = self.jobs[pod.job]
        if members.get(pod.index) is pod:
            del members[pod.index]
        if not members:
            del self.jobs[pod.job]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            if task.cancelled() or task.exception() is None:  # else it stays, for `check`
                self._tasks.discard(task)

        task.add_done_callback(done)


def _addresses() -> Iterator[str]:
    """Addresses of 127.0.0.0/8 for ever; one comes back after four million."""
    places = itertools.product(_SUBNETS, range(1, 255), range(1, 255))
    return (f"127.{second}.{third}.{fourth}" for second, third, fourth in itertools.cycle(places))


def _running(pod: HollowPod) -> Json:
    """The pod's status from its start on."""
    return {
        "phase": "Running",
        "startTime": pod.started,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": pod.address,
        "podIPs": [{"ip": pod.address}],
        "conditions": _conditions("True"),
        "containerStatuses": [
            {
                **_container(pod, ready=True),
                "state": {"running": {"startedAt": pod.started}},
            }
        ],
    }


def _ended(pod: HollowPod, words: Termination) -> Json:
    """The pod's status at its end; a patch, so what is not named stays."""
    done = words.exit_code == ExitCode.DONE
    terminated = {
        "exitCode": int(words.exit_code),
        "reason": "Completed" if done else "Error",
        "startedAt": pod.started or now(),
        "finishedAt": now(),
        "message": words.encode().decode(),
    }
    return {
        "phase": "Succeeded" if done else "Failed",
        "conditions": _conditions("False"),
        "containerStatuses": [
            {
                **_container(pod, ready=False),
                # Null: a merge would keep the old member beside the new one.
                "state": {"running": None, "terminated": terminated},
            }
        ],
    }


def _container(pod: HollowPod, *, ready: bool) -> Json:
    return {
        "name": pod.container,
        "image": pod.image,
        "imageID": "",
        "restartCount": 0,
        "started": ready,
        "ready": ready,
        "lastState": {},
    }


def _conditions(ready: str) -> list[Json]:
    time_ = now()
    truths = {"Initialized": "True", "ContainersReady": ready, "Ready": ready}
    return [
        {"type": kind, "status": truth, "lastTransitionTime": time_}
        for kind, truth in truths.items()
    ]
