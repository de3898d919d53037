"""The work queue: a run is looked at when something about it changed, or its time has come.

Level-triggered: `reconcile` reads the whole state and never an event, so a lost or doubled event
changes nothing. One run is looked at by one task at a time; errors back off and are tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import replace

from daybreak_operator import metrics
from daybreak_operator.act import act, stored
from daybreak_operator.api.run import InvalidRunError, TrainingRun
from daybreak_operator.cache import Cache, Key
from daybreak_operator.cluster import Cluster, ConflictError, ForeignObjectError
from daybreak_operator.decide import Decision, decide
from daybreak_operator.draft import EventNote
from daybreak_operator.observe import Observer

_log = logging.getLogger(__name__)
_WORKERS = 8
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, _MAX_DOUBLINGS = 0.2, 60.0, 16
_PROGRESS_WRITE_SECONDS = 2.0


def back_off_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, from 1: doubled each time, up to a limit
    (the exponent has one too: 2.0**1024 is an error, and a day of failures comes so far)."""
    doublings = min(failures - 1, _MAX_DOUBLINGS)
    return min(_FIRST_BACKOFF_SECONDS * 2.0**doublings, _MAX_BACKOFF_SECONDS)


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
        self._told: dict[Key, set[tuple[str, EventNote]]] = {}
        """Events that are on record, with their run's UID, so each look need not send them again.
        Only that is saved: a second Event of the same name would be refused."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def enqueue(self, key: Key) -> None:
        """Have the run looked at soon; any number of calls before that are one."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()  # one look ahead for each run, however many events there are
        if key in self._busy:
            self._dirty.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)
            metrics.QUEUE_LENGTH.set(len(self._queued))

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            metrics.QUEUE_LENGTH.set(len(self._queued))
            self._busy.add(key)
            again: float | None = None
            started = time.monotonic()
            try:
                again = await self.reconcile(key)
                self._failures.pop(key, None)
                metrics.RECONCILES.labels("done").inc()
            except Exception as error:  # noqa: BLE001 (one run's trouble is not the others')
                self._failures[key] += 1
                again = back_off_seconds(self._failures[key])
                metrics.RECONCILES.labels("error").inc()
                what = f"{type(error).__name__}: {error}"
                _log.warning("%s/%s: %s; again in %.1f s", *key, what, again)
            finally:
                self._busy.discard(key)
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)
            if key in self._dirty:
                self._dirty.discard(key)
                self.enqueue(key)
            elif again is not None:
                loop = asyncio.get_running_loop()
                self._timers[key] = loop.call_later(again, self.enqueue, key)

    async def reconcile(self, key: Key) -> float | None:
        """Looks at one run and does what is to be done; returns when to look again."""
        body = self._cache.runs.get(key)
        if body is None:
            for memory in (self._foreign, self._progress_written, self._told):
                memory.pop(key, None)
            self._observer.forget(key)
            self._measure_runs()
            return None
        try:
            run = TrainingRun.of(body)
        except InvalidRunError as error:
            _log.error("%s/%s cannot be read: %s", *key, error)
            return None
        seen = await self._observer.observe(key, run, self._foreign.pop(key, ()))
        decision = decide(seen)
        if decision is None:
            return None
        told = self._told.setdefault(key, set())
        news = tuple(note for note in decision.events if (run.uid, note) not in told)
        decision = replace(decision, events=news)
        if self._too_soon(key, run, decision):
            return decision.again_seconds
        try:
            await act(self._cluster, run, decision)
            told.update((run.uid, note) for note in news)
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
