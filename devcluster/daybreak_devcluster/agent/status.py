"""Computes a pod's status from what its containers did.

Pure: the rules are a kubelet's, so that controllers judge pods here as they would elsewhere.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
UNKNOWN_EXIT_CODE = 137


def now() -> str:
    """The time as RFC 3339 with seconds, UTC: what status fields hold."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class ContainerState:
    """What the status says of one container. The agent changes it; `to_json` shows it."""

    name: str
    image: str
    sidecar: bool = False
    restarts: int = 0
    waiting: tuple[str, str] | None = ("PodInitializing", "")
    """Reason and message."""
    running_since: str | None = None
    terminated: Json | None = None
    last: Json | None = None
    started: bool = False
    ready: bool = False

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None where it has not ended."""
        return None if self.terminated is None else int(self.terminated["exitCode"])

    def wait(self, reason: str, message: str = "") -> None:
        """It will start (again) later."""
        if self.terminated is not None:
            self.last = self.terminated
        self.waiting, self.running_since, self.terminated = (reason, message), None, None
        self.started = self.ready = False

    def run(self) -> None:
        """It runs from now on."""
        self.waiting, self.terminated, self.running_since = None, None, now()

    def end(self, exit_code: int, reason: str, message: str) -> None:
        """It has ended."""
        started = self.running_since
        self.terminated = {"exitCode": exit_code, "reason": reason, "finishedAt": now()}
        if started is not None:
            self.terminated["startedAt"] = started
        if message:
            self.terminated["message"] = message
        self.waiting = self.running_since = None
        self.started = self.ready = False

    def end_unseen(self) -> None:
        """Its pod is over: where it was not started, it never will be."""
        if self.terminated is None:
            text = "the container was not started, or its end was not seen"
            self.end(UNKNOWN_EXIT_CODE, "ContainerStatusUnknown", text)

    def to_json(self) -> Json:
        """One entry of `containerStatuses`."""
        if self.terminated is not None:
            state: Json = {"terminated": self.terminated}
        elif self.running_since is not None:
            state = {"running": {"startedAt": self.running_since}}
        else:
            reason, message = self.waiting or ("ContainerCreating", "")
            state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "restartCount": self.restarts,
            "started": self.started,
            "ready": self.ready,
            "state": state,
            "lastState": {} if self.last is None else {"terminated": self.last},
        }


def phase(
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    *,
    ended: bool,
) -> str:
    """The pod's phase; `ended` means that nothing will be started any more."""
    if ended:
        codes = [state.exit_code for state in [*init, *main] if not state.sidecar]
        return "Succeeded" if all(code == 0 for code in codes) else "Failed"
    if any(state.running_since or state.terminated or state.last for state in main):
        return "Running"
    return "Pending"


def conditions(
    init: Sequence[ContainerState], main: Sequence[ContainerState], phase: str
) -> dict[str, tuple[str, str, str]]:
    """Condition type to (status, reason, message)."""
    initialized = all(state.started if state.sidecar else state.exit_code == 0 for state in init)
    sidecars = [state for state in init if state.sidecar]
    unready = [state.name for state in [*sidecars, *main] if not state.ready]
    if phase == "Succeeded":
        readiness = ("False", "PodCompleted", "")
    elif phase == "Failed":
        readiness = ("False", "PodFailed", "")
    elif unready:
        names = " ".join(unready)
        readiness = ("False", "ContainersNotReady", f"containers with unready status: [{names}]")
    else:
        readiness = ("True", "", "")
    not_initialized = ("False", "ContainersNotInitialized", "init containers have not completed")
    return {
        "Initialized": ("True", "", "") if initialized else not_initialized,
        "ContainersReady": readiness,
        "Ready": readiness,
    }


def conditions_json(
    wanted: Mapping[str, tuple[str, str, str]], before: Mapping[str, Json]
) -> dict[str, Json]:
    """The conditions as JSON; the time of the last transition is kept where nothing changed."""
    result = {}
    for kind, (status, reason, message) in wanted.items():
        old = before.get(kind)
        same = old is not None and old["status"] == status
        time = old["lastTransitionTime"] if same and old is not None else now()
        result[kind] = {
            "type": kind,
            "status": status,
            "lastTransitionTime": time,
            "reason": reason or None,
            "message": message or None,
        }
    return result
