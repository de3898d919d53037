"""The operator's process: what runs in it, and in which order it ends.

kopf watches from the beginning, in a standby too, so its cache is full when its turn comes. The
controller works while this process leads. On SIGTERM the work ends first, then the Lease is given
back, and the watches last; when the Lease is lost, all of it ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import kopf
from kopf._core.engines.peering import Identity
from kubernetes.aio import config
from prometheus_client import REGISTRY

from daybreak_operator import health, metrics
from daybreak_operator.cache import Cache
from daybreak_operator.cluster import Cluster
from daybreak_operator.connection import GuardedClient
from daybreak_operator.controller import Controller
from daybreak_operator.handlers import registry, settings
from daybreak_operator.leader import Elector, LeadershipLostError
from daybreak_operator.lease import KubernetesLease
from daybreak_operator.observe import Observer
from daybreak_operator.progress import ProgressClient
from daybreak_operator.watches import Watches

_log = logging.getLogger(__name__)
_DRAIN_SECONDS = 15.0
"""For looks under way at SIGTERM; the pod's grace period is 30 s."""
_ABANDON_SECONDS = 2.0
"""For cancelled looks to end when the Lease is lost; they can write nothing any more."""
_WATCHES_SECONDS = 5.0
"""For kopf to end when all else has."""
LOST = 1


@dataclass(frozen=True)
class Options:
    namespaces: tuple[str, ...]
    """Empty: all."""
    http_host: str
    http_port: int
    lease: tuple[str, str] | None
    """Namespace and name; None: there is no other operator."""
    progress_seconds: float


async def run(options: Options) -> int:
    """Until SIGTERM; returns the exit code."""
    await _find_api_server()
    async with AsyncExitStack() as stack:
        elector = None
        if options.lease is not None:
            # A client of its own: a renewal waits for no other request's connection.
            store = KubernetesLease(
                await stack.enter_async_context(GuardedClient()), *options.lease
            )
            elector = Elector(store, f"{socket.gethostname()}_{uuid.uuid4()}")
        api = GuardedClient(elector.leads_until if elector is not None else None)
        cluster = Cluster(await stack.enter_async_context(api))
        progress = ProgressClient()
        stack.push_async_callback(progress.close)
        cache, watches = Cache(), Watches(options.namespaces)
        controller = Controller(
            cache, cluster, Observer(cache, cluster, progress), options.progress_seconds
        )
        _measure(cache, controller, watches)
        http = await health.serve(
            *(options.http_host, options.http_port),
            health.problems(controller.queue, watches, elector),
            health.unready(watches),
        )
        leading = asyncio.create_task(_lead(controller, elector))
        watched = asyncio.Event()
        watching = await _watch(options, registry(cache, controller.enqueue, watches), watched)
        await _until_end(watching, leading)
        _log.info("stopping: the looks under way may end")
        await controller.drain(_DRAIN_SECONDS)
        leading.cancel()
        await asyncio.wait({leading})
        if elector is not None:
            await elector.release()
        metrics.LEADER.set(0)
        await http.cleanup()
        watched.set()
        await asyncio.wait({watching}, timeout=_WATCHES_SECONDS)
        if not watching.done():
            # One of kopf's watches that fails ends kopf, and another can outlive its cancellation
            # for ever, by logging in anew.
            _exit_at_once(RuntimeError("the watches have failed and do not end"))
        await watching  # raises what ended it
        return 0


async def _watch(
    options: Options, handlers: kopf.OperatorRegistry, over: asyncio.Event
) -> asyncio.Task[None]:
    """kopf, until `over`. At its end it waits for tasks younger than itself, the controller's among
    them: so it ends last."""
    older = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=settings(),
        clusterwide=not options.namespaces,
        namespaces=options.namespaces,
        standalone=True,
        # Not used without peering, but kopf would look up the user's name, and a pod's user has
        # none.
        identity=Identity("daybreak-operator"),
        stop_flag=over,
    )
    return asyncio.create_task(kopf.run_tasks(tasks, ignored=older))


async def _until_end(watching: asyncio.Task[None], leading: asyncio.Task[None]) -> None:
    """Returns on SIGTERM or when the watches have ended; the process ends here when the Lease is
    lost."""
    terminated = asyncio.Event()
    # In place of kopf's handlers, which would end the watches before the work.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    asked = asyncio.create_task(terminated.wait())
    await asyncio.wait({watching, leading, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if leading.done():
        _exit_at_once(leading.exception())


async def _lead(controller: Controller, elector: Elector | None) -> None:
    """Has the controller work while this process leads; returns never."""
    if elector is not None:
        await elector.acquire()
    metrics.LEADER.set(1)
    controller.start()
    if elector is None:
        await asyncio.Event().wait()
        return
    try:
        await elector.hold()
    except LeadershipLostError:
        metrics.LEADER.set(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ABANDON_SECONDS):
                await controller.stop()
        raise


def _exit_at_once(reason: BaseException | None) -> None:
    """Writes are refused already. No more is tried, for what is left would only delay a new
    process, which begins with nothing that may be out of date."""
    unexpected = None if isinstance(reason, LeadershipLostError) else reason
    _log.critical("this process ends: %s", reason, exc_info=unexpected)
    logging.shutdown()
    os._exit(LOST)


async def _find_api_server() -> None:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()


def _measure(cache: Cache, controller: Controller, watches: Watches) -> None:
    REGISTRY.register(metrics.RunCollector(lambda: list(cache.runs.values())))
    metrics.LEADER.set(0)
    metrics.QUEUE_LENGTH.set_function(lambda: len(controller.queue))
    metrics.QUEUE_AGE.set_function(controller.queue.oldest_seconds)
    for kind in watches.kinds:
        metrics.WATCH_AGE.labels(kind).set_function(partial(watches.age_seconds, kind))
