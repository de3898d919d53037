"""Finds a server of the tests that is written in Go, or builds it: minutes, once per version."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daybreak_devcluster.gobuild import toolchain
from daybreak_devcluster.steps import StepError

Report = Callable[[str], None]


@dataclass(frozen=True)
class GoProgram:
    name: str
    package: str
    version: str
    oldest_go: tuple[int, int]
    what: str
    """It is, for who waits."""
    module: str = ""
    files: tuple[str, ...] = ()
    """Patterns of files of `module` that come along, without their folders."""

    def find(self, report: Report) -> Path:
        """Its path; the files are beside it.

        Raises `StepError` with what to do where it can be neither found nor built.
        """
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        target = cache / "daybreak" / self.name / self.version / self.name
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name("lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not target.exists():
                self._build(target, report)
        return target

    def print_path(self) -> None:
        """The program of a file that is run by itself."""
        try:
            print(self.find(lambda line: print(line, file=sys.stderr, flush=True)))
        except StepError as error:
            sys.exit(f"error: {error}")

    def _build(self, target: Path, report: Report) -> None:
        with (
            toolchain(self.oldest_go, report) as (go, environment),
            tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as folder,
        ):
            report(f"building {self.name} {self.version}, {self.what}: some minutes, once")
            environment = {**environment, "GOBIN": folder, "CGO_ENABLED": "0"}
            command = (str(go), "install", "-trimpath", "-ldflags", "-s -w")
            self._run(target, environment, *command, f"{self.package}@{self.version}")
            if self.files:
                module = f"{self.module}@{self.version}"
                told = self._run(target, environment, str(go), "mod", "download", "-json", module)
                source = Path(json.loads(told)["Dir"])
                for file in (file for pattern in self.files for file in source.glob(pattern)):
                    (target.parent / file.name).write_bytes(file.read_bytes())
            (Path(folder) / self.name).rename(target)  # last, for with it all is there

    def _run(self, target: Path, environment: dict[str, str], *command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            last = "\n    ".join(done.stderr.strip().splitlines()[-10:])
            raise StepError(
                f"{self.name} {self.version} could not be built:\n    {last}\n"
                f"put a {self.name} of this version at {target}"
            )
        return done.stdout
