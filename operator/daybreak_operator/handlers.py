"""kopf wiring and nothing else: watches fill the cache and wake the controller.

Only `on.event` is used, so kopf writes nothing into any object.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import kopf

from daybreak_operator.api.run import GROUP, PLURAL, VERSION
from daybreak_operator.cache import Cache, Key
from daybreak_operator.news import child_pause, run_pause
from daybreak_operator.watches import SERVER_TIMEOUT_SECONDS, Watches
from daybreak_trainer.contract import LABEL_RUN

_BACK_OFFS = (1, 1, 2, 3, 5, 8, 13, 20)
_CHUNK = 500
_IDLE_SECONDS = 0.5
"""For which kopf keeps an object's last event, whole; at a start that is every object's."""


class _NothingKept(kopf.DiffBaseStorage):
    """Of objects' former states, which kopf's other handlers go by: it would copy each object that
    a watch brings, more than once."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class _BackOffs:
    """Pauses between kopf's tries, without end: an API server that is away for long, or rights that
    come late, must not end the operator."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(_BACK_OFFS, itertools.repeat(_BACK_OFFS[-1]))


class Enqueue(Protocol):
    def __call__(self, key: Key, pause: float, *, new: bool = False) -> None:
        """Have the run looked at after so many seconds."""


def settings() -> kopf.OperatorSettings:
    """kopf's settings."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 5
    chosen.networking.error_backoffs = _BackOffs()
    chosen.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    chosen.watching.client_timeout = SERVER_TIMEOUT_SECONDS + 30
    chosen.watching.chunk_size = _CHUNK
    chosen.queueing.idle_timeout = _IDLE_SECONDS
    chosen.persistence.diffbase_storage = _NothingKept()
    # What is not a run's is neither sent nor kept.
    chosen.watching.label_selectors["jobs"] = LABEL_RUN
    chosen.watching.label_selectors["pods"] = LABEL_RUN
    return chosen


def registry(cache: Cache, enqueue: Enqueue, watches: Watches) -> kopf.OperatorRegistry:
    """All handlers of the operator; kopf's runner takes them from here."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.AiohttpSession:
        credentials = kopf.login_via_client(**kwargs)
        assert credentials is not None  # else it has raised
        return watches.session(credentials)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def run_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002
        metadata = body["metadata"]
        known = cache.runs.get((metadata["namespace"], metadata["name"]))
        key = cache.run_event(type, dict(body))
        if (pause := run_pause(known, type, body)) is not None:
            enqueue(key, pause, new=known is None)

    def child(kind: str) -> Any:
        async def child_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002
            if (key := cache.child_event(kind, type, dict(body))) is not None:
                enqueue(key, child_pause(type, body))

        return child_event

    labelled = {LABEL_RUN: kopf.PRESENT}
    kopf.on.event("batch", "v1", "jobs", labels=labelled, registry=handlers)(child("Job"))
    kopf.on.event("", "v1", "pods", labels=labelled, registry=handlers)(child("Pod"))
    return handlers
