"""A crowd of runs, or of plain Jobs of the same shape: created at once, and watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hollow import HollowNodes, JobKey

from daybreak_devcluster.agent.api import Api, persistently

Json = dict[str, Any]
AT_A_TIME = 32
"""Creations under way."""
_LOOK_SECONDS = 0.1
_STANDSTILL_SECONDS = 240.0
RUNS, JOBS = "/apis/daybreak.dev/v1alpha1", "/apis/batch/v1"
_NODES = "/api/v1"
# Fields of status that say how far training is, and nothing about the run's life.
_PROGRESS_FIELDS = frozenset({"progress", "stage", "checkpoint", "ledger"})


class StandstillError(RuntimeError):
    """Nothing more happens; the message says what was waited for."""


@dataclass
class Times:
    """Of one run or Job, on the monotonic clock."""

    applied: float
    job: float | None = None
    started: float | None = None
    """All pods ready."""
    running: float | None = None
    """The run's own status says Running."""


class Crowd:
    """Objects of one namespace; a run's first Job is `<run>-1`, a plain Job has the same name."""

    def __init__(self, api: Api, nodes: HollowNodes, namespace: str, pods_each: int) -> None:
        self._api, self._nodes = api, nodes
        self.namespace, self._pods_each = namespace, pods_each
        self.times: dict[str, Times] = {}
        self.began = 0.0
        self.phases: dict[str, str] = {}
        self._statuses: dict[str, Json] = {}
        self.progress_writes = 0
        self.status_writes = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        self._tasks = [asyncio.create_task(each) for each in (self._jobs(), self._runs())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(self, path: str, bodies: Iterable[tuple[str, Json]]) -> None:
        """All of them, as fast as the API server takes them; `path` without namespace, the bodies
        by the name of their run or Job without `-1`."""
        plural = {RUNS: "trainingruns", JOBS: "jobs"}[path]
        limit = asyncio.Semaphore(AT_A_TIME)

        async def create(name: str, body: Json) -> None:
            async with limit:
                self.times[name] = Times(applied=time.monotonic())
                where = f"{path}/namespaces/{self.namespace}/{plural}"
                await persistently(lambda: self._api.post(where, body))

        self.began = time.monotonic()
        await asyncio.gather(*(create(name, body) for name, body in bodies))

    def job_of(self, name: str) -> JobKey:
        return (self.namespace, f"{name}-1")

    # --- waiting -------------------------------------------------------------------------------

    async def all_started(self, check: Callable[[], None] = lambda: None) -> None:
        """Until every pod is ready."""

        def left() -> int:
            for name, times in self.times.items():
                if times.started is None:
                    times.started = self._nodes.started_at(self.job_of(name), self._pods_each)
            return sum(times.started is None for times in self.times.values())

        await self._until_none(left, "pods that are not ready", check)

    async def all_in(
        self, phase: str, names: Iterable[str], check: Callable[[], None] = lambda: None
    ) -> None:
        """Until the status of these runs says so."""
        chosen = list(names)

        def left() -> int:
            return sum(self.phases.get(name) != phase for name in chosen)

        await self._until_none(left, f"runs that are not {phase}", check)

    async def _until_none(self, left: Callable[[], int], what: str, check: Any) -> None:
        before, changed = -1, time.monotonic()
        while (count := left()) > 0:
            if count != before:
                before, changed = count, time.monotonic()
            if time.monotonic() - changed > _STANDSTILL_SECONDS:
                raise StandstillError(f"{count} {what}, and nothing happens in {self.namespace}")
            self._nodes.check()
            check()
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(_LOOK_SECONDS)

    # --- the end -------------------------------------------------------------------------------

    async def delete_all(self) -> None:
        """Every run, Job and pod of the namespace; returns when nothing is left."""
        place = f"namespaces/{self.namespace}"
        options = {"propagationPolicy": "Background"}
        paths = [
            f"{RUNS}/{place}/trainingruns",
            f"{JOBS}/{place}/jobs",
            f"{_NODES}/{place}/pods",
        ]
        for path in paths:
            await self._delete(path, options)
        changed, before = time.monotonic(), -1
        while True:
            listed = [await self._api.get(path, {"limit": "1"}) for path in paths]
            left = sum(
                len(each["items"]) + each["metadata"].get("remainingItemCount", 0)
                for each in listed
            )
            if left == 0:
                return
            if left != before:
                changed, before = time.monotonic(), left
            if time.monotonic() - changed > _STANDSTILL_SECONDS:
                raise StandstillError(f"{left} objects of {self.namespace} do not go")
            # Pods that came while the others were deleted.
            await self._delete(paths[-1], options)
            await asyncio.sleep(1.0)

    # --- what the watches tell -------------------------------------------------------------------

    async def _jobs(self) -> None:
        async for body in self._changes(f"{JOBS}/namespaces/{self.namespace}/jobs"):
            times = self.times.get(body["metadata"]["name"].removesuffix("-1"))
            if times is not None and times.job is None:
                times.job = time.monotonic()

    async def _runs(self) -> None:
        async for body in self._changes(f"{RUNS}/namespaces/{self.namespace}/trainingruns"):
            name, status = body["metadata"]["name"], body.get("status") or {}
            before = self._statuses.get(name, {})
            if status != before:
                self.status_writes += 1
                self.progress_writes += _changed(before, status) <= _PROGRESS_FIELDS
            self._statuses[name] = status
            self.phases[name] = phase = status.get("phase", "")
            times = self.times.get(name)
            if phase == "Running" and times is not None and times.running is None:
                times.running = time.monotonic()

    async def _delete(self, path: str, options: Json) -> None:
        """A whole collection. Thousands take longer than an answer may: then it is asked again."""
        while True:
            try:
                await self._api.delete(path, options)
                return
            except TimeoutError:
                continue

    async def _changes(self, path: str) -> Any:
        async for kind, thing in self._api.watch(path):
            if kind == "LISTED":
                for body in thing["items"]:
                    yield body
            elif kind != "DELETED":
                yield thing


def _changed(before: Json, after: Json) -> set[str]:
    return {key for key in {*before, *after} if before.get(key) != after.get(key)}
