"""The Go module is the one place that names versions."""

from pathlib import Path

import pytest

from daybreak_devcluster.release import MODULE_DIR, read_release


def copy_module(target: Path) -> Path:
    target.mkdir()
    for name in ("go.mod", "go.sum", "main.go"):
        (target / name).write_bytes((MODULE_DIR / name).read_bytes())
    return target


def test_versions_come_from_the_module() -> None:
    """The release names Kubernetes, etcd and Go as `go.mod` pins them."""
    release = read_release()
    go_mod = (MODULE_DIR / "go.mod").read_text()
    assert f"k8s.io/kubernetes {release.kubernetes}" in go_mod
    assert f"go.etcd.io/etcd/server/v3 {release.etcd}" in go_mod
    assert release.key.startswith(f"{release.kubernetes}-")


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "main.go"])
def test_an_edited_module_gets_another_place_in_the_cache(tmp_path: Path, name: str) -> None:
    """Whichever file changes, a binary built from the old one is not used any more."""
    module = copy_module(tmp_path / "module")
    before = read_release(module).key
    (module / name).write_bytes((module / name).read_bytes() + b"\n")
    assert read_release(module).key != before


def test_an_installation_without_the_module_says_so(tmp_path: Path) -> None:
    """A wheel does not carry the Go module; the error names what is missing and the way out."""
    with pytest.raises(FileNotFoundError, match="needs a checkout of Daybreak"):
        read_release(tmp_path)
