"""Finds versitygw, the S3 server of the tests, or builds it: a minute, once per version.

`python tests/support/versitygw.py` fills the user's cache and prints the path.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from daybreak_devcluster.gobuild import toolchain
from daybreak_devcluster.steps import StepError

VERSION = "v1.8.0"
_PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
_OLDEST_GO = (1, 25)


def find_versitygw(report: Callable[[str], None]) -> Path:
    """The path of the program.

    Raises `StepError` with what to do where it can be neither found nor built.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "daybreak" / "versitygw" / VERSION / "versitygw"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name("lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not target.exists():
            _build(target, report)
    return target


def _build(target: Path, report: Callable[[str], None]) -> None:
    with (
        toolchain(_OLDEST_GO, report) as (go, environment),
        tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as folder,
    ):
        report(f"building versitygw {VERSION}, the S3 server of the tests: a minute, once")
        done = subprocess.run(
            [str(go), "install", "-trimpath", "-ldflags", "-s -w", f"{_PACKAGE}@{VERSION}"],
            env={**environment, "GOBIN": folder, "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            last = "\n    ".join(done.stderr.strip().splitlines()[-10:])
            raise StepError(
                f"versitygw {VERSION} could not be built:\n    {last}\n"
                f"put a versitygw of this version at {target}"
            )
        (Path(folder) / "versitygw").rename(target)


if __name__ == "__main__":
    try:
        print(find_versitygw(lambda line: print(line, file=sys.stderr, flush=True)))
    except StepError as error:
        sys.exit(f"error: {error}")
