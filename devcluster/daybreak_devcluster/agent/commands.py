"""Turns a container of a pod's spec into the command that its sandbox runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak_devcluster.agent.data import Data
from daybreak_devcluster.agent.environment import (
    NotReadyError,
    PodAddress,
    build_environment,
    expand,
)
from daybreak_devcluster.agent.hosts import hostname
from daybreak_devcluster.agent.rootfs import HostView, Mount, root_options
from daybreak_devcluster.agent.sandbox import Command
from daybreak_devcluster.agent.volumes import PodVolumes

Json = dict[str, Any]
_DEFAULT_USER = 65532  # for containers that must not run as root and name no user
_MISSING = "missing.invalid/"
"""Images are names only; those that begin so cannot be pulled."""


@dataclass(frozen=True)
class CommandBuilder:
    """Builds the commands of one pod's containers."""

    pod: Json
    folder: Path
    """The pod's own."""
    address: PodAddress
    base_environment: Mapping[str, str]
    view: HostView
    volumes: PodVolumes
    data: Data

    @property
    def hosts_path(self) -> Path:
        """The pod's /etc/hosts."""
        return self.folder / "hosts"

    async def build(self, spec: Json) -> Command:
        """The command of one container.

        Raises `NotReadyError` where something it needs is missing, and `ValueError` or `OSError`
        where it can never run.
        """
        if (image := spec.get("image", "")).startswith(_MISSING):
            raise NotReadyError(f"image {image!r} cannot be pulled: not found", "ErrImagePull")
        name = hostname(self.pod) if not self.pod["spec"].get("hostNetwork") else self.address.node
        environment = await build_environment(
            self.pod,
            spec,
            self.address,
            {**self.base_environment, "HOSTNAME": name},
            self.data.fetch,
        )
        user, group = self._user(spec)
        security = spec.get("securityContext") or {}
        root = root_options(
            [*self._own_mounts(spec), *self.volumes.mounts(spec, environment)],
            self.view,
            gpus=any("gpu" in name for name in (spec.get("resources") or {}).get("limits") or ()),
            writable_tmp=not security.get("readOnlyRootFilesystem"),
        )
        argv = [*(spec.get("command") or ()), *(spec.get("args") or ())]
        return Command(
            argv=[expand(word, environment) for word in argv],
            environment=environment,
            working_dir=spec.get("workingDir") or "/",
            user=user,
            group=group,
            hostname=name,
            root=root,
        )

    def _own_mounts(self, spec: Json) -> list[Mount]:
        """What every container has besides its volumes."""
        message = self.folder.joinpath("containers", spec["name"], "termination-log")
        path = spec.get("terminationMessagePath") or "/dev/termination-log"
        return [Mount("/etc/hosts", self.hosts_path), Mount(path, message, writable=True)]

    def _user(self, spec: Json) -> tuple[int, int]:
        """User and group that the process sees itself as.

        Raises `ValueError` where it must not be root and is told to be.
        """
        security = {
            **(self.pod["spec"].get("securityContext") or {}),
            **(spec.get("securityContext") or {}),
        }
        user = security.get("runAsUser")
        if user is None:
            user = _DEFAULT_USER if security.get("runAsNonRoot") else 0
        if user == 0 and security.get("runAsNonRoot"):
            raise ValueError(f"container {spec['name']}: runAsNonRoot is true and runAsUser is 0")
        return user, security.get("runAsGroup", user)
