"""The node agent as a whole: watches pods and Services, and gives each bound pod a runner."""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daybreak_devcluster.agent.api import Api
from daybreak_devcluster.agent.container import Container
from daybreak_devcluster.agent.events import Events
from daybreak_devcluster.agent.hosts import hosts_file, rewrite
from daybreak_devcluster.agent.logserver import LogServer
from daybreak_devcluster.agent.node import Node
from daybreak_devcluster.agent.pod import NodeContext, PodRunner
from daybreak_devcluster.agent.rootfs import HostView
from daybreak_devcluster.agent.storage import Provisioner
from daybreak_devcluster.layout import Layout

Json = dict[str, Any]
_HOST = "127.0.0.1"
_STOP_GRACE_SECONDS = 5.0
_GOODBYE_SECONDS = 2.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The command line."""

    kubeconfig: Path
    node_name: str
    capacity: Mapping[str, str]
    state_dir: Path


class NodeAgent:
    """One node. `run` returns after SIGTERM or SIGINT, with nothing left running."""

    def __init__(self, options: Options, api: Api) -> None:
        self._options = options
        self._api = api
        self._pods: dict[str, Json] = {}
        self._services: dict[str, Json] = {}
        self._runners: dict[str, PodRunner] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._hosts_due = False
        events = Events(api, options.node_name)
        layout = Layout(options.state_dir.parents[1])
        self._context = NodeContext(
            api=api,
            events=events,
            node=options.node_name,
            host_ip=_HOST,
            pods_dir=options.state_dir / "pods",
            base_environment=_base_environment(api.server),
            view=_host_view(layout),
            hosts_of=self._hosts_of,
        )
        self._node = Node(api, options.node_name, _HOST, options.capacity)
        self._provisioner = Provisioner(api, events, layout.root / "volumes")
        self._log_server = LogServer(_HOST, api.authority, self._find_container)

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        port = await self._log_server.start(self._options.state_dir)
        for work in (
            self._node.heartbeat(),
            self._node.register(port),
            self._watch_services(),
            self._watch_pods(),
            self._provisioner.create_class(),
            self._provisioner.watch_claims(),
            self._provisioner.watch_volumes(),
        ):
            self._spawn(work)
        await self._stopping.wait()
        await self._end()

    async def _end(self) -> None:
        running = list(self._runners.values())
        for runner in running:
            runner.disrupt("the node is shutting down", _STOP_GRACE_SECONDS)
        waits = [asyncio.create_task(runner.finished.wait()) for runner in running]
        if waits:
            await asyncio.wait(waits, timeout=_STOP_GRACE_SECONDS + _GOODBYE_SECONDS)
        with contextlib.suppress(Exception):  # the API server may be gone by now
            await asyncio.wait_for(self._node.unregister(), _GOODBYE_SECONDS)

    def _spawn(self, work: Any) -> None:
        """Run in the background; a failure there ends the agent, and so is seen."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("the agent ends", exc_info=error)
                self._stopping.set()

        task.add_done_callback(done)

    # --- Pods ----------------------------------------------------------------------------------

    async def _watch_pods(self) -> None:
        async for kind, thing in self._api.watch("/api/v1/pods"):
            if kind == "LISTED":
                listed = {pod["metadata"]["uid"]: pod for pod in thing["items"]}
                for uid in self._pods.keys() - listed.keys():
                    self._forget(uid)
                for pod in listed.values():
                    self._see(pod)
            elif kind == "DELETED":
                self._forget(thing["metadata"]["uid"])
            else:
                self._see(thing)
            self._refresh_hosts()

    def _see(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        self._pods[uid] = pod
        if pod["spec"].get("nodeName") != self._options.node_name or self._stopping.is_set():
            return
        runner = self._runners.get(uid)
        if runner is None:
            runner = self._runners[uid] = PodRunner(self._context, pod, self._address(pod))
            self._spawn(self._run_pod(uid, runner))
        runner.update(pod)

    def _forget(self, uid: str) -> None:
        self._pods.pop(uid, None)
        if uid in self._runners:
            self._runners[uid].vanish()

    async def _run_pod(self, uid: str, runner: PodRunner) -> None:
        folder = self._context.pods_dir / uid
        folder.mkdir(parents=True, exist_ok=True)
        await runner.run()
        del self._runners[uid]
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _address(self, pod: Json) -> str:
        """An address of 127.0.0.0/8 for the pod, from its UID and different from all known ones."""
        if pod["spec"].get("hostNetwork"):
            return _HOST
        if known := (pod.get("status") or {}).get("podIP"):
            return str(known)
        taken = {(other.get("status") or {}).get("podIP") for other in self._pods.values()}
        taken |= {runner.pod_ip for runner in self._runners.values()}
        digest = hashlib.sha256(pod["metadata"]["uid"].encode()).digest()
        number = int.from_bytes(digest[:4], "big")
        while True:
            # 1 ... 254 in each place: no network or broadcast address of anything, not 127.0.x.x
            places = [number // 254**power % 254 + 1 for power in (2, 1, 0)]
            address = "127." + ".".join(str(place) for place in places)
            if address not in taken:
                return address
            number += 1

    def _find_container(self, namespace: str, pod: str, container: str) -> Container | None:
        for runner in self._runners.values():
            metadata = runner.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                for item in runner.containers:
                    if item.state.name == container:
                        return item
        return None

    # --- Names ---------------------------------------------------------------------------------

    async def _watch_services(self) -> None:
        async for kind, thing in self._api.watch("/api/v1/services"):
            if kind == "LISTED":
                self._services = {item["metadata"]["uid"]: item for item in thing["items"]}
            elif kind == "DELETED":
                self._services.pop(thing["metadata"]["uid"], None)
            else:
                self._services[thing["metadata"]["uid"]] = thing
            self._refresh_hosts()

    def _hosts_of(self, pod: Json, pod_ip: str) -> str:
        return hosts_file(pod, pod_ip, self._pods.values(), self._services.values())

    def _refresh_hosts(self) -> None:
        """Rewrite the pods' /etc/hosts, once for all events that are already here."""
        if not self._hosts_due:
            self._hosts_due = True
            asyncio.get_running_loop().call_soon(self._rewrite_hosts)

    def _rewrite_hosts(self) -> None:
        self._hosts_due = False
        for runner in self._runners.values():
            if runner.hosts_path.exists():
                rewrite(runner.hosts_path, self._hosts_of(runner.pod, runner.pod_ip))


def _base_environment(server: str) -> dict[str, str]:
    """What every container starts with."""
    url = urlsplit(server)
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{_SYSTEM_PATH}",
        "HOME": "/",
        "LANG": "C.UTF-8",
        "GLOO_SOCKET_IFNAME": "lo",
        "KUBERNETES_SERVICE_HOST": url.hostname or _HOST,
        "KUBERNETES_SERVICE_PORT": str(url.port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(url.port),
    }


def _host_view(layout: Layout) -> HostView:
    """The checkout's environment is seen, also below /tmp; the cluster's own files are not."""
    import_path = [Path(entry).resolve() for entry in sys.path if entry]
    checkout = Path(__file__).resolve().parents[3]
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    keep = {path for path in (checkout, *prefixes, *import_path) if path.is_dir()}
    hide = (layout.root,) if layout.lock.exists() else ()
    return HostView(tuple(sorted(keep)), hide)
