"""Where the launchers of an attempt's pods meet: a key-value store that worker 0's launcher serves
for as long as its pod lives.

    <round>/size/<node>     joined, with its number of ranks
    <round>/port            where the round's ranks find a store of their own
    <round>/broken          the first node whose ranks failed says so, and the others end theirs
    <round>/progress        counts signs of progress
    <round>/started         counts nodes whose ranks have left the start-up behind
    <round>/end/<node>      how it ended, a `NodeEnd`

The ranks' store is a new one each round: process groups would find the addresses of dead ranks in
the old one. Every call goes through one thread and is waited for a bounded time, because the
store's client blocks in C++ for as long as worker 0's machine is silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from torch._C._distributed_c10d import PrefixStore, TCPStore

from daybreak_trainer import contract

T = TypeVar("T")

_POLL_SECONDS = 0.1
_CALL_SECONDS = 60.0
"""Far above a round trip on a loaded machine, far below the clocks of the watchdog."""
_LEAST_CALL_SECONDS = 1.0
"""However little time is left."""


class PeersLostError(Exception):
    """The other nodes' launchers cannot be heard; the message says which."""


@dataclass(frozen=True)
class Place:
    """A node's ranks in a round."""

    first_rank: int
    ranks: int
    world: int


@dataclass(frozen=True)
class News:
    """What is heard from the others while a round runs."""

    broken: str | None = None
    """Why a node's ranks ended, or why the store is lost; ours are to end too."""
    progress: int = 0
    """Signs of progress of other nodes so far."""
    started: bool = False
    """Ranks of some node have left the start-up behind."""


class Meeting:
    def __init__(self, settings: contract.RunSettings, node: int) -> None:
        self._settings, self._node, self._nodes = settings, node, settings.nodes
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._ranks_store: TCPStore | None = None
        self._told, self._told_start = 0, False
        self._lost: str | None = None
        self._asked: tuple[float, Future[News]] | None = None
        Thread(target=self._serve, name="meeting", daemon=True).start()

    def open(self, seconds: float) -> None:
        """Serves the store on node 0, else connects to it.

        Raises:
            RuntimeError, of torch: the port is taken, or nobody served it within `seconds`.
        """
        settings = self._settings

        def make() -> PrefixStore:
            store = TCPStore(
                settings.master_address,
                settings.master_port,
                is_master=self._node == 0,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
            )
            store.set_timeout(timedelta(seconds=_CALL_SECONDS))
            return PrefixStore(f"{settings.uid}-{settings.attempt}", store)

        self._store = self._call(make, seconds + _CALL_SECONDS)

    def join(self, number: int, ranks: int, seconds: float) -> Place:
        """Waits until all nodes have come to round `number`, each with its ranks.

        Raises:
            PeersLostError: some did not within `seconds`.
        """
        self._told, self._told_start, self._asked = 0, False, None
        self._ranks_store = None  # the last round's: its thread is gone before ranks are forked
        self._set(f"{number}/size/{self._node}", str(ranks))
        sizes = self._gather(f"{number}/size", time.monotonic() + seconds)
        missing = [str(node) for node, size in enumerate(sizes) if size is None]
        if missing:
            raise PeersLostError(
                f"worker {', '.join(missing)} did not join round {number} within {seconds:g} s"
            )
        counts = [int(size) for size in sizes if size is not None]
        return Place(first_rank=sum(counts[: self._node]), ranks=ranks, world=sum(counts))

    def ranks_port(self, number: int) -> int:
        """Where worker 0's host serves the ranks' store of round `number`. Served by node 0 from
        this call on: it is for ranks that have been forked.

        Raises:
            PeersLostError: worker 0 is gone, or cannot serve it.
        """
        if self._node == 0:
            self._talk(lambda: self._serve_ranks(number))
        return int(self._talk(lambda: self._store.get(f"{number}/port")))

    def say_broken(self, number: int, why: str) -> None:
        """This node's ranks have failed: the others must not wait for them. Does not block; what
        is lost with the store is told by the next call."""
        self._submit(lambda: self._store.set(f"{number}/broken", why))

    def news(self, number: int, marks: int, started: bool) -> News | None:
        """Tells the others how many signs of progress these ranks have shown in this round, and
        whether they have left the start-up behind; returns what is new from the others, None while
        there is no answer yet. Does not block."""
        if self._nodes == 1:
            return None
        now = time.monotonic()
        if self._asked is None:
            more, self._told = marks - self._told, marks
            began, self._told_start = started and not self._told_start, started
            self._asked = now, self._submit(lambda: self._ask(number, more, marks, began))
            return None
        asked_at, answer = self._asked
        if not answer.done():
            if now - asked_at > _CALL_SECONDS:
                self._lost = "worker 0 does not answer"
            return None if self._lost is None else News(broken=self._lost)
        self._asked = None
        try:
            return answer.result()
        except RuntimeError as error:
            self._lost = self._gone(error)
            return News(broken=self._lost)

    def exchange(self, number: int, end: str, seconds: float) -> list[str | None]:
        """Says how this node's part of the round ended; returns what each node said, None for those
        that did not within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._set(f"{number}/end/{self._node}", end, _call_seconds(deadline))
            return self._gather(f"{number}/end", deadline)
        except PeersLostError:
            return [end if node == self._node else None for node in range(self._nodes)]

    def _serve_ranks(self, number: int) -> None:
        address = self._settings.master_address
        self._ranks_store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        self._store.set(f"{number}/port", str(self._ranks_store.port))

    def _ask(self, number: int, more: int, marks: int, began: bool) -> News:
        total = self._store.add(f"{number}/progress", more)
        started = self._store.add(f"{number}/started", int(began)) > 0
        key = f"{number}/broken"
        broken = self._store.get(key).decode() if self._store.check([key]) else None
        return News(broken, total - marks, started)

    def _gather(self, folder: str, deadline: float) -> list[str | None]:
        found: list[str | None] = [None] * self._nodes
        while True:
            for node in [n for n, text in enumerate(found) if text is None]:
                found[node] = self._look(f"{folder}/{node}", _call_seconds(deadline))
            if None not in found or time.monotonic() >= deadline:
                return found
            time.sleep(_POLL_SECONDS)

    def _look(self, key: str, seconds: float) -> str | None:
        def look() -> str | None:
            return self._store.get(key).decode() if self._store.check([key]) else None

        return self._talk(look, seconds)

    def _set(self, key: str, value: str, seconds: float = _CALL_SECONDS) -> None:
        self._talk(lambda: self._store.set(key, value), seconds)

    def _talk(self, call: Callable[[], T], seconds: float = _CALL_SECONDS) -> T:
        if self._lost is not None:
            raise PeersLostError(self._lost)
        try:
            return self._call(call, seconds)
        except TimeoutError:
            self._lost = "worker 0 does not answer"
        except RuntimeError as error:
            self._lost = self._gone(error)
        raise PeersLostError(self._lost)

    def _gone(self, error: RuntimeError) -> str:
        """Of torch's errors: to the others it is worker 0 that is lost, to worker 0 a store of its
        own."""
        if self._node:
            return "worker 0 is gone"
        return f"worker 0 cannot serve a store on {self._settings.master_address}: {error}"

    def _serve(self) -> None:
        while True:
            call, answer = self._calls.get()
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 (raised where the answer is taken)
                answer.set_exception(error)

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._calls.put((call, answer))
        return answer

    def _call(self, call: Callable[[], T], seconds: float) -> T:
        return self._submit(call).result(seconds)


def _call_seconds(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), _LEAST_CALL_SECONDS), _CALL_SECONDS)
