"""Who of several operators may write: the holder of a `coordination.k8s.io` Lease.

The rules are those of Kubernetes' own components (client-go's `leaderelection`). A holder renews
the Lease every `retry_seconds`. It may write until `renew_deadline_seconds` after it *began* its
last successful renewal, by its own clock. Another may take the Lease only when it has *seen* no
renewal for `lease_seconds`, by its own clock. The second span begins later than the first and is
longer, so the first always ends before; no clock is compared with another's, and times in the Lease
are for people. Two who take it at once are told apart by the API server: each write names the
version that it replaces.

What these rules ask of clocks is that they run at about the same speed (10 s here within 15 s
there): a process that is stopped notices, a machine that is suspended as a whole does not until its
next request is refused. What they cannot undo is a request that the API server has received and not
yet carried out; the five seconds in between are for it. For both, a status write also names the
version that it replaces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Protocol

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

_log = logging.getLogger(__name__)
_TROUBLE = (ApiException, aiohttp.ClientError, TimeoutError, OSError)
_NEVER = float("-inf")


class NotLeadingError(Exception):
    """A write was asked for by an operator that does not hold the Lease (any more)."""


class LeadershipLostError(Exception):
    """The Lease could not be renewed in time, or is another's. There is no way back: the process
    has to end, for its memory may say what is no longer so."""


class LeaseConflictError(Exception):
    """The Lease changed since it was read, or is gone, or is there already."""


@dataclass(frozen=True)
class Timing:
    """Defaults of Kubernetes' own components. Failover takes at most lease + retry seconds."""

    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    @property
    def request_seconds(self) -> float:
        """A request that hangs leaves time for others before the deadline."""
        return 2 * self.retry_seconds


@dataclass(frozen=True)
class LeaseRecord:
    """What the Lease says."""

    holder: str
    """Empty after a release."""
    lease_seconds: int
    acquired: datetime
    renewed: datetime
    transitions: int
    """How often the holder has changed."""
    version: str = ""
    """`resourceVersion`; empty in one that is to be created."""


DEFAULT_TIMING = Timing()


class LeaseStore(Protocol):
    """The Lease on the API server. Raises what HTTP requests raise."""

    async def read(self) -> LeaseRecord | None: ...

    async def create(self, record: LeaseRecord) -> LeaseRecord:
        """Raises LeaseConflictError where there is one."""

    async def replace(self, record: LeaseRecord) -> LeaseRecord:
        """Raises LeaseConflictError unless `record.version` is the current one."""


class Elector:
    """Takes the Lease, holds it, gives it back.

    `identity` must be new for every process: its own Lease is the only one it may take at once.
    """

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        timing: Timing = DEFAULT_TIMING,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.identity = identity
        self._store, self._timing, self._now = store, timing, now
        self._dice = Random(identity)
        self._lease: LeaseRecord | None = None
        """As it was last read or written."""
        self._current = False
        """Whether `_lease` may be replaced without reading it again."""
        self._free_at = _NEVER
        """When the Lease that was seen last has run out, for others than its holder. Stays when the
        Lease is deleted: its holder may not know yet."""
        self._leads_until = _NEVER
        self.attempted_at = _clock()

    def leads_until(self) -> float:
        """Up to when (time of the event loop) writes are allowed."""
        return self._leads_until

    @property
    def leading(self) -> bool:
        return _clock() < self._leads_until

    async def acquire(self) -> None:
        """Returns when this operator leads."""
        told = None
        while True:
            try:
                if await self._attempt():
                    _log.info("%s leads", self.identity)
                    return
            except _TROUBLE as error:
                _log.warning("the Lease cannot be asked for: %s: %s", type(error).__name__, error)
            holder = self._lease.holder if self._lease is not None else None
            if holder != told:
                _log.info("%s stands by; the Lease is held by %s", self.identity, holder)
                told = holder
            pause = self._timing.retry_seconds * self._dice.uniform(0.8, 1.0)
            remaining = self._free_at - _clock()
            await asyncio.sleep(min(pause, remaining) if remaining > 0 else pause)

    async def hold(self) -> None:
        """Renews for as long as that works.

        Raises:
            LeadershipLostError: it does not any more.
        """
        while True:
            left = self._leads_until - _clock()
            await asyncio.sleep(min(self._timing.retry_seconds, max(left, 0.0)))
            trouble = "the API server did not answer in time"
            try:
                async with asyncio.timeout_at(self._leads_until):
                    if not await self._attempt() and self._lost():
                        raise LeadershipLostError(f"the Lease is held by {self._lease}")
            except _TROUBLE as error:
                trouble = f"{type(error).__name__}: {error}"
                _log.warning("the Lease was not renewed: %s", trouble)
            if not self.leading:
                self._leads_until = _NEVER
                raise LeadershipLostError(
                    f"not renewed for {self._timing.renew_deadline_seconds:g} s: {trouble}"
                )

    async def release(self) -> None:
        """Lets another lead at once. The caller has ended all its writes."""
        if not self.leading:
            return
        self._leads_until = _NEVER
        try:
            async with asyncio.timeout(self._timing.request_seconds):
                if not self._current:  # a renewal was interrupted
                    await self._look()
                if self._lease is not None and self._lease.holder == self.identity:
                    free = replace(self._lease, holder="", lease_seconds=1, renewed=self._now())
                    await self._store.replace(free)
                    _log.info("%s released the Lease", self.identity)
        except (*_TROUBLE, LeaseConflictError) as error:
            _log.warning("the Lease was not released and has to run out: %s", error)

    async def _attempt(self) -> bool:
        """Takes or renews the Lease; whether that worked."""
        self.attempted_at = _clock()
        async with asyncio.timeout(self._timing.request_seconds):
            current, self._current = self._current, False
            if not current:
                await self._look()
            if _clock() < self._free_at:
                return False
            began = _clock()
            write = self._store.create if self._lease is None else self._store.replace
            try:
                self._lease = await write(self._next())
            except LeaseConflictError:
                await self._look()
                return False
        self._current = True
        self._free_at = _NEVER
        self._leads_until = began + self._timing.renew_deadline_seconds
        return True

    async def _look(self) -> None:
        before, found = self._lease, await self._store.read()
        self._lease = found
        if found is None:
            return
        if found.holder in ("", self.identity):
            self._free_at = _NEVER
        elif before is None or before.version != found.version:
            self._free_at = _clock() + max(found.lease_seconds, self._timing.lease_seconds)

    def _next(self) -> LeaseRecord:
        now, before = self._now(), self._lease
        mine = before is not None and before.holder == self.identity
        return LeaseRecord(
            holder=self.identity,
            lease_seconds=round(self._timing.lease_seconds),
            acquired=before.acquired if before is not None and mine else now,
            renewed=now,
            transitions=(before.transitions + (not mine)) if before is not None else 0,
            version=before.version if before is not None else "",
        )

    def _lost(self) -> bool:
        """Another holds the Lease; one that is gone, or whose answer was lost, may be ours yet."""
        lost = self._lease is not None and self._lease.holder != self.identity
        if lost:
            self._leads_until = _NEVER
        return lost


def _clock() -> float:
    """Monotonic, and what `asyncio.timeout_at` goes by."""
    return asyncio.get_running_loop().time()
