"""A corpus that cannot be trained on is refused before training, with file and cause."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mds_folders import name_of, write_latents
from PIL import Image
from streaming import LocalDataset, MDSWriter

from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError, ShardError
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shard import ShardFile
from daybreak_trainer.prepare.prepare import prepare

MakeReader = Callable[..., Any]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "dataset"
    out.mkdir()
    write_latents(out, [4, 6, 2])
    return out


def edit(file: Path, change: Edit) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def column(name: str, encoding: str) -> Edit:
    def change(index: dict[str, Any]) -> None:
        shard = index["shards"][1]
        names = shard["column_names"]
        if name not in names:
            for key, value in (("names", name), ("encodings", ""), ("sizes", None)):
                shard[f"column_{key}"].append(value)
        shard["column_encodings"][names.index(name)] = encoding

    return change


def without_column(name: str) -> Edit:
    def change(index: dict[str, Any]) -> None:
        shard = index["shards"][1]
        at = shard["column_names"].index(name)
        for key in ("names", "encodings", "sizes"):
            del shard[f"column_{key}"][at]

    return change


WRONG_INDEX: list[tuple[Edit, str]] = [
    (lambda i: i["shards"].clear(), "empty"),
    (lambda i: i.pop("shards"), "not an MDS index"),
    (lambda i: i["shards"][1]["raw_data"].update(hashes={}), "shard 1 has no xxh64 hash"),
    (lambda i: i["shards"][1]["raw_data"].update(basename="../x"), "shard 1 lies outside"),
    (lambda i: i["shards"][1].update(format="jsonl"), "shard 1 is jsonl"),
    (column("extra", "pkl"), "shard 1: column extra is pickled"),
    (column("caption", "json"), "shard 1: column caption is json; it must be str"),
    (column("latent", "ndarray:float16"), "column latent is ndarray:float16; it must be of one"),
    (column("latent", "ndarray:float32:4,2,2"), "column latent has a size that is not its type's"),
    (column("image", "bytes"), "column image is bytes; it must be png or jpeg or pil"),
    (without_column("caption"), "shard 1 has no column caption, only id, latent"),
    (without_column("latent"), "shard 1 has neither a column image nor latent"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_INDEX)
def test_an_index_that_cannot_be_trusted(
    reader: MakeReader, folder: Path, change: Edit, message: str
) -> None:
    """Missing hashes, paths that escape, code in the data, columns that training cannot use."""
    edit(folder / "index.json", change)
    with pytest.raises(DatasetError, match=rf"index\.json.*{message}"):
        reader(folder).corpus()


@pytest.mark.parametrize("name", ["index.json", "dataset.json"])
def test_a_folder_that_is_no_dataset(reader: MakeReader, folder: Path, name: str) -> None:
    """The missing file is named; so is one that is no JSON."""
    (folder / name).write_text("{")
    with pytest.raises(DatasetError, match=name):
        reader(folder).corpus()
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=f"there is no {name}"):
        reader(folder).corpus()


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([], "not of the form"),
        ({"shard.00009.mds": [0]}, "the index lists no shard shard.00009.mds"),
        ({name_of(0): 3}, f"{name_of(0)}: a list of sample numbers belongs here, not 3"),
        ({name_of(0): [4]}, "4 is no sample of this shard; they are 0 to 3"),
        ({name_of(0): [-1]}, "-1 is no sample"),
        ({name_of(0): [True]}, "True is no sample"),
        ({name_of(0): ["0"]}, "'0' is no sample"),
        ({name_of(n): list(range(size)) for n, size in enumerate((4, 6, 2))}, "leaves no samples"),
    ],
)
def test_a_wrong_skip_list(reader: MakeReader, folder: Path, skip: object, message: str) -> None:
    """Skipping nothing, or the wrong sample, because of a mistake would go unseen for a day."""
    (folder / "skip.json").write_text(json.dumps(skip))
    with pytest.raises(DatasetError, match=rf"skip\.json.*{message}"):
        reader(folder).corpus()


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ({"16x16": [name_of(0)]}, f"{name_of(1)} is in one only"),
        ({"16x16": [name_of(n) for n in (0, 1, 2, 3)]}, f"{name_of(3)} is in one only"),
        ({"16x16": [name_of(n) for n in (0, 1, 2)], "8x8": [name_of(0)]}, "is in two buckets"),
        ({"wide": [name_of(n) for n in (0, 1, 2)]}, "'wide' is not of the form HEIGHTxWIDTH"),
    ],
)
def test_wrong_buckets(
    reader: MakeReader, folder: Path, buckets: Mapping[str, list[str]], message: str
) -> None:
    """Every shard is of exactly one bucket."""
    edit(folder / "dataset.json", lambda card: card.update(buckets=buckets))
    with pytest.raises(DatasetError, match=message):
        reader(folder).corpus()


def test_streams_must_fit_together(reader: MakeReader, folder: Path, tmp_path: Path) -> None:
    """One shape in a bucket, weights above nothing."""
    prepare("shapes", tmp_path / "images", count=3, resolution=16)
    with pytest.raises(DatasetError, match="columns differ in image, latent"):
        reader(folder, tmp_path / "images").corpus()
    with pytest.raises(DatasetError, match="weight 0 must be above 0"):
        reader(Stream(str(folder), weight=0.0)).corpus()


def test_a_stage_draws_from_its_resolution_or_the_next_multiple(
    reader: MakeReader, folder: Path, tmp_path: Path
) -> None:
    """Its own first, then the smallest that it divides, with images averaged; anything else is
    refused with what there is, and so are latents, which cannot be averaged."""
    for resolution in (32, 48):
        prepare("shapes", tmp_path / f"{resolution}", count=3, resolution=resolution)
    made = reader(*(tmp_path / f"{resolution}" for resolution in (48, 32)))
    made.columns = ("image",)
    corpus = made.corpus()
    assert {r: corpus.at(r).resolution for r in (16, 24, 32, 48)} == {
        16: 32,
        24: 48,
        32: 32,
        48: 48,
    }
    small = corpus.at(16)
    assert [small.size(bucket) for bucket in small.buckets] == [(16, 16)]
    assert {shard.resolution for shard in small.drawn} == {32}
    with pytest.raises(DatasetError, match=r"of 32 px, 48 px, of which 64 divides none"):
        corpus.at(64)
    with pytest.raises(DatasetError, match=r"latent of the 16 px dataset cannot be reduced to 8"):
        reader(folder).corpus().at(8)


def test_a_reduced_image_is_the_mean_of_its_pixels(tmp_path: Path) -> None:
    """Each pixel is that of four, to within rounding."""
    prepare("shapes", tmp_path / "32", count=2, resolution=32, encoding="png")
    corpus = open_corpus([Stream(str(tmp_path / "32"))], DataCounters(), columns=("image",))
    shard = corpus.shards[0]
    file = ShardFile(os.open(tmp_path / "32" / shard.info.raw.name, os.O_RDONLY), shard.info, "it")
    whole, half = np.empty((3, 32, 32), np.uint8), np.empty((3, 16, 16), np.uint8)
    for row in (whole, half):
        file.read(1, {"image": row}, (32, 32))
    means = whole.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(half - means).max() <= 0.5


def test_the_fingerprint_is_of_what_decides_the_order(
    reader: MakeReader, folder: Path, tmp_path: Path
) -> None:
    """Weights and skip lists among it, and not where the data lies."""
    old = reader(folder).corpus().description
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert reader(moved).corpus().fingerprint == old.fingerprint
    assert type(old).model_validate_json(old.to_json()) == old
    (moved / "skip.json").write_text(json.dumps({name_of(0): [0]}))
    skipping = reader(moved).corpus().description
    heavier = reader(Stream(str(moved), weight=2.0)).corpus().description
    twice = reader(moved, moved).corpus().description
    found = {one.fingerprint for one in (old, skipping, heavier, twice)}
    assert len(found) == 4


def test_only_the_columns_that_are_asked_for_are_read(reader: MakeReader, tmp_path: Path) -> None:
    """A batch holds no others; a dataset without one that is needed is refused before training."""
    out = tmp_path / "dataset"
    columns = {"image": "png", "embedding": "ndarray:float32:512", "caption": "str", "id": "str"}
    with MDSWriter(out=str(out), columns=columns, hashes=["xxh64"]) as writer:
        for number in range(4):
            image = Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8))
            more = {"caption": f"number {number}", "id": str(number)}
            writer.write({"image": image, "embedding": np.zeros(512, dtype=np.float32), **more})
    card = {"source": "", "samples": 4, "resolution": 16, "seed": 0, "licence": ""}
    (out / "dataset.json").write_text(json.dumps(card))
    (batch,) = reader(out, columns=("image",)).batches([4])
    assert set(batch.tensors) == {"image"}
    assert batch.tensors["image"][:, 0, 0, 0].tolist() == batch.indices.tolist()
    with pytest.raises(
        DatasetError, match=f"{name_of(0)} has no column latent, only embedding, image"
    ):
        reader(out, columns=("latent",)).corpus()


def test_vocabularies_are_joined(reader: MakeReader, folder: Path, tmp_path: Path) -> None:
    """A model's text tower must know the words of all streams."""
    other = tmp_path / "other"
    other.mkdir()
    write_latents(other, [3])
    edit(other / "dataset.json", lambda card: card.update(vocabulary=["zebra", "a"]))
    words = reader(folder, other).corpus().vocabulary
    assert list(words) == ["a", "number", "zebra"]


