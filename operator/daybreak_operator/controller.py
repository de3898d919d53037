"""The work queue: a run is looked at when something about it changed, or its time has come.

Level-triggered: `reconcile` reads the whole state and never an event, so a lost or doubled event
changes nothing. One run is looked at by one task at a time; errors back off and are tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from daybreak_operator import metrics
from daybreak_operator.act import act, stored
from daybreak_operator.api.run import InvalidRunError, TrainingRun
from daybreak_operator.cache import Cache, Key
from daybreak_operator.cluster import Cluster, ConflictError, ForeignObjectError
from daybreak_operator.decide import Decision, decide
from daybreak_operator.observe import Observer

_log = logging.getLogger(__name__)
_WORKERS = 8
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.2, 60.0
_PROGRESS_WRITE_SECONDS = 2.0


class Controller:
    def __init__(self, cache: Cache, cluster: Cluster, observer: Observer) -> None:
        self._cache, self._cluster, self._observer = cache, cluster, observer
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: Counter[Key] = Counter()
        self._foreign: dict[Key, tuple[str, ...]] = {}
        self._progress_written: dict[Key, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def enqueue(self, key: Key) -> None:
        """Have the run looked at soon; any number of calls before that are one."""
        if key in self._busy:
            self._dirty.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)
            metrics.QUEUE_LENGTH.set(len(self._queued))

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            self._busy.add(key)
            again: float | None = None
            started = time.monotonic()
            try:
                again = await self.reconcile(key)
                self._failures.pop(key, None)
                metrics.RECONCILES.labels("done").inc()
            except Exception as error:  # noqa: BLE001 (one run's trouble is not the others')
                again = self._back_off(key)
                metrics.RECONCILES.labels("error").inc()
                _log.warning("%s/%s: %s; again in %.1f s", *key, error, again)
            finally:
                self._busy.discard(key)
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)
            if key in self._dirty:
                self._dirty.discard(key)
                self.enqueue(key)
            elif again is not None:
                asyncio.get_running_loop().call_later(again, self.enqueue, key)

    def _back_off(self, key: Key) -> float:
        self._failures[key] += 1
        return float(
            min(_FIRST_BACKOFF_SECONDS * 2 ** (self._failures[key] - 1), _MAX_BACKOFF_SECONDS)
        )

    async def reconcile(self, key: Key) -> float | None:
        """Looks at one run and does what is to be done; returns when to look again."""
        body = self._cache.runs.get(key)
        if body is None:
            for memory in (self._foreign, self._progress_written):
                memory.pop(key, None)
            return None
        try:
            run = TrainingRun.of(body)
        except InvalidRunError as error:
            _log.error("%s/%s cannot be read: %s", *key, error)
            return None
        seen = await self._observer.observe(key, run, self._foreign.pop(key, ()))
        decision = decide(seen)
        if decision is None or self._too_soon(key, run, decision):
            return decision.again_seconds if decision is not None else None
        try:
            await act(self._cluster, run, decision)
        except ConflictError:
            return None  # the change that won is on its way to us as an event
        except ForeignObjectError as error:
            self._foreign[key] = (str(error),)
            return 0.0
        self._measure_runs()
        return decision.again_seconds

    def _too_soon(self, key: Key, run: TrainingRun, decision: Decision) -> bool:
        """Progress alone is written every few seconds: each write wakes every watcher."""
        if decision.ensure or decision.create_job or decision.delete_jobs or decision.events:
            return False
        before = run.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        after = stored(decision)
        changed = {k for k in {*before, *after} if before.get(k) != after.get(k)}
        now = time.monotonic()
        if changed and changed <= {"progress", "stage"}:
            if now - self._progress_written.get(key, 0.0) < _PROGRESS_WRITE_SECONDS:
                return True
            self._progress_written[key] = now
        return False

    def _measure_runs(self) -> None:
        phases = Counter(
            (body.get("status") or {}).get("phase", "Pending") for body in self._cache.runs.values()
        )
        metrics.RUNS.clear()
        for phase, count in phases.items():
            metrics.RUNS.labels(phase).set(count)
        metrics.ALIGNMENT.clear()
        for (namespace, name), body in self._cache.runs.items():
            evaluation = (body.get("status") or {}).get("evaluation") or {}
            for tag, share in evaluation.get("alignmentByTag", {}).items():
                metrics.ALIGNMENT.labels(namespace, name, tag).set(float(share))
