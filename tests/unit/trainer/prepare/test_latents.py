"""`prepare --latents`: a column of an autoencoder's latents, in work that may stop at any point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_autoencoders import CHANNELS, save_kl

from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shards import Shards
from daybreak_trainer.models.autoencoder import Autoencoder, load
from daybreak_trainer.prepare import rewrite as rewriting
from daybreak_trainer.prepare.datasets import prepare_datasets
from daybreak_trainer.prepare.latents import LatentColumn
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.prepare.rewrite import Row, rewrite

SMALL = 1 << 12


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    return load(str(save_kl(tmp_path_factory.mktemp("kl"))), "--latents")


def rows(folder: Path, cache: Path) -> tuple[Corpus, list[Row]]:
    """Every sample, as it is stored."""
    counters = DataCounters()
    corpus = open_corpus([Stream(str(folder))], counters)
    shards = Shards(corpus, NodeCache(cache, None, counters), counters)
    found = [
        shards.get(shard.number).stored(number) | {"bucket": shard.bucket.encode()}
        for shard in corpus.shards
        for number in range(shard.info.samples)
    ]
    shards.close()
    return corpus, found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def latent(row: Row) -> np.ndarray[Any, Any]:
    height, width = bucket_size(row["bucket"].decode())
    return np.frombuffer(row["latent"], "<f2").reshape(CHANNELS, height // 4, width // 4)


def test_a_latent_depends_on_its_image_alone(tmp_path: Path, autoencoder: Autoencoder) -> None:
    """Beside the images, which stay as they are to the byte: each sample's latent is to the bit
    what its image gives alone, whoever shares its pass; the card says what made it."""
    prepare("shapes", tmp_path / "images", count=21, shard_bytes=SMALL)
    card = rewrite(str(tmp_path / "images"), tmp_path / "out", [LatentColumn(autoencoder)])
    assert card.latents == autoencoder.space
    corpus, written = rows(tmp_path / "out", tmp_path / "cache")
    assert corpus.cards == (card,)
    assert len(corpus.shards) > 1
    _, images = rows(tmp_path / "images", tmp_path / "cache")
    column = LatentColumn(autoencoder)
    for image, row in zip(images, written, strict=True):
        assert image.items() <= row.items()
        (alone,) = column.values([image], {"image": "png"}, (32, 32))
        assert row["latent"] == alone
    pixels = np.asarray(Image.open(BytesIO(written[3]["image"]))).copy()
    expected = autoencoder.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(
        torch.from_numpy(latent(written[3]).copy()).float(), expected, atol=2e-3, rtol=2e-3
    )


def test_buckets_and_skips_come_along(tmp_path: Path, autoencoder: Autoencoder) -> None:
    """Latents have the shape of their bucket, without images if these are dropped; what `skip.json`
    names is left out, even where it cannot be decoded."""
    source = tmp_path / "photos"
    source.mkdir()
    for number, size in enumerate([(64, 64), (64, 32), (64, 64), (32, 64)]):
        Image.new("RGB", size, (60 * number, 0, 0)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"photo {number}")
    images = tmp_path / "images"
    prepare(str(source), images, resolution=32, in_buckets=True)
    corpus, _ = rows(images, tmp_path / "cache")
    square = next(s for s in corpus.shards if s.bucket == "32x32")
    (images / "skip.json").write_text(json.dumps({square.info.raw.name: [0]}))
    card = rewrite(
        str(images), tmp_path / "out", [LatentColumn(autoencoder)], dropped=frozenset({"image"})
    )
    corpus, written = rows(tmp_path / "out", tmp_path / "cache")
    assert card.samples == len(written) == 3
    assert all("image" not in row for row in written)
    assert set(corpus.buckets) == {row["bucket"].decode() for row in written}
    for bucket, columns in corpus.buckets.items():
        height, width = bucket_size(bucket)
        assert [column.shape for column in columns] == [(CHANNELS, height // 4, width // 4)]


class _Stopped(BaseException):
    """As a signal would end it: no handler for mistakes sees it."""


class Stopping(LatentColumn):
    """Stops in the given shard; counts those it was asked for."""

    def __init__(self, autoencoder: Autoencoder, at: int | None = None) -> None:
        super().__init__(autoencoder)
        self.at, self.asked = at, 0

    def values(
        self, rows: Sequence[Row], encodings: Mapping[str, str], size: tuple[int, int]
    ) -> Iterator[bytes]:
        if self.asked == self.at:
            raise _Stopped
        self.asked += 1
        return super().values(rows, encodings, size)


def test_work_goes_on_where_it_was_stopped(
    tmp_path: Path, autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were written are kept and not computed again, unless a byte of them is wrong; the
    result is the one of undisturbed work; other options are not mixed in."""
    images, out = tmp_path / "images", tmp_path / "out"
    prepare("shapes", images, count=30, shard_bytes=SMALL)
    rewrite(str(images), tmp_path / "calm", [LatentColumn(autoencoder)])
    total = len(list((tmp_path / "calm").glob("*.mds")))
    with pytest.raises(_Stopped):
        rewrite(str(images), out, [Stopping(autoencoder, at=3)])
    assert not out.exists()
    work = tmp_path / ".out.unfinished"
    with pytest.raises(DatasetError, match="unfinished work on other data, or with other options"):
        rewrite(str(images), out, [LatentColumn(autoencoder)], dropped=frozenset({"image"}))
    damaged = work / "dataset" / "shard.00001.mds"
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    (work / "dataset" / "shard.00003.mds").write_bytes(b"half")  # written, but no note of it
    counting, read = Stopping(autoencoder), list[Path]()
    hashed = rewriting.verify
    monkeypatch.setattr(rewriting, "verify", lambda path, *a: (read.append(path), hashed(path, *a)))
    rewrite(str(images), out, [counting])
    assert len(read) == len(set(read)) == 3  # noted shards are hashed once
    assert counting.asked == total - 2
    assert files(out) == files(tmp_path / "calm")
    assert not work.exists()


