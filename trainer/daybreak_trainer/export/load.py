"""Opens an export wherever it lies: a remote one is copied to a cache first, each file of the size
and hash that its card says."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.export.names import inside
from daybreak_trainer.export.pipeline import RECIPE_FILE
from daybreak_trainer.export.publish import CARD, ExportCard
from daybreak_trainer.stores.patience import AT_A_TERMINAL

_CHUNK_BYTES = 1 << 20


class ExportError(Exception):
    """What is there cannot be drawn with; the message says what and where."""


@dataclass(frozen=True)
class Sampling:
    """As the recipe samples."""

    steps: int
    guidance: float


def is_remote(url: str) -> bool:
    return "://" in url


def fetched(
    url: str,
    cache: Path,
    options: Mapping[str, Any] | None = None,
    copied: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """A local folder with the export: its own, or a copy below `cache`, which is made once.
    `copied` hears the bytes that are there and all of them.

    Raises:
        ExportError: there is no finished export.
        StorageError: the store fails, or has other files than the card says.
    """
    if not is_remote(url):
        return Path(url)
    place = Storage(url, options, AT_A_TERMINAL)
    try:
        raw = place.read(CARD)
        card = ExportCard.model_validate_json(raw)
    except FileNotFoundError:
        raise ExportError(f"{url} holds no finished export: it has no {CARD}") from None
    except ValueError:
        raise ExportError(f"{url}/{CARD} is not a card of Daybreak's") from None
    folder = cache / hashlib.sha256(url.encode() + raw).hexdigest()[:16]
    done, total = 0, sum(record.size for record in card.files.values())
    for name, record in sorted(card.files.items()):
        try:
            target = inside(folder, name)
        except ValueError as error:
            raise ExportError(f"{url}/{CARD} {error}") from None
        if not _is_there(target, record):
            _copy(place, name, target, record)
        done += record.size
        copied(done, total)
    return folder


def _is_there(target: Path, record: FileRecord) -> bool:
    """Whether the cache has this very file; its disk may have failed since it was copied."""
    if not (target.is_file() and target.stat().st_size == record.size):
        return False
    return Storage(str(target.parent)).record(target.name) == record


def _copy(place: Storage, name: str, target: Path, record: FileRecord) -> None:
    """Under a name of its own, for others may copy the same export; it has the file's own name once
    it is known to be what was exported."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with place.open(name) as source, partial.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
        if Storage(str(partial.parent)).record(partial.name) != record:
            raise StorageError(
                f"{place.url}/{name} is not the file that was exported; copy it again"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_pipeline(folder: Path, device: str = "cpu") -> tuple[Any, Sampling]:
    """The pipeline of an export, on a device, in the precision it was written in; and how its
    recipe samples.

    Raises:
        ExportError: the folder is no export.
    """
    import diffusers
    import torch

    if not (folder / "model_index.json").is_file():
        raise ExportError(f"{folder} is not an exported model: it has no model_index.json")
    try:
        told = json.loads((folder / RECIPE_FILE).read_text())["sampling"]
        sampling = Sampling(int(told["steps"]), float(told["guidance"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder / RECIPE_FILE}: not a Daybreak export: {error!r}") from None
    index = json.loads((folder / "model_index.json").read_text())
    bare = {"vae": None} if index.get("vae") == [None, None] else {}
    dtype = torch.bfloat16 if _is_half(folder) else torch.float32
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **bare)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device), sampling


def _is_half(folder: Path) -> bool:
    """Whether the transformer's weights are bf16, by the header of a file of them."""
    from safetensors import safe_open

    file = next(iter(sorted((folder / "transformer").glob("*.safetensors"))))
    with safe_open(file, "pt") as weights:
        name = next(iter(weights.keys()))
        return bool(weights.get_slice(name).get_dtype() == "BF16")
