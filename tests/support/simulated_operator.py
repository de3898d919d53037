"""The operator over a simulated cluster: its cache, observer, `decide` and `act` are the real ones;
the API server and the watches are simulated. Watches may lag, start anew (and then tell of no
deletion) and repeat themselves.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from simulated_api import KEY, TERMINAL, Api, OperatorKilledError
from simulated_objects import Key, moment

from daybreak_operator.act import act
from daybreak_operator.api.run import InvalidRunError, TrainingRun
from daybreak_operator.cache import Cache
from daybreak_operator.decide import Decision, decide
from daybreak_operator.errors import (
    ConflictError,
    ForeignObjectError,
    GoneError,
    RefusedObjectError,
)
from daybreak_operator.eventlog import EventLog
from daybreak_operator.gone import forget_gone
from daybreak_operator.observation import Observation
from daybreak_operator.observe import Observer
from daybreak_operator.pace import Pace, tells_only
from daybreak_operator.standstill import INVALID, report

_MOST_LOOKS = 12
"""At one moment, until nothing changes any more: more is a status that feeds itself."""
_MOST_STEPS = 4
"""Of a look, each of which follows from what the one before has written."""
_RESYNC_SECONDS = 600.0
_NAMED_SECONDS = 20.0
"""By then the run says what was refused."""
_DOWN_SECONDS = 300.0
"""By then a node that is down keeps nobody from anything."""
_STOPPED_SECONDS = 150.0
"""By then a suspended run's pods are gone, if their nodes answer."""

T = TypeVar("T")
_LOOP = asyncio.new_event_loop()


def at_once(answer: Coroutine[Any, Any, T]) -> T:
    """What it comes to: nothing in the simulation waits for time to pass."""
    return _LOOP.run_until_complete(answer)


