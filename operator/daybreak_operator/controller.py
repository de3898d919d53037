"""Looks at a run when something about it changed, or its time has come.

Level-triggered: `reconcile` reads the whole state and never an event, so a lost or doubled event
changes nothing. Whose turn it is, is the work queue's to say. Until `start`, in an operator that
does not lead, nothing is queued; from then on every known run is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

from aiohttp import ClientError
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator import metrics
from daybreak_operator.act import SURE_SECONDS, act
from daybreak_operator.api.run import InvalidRunError, TrainingRun
from daybreak_operator.cache import Body, Cache, Key
from daybreak_operator.cluster import Cluster
from daybreak_operator.decide import decide
from daybreak_operator.decision import Decision
from daybreak_operator.draft import EventNote
from daybreak_operator.errors import (
    ConflictError,
    ForeignObjectError,
    GoneError,
    RefusedObjectError,
)
from daybreak_operator.eventlog import EventLog
from daybreak_operator.gone import forget_gone
from daybreak_operator.leader import NotLeadingError
from daybreak_operator.log import about, describe
from daybreak_operator.observe import Observer
from daybreak_operator.pace import PROGRESS_SECONDS, Pace, tells_only
from daybreak_operator.standstill import FAILING, INVALID, Trouble, kept, report
from daybreak_operator.workqueue import WorkQueue

_log = logging.getLogger(__name__)
_WORKERS = 32
"""Looks at a time. Most of a look is waiting for an answer, and one run's slow worker must not make
others wait."""
_LOOK_SECONDS = 60.0
"""For one look: what takes longer is given up and tried again."""
_RESYNC_SECONDS = 600.0
_CONFLICT_SECONDS = 5.0
_MOST_STEPS = 4
"""Of a look, each of which follows from what the one before has written."""
_FAILURES_IN_A_ROW = 5
"""Looks, after which the run's own status tells of the trouble."""
_AFTER_FAILURES_SECONDS = 0.5
"""Until the look that takes that back."""
_NOT_LEADING_SECONDS = 1.0
_REPORT_SECONDS = 60.0
_REPORT_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class _Made:
    """A run's status that was written."""

    version: str
    at: float = field(default_factory=time.monotonic)


