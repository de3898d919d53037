"""Finds a server of the tests that is written in Go, or builds it: minutes, once per version."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from daybreak_devcluster.gobuild import toolchain
from daybreak_devcluster.steps import StepError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A module that a program's own repository has in a folder. Its module leaves that out, and
    `go install` refuses it; so the program is built in its module's source, with the part as it
    was published."""

    module: str
    version: str
    added: Mapping[str, str]
    """File to text: what the program needs and this version lacks."""


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
    part: Part | None = None
    """Of `module`."""

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
            build = _Build(self, target, str(go), {**environment, "CGO_ENABLED": "0"})
            if self.part is None:
                build.install(Path(folder))
            else:
                build.compile_with(self.part, Path(folder))
            if self.files:
                source = build.source(self.module, self.version)
                for file in (file for pattern in self.files for file in source.glob(pattern)):
                    (target.parent / file.name).write_bytes(file.read_bytes())
            (Path(folder) / self.name).rename(target)  # last, for with it all is there


_FLAGS = ("-trimpath", "-ldflags", "-s -w")


@dataclass(frozen=True)
class _Build:
    program: GoProgram
    target: Path
    go: str
    environment: Mapping[str, str]

    def install(self, folder: Path) -> None:
        package = f"{self.program.package}@{self.program.version}"
        self._run("install", *_FLAGS, package, GOBIN=str(folder))

    def compile_with(self, part: Part, folder: Path) -> None:
        copy, file = folder / "part", folder / "go.mod"
        shutil.copytree(self.source(part.module, part.version), copy, copy_function=shutil.copyfile)
        for each in (copy, *copy.rglob("*/")):
            each.chmod(0o755)  # Go's cache of sources is read-only
        for name, text in part.added.items():
            (copy / name).write_text(text)
        source = self.source(self.program.module, self.program.version)
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(source / name, folder / name)
        self._run("mod", "edit", f"-replace={part.module}={copy}", str(file))
        output = ("-o", str(folder / self.program.name))
        self._run("build", *_FLAGS, f"-modfile={file}", *output, self.program.package, cwd=source)

    def source(self, module: str, version: str) -> Path:
        told = self._run("mod", "download", "-json", f"{module}@{version}")
        return Path(json.loads(told)["Dir"])

    def _run(self, *arguments: str, cwd: Path | None = None, **variables: str) -> str:
        done = subprocess.run(
            (self.go, *arguments),
            env={**self.environment, **variables},
            cwd=cwd,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            name, version = self.program.name, self.program.version
            last = "\n    ".join(done.stderr.strip().splitlines()[-10:])
            raise StepError(
                f"{name} {version} could not be built:\n    {last}\n"
                f"put a {name} of this version at {self.target}"
            )
        return done.stdout