class SimulatedOperator:
    """Looks at a run when a watch brings something, or when its last look asked for it."""

    def __init__(self, api: Api) -> None:
        self.api, self.cluster = api, api.cluster
        self.waiting: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
        self.late_until: dict[str, float] = {}
        self.down_until = 0.0
        self.kill_after: int | None = None
        self.disturbed_at = 0.0
        """When the operator, what it hears or a node last failed."""
        self._published: dict[str, dict[str, dict[str, Any]]] = {}
        self.last: Observation | None = None
        self.decision: Decision | None = None
        """Of the run that is looked at alone in most tests."""
        self._suspended_at: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """With an empty memory: watches begin with what there is."""
        self.cache = Cache()
        self.observer = Observer(
            self.cache,
            self.api,  # type: ignore[arg-type]
            self.api,  # type: ignore[arg-type]
            now=lambda: moment(self.cluster.now),
            monotonic=lambda: self.cluster.now,
        )
        self.pace = Pace(clock=lambda: self.cluster.now)
        self.events = EventLog(clock=lambda: self.cluster.now)
        self.troubles: dict[Key, ForeignObjectError | RefusedObjectError] = {}
        self.waiting = {"Run": [], "Job": [], "Pod": []}
        self.late_until = {}
        self._published = {"Run": {}, "Job": {}, "Pod": {}}
        self.dirty: set[Key] = set(self.api.runs)
        self.wake_at: dict[Key, float] = {}
        self.resync_at = self.cluster.now + _RESYNC_SECONDS
        self.api.effects_left = None
        self.disturbed_at = self.cluster.now

    def relist(self, kind: str) -> None:
        """A watch starts anew: what was on its way is lost, and nothing is told of deletions."""
        self.waiting[kind] = [(None, body) for body in self._bodies()[kind].values()]
        self._published[kind] = self._bodies()[kind]

    def repeat(self) -> None:
        """Watches tell once more what is."""
        for kind, bodies in self._published.items():
            self.waiting[kind] += [("MODIFIED", body) for body in bodies.values()]

    def die(self, seconds: float) -> None:
        self.down_until = self.cluster.now + seconds
        self.wake_at = {}

    def advance(self, seconds: float) -> None:
        end = self.cluster.now + seconds
        while self.cluster.now < end:
            self.cluster.tick(min(1.0 if seconds <= 60 else 4.0, end - self.cluster.now))
            self.publish()
            if self.cluster.now < self.down_until:
                continue
            if self.down_until:
                self.down_until = 0.0
                self.start()
                self.publish()
            self._work()
            if not self.down_until:
                self._check()

    def _work(self) -> None:
        if self.resync_at <= self.cluster.now:
            self.resync_at = self.cluster.now + _RESYNC_SECONDS
            self.dirty |= {*at_once(forget_gone(self.cache, self.api)), *self.cache.runs}  # type: ignore[arg-type]
        looked: set[Key] = set()
        for _ in range(_MOST_LOOKS):
            self._deliver()
            due = {key for key, at in self.wake_at.items() if at <= self.cluster.now}
            looked = self.dirty | due
            if not looked:
                return
            for key in sorted(looked):
                self._reconcile(key)
                if self.down_until:
                    return
            self.publish()
        raise AssertionError(f"no rest: {[self.api.runs[key]['status'] for key in looked]}")

    def _reconcile(self, key: Key) -> None:
        """As the controller does: a look, and what follows from its own writes."""
        made: str | None = None
        for _ in range(_MOST_STEPS):
            made = self.look(key, made)
            if made is None:
                return

    def look(self, key: Key = KEY, made: str | None = None) -> str | None:
        """`made` is the run's version that the look before has written; returns the one that this
        one has, where something follows from it."""
        self._deliver()
        self.dirty.discard(key)
        self.wake_at.pop(key, None)
        body = self.cache.runs.get(key)
        if body is None:
            self.observer.forget(key)
            self.pace.forget(key)
            self.events.forget(key)
            self.troubles.pop(key, None)
            return None
        try:
            run = TrainingRun.of(body)
        except InvalidRunError as error:
            at_once(report(self.api, body, INVALID, str(error)))  # type: ignore[arg-type]
            return None
        trouble = self.troubles.pop(key, None)
        seen = at_once(self.observer.observe(key, self.pace.latest(key, run), trouble))
        decision = decide(seen)
        if key == KEY:
            self.last, self.decision = seen, decision
        if decision is None:
            return None
        # An Event that is on record is no reason to write.
        news = self.events.news(key, run.uid, decision.events)
        decision = replace(decision, events=news)
        if (left := self.pace.hold(key, run, decision)) > 0:
            self.wake_at[key] = self.cluster.now + min(left, decision.again_seconds or left)
            return None
        versions: list[str] = []
        if not self._act(key, run, decision, versions, latest=run.resource_version == made):
            return None
        self.events.recorded(key, run.uid, news)
        if decision.again_seconds is not None:
            self.wake_at[key] = self.cluster.now + decision.again_seconds
        elif versions and not tells_only(run.status, decision.status):
            return versions[-1]
        return None

    def _act(
        self, key: Key, run: TrainingRun, decision: Decision, versions: list[str], *, latest: bool
    ) -> bool:
        """Whether all of it was done; adds the version that was written."""

        def wrote(before: str, body: Mapping[str, Any]) -> None:
            # Else its answer was lost with the watch's events.
            if self.late_until.get("Run", 0.0) <= self.cluster.now:
                self.cache.wrote(before, body)
            self.pace.written(key)
            versions.append(body["metadata"]["resourceVersion"])

        sure = math.inf if latest else 0.0
        self.api.effects_left, self.kill_after = self.kill_after, None
        try:
            at_once(act(self.api, run, decision, wrote, sure_until=sure))  # type: ignore[arg-type]
        except GoneError:
            self.cache.gone(key, run.uid)
            self.dirty.add(key)
            return False
        except ConflictError:
            self.disturbed_at = self.cluster.now
            return False  # what won is on its way to us
        except (ForeignObjectError, RefusedObjectError) as error:
            self.troubles[key] = error
            self.dirty.add(key)
            return False
        except OperatorKilledError:
            self.die(5.0)
            return False
        finally:
            self.api.effects_left = None
        return True

    # --- watches ----------------------------------------------------------------------------------

    def _bodies(self) -> dict[str, dict[str, dict[str, Any]]]:
        cluster = self.cluster
        pods = cluster.pods.values()
        return {
            "Run": {run["metadata"]["uid"]: run for run in self.api.runs.values()},
            "Job": {job.uid: job.body() for job in cluster.jobs.values()},
            "Pod": {pod.uid: pod.body(cluster.skew, cluster.grace) for pod in pods},
        }

    def publish(self) -> None:
        """What has changed goes on its way."""
        now = self._bodies()
        for kind, bodies in now.items():
            before = self._published[kind]
            gone = [("DELETED", body) for uid, body in before.items() if uid not in bodies]
            news = [("MODIFIED", b) for uid, b in bodies.items() if before.get(uid) != b]
            self.waiting[kind] += [*gone, *news]
        self._published = now

    def _deliver(self) -> None:
        for kind, events in self.waiting.items():
            if self.late_until.get(kind, 0.0) > self.cluster.now:
                self.disturbed_at = self.cluster.now
                continue
            for event, body in events:
                if kind == "Run":
                    self.dirty.add(self.cache.run_event(event, body))
                elif (key := self.cache.child_event(kind, event, body)) is not None:
                    self.dirty.add(key)
            events.clear()

    # --- what must hold while nothing keeps the operator from its work ----------------------------

    def _check(self) -> None:
        down = (node.down_since for node in self.cluster.nodes.values())
        if any(since is not None and self.cluster.now - since < _DOWN_SECONDS for since in down):
            self.disturbed_at = self.cluster.now
        for key, run in self.api.runs.items():
            if run.get("status", {}).get("phase") not in TERMINAL:
                self._check_refusal(key, run)
            self._check_suspended(key, run)

    def _check_refusal(self, key: Key, run: Mapping[str, Any]) -> None:
        """A condition names what was refused."""
        uid, refused = run["metadata"]["uid"], self.api.refusals.get(key, {})
        names = {what: refusal.since for what, refusal in refused.items() if refusal.uid == uid}
        since = max(self.disturbed_at, min(names.values(), default=0.0))
        if not names or run["spec"].get("suspend") or self.cluster.now - since < _NAMED_SECONDS:
            return
        running = next(c for c in run["status"]["conditions"] if c["type"] == "Running")
        assert running["reason"] == "ObjectRefused", (names, running)
        assert any(what in running["message"] for what in names), (names, running)

    def _check_suspended(self, key: Key, run: Mapping[str, Any]) -> None:
        """Nothing works for a suspended run."""
        uid, now = run["metadata"]["uid"], self.cluster.now
        if not run["spec"].get("suspend"):
            self._suspended_at.pop(uid, None)
            return
        since = max(self._suspended_at.setdefault(uid, now), self.disturbed_at)
        if now - since >= _STOPPED_SECONDS:
            pods = [pod for pod in self.cluster.pods.values() if pod.job.run == key and pod.owned]
            working = [pod.name for pod in pods if pod.runs]
            assert not working, f"{working} of a suspended run"
