"""Runs one container of a pod: starts, probes, restarts, stops it, and keeps its state."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daybreak_devcluster.agent.logs import ContainerLog
from daybreak_devcluster.agent.probing import verdicts
from daybreak_devcluster.agent.sandbox import Command, Sandbox, run_inside, start
from daybreak_devcluster.agent.status import ContainerState
from daybreak_devcluster.layout import OUT_OF_MEMORY

Json = dict[str, Any]
START_ERROR_CODE = 128
_MAX_MESSAGE_BYTES = 4096
_FIRST_BACK_OFF_SECONDS = 1.0
_MAX_BACK_OFF_SECONDS = 60.0
_CALM_SECONDS = 600.0  # after so long a run, the next restart is at once


@dataclass(frozen=True)
class Surroundings:
    """What a container needs from its pod."""

    folder: Path
    """Its own: logs, termination message, process ID."""
    pod_ip: str
    grace_seconds: float
    prepare: Callable[[Json, Callable[[str, str], None]], Awaitable[Command]]
    """Makes the command; waits for what is not there yet, and tells why (reason and message).
    Raises `EndingError` with the pod."""
    seconds_left: Callable[[], float | None]
    """Until everything has to be dead, or None while the pod is not ending."""
    pause: Callable[[float], Awaitable[None]]
    """Sleeps. Raises `EndingError` with the pod."""
    changed: Callable[[], None]
    """The state is another one now."""
    event: Callable[[Literal["Normal", "Warning"], str, str], None]


class EndingError(Exception):
    """The pod is ending: nothing more is started."""


class Container:
    """One container of one pod."""

    def __init__(
        self, spec: Json, restart: Literal["Always", "OnFailure", "Never"], around: Surroundings
    ) -> None:
        self.spec = spec
        self.state = ContainerState(spec["name"], spec.get("image", ""))
        self.logs: list[ContainerLog] = []
        self.started = asyncio.Event()
        """Set once it runs and its startup probe, if any, has passed."""
        self._restart = restart
        self._around = around
        self._sandbox: Sandbox | None = None
        self._command: Command | None = None
        self._stopping = False
        self._kill_timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self.termination_file = around.folder / "termination-log"

    async def run(self) -> None:
        """Run until it has ended for good. Raises nothing when the pod ends before."""
        loop = asyncio.get_running_loop()
        back_off = 0.0
        with contextlib.suppress(EndingError):
            while True:
                begun = loop.time()
                await self._run_once()
                failed = self.state.exit_code != 0
                if self._restart == "Never" or (self._restart == "OnFailure" and not failed):
                    return
                if loop.time() - begun > _CALM_SECONDS:
                    back_off = 0.0
                if back_off:
                    text = f"back-off {back_off:g} s restarting failed container {self.state.name}"
                    self.state.wait("CrashLoopBackOff", text)
                    self._around.event("Warning", "BackOff", text)
                    self._around.changed()
                await self._around.pause(back_off)
                back_off = min(_MAX_BACK_OFF_SECONDS, 2 * back_off or _FIRST_BACK_OFF_SECONDS)
                self.state.wait("ContainerCreating")
                self.state.restarts += 1

    def stop(self, grace_seconds: float) -> None:
        """Ask it to end: preStop, SIGTERM, and SIGKILL after that time. Again with less time to
        shorten it. A container that may restart does so, unless its pod is ending."""
        if self._sandbox is None:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + grace_seconds
        if self._kill_timer is None or at < self._kill_timer.when():
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_timer = loop.call_at(at, self.kill)
        if not self._stopping:
            self._stopping = True
            text = f"stopping container {self.state.name} (grace period {grace_seconds:g} s)"
            self._around.event("Normal", "Killing", text)
            self._asking = asyncio.create_task(self._ask_to_end(grace_seconds))

    def kill(self) -> None:
        """SIGKILL."""
        if self._sandbox is not None:
            self._sandbox.send(signal.SIGKILL)

    async def _ask_to_end(self, grace_seconds: float) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        sandbox = self._sandbox
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            code, output = await self._inside(hook["exec"]["command"], grace_seconds)
            if code != 0:
                text = f"preStop of {self.state.name} exited {code}: {output}"
                self._around.event("Warning", "FailedPreStopHook", text)
        if sandbox is not None:
            sandbox.send(signal.SIGTERM)

    async def _run_once(self) -> None:
        """Start, probe, wait for the end and note it in the state."""
        around, state = self._around, self.state
        if state.waiting is None or state.waiting[0] == "PodInitializing":
            state.wait("ContainerCreating")
        around.folder.mkdir(parents=True, exist_ok=True)
        self.termination_file.write_bytes(b"")
        command = self._command = await around.prepare(self.spec, self._wait)
        log = ContainerLog(around.folder / f"{state.restarts}.log")
        self.logs.append(log)
        sandbox = await start(command, log.feed)
        self._sandbox = sandbox
        self._stopping, self._kill_timer = False, None
        if sandbox.pid:
            (around.folder / "pid").write_text(f"{sandbox.pid}\n")
        state.run()
        probes = self._start_probes()
        around.event("Normal", "Started", f"started container {state.name}")
        around.changed()
        if (left := around.seconds_left()) is not None:  # the end was asked for while it started
            self.stop(left)
        try:
            code = await sandbox.wait()
        finally:
            self._sandbox = None
            for task in [*probes, *([self._asking] if self._asking else [])]:
                task.cancel()
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            log.close()
        (around.folder / "pid").unlink(missing_ok=True)
        self._note_end(code, log)
        around.changed()

    def _wait(self, reason: str, message: str) -> None:
        self.state.wait(reason, message)
        self._around.changed()

    def _note_end(self, code: int, log: ContainerLog) -> None:
        first = log.first_line()
        if code == 1 and first.startswith("bwrap: "):
            why = first.removeprefix("bwrap: ")
            self.state.end(START_ERROR_CODE, "StartError", why)
            self._around.event("Warning", "Failed", f"container {self.state.name}: {why}")
            return
        raw = self.termination_file.read_bytes()[:_MAX_MESSAGE_BYTES]
        message = raw.decode(errors="replace")
        falls_back = self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not message and falls_back and code != 0:
            message = log.tail()
        reason = "Completed" if code == 0 else "Error"
        if (self._around.folder / OUT_OF_MEMORY).exists():
            reason = "OOMKilled"
        self.state.end(code, reason, message)

    def _start_probes(self) -> list["asyncio.Task[None]"]:
        if "startupProbe" in self.spec:
            return [asyncio.create_task(self._probe_startup())]
        return self._begin()

    def _begin(self) -> list["asyncio.Task[None]"]:
        """It counts as started: the other probes begin."""
        self.state.started = True
        self.started.set()
        tasks = []
        if "livenessProbe" in self.spec:
            tasks.append(asyncio.create_task(self._probe_liveness()))
        if "readinessProbe" in self.spec:
            tasks.append(asyncio.create_task(self._probe_readiness()))
        else:
            self.state.ready = True
        return tasks

    async def _probe_startup(self) -> None:
        probe = self.spec["startupProbe"]
        async for passed, why in self._verdicts(probe):
            if not passed:
                self._unhealthy("Startup", why)
                self.stop(probe.get("terminationGracePeriodSeconds", self._around.grace_seconds))
                return
            tasks = self._begin()
            self._around.changed()
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            return

    async def _probe_liveness(self) -> None:
        probe = self.spec["livenessProbe"]
        async for passed, why in self._verdicts(probe):
            if not passed:
                self._unhealthy("Liveness", why)
                self.stop(probe.get("terminationGracePeriodSeconds", self._around.grace_seconds))
                return

    async def _probe_readiness(self) -> None:
        async for passed, why in self._verdicts(self.spec["readinessProbe"]):
            if passed != self.state.ready:
                self.state.ready = passed
                self._around.changed()
            if not passed:
                self._unhealthy("Readiness", why)

    def _verdicts(self, probe: Json) -> Any:
        return verdicts(probe, self.spec, self._around.pod_ip, self._inside)

    def _unhealthy(self, probe: str, why: str) -> None:
        text = f"{probe} probe of container {self.state.name} failed: {why}"
        self._around.event("Warning", "Unhealthy", text)

    async def _inside(self, argv: list[str], seconds: float) -> tuple[int, str]:
        if self._sandbox is None or not self._sandbox.pid or self._command is None:
            return -1, "the container does not run"
        command = self._command
        return await run_inside(
            self._sandbox.pid, argv, command.environment, command.working_dir, seconds
        )