# The library's own dataset leaves its index file open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("encoding", ["png", "jpeg", "pil"])
def test_samples_are_those_that_the_library_reads(
    reader: MakeReader, tmp_path: Path, encoding: str
) -> None:
    """Images, latents, embeddings and strings, bit for bit, long captions in any alphabet too, with
    columns that training does not read in between."""
    generator = np.random.default_rng(0)
    out = tmp_path / "dataset"
    columns = {
        "image": encoding,
        "latent": "ndarray:float16:4,3,2",
        "embedding": "ndarray:float32:7,5",
        "caption": "str",
        "id": "str",
        "about": "json",
        "ragged": "ndarray",
        "zoom": "int",
    }
    with MDSWriter(
        out=str(out), columns=columns, hashes=["sha1", "xxh64"], size_limit=1 << 14
    ) as writer:
        for number in range(20):
            pixels = generator.integers(0, 256, (24, 16, 3), dtype=np.uint8)
            writer.write(
                {
                    "image": Image.fromarray(pixels).convert("L" if number == 7 else "RGB"),
                    "latent": generator.standard_normal((4, 3, 2)).astype(np.float16),
                    "embedding": generator.standard_normal((7, 5)).astype(np.float32),
                    "caption": f"ein Bär №{number} " * (200 if number == 3 else 1),
                    "id": f"id-{number}",
                    "about": {"n": number},
                    "ragged": np.arange(number + 1),
                    "zoom": number,
                }
            )
    card = {"source": "", "samples": 20, "resolution": 16, "seed": 0, "licence": ""}
    shards = [
        shard["raw_data"]["basename"]
        for shard in json.loads((out / "index.json").read_text())["shards"]
    ]
    (out / "dataset.json").write_text(json.dumps({**card, "buckets": {"24x16": shards}}))
    library = LocalDataset(str(out))
    (batch,) = reader(out).batches([20])
    assert batch.bucket == (24, 16)
    assert set(batch.tensors) == {"image", "latent", "embedding"}
    for row, index in enumerate(batch.indices.tolist()):
        sample = library[index]
        image = np.asarray(sample["image"].convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(batch.tensors["image"][row].numpy(), image)
        for name in ("latent", "embedding"):
            ours = batch.tensors[name][row].numpy()
            assert ours.dtype == sample[name].dtype
            assert ours.tobytes() == sample[name].tobytes()
        assert batch.captions[row] == sample["caption"]
    corpus, opened = reader(out).shards()
    for shard in corpus.shards:
        for number in range(shard.info.samples):
            text = opened.get(shard.number).text(number, "id")
            assert text == library[shard.first + number]["id"]
    opened.close()


def test_an_image_of_another_size_is_named(reader: MakeReader, tmp_path: Path) -> None:
    """An image that is not of its bucket cannot be stacked: shard, sample and sizes are said."""
    prepare("shapes", tmp_path / "out", count=3, resolution=16)
    edit(tmp_path / "out" / "dataset.json", lambda card: card.update(resolution=32))
    with pytest.raises(ShardError, match=r"sample \d.*image is 16x16, its bucket 32x32"):
        reader(tmp_path / "out").batches([3])
