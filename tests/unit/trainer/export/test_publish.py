"""An export is finished or it is none, and it never takes another run's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from daybreak_trainer import rank
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.contract import ExitCode
from daybreak_trainer.export.publish import (
    CARD,
    CLAIM,
    ExportCard,
    ExportTakenError,
    check,
    check_no_other,
    publish,
)

MINE = ExportCard(uid="mine", run="digits", namespace="ns", recipe_hash="r", step=9)
OTHERS = ExportCard(uid="other", run="digits", namespace="ns", recipe_hash="r", step=9)


class FullStore(MemoryFileSystem):  # type: ignore[misc]
    """An object store that takes so many more files; -1 for any number."""

    protocol = "full"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    room = -1

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            if FullStore.room == 0:
                raise OSError(28, "No space left on device")
            FullStore.room -= 1
        return super()._open(path, mode, **options)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Storage]:
    fsspec.register_implementation("full", FullStore, clobber=True)
    FullStore.room = -1
    yield Storage(f"full://{tmp_path.name}")
    FullStore.room = -1


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    local = str(tmp_path / "models")
    return Storage(local if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return made(tmp_path / "model", "weights")


def made(folder: Path, weights: str) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "model.safetensors").write_text(weights)
    return folder


def content(storage: Storage) -> dict[str, bytes]:
    """Everything in the storage, also beside the export."""
    return {name: storage.read(name) for name in storage.files()}


def test_a_finished_export_says_whose_it_is(storage: Storage, model: Path) -> None:
    """All files, a card that lists them as they are in the store, and nothing else."""
    assert publish(model, storage, "digits", MINE) == f"{storage.url}/digits"
    assert sorted(content(storage)) == [
        f"digits/{CARD}",
        "digits/model_index.json",
        "digits/transformer/model.safetensors",
    ]
    card = check(storage, "digits", "mine")
    assert card is not None
    assert card.names_what(MINE)
    place = storage.child("digits")
    assert card.files == {name: place.record(name) for name in place.files() if name != CARD}


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ({CARD: OTHERS.to_json()}, r"holds the model of run ns/digits \(UID other\)"),
        ({CLAIM: OTHERS.to_json()}, r"holds an unfinished model of run ns/digits \(UID other\)"),
        ({"notes.txt": "mine"}, "holds files of unknown origin, such as notes.txt"),
        ({CARD: "{}", "model_index.json": "{}"}, "holds files of unknown origin"),
        ({CARD: MINE.to_json(), CLAIM: OTHERS.to_json()}, "UID other"),
    ],
)
def test_what_is_not_this_runs_is_not_overwritten(
    storage: Storage, model: Path, there: dict[str, str], sentence: str
) -> None:
    """Another run's model, finished or not, and anybody's files: the message names the URL and what
    to do, no byte changes, and no new attempt is made."""
    for name, text in there.items():
        storage.write(f"digits/{name}", text.encode())
    before = content(storage)
    with pytest.raises(ExportTakenError, match=sentence) as caught:
        check(storage, "digits", "mine")
    assert f"{storage.url}/digits holds" in str(caught.value)
    assert "give spec.export another place" in str(caught.value)
    with pytest.raises(ExportTakenError, match=sentence):
        publish(model, storage, "digits", MINE)
    assert content(storage) == before
    record = rank.failure(caught.value, 0, rank.Standing())
    assert (record.exit_code, record.reason) == (ExitCode.DO_NOT_RESTART, "ExportTaken")
    assert record.traceback == ""


def test_an_empty_folder_is_a_free_place(tmp_path: Path, model: Path) -> None:
    """A volume's folder is often made beforehand."""
    (tmp_path / "models" / "digits").mkdir(parents=True)
    storage = Storage(str(tmp_path / "models"))
    publish(model, storage, "digits", MINE)
    assert check(storage, "digits", "mine") is not None


def test_runs_of_other_names_are_neighbours(storage: Storage, model: Path) -> None:
    """A name that begins like another one's is another place."""
    publish(model, storage, "digits", OTHERS)
    before = content(storage)
    publish(model, storage, "digit", MINE)
    publish(model, storage, "digits-2", MINE)
    assert before.items() <= content(storage).items()


def test_this_runs_own_export_stays_as_it_is(storage: Storage, model: Path, tmp_path: Path) -> None:
    """An attempt that resumes a complete run finds its model there: it is not taken away, not even
    for a moment, to be written again."""
    publish(model, storage, "digits", MINE)
    before = content(storage)
    publish(made(tmp_path / "again", "the same, by rounding"), storage, "digits", MINE)
    assert content(storage) == before


def test_another_model_of_this_run_replaces_the_first(
    storage: Storage, model: Path, tmp_path: Path
) -> None:
    """The run's recipe was changed: all files are the new ones, and none of the old is left."""
    (model / "samples.png").write_text("old")
    publish(model, storage, "digits", MINE)
    changed = MINE.model_copy(update={"recipe_hash": "changed"})
    publish(made(tmp_path / "changed", "new"), storage, "digits", changed)
    found = content(storage)
    assert found["digits/transformer/model.safetensors"] == b"new"
    assert sorted(found) == [
        f"digits/{CARD}",
        "digits/model_index.json",
        "digits/transformer/model.safetensors",
    ]


@pytest.mark.parametrize("file", [CARD, CLAIM])
def test_one_average_among_several_replaces_none(storage: Storage, file: str) -> None:
    """Finished or not; only the very same model may be there, or nothing."""
    check_no_other(storage, "digits", MINE)
    storage.write(f"digits/{file}", MINE.to_json().encode())
    check_no_other(storage, "digits", MINE)
    wider = MINE.model_copy(update={"weights": "fp32, wider"})
    with pytest.raises(ExportTakenError, match="model of the same run, of step 9: fp32; choose"):
        check_no_other(storage, "digits", wider)


@pytest.mark.parametrize("room", range(4))
def test_half_an_export_is_none_and_is_finished_by_the_next_attempt(
    full: Storage, model: Path, room: int
) -> None:
    """The store fails at any file: no card, so nothing that looks finished, for this run or any
    other; the next attempt of this run takes the place again, another run does not."""
    FullStore.room = room
    with pytest.raises(StorageError, match=f"{full.url}/digits/.*No space left"):
        publish(model, full, "digits", MINE)
    FullStore.room = -1
    assert f"digits/{CARD}" not in content(full)
    assert check(full, "digits", "mine") is None
    if room:
        with pytest.raises(ExportTakenError, match="unfinished model of run ns/digits"):
            check(full, "digits", "other")
    publish(model, full, "digits", MINE)
    assert check(full, "digits", "mine") is not None


def test_a_local_export_appears_at_once(tmp_path: Path, model: Path) -> None:
    """What was left of an attempt that was killed while it copied lies beside the place, not in it,
    and is gone after the next."""
    storage = Storage(str(tmp_path / "models"))
    storage.write(".digits.mine.partial/half", b"half")
    assert check(storage, "digits", "mine") is None
    publish(model, storage, "digits", MINE)
    assert storage.folders() == ["digits"]
    assert "digits/half" not in content(storage)


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, model: Path) -> None:
    """A file where the folder should be: one sentence with the URL."""
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StorageError, match=f"{tmp_path}/models/"):
        publish(model, Storage(str(tmp_path / "models")), "digits", MINE)