def test_a_shard_too_long_for_its_offsets_is_refused(
    tmp_path: Path, autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets are of 32 bits and would wrap: nothing is written, and the way out is named."""
    prepare("shapes", tmp_path / "images", count=4)
    (shard,) = (tmp_path / "images").glob("*.mds")
    monkeypatch.setattr(rewriting, "_MAX_SHARD_BYTES", shard.stat().st_size)
    with pytest.raises(DatasetError, match=rf"{shard.name} would have .*smaller --shard-size"):
        rewrite(str(tmp_path / "images"), tmp_path / "out", [LatentColumn(autoencoder)])
    assert not list(tmp_path.rglob(".out.unfinished/dataset/*"))
    monkeypatch.undo()
    rewrite(str(tmp_path / "images"), tmp_path / "out", [LatentColumn(autoencoder)])


def test_what_cannot_be_encoded_is_named(tmp_path: Path, autoencoder: Autoencoder) -> None:
    """The shard, the sample and the way out; sides that the autoencoder cannot halve; a column that
    is there already."""
    images, out = tmp_path / "images", tmp_path / "out"
    prepare("shapes", images, resolution=30, count=4)
    with pytest.raises(DatasetError, match=r"30x30 px do not fill places of 4 px.*--resolution"):
        rewrite(str(images), out, [LatentColumn(autoencoder)])
    with pytest.raises(rewriting.SampleError, match="cannot be decoded"):
        list(LatentColumn(autoencoder).values([{"image": b"broken"}], {"image": "png"}, (32, 32)))
    prepare("shapes", tmp_path / "fine", count=4)
    rewrite(str(tmp_path / "fine"), tmp_path / "once", [LatentColumn(autoencoder)])
    with pytest.raises(DatasetError, match="has latents already"):
        rewrite(str(tmp_path / "once"), tmp_path / "twice", [LatentColumn(autoencoder)])


def test_one_call_writes_every_resolution(tmp_path: Path, autoencoder: Autoencoder) -> None:
    """A dataset each, in a folder of its name, of the same samples in the same order."""
    cards = prepare_datasets(
        "shapes",
        tmp_path / "out",
        [32, 64],
        added=[LatentColumn(autoencoder)],
        drop_images=True,
        count=5,
    )
    assert {path.name: card.resolution for path, card in cards.items()} == {"32": 32, "64": 64}
    small, large = (rows(path, tmp_path / "cache")[1] for path in cards)
    assert [row["id"] for row in small] == [row["id"] for row in large]
    assert latent(large[0]).shape == (CHANNELS, 16, 16)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["32", "64"]
    with pytest.raises(DatasetError, match="exists already"):
        prepare_datasets("shapes", tmp_path / "out", [64, 128], count=5)
