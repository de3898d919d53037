"""A remote export is copied once, and what was copied is what was exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.export.load import ExportError, fetched
from daybreak_trainer.export.publish import CARD, ExportCard, publish

CARD_OF_RUN = ExportCard(uid="u", run="digits", namespace="ns", recipe_hash="r", step=9)


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"weights")
    storage = Storage(f"memory://{tmp_path.name}")
    publish(model, storage, "digits", CARD_OF_RUN)
    return storage.child("digits")


def test_another_file_than_the_cards_never_gets_its_name(place: Storage, tmp_path: Path) -> None:
    """Not for a moment, and nothing of it stays. A copy that its disk changed is made again."""
    cache = tmp_path / "cache"
    folder = fetched(place.url, cache)
    (folder / "weights").write_bytes(b"weightz")
    assert (fetched(place.url, cache) / "weights").read_bytes() == b"weights"
    place.write("weights", b"weightz")
    (folder / "weights").unlink()
    with pytest.raises(StorageError, match="weights is not the file that was exported"):
        fetched(place.url, cache)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "."])
def test_a_card_names_no_file_elsewhere(place: Storage, tmp_path: Path, name: str) -> None:
    card = ExportCard.model_validate_json(place.read(CARD))
    files = {name: card.files["weights"]}
    place.write(CARD, card.model_copy(update={"files": files}).to_json().encode())
    with pytest.raises(ExportError, match="names a file outside of its folder"):
        fetched(place.url, tmp_path / "cache")
