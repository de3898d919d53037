"""Finds the five programs of the control plane, and says what it tried.

The order: a directory that the environment names, the user's cache, the projects' official
release downloads, a Go build of the module in `devcluster/controlplane/`. What is fetched or built
is published in the cache in one rename, so a directory there is either complete or absent, and
a lock keeps two builders from doing the same work. No step hides why it was passed over: the
reasons are reported as they happen and repeated in the final error.

`python -m daybreak_devcluster.binaries` fills the cache and prints the directory.
"""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from daybreak_devcluster.downloads import download_release
from daybreak_devcluster.gobuild import build_with_go
from daybreak_devcluster.release import PROGRAMS, Release, read_release
from daybreak_devcluster.steps import Report, StepError

Provider = Callable[[Path, Release, Report], None]
"""Fills a directory with the five programs, or raises `StepError` with the reason."""

ENVIRONMENT_VARIABLES = ("KUBEBUILDER_ASSETS", "DAYBREAK_CONTROLPLANE_DIR")
PROVIDERS: tuple[tuple[str, Provider], ...] = (
    ("official release downloads", download_release),
    ("Go build", build_with_go),
)


class BinariesNotFoundError(Exception):
    """No step could provide the control plane; the message lists every step and its reason."""


def find_binaries(
    report: Report,
    *,
    environ: Mapping[str, str] | None = None,
    release: Release | None = None,
    providers: tuple[tuple[str, Provider], ...] = PROVIDERS,
) -> Path:
    """Return a directory that holds all five programs.

    Takes seconds once the cache is filled and some minutes before (`devcluster/README.md`).
    Raises `BinariesNotFoundError` where every step failed.
    """
    environ = os.environ if environ is None else environ
    release = read_release() if release is None else release
    search = _Search(report)

    for variable in ENVIRONMENT_VARIABLES:
        value = environ.get(variable)
        if not value:
            search.passed_over(f"${variable}", "not set", quietly=True)
        elif reason := _incomplete(Path(value)):
            search.passed_over(f"${variable}", reason)
        else:
            return Path(value).resolve()

    cached = cache_root(environ) / release.key
    if reason := _incomplete(cached):
        search.passed_over("cache", reason, quietly=not cached.exists())
    else:
        return cached
    with _locked(cached.with_name(f"{release.key}.lock"), report):
        if not _incomplete(cached):  # another process filled it while this one waited
            return cached
        for name, provider in providers:
            try:
                _publish(provider, cached, release, report)
            except (StepError, OSError) as reason_:
                search.passed_over(name, str(reason_))
            else:
                report(f"control plane {release.kubernetes} is now in {cached}")
                return cached
    raise BinariesNotFoundError(search.summary(release))


def cache_root(environ: Mapping[str, str]) -> Path:
    """The user's cache of control planes: one directory per release and module hash in it."""
    base = environ.get("XDG_CACHE_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".cache"
    )
    return Path(base) / "daybreak" / "controlplane"


class _Search:
    """The steps tried so far, for the final error."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._reasons: list[tuple[str, str]] = []

    def passed_over(self, step: str, reason: str, *, quietly: bool = False) -> None:
        self._reasons.append((step, reason))
        if not quietly:
            self._report(f"control plane: passed over {step}: {reason}")

    def summary(self, release: Release) -> str:
        lines = [f"no Kubernetes {release.kubernetes} control plane found. Tried, in order:"]
        lines += [f"  {step}: {reason}" for step, reason in self._reasons]
        lines.append(
            f"Put {', '.join(PROGRAMS)} into one directory and name it in "
            f"$DAYBREAK_CONTROLPLANE_DIR, or install Go {release.go[0]}.{release.go[1]} or newer."
        )
        return "\n".join(lines)


def _incomplete(directory: Path) -> str | None:
    """Why the directory does not count, or None where all five programs are in it."""
    if not directory.is_dir():
        return f"{directory} is not a directory"
    missing = [name for name in PROGRAMS if not os.access(directory / name, os.X_OK)]
    return f"{directory} has no {', '.join(missing)}" if missing else None


def _publish(provider: Provider, target: Path, release: Release, report: Report) -> None:
    """Let the provider fill a directory beside the target, then move it there in one step."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as name:
        filled = Path(name) / target.name
        filled.mkdir()
        provider(filled, release, report)
        if reason := _incomplete(filled):
            raise StepError(f"the step ended, but {reason}")
        if target.exists():  # an incomplete one: somebody removed files from the cache
            shutil.rmtree(target)
        filled.replace(target)


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the cache's lock file; it stays behind, empty, because removing it would be a race."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("control plane: another process is fetching or building it; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Fill the cache and print the directory; the reports go to stderr."""
    try:
        print(find_binaries(lambda line: print(line, file=sys.stderr, flush=True)))
    except (BinariesNotFoundError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
