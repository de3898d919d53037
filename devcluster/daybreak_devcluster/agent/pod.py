"""Runs one pod from its binding to the removal of its object.

The order is a kubelet's: refuse or prepare volumes, run init containers one after another, then all
containers together; on deletion SIGTERM, the grace period, SIGKILL, the final status, and only then
the object's removal. The status is written whenever it changed, and never from two places at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from daybreak_devcluster.agent import status
from daybreak_devcluster.agent.api import STRATEGIC, Api, ApiError, persistently
from daybreak_devcluster.agent.container import Container, EndingError, Surroundings
from daybreak_devcluster.agent.data import Data
from daybreak_devcluster.agent.environment import (
    NotReadyError,
    PodAddress,
    build_environment,
    expand,
)
from daybreak_devcluster.agent.events import Events
from daybreak_devcluster.agent.hosts import hostname, rewrite
from daybreak_devcluster.agent.limits import NOT_ENFORCED, is_sidecar, not_enforced, refusals
from daybreak_devcluster.agent.rootfs import HostView, Mount, root_options
from daybreak_devcluster.agent.sandbox import Command
from daybreak_devcluster.agent.volumes import PodVolumes

Json = dict[str, Any]
T = TypeVar("T")
_RETRY_SECONDS = 0.5
_DEFAULT_USER = 65532  # for pods that must not run as root and name no user
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


class PodFailedError(Exception):
    """The pod cannot run at all, or may not run on."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PodRunner:
    """One pod. `run` is its life; the other methods tell it what happens to its object."""

    def __init__(self, context: NodeContext, pod: Json, pod_ip: str) -> None:
        self.pod = pod
        self.pod_ip = pod_ip
        self.finished = asyncio.Event()
        """Set once nothing of it runs and its final status is written."""
        self._context = context
        self._folder = context.pods_dir.joinpath(pod["metadata"]["uid"])
        self._address = PodAddress(pod_ip, context.host_ip, context.node)
        self._data = Data(context.api, pod["metadata"]["namespace"])
        self._volumes = PodVolumes(context.api, pod, self._folder, self._address, self._data.fetch)
        self._start_time = (pod.get("status") or {}).get("startTime") or status.now()
        self._failure: PodFailedError | None = None
        self._disruption: str | None = None
        self._ending = asyncio.Event()
        self._kill_at = float("inf")
        self._ended = False
        self._deleted = asyncio.Event()
        self._vanished = asyncio.Event()
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._written: Json | None = None
        self._conditions: dict[str, Json] = {
            item["type"]: item for item in (pod.get("status") or {}).get("conditions") or ()
        }
        self._init = [
            self._container(spec, "Always" if is_sidecar(spec) else self._policy(init=True), "init")
            for spec in pod["spec"].get("initContainers") or ()
        ]
        for container in self._init:
            container.state.sidecar = is_sidecar(container.spec)
        self._main = [
            self._container(spec, self._policy(), "main") for spec in pod["spec"]["containers"]
        ]

    @property
    def hosts_path(self) -> Path:
        """Its /etc/hosts."""
        return self._folder / "hosts"

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
        if not self._ended:
            self._disruption = message
            self._failure = self._failure or PodFailedError("Terminated", message)
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
            self._ended = True  # before this agent's time
        else:
            await self._run_to_end()
        self.finished.set()
        await self._deleted.wait()
        await self._remove_object()
        await self._vanished.wait()

    async def _run_to_end(self) -> None:
        publisher = asyncio.create_task(self._keep_published())
        try:
            await self._live()
        except EndingError:
            pass
        except PodFailedError as failure:
            self._failure = self._failure or failure
            self._event("Warning", failure.reason, str(failure))
        except Exception as error:  # noqa: BLE001 (one pod's trouble must not end the node)
            _log.exception("pod %s", self.pod["metadata"]["name"])
            self._failure = PodFailedError("NodeAgentError", f"{type(error).__name__}: {error}")
            self._event("Warning", "NodeAgentError", str(self._failure))
        finally:
            self._volumes.close()
            self._ended = True
            publisher.cancel()
        await self._publish()

    async def _live(self) -> None:
        """Everything up to the end of the last container."""
        pod = self.pod
        if refused := refusals(pod):
            text = "; ".join(f"{item} cannot be had here" for item in refused)
            raise PodFailedError("Unsupported", f"the development cluster refuses this pod: {text}")
        if (pod.get("status") or {}).get("phase") == "Running":
            raise PodFailedError("ContainersLost", "the node's agent was restarted")
        self.changed()
        deadline = pod["spec"].get("activeDeadlineSeconds")
        timer = None
        if deadline is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(deadline, self._exceed_deadline, deadline)
        sidecars: list[tuple[Container, asyncio.Task[None]]] = []
        try:
            await self._prepared(self._volumes.make, "FailedMount")
            rewrite(self.hosts_path, self._context.hosts_of(pod, self.pod_ip))
            await self._run_init(sidecars)
            await asyncio.gather(*(container.run() for container in self._main))
        finally:
            if timer is not None:
                timer.cancel()
            await self._stop_sidecars(sidecars)

    async def _run_init(self, sidecars: list[tuple[Container, "asyncio.Task[None]"]]) -> None:
        """Run the init containers in order. Raises `EndingError`, or `PodFailedError` where one
        failed for good."""
        for container in self._init:
            if container.state.sidecar:
                sidecars.append((container, asyncio.create_task(container.run())))
                await self._unless_ending(container.started.wait())
                continue
            await container.run()
            if self._ending.is_set():
                raise EndingError
            if container.state.exit_code != 0:
                name = container.state.name
                raise PodFailedError("InitContainerFailed", f"init container {name} failed")

    async def _stop_sidecars(self, sidecars: list[tuple[Container, "asyncio.Task[None]"]]) -> None:
        left = self._kill_at - asyncio.get_running_loop().time()
        self._ending.set()
        for container, task in reversed(sidecars):
            container.stop(max(0.0, min(left, self._grace())))
            await task

    def _exceed_deadline(self, seconds: int) -> None:
        text = f"the pod was active for longer than its deadline of {seconds} s"
        self._failure = PodFailedError("DeadlineExceeded", text)
        self._event("Warning", "DeadlineExceeded", text)
        self.terminate(self._grace())

    async def _remove_object(self) -> None:
        metadata = self.pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        with contextlib.suppress(ApiError):  # gone, or another pod of the same name
            await persistently(lambda: self._context.api.delete(self._path(), body))

    # --- Its containers ------------------------------------------------------------------------

    def _container(
        self, spec: Json, policy: Literal["Always", "OnFailure", "Never"], kind: str
    ) -> Container:
        around = Surroundings(
            folder=self._folder / "containers" / spec["name"],
            pod_ip=self.pod_ip,
            grace_seconds=self._grace(),
            prepare=self._command,
            pause=lambda seconds: self._unless_ending(asyncio.sleep(seconds)),
            changed=self.changed,
            event=self._event,
        )
        container = Container(spec, policy, around)
        if kind == "main" and not self.pod["spec"].get("initContainers"):
            container.state.waiting = ("ContainerCreating", "")
        return container

    async def _command(self, spec: Json) -> Command:
        """Everything about how a container is started, once all it needs is there."""
        return await self._prepared(lambda: self._try_command(spec), "FailedConfig")

    async def _try_command(self, spec: Json) -> Command:
        base = {**self._context.base_environment, "HOSTNAME": self._hostname()}
        environment = await build_environment(self.pod, spec, self._address, base, self._data.fetch)
        user, group = self._user(spec)
        folder = self._folder / "containers" / spec["name"]
        mounts = [
            Mount("/etc/hosts", self.hosts_path),
            Mount(
                spec.get("terminationMessagePath") or "/dev/termination-log",
                folder / "termination-log",
                writable=True,
            ),
            *self._volumes.mounts(spec, environment),
        ]
        security = spec.get("securityContext") or {}
        root = root_options(
            mounts,
            self._context.view,
            writable_tmp=not security.get("readOnlyRootFilesystem"),
        )
        argv = [*(spec.get("command") or ()), *(spec.get("args") or ())]
        return Command(
            argv=[expand(word, environment) for word in argv],
            environment=environment,
            working_dir=spec.get("workingDir") or "/",
            user=user,
            group=group,
            hostname=self._hostname(),
            root=root,
        )

    def _user(self, spec: Json) -> tuple[int, int]:
        """User and group that the process sees itself as.

        Raises `PodFailedError` where it must not be root and is told to be.
        """
        security = {
            **(self.pod["spec"].get("securityContext") or {}),
            **(spec.get("securityContext") or {}),
        }
        user = security.get("runAsUser")
        if user is None:
            user = _DEFAULT_USER if security.get("runAsNonRoot") else 0
        if user == 0 and security.get("runAsNonRoot"):
            raise PodFailedError(
                "CreateContainerConfigError",
                f"container {spec['name']}: runAsNonRoot is true and runAsUser is 0",
            )
        return user, security.get("runAsGroup", user)

    def _hostname(self) -> str:
        own_network = not self.pod["spec"].get("hostNetwork")
        return hostname(self.pod) if own_network else self._context.node

    def _policy(self, *, init: bool = False) -> Literal["Always", "OnFailure", "Never"]:
        policy: Literal["Always", "OnFailure", "Never"] = self.pod["spec"].get(
            "restartPolicy", "Always"
        )
        return "OnFailure" if init and policy == "Always" else policy

    def _grace(self) -> float:
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    async def _prepared(self, make: Callable[[], Awaitable[T]], reason: str) -> T:
        """Repeat until nothing is missing any more; say what is missing, once.

        Raises `EndingError`, or `PodFailedError` where it can never work.
        """
        said = ""
        while True:
            try:
                return await self._unless_ending(make())
            except NotReadyError as missing:
                if str(missing) != said:
                    said = str(missing)
                    self._event("Warning", reason, said)
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

    # --- Its status ----------------------------------------------------------------------------

    def changed(self) -> None:
        """Write the status soon."""
        self._dirty.set()

    async def _keep_published(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await asyncio.shield(self._publish())

    async def _publish(self) -> None:
        async with self._writing:
            wanted = self._status()
            if wanted == self._written:
                return
            metadata: Json = {"uid": self.pod["metadata"]["uid"]}
            if self._written is None:
                metadata["annotations"] = {NOT_ENFORCED: ", ".join(not_enforced(self.pod))}
            body = {"metadata": metadata, "status": wanted}
            path = f"{self._path()}/status"
            try:
                await persistently(lambda: self._context.api.patch(path, body, STRATEGIC))
            except ApiError as error:
                if error.status not in (404, 409):
                    _log.error("status of %s: %s", path, error)
            self._written = wanted

    def _status(self) -> Json:
        if self._ended:
            for container in self.containers:
                if container.state.terminated is None:
                    text = "the container was not started, or its end was not seen"
                    container.state.end(status.UNKNOWN_EXIT_CODE, "ContainerStatusUnknown", text)
        init = [container.state for container in self._init]
        main = [container.state for container in self._main]
        policy = self.pod["spec"].get("restartPolicy", "Always")
        phase = status.phase(init, main, policy, ended=self._ended)
        result: Json = {}
        if self._failure is not None and self._ended:
            phase = "Failed"
            result = {"reason": self._failure.reason, "message": str(self._failure)}
        wanted = status.conditions(init, main, phase)
        if self._disruption is not None:
            wanted["DisruptionTarget"] = ("True", "TerminationByKubelet", self._disruption)
        self._conditions = status.conditions_json(wanted, self._conditions)
        return {
            **result,
            "phase": phase,
            "startTime": self._start_time,
            "hostIP": self._context.host_ip,
            "hostIPs": [{"ip": self._context.host_ip}],
            "podIP": self.pod_ip,
            "podIPs": [{"ip": self.pod_ip}],
            "conditions": list(self._conditions.values()),
            "initContainerStatuses": [state.to_json() for state in init],
            "containerStatuses": [state.to_json() for state in main],
        }

    def _path(self) -> str:
        metadata = self.pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        about = {**self.pod, "apiVersion": "v1", "kind": "Pod"}
        self._context.events.write(about, kind, reason, message)
