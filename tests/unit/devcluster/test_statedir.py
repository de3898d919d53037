"""Who owns a state directory, and what happens to what a dead owner left."""

import os
from pathlib import Path

import pytest

from daybreak_devcluster.layout import Layout, default_state_dir
from daybreak_devcluster.statedir import StateDirError, clear_leftovers, live_owner, take


def test_a_taken_directory_has_one_owner(tmp_path: Path) -> None:
    """While it is held, its owner's process is known and nobody else gets it."""
    root = tmp_path / "state"
    owned = take(root)
    assert not owned.was_stale
    assert live_owner(root) == os.getpid()
    with pytest.raises(StateDirError, match="already runs in"):
        take(root)
    owned.remove()
    assert live_owner(root) is None
    assert not root.exists()


def test_leftovers_are_cleared_and_reported(tmp_path: Path) -> None:
    """A free lock beside files means a dead cluster: the next owner starts from empty."""
    root = tmp_path / "state"
    take(root).release()
    (root / "etcd").mkdir()
    (root / "etcd" / "wal").write_text("old")
    (root / "link").symlink_to(tmp_path)
    owned = take(root)
    assert owned.was_stale
    assert list(root.iterdir()) == [Layout(root).lock]
    owned.remove()
    assert tmp_path.exists()


def test_clearing_says_whether_there_was_anything(tmp_path: Path) -> None:
    """`clear_leftovers` removes a dead cluster's directory, once."""
    root = tmp_path / "state"
    take(root).release()
    assert clear_leftovers(root)
    assert not clear_leftovers(root)


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Files without our lock are neither taken nor cleared; an empty directory is fine."""
    (tmp_path / "notes").write_text("mine")
    for refuse in (take, clear_leftovers):
        with pytest.raises(StateDirError, match="name an empty or new one"):
            refuse(tmp_path)
    assert (tmp_path / "notes").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    take(empty).remove()


def test_the_environment_names_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$DAYBREAK_STATE_DIR` wins over `build/devcluster` under the working directory."""
    monkeypatch.chdir(tmp_path)
    assert default_state_dir({}) == tmp_path / "build" / "devcluster"
    assert default_state_dir({"DAYBREAK_STATE_DIR": "/srv/x"}) == Path("/srv/x")
