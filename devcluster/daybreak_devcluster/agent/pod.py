"""Runs one pod from its binding to the removal of its object.

The order is a kubelet's: refuse or prepare volumes, run init containers one after another, then all
containers together; on deletion SIGTERM, the grace period, SIGKILL, the final status, and only then
the object's removal.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from daybreak_devcluster.agent.api import Api, ApiError, persistently
from daybreak_devcluster.agent.commands import CommandBuilder
from daybreak_devcluster.agent.container import Container, EndingError, Surroundings
from daybreak_devcluster.agent.data import Data
from daybreak_devcluster.agent.environment import NotReadyError, PodAddress
from daybreak_devcluster.agent.events import Events
from daybreak_devcluster.agent.hosts import rewrite
from daybreak_devcluster.agent.limits import is_sidecar, refusals
from daybreak_devcluster.agent.reporting import PodFailedError, Reporter
from daybreak_devcluster.agent.rootfs import HostView
from daybreak_devcluster.agent.volumes import PodVolumes

Json = dict[str, Any]
T = TypeVar("T")
_RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeContext:
    """What all pods of a node share."""

    api: Api
    events: Events
    node: str
    host_ip: str
    pods_dir: Path
    base_environment: Mapping[str, str]
    view: HostView
    hosts_of: Callable[[Json, str], str]
    """A pod and its address to the content of its /etc/hosts as of now."""


class PodRunner:
    """One pod. `run` is its life; the other methods tell it what happens to its object."""

    def __init__(self, context: NodeContext, pod: Json, pod_ip: str) -> None:
        self.pod = pod
        self.pod_ip = pod_ip
        self.finished = asyncio.Event()
        """Set once nothing of it runs and its final status is written."""
        self._context = context
        self._folder = context.pods_dir.joinpath(pod["metadata"]["uid"])
        address = PodAddress(pod_ip, context.host_ip, context.node)
        data = Data(context.api, pod["metadata"]["namespace"])
        self._volumes = PodVolumes(context.api, pod, self._folder, address, data.fetch)
        self._commands = CommandBuilder(
            pod, self._folder, address, context.base_environment, context.view, self._volumes, data
        )
        self._ending = asyncio.Event()
        self._kill_at = float("inf")
        self._deleted = asyncio.Event()
        self._vanished = asyncio.Event()
        self._init = [
            self._container(spec, "Always" if is_sidecar(spec) else self._policy(init=True))
            for spec in pod["spec"].get("initContainers") or ()
        ]
        for container in self._init:
            container.state.sidecar = is_sidecar(container.spec)
        self._main = [self._container(spec, self._policy()) for spec in pod["spec"]["containers"]]
        self._reporter = Reporter(
            context.api,
            pod,
            address,
            [container.state for container in self._init],
            [container.state for container in self._main],
        )
        self._outcome = self._reporter.outcome

    @property
    def hosts_path(self) -> Path:
        """Its /etc/hosts; not there before its volumes are."""
        return self._commands.hosts_path

    @property
    def containers(self) -> list[Container]:
        """All its containers, init containers first."""
        return [*self._init, *self._main]

    # --- What happens to the object ------------------------------------------------------------

    def update(self, pod: Json) -> None:
        """The object changed."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self.terminate(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            self._deleted.set()

    def vanish(self) -> None:
        """The object is gone, whatever we did."""
        self.terminate(0)
        self._deleted.set()
        self._vanished.set()

    def disrupt(self, message: str, grace_seconds: float) -> None:
        """End it because the node ends."""
        if not self._outcome.ended:
            self._outcome.disruption = message
            self._outcome.failure = self._outcome.failure or PodFailedError("Terminated", message)
            self.terminate(min(grace_seconds, self._grace()))

    def terminate(self, grace_seconds: float) -> None:
        """End it within that time; again with less time to shorten it."""
        loop = asyncio.get_running_loop()
        self._kill_at = min(self._kill_at, loop.time() + grace_seconds)
        self._ending.set()
        for container in self.containers:
            if container.state.sidecar:  # they end after the others, but not later than allowed
                loop.call_at(self._kill_at, container.kill)
            else:
                container.stop(grace_seconds)

    # --- Its life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run it; returns when the object is gone."""
        if (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._outcome.ended = True  # before this agent's time
        else:
            await self._run_to_end()
        self.finished.set()
        await self._deleted.wait()
        await self._remove_object()
        await self._vanished.wait()

    async def _run_to_end(self) -> None:
        publisher = asyncio.create_task(self._reporter.keep_written())
        try:
            await self._live()
        except EndingError:
            pass
        except PodFailedError as failure:
            self._outcome.failure = self._outcome.failure or failure
            self._event("Warning", failure.reason, str(failure))
        except Exception as error:  # noqa: BLE001 (one pod's trouble must not end the node)
            _log.exception("pod %s", self.pod["metadata"]["name"])
            self._outcome.failure = PodFailedError(
                "NodeAgentError", f"{type(error).__name__}: {error}"
            )
            self._event("Warning", "NodeAgentError", str(self._outcome.failure))
        finally:
            self._volumes.close()
            self._outcome.ended = True
            publisher.cancel()
        await self._reporter.write()

    async def _live(self) -> None:
        """Everything up to the end of the last container."""
        pod = self.pod
        if refused := refusals(pod):
            text = "; ".join(f"{item} cannot be had here" for item in refused)
            raise PodFailedError("Unsupported", f"the development cluster refuses this pod: {text}")
        if (pod.get("status") or {}).get("phase") == "Running":
            raise PodFailedError("ContainersLost", "the node's agent was restarted")
        self._reporter.changed()
        deadline = pod["spec"].get("activeDeadlineSeconds")
        timer = None
        if deadline is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(deadline, self._exceed_deadline, deadline)
        sidecars: list[tuple[Container, asyncio.Task[None]]] = []
        try:
            await self._prepared(self._volumes.make, "FailedMount")
            rewrite(self._commands.hosts_path, self._context.hosts_of(pod, self.pod_ip))
            await self._run_init(sidecars)
            await self._run_main()
        finally:
            if timer is not None:
                timer.cancel()
            await self._stop_sidecars(sidecars)

    async def _run_init(self, sidecars: list[tuple[Container, "asyncio.Task[None]"]]) -> None:
        """Run the init containers in order. Raises `EndingError`, or `PodFailedError` where one
        failed for good."""
        for container in self._init:
            if container.state.sidecar:
                await self._start_sidecar(container, sidecars)
                continue
            await container.run()
            if self._ending.is_set():
                raise EndingError
            if container.state.exit_code != 0:
                name = container.state.name
                raise PodFailedError("InitContainerFailed", f"init container {name} failed")

    async def _start_sidecar(
        self, container: Container, sidecars: list[tuple[Container, "asyncio.Task[None]"]]
    ) -> None:
        """Start one and wait until it counts as started. Raises as `_run_init` does."""
        run = asyncio.create_task(container.run())
        sidecars.append((container, run))
        started = asyncio.create_task(container.started.wait())
        waits = {run, started}
        try:
            await self._unless_ending(asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED))
        finally:
            started.cancel()
        if run.done():
            await run

    async def _run_main(self) -> None:
        """Run the containers together; where one cannot run at all, none goes on."""
        tasks = [asyncio.create_task(container.run()) for container in self._main]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            self.terminate(0)
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _stop_sidecars(self, sidecars: list[tuple[Container, "asyncio.Task[None]"]]) -> None:
        self._ending.set()
        for container, task in reversed(sidecars):
            container.stop(self._seconds_left() or 0.0)
            with contextlib.suppress(PodFailedError):  # said when it could not start
                await task

    def _seconds_left(self) -> float | None:
        if not self._ending.is_set():
            return None
        left = self._kill_at - asyncio.get_running_loop().time()
        return max(0.0, min(left, self._grace()))

    def _exceed_deadline(self, seconds: int) -> None:
        text = f"the pod was active for longer than its deadline of {seconds} s"
        self._outcome.failure = PodFailedError("DeadlineExceeded", text)
        self._event("Warning", "DeadlineExceeded", text)
        self.terminate(self._grace())

    async def _remove_object(self) -> None:
        metadata = self.pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        with contextlib.suppress(ApiError):  # gone, or another pod of the same name
            await persistently(lambda: self._context.api.delete(self._reporter.path, body))

    # --- Its containers ------------------------------------------------------------------------

    def _container(self, spec: Json, policy: Literal["Always", "OnFailure", "Never"]) -> Container:
        around = Surroundings(
            folder=self._folder / "containers" / spec["name"],
            pod_ip=self.pod_ip,
            grace_seconds=self._grace(),
            prepare=lambda spec, tell: self._prepared(
                lambda: self._commands.build(spec), "CreateContainerConfigError", tell
            ),
            seconds_left=self._seconds_left,
            pause=lambda seconds: self._unless_ending(asyncio.sleep(seconds)),
            changed=lambda: self._reporter.changed(),  # made after the containers
            event=self._event,
        )
        return Container(spec, policy, around)

    def _policy(self, *, init: bool = False) -> Literal["Always", "OnFailure", "Never"]:
        policy: Literal["Always", "OnFailure", "Never"] = self.pod["spec"].get(
            "restartPolicy", "Always"
        )
        return "OnFailure" if init and policy == "Always" else policy

    def _grace(self) -> float:
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    async def _prepared(
        self,
        make: Callable[[], Awaitable[T]],
        reason: str,
        tell: Callable[[str, str], None] = lambda *_: None,
    ) -> T:
        """Repeat until nothing is missing any more; say what is missing, once, and `tell` it.

        Raises `EndingError`, or `PodFailedError` where it can never work.
        """
        said = ""
        while True:
            try:
                return await self._unless_ending(make())
            except NotReadyError as missing:
                if str(missing) != said:
                    said = str(missing)
                    self._event("Warning", missing.reason or reason, said)
                    tell(missing.reason or reason, said)
            except (ValueError, OSError) as error:
                raise PodFailedError(reason, str(error)) from error
            await self._unless_ending(asyncio.sleep(_RETRY_SECONDS))

    async def _unless_ending(self, work: Awaitable[T]) -> T:
        """Wait for the work. Raises `EndingError` as soon as the pod ends."""
        task = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not self._ending.is_set():
                return await task
        finally:
            ending.cancel()
            if not task.done():
                task.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # seen, so that nothing warns about it
        raise EndingError

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        about = {**self.pod, "apiVersion": "v1", "kind": "Pod"}
        self._context.events.write(about, kind, reason, message)