class Controller:
    def __init__(
        self,
        cache: Cache,
        cluster: Cluster,
        observer: Observer,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        self._cache, self._cluster, self._observer = cache, cluster, observer
        self._pace = Pace(progress_seconds)
        self.queue: WorkQueue[Key] = WorkQueue()
        self._troubles: dict[Key, tuple[str, ForeignObjectError | RefusedObjectError]] = {}
        """What kept a child of the run of that UID from being made, for the next look to tell."""
        self._events = EventLog()
        self._reported: dict[Key, float] = {}
        """When a run whose looks fail was last told so (monotonic clock)."""
        self._workers: list[asyncio.Task[None]] = []
        self._resync: asyncio.Task[None] | None = None

    def enqueue(self, key: Key, pause: float = 0.0, *, new: bool = False) -> None:
        """Have the run looked at after these seconds; any number of calls before that are one. A
        new run, whose devices wait for its Job, comes before others."""
        if self._workers and pause > 0:
            self.queue.add_after(key, pause)
        elif self._workers:
            self.queue.add(key, first=new)

    def start(self) -> None:
        """This operator leads: looks at every run that is known, and from now on at what comes."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]
        self._resync = asyncio.create_task(self._look_at_all())

    async def drain(self, seconds: float) -> None:
        """Begins no look any more; those under way may end, and are given up after `seconds`."""
        self.queue.close()
        if self._workers:
            await asyncio.wait(self._workers, timeout=seconds)
        await self.stop()

    async def stop(self) -> None:
        """Ends at once, in the middle of looks. Nothing is written after this has returned."""
        self.queue.close()
        tasks = [*self._workers, *([self._resync] if self._resync else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_at_all(self) -> None:
        """At first, and every now and then, for an event that nobody told."""
        while True:
            for key in list(self._cache.runs):
                self.queue.add(key)
            await asyncio.sleep(_RESYNC_SECONDS)
            for key in await forget_gone(self._cache, self._cluster):
                self.queue.add(key)

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            started = time.monotonic()
            again: float | None = None
            body = self._cache.runs.get(key, {})
            with about(*key, attempt=(body.get("status") or {}).get("attempt", 0)):
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        again = await self.reconcile(key)
                    self.queue.succeeded(key)
                    metrics.RECONCILES.labels("done").inc()
                except NotLeadingError:
                    again = _NOT_LEADING_SECONDS  # the process is about to end, unless it was late
                    metrics.RECONCILES.labels("refused").inc()
                except Exception as error:  # noqa: BLE001 (one run's trouble is not the others')
                    again = self.queue.failed(key)
                    metrics.RECONCILES.labels("error").inc()
                    # Of the API server and the network much is expected; of ourselves nothing.
                    ours = not isinstance(error, ApiException | ClientError | OSError)
                    _log.warning("%s; again in %.1f s", describe(error), again, exc_info=ours)
                    if self.queue.failures(key) >= _FAILURES_IN_A_ROW:
                        await self._tell_failing(key, describe(error))
                finally:
                    self.queue.done(key)
                    metrics.RECONCILE_SECONDS.observe(time.monotonic() - started)
            if again is not None:
                self.queue.add_after(key, again)

    async def reconcile(self, key: Key) -> float | None:
        """Looks at one run and does what is to be done, and what follows from that; returns when to
        look again."""
        again: float | None = 0.0
        made: _Made | None = None
        for _ in range(_MOST_STEPS):
            again, made = await self._step(key, made)
            if made is None or self.queue.closed:
                break
        return again

    async def _step(self, key: Key, made: _Made | None) -> tuple[float | None, _Made | None]:
        """`made` is what the step before has written. Returns when to look again, and what this one
        has written where something follows from it."""
        body = self._cache.runs.get(key)
        if body is None:
            self._forget(key)
            return None, None
        try:
            run = TrainingRun.of(body)
        except InvalidRunError as error:
            _log.error("the run cannot be read: %s", error)
            told = await self._tell(key, body, INVALID, str(error))
            return (None if told else _CONFLICT_SECONDS), None
        latest = self._pace.latest(key, run)
        uid, trouble = self._troubles.pop(key, (run.uid, None))
        seen = await self._observer.observe(key, latest, trouble if uid == run.uid else None)
        decision = decide(seen)
        if decision is None:
            return None, None
        decision = replace(decision, events=self._events.news(key, run.uid, decision.events))
        failing = self.queue.failures(key) > 0
        if failing:
            decision = replace(decision, status=kept(run.status, decision.status))
        if (left := self._pace.hold(key, run, decision, rush=self.queue.rush)) > 0:
            return min(left, decision.again_seconds or left), None
        try:
            written = await self._act(key, run, decision, made)
        except GoneError:
            self._cache.gone(key, run.uid)
            return 0.0, None
        except ConflictError:
            metrics.STATUS_CONFLICTS.inc()
            # The change that won is on its way to us as an event; should it not come, we ask again.
            return _CONFLICT_SECONDS, None
        except (ForeignObjectError, RefusedObjectError) as error:
            self._troubles[key] = run.uid, error
            return 0.0, None
        if decision.again_seconds is None and not tells_only(run.status, decision.status):
            # What follows is done now: the event of our own write wakes nobody.
            return 0.0, written
        return _AFTER_FAILURES_SECONDS if failing else decision.again_seconds, None

    async def _act(
        self, key: Key, run: TrainingRun, decision: Decision, made: _Made | None
    ) -> _Made | None:
        """Returns the status that was written, if one was. Raises what `act` raises."""
        written: list[_Made] = []

        def wrote(before: str, body: Body) -> None:
            self._wrote(key, before, body)
            written.append(_Made(body["metadata"]["resourceVersion"]))

        async def record(note: EventNote) -> None:
            await self._events.write(self._cluster, key, run, note)

        own = made is not None and made.version == run.resource_version
        sure_until = made.at + SURE_SECONDS if made is not None and own else 0.0
        await act(self._cluster, run, decision, wrote, record=record, sure_until=sure_until)
        self._events.recorded(key, run.uid, decision.events)
        return written[-1] if written else None

    def _wrote(self, key: Key, before: str, body: Body) -> None:
        self._cache.wrote(before, body)
        self._pace.written(key)

    async def _tell(self, key: Key, body: Body, trouble: Trouble, problem: str) -> bool:
        """False where the run changed meanwhile, or is gone, and nothing could be told."""
        try:
            written = await report(self._cluster, body, trouble, problem)
        except GoneError:
            self._cache.gone(key, body["metadata"]["uid"])
            return False
        except ConflictError:
            metrics.STATUS_CONFLICTS.inc()
            return False
        else:
            if written is not None:
                self._wrote(key, body["metadata"]["resourceVersion"], written)
        return True

    async def _tell_failing(self, key: Key, problem: str) -> None:
        """Now and then, and as well as can be: what the looks fail of may stop this too."""
        now, body = time.monotonic(), self._cache.runs.get(key)
        if body is None or now < self._reported.get(key, 0.0) + _REPORT_SECONDS:
            return
        self._reported[key] = now
        try:
            async with asyncio.timeout(_REPORT_TIMEOUT_SECONDS):
                if not await self._tell(key, body, FAILING, problem):
                    del self._reported[key]
        except Exception as error:  # noqa: BLE001 (it must not end what looks at all runs)
            _log.warning("that could not be told either: %s", describe(error))

    def _forget(self, key: Key) -> None:
        """The run is gone."""
        self._troubles.pop(key, None)
        self._reported.pop(key, None)
        self._events.forget(key)
        self._pace.forget(key)
        self.queue.forget(key)
        self._observer.forget(key)
