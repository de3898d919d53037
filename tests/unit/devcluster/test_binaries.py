"""The search for the control plane's programs: its order, its honesty, its cache."""

import multiprocessing
import os
from pathlib import Path

import pytest

from daybreak_devcluster.binaries import BinariesNotFoundError, cache_root, find_binaries
from daybreak_devcluster.release import PROGRAMS, Release
from daybreak_devcluster.steps import Report, StepError

RELEASE = Release(kubernetes="v1.36.3", etcd="v3.6.8", go=(1, 26), key="v1.36.3-abc")


def fill(directory: Path, programs: tuple[str, ...] = PROGRAMS) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs:
        (directory / program).write_text("#!/bin/sh\n")
        (directory / program).chmod(0o755)
    return directory


def working(directory: Path, _release: Release, _report: Report) -> None:
    fill(directory)


def failing(_directory: Path, _release: Release, _report: Report) -> None:
    raise StepError("this machine has no way out")


def unreachable(_directory: Path, _release: Release, _report: Report) -> None:
    raise AssertionError("a later step ran although an earlier one had the programs")


class Search:
    """One search in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.environ = {"XDG_CACHE_HOME": str(root / "xdg")}
        self.cached = root / "xdg" / "daybreak" / "controlplane" / RELEASE.key
        self.reports: list[str] = []

    def __call__(self, *providers: tuple[str, object]) -> Path:
        return find_binaries(
            self.reports.append,
            environ=self.environ,
            release=RELEASE,
            providers=providers,  # type: ignore[arg-type]
        )


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


@pytest.mark.parametrize("variable", ["KUBEBUILDER_ASSETS", "DAYBREAK_CONTROLPLANE_DIR"])
def test_a_named_directory_comes_first(search: Search, tmp_path: Path, variable: str) -> None:
    """A complete directory that the environment names is used before cache, download and build."""
    named = fill(tmp_path / "named")
    fill(search.cached)
    search.environ[variable] = str(named)
    assert search(("download", unreachable)) == named


def test_a_directory_without_a_controller_manager_does_not_count(
    search: Search, tmp_path: Path
) -> None:
    """envtest's own assets lack the controller manager: they are passed over, and that is said."""
    envtest = fill(tmp_path / "envtest", ("etcd", "kube-apiserver", "kubectl"))
    search.environ["KUBEBUILDER_ASSETS"] = str(envtest)
    fill(search.cached)
    assert search(("download", unreachable)) == search.cached
    assert any("kube-controller-manager" in line for line in search.reports)


def test_a_program_that_cannot_be_executed_does_not_count(search: Search) -> None:
    """A file without the executable bit is as good as missing."""
    (fill(search.cached) / "etcd").chmod(0o644)
    assert search(("download", working)) == search.cached
    assert os.access(search.cached / "etcd", os.X_OK)


def test_the_cache_comes_before_download_and_build(search: Search) -> None:
    """Once filled, the cache is used and nothing is fetched or built."""
    fill(search.cached)
    assert search(("download", unreachable), ("build", unreachable)) == search.cached


def test_a_failed_step_is_reported_and_the_next_one_tried(search: Search) -> None:
    """The reason a step was passed over is said when it happens; the next step fills the cache."""
    assert search(("download", failing), ("build", working)) == search.cached
    assert any("download: this machine has no way out" in line for line in search.reports)


def test_the_order_of_the_steps_is_download_then_build(search: Search) -> None:
    """A download that works makes the build unnecessary."""
    assert search(("download", working), ("build", unreachable)) == search.cached


def test_the_final_error_lists_every_step(search: Search) -> None:
    """Where all steps fail, the error names each with its reason and says what to do."""
    search.environ["KUBEBUILDER_ASSETS"] = "/nonexistent"
    with pytest.raises(BinariesNotFoundError) as raised:
        search(("download", failing), ("build", failing))
    message = str(raised.value)
    for step in ("$KUBEBUILDER_ASSETS", "$DAYBREAK_CONTROLPLANE_DIR", "cache", "download", "build"):
        assert f"  {step}: " in message
    assert "install Go 1.26" in message


def test_a_half_filled_directory_is_never_published(search: Search) -> None:
    """A step that leaves a program out, or dies midway, leaves nothing in the cache."""

    def halfway(directory: Path, _release: Release, _report: Report) -> None:
        fill(directory, ("etcd",))

    def dying(directory: Path, _release: Release, _report: Report) -> None:
        fill(directory, ("etcd",))
        raise KeyboardInterrupt

    with pytest.raises(BinariesNotFoundError, match="kube-apiserver"):
        search(("download", halfway))
    with pytest.raises(KeyboardInterrupt):
        search(("build", dying))
    assert [path.name for path in search.cached.parent.iterdir()] == [f"{RELEASE.key}.lock"]


def _search_and_build(root: Path) -> None:
    def provider(directory: Path, _release: Release, _report: Report) -> None:
        with (root / "builds").open("a") as log:
            log.write("built\n")
        fill(directory)

    Search(root)(("build", provider))


def test_two_searches_build_once(tmp_path: Path) -> None:
    """Of processes that search at the same time, one builds and the others take its result."""
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_search_and_build, args=(tmp_path,)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0] * 4
    assert (tmp_path / "builds").read_text() == "built\n"


def test_the_cache_follows_the_user_s_settings() -> None:
    """`$XDG_CACHE_HOME` where set, else `~/.cache`."""
    tail = Path("daybreak") / "controlplane"
    assert cache_root({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x") / tail
    assert cache_root({"HOME": "/h"}) == Path("/h/.cache") / tail
