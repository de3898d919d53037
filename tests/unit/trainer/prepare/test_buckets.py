"""Aspect-ratio buckets: each image in the one nearest to its shape, each shard of one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shards import Shards
from daybreak_trainer.prepare import buckets
from daybreak_trainer.prepare.prepare import prepare


@given(st.sampled_from([16, 32, 64, 128, 256, 384, 512, 768, 1024]))
def test_buckets_cost_no_more_than_the_square(resolution: int) -> None:
    """Area at most the square's and at least four fifths of it, the square among them, at most 2:1,
    sides that every patch size up to 8 divides; each shape lying and standing."""
    found = buckets.sizes(resolution)
    assert (resolution, resolution) in found
    for height, width in found:
        assert 0.5 <= height / width <= 2
        assert resolution < 64 or height * width / resolution**2 >= 0.8
        assert height * width <= resolution**2
        assert height % 8 == width % 8 == 0
        assert (width, height) in found


@given(st.sampled_from([64, 256, 384, 768]), st.sampled_from([1, 2, 3, 4, 8, 12, 16, 24, 32, 64]))
def test_sides_are_multiples_of_what_is_asked_for(resolution: int, multiple: int) -> None:
    """So that patches of any size divide every bucket, the square among them."""
    if resolution % multiple or resolution % (max(resolution // 16 // multiple, 1) * multiple):
        with pytest.raises(DatasetError, match="need a multiple of"):
            buckets.sizes(resolution, multiple)
        return
    found = buckets.sizes(resolution, multiple)
    assert (resolution, resolution) in found
    assert all(height % multiple == width % multiple == 0 for height, width in found)


def test_a_resolution_that_has_no_buckets_is_refused() -> None:
    """Sides must be multiples of 8."""
    with pytest.raises(DatasetError, match="multiple of 8"):
        buckets.sizes(36)


def test_images_keep_about_their_shape(tmp_path: Path) -> None:
    """Tall, wide and square ones, and one that its EXIF says is turned, each land in shards of
    their bucket, with the right pixels; the corpus has those buckets."""
    source = tmp_path / "images"
    source.mkdir()
    shapes = {"tall": (64, 120), "wide": (130, 64), "square": (90, 90), "panorama": (600, 60)}
    for number, (name, size) in enumerate(shapes.items()):
        Image.new("RGB", size, (10 * number, 0, 0)).save(source / f"{name}.png")
    turned = Image.new("RGB", (120, 64), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(source / "turned.jpg", exif=exif, quality=95)
    for file in list(source.iterdir()):
        file.with_suffix(".txt").write_text(file.stem)
    out = tmp_path / "out"
    card = prepare(str(source), out, resolution=64, in_buckets=True, shard_bytes=1 << 10)
    assert card.samples == 5
    assert not [path for path in out.iterdir() if path.is_dir()]
    counters = DataCounters()
    corpus = open_corpus([Stream(str(out))], counters)
    assert set(corpus.buckets) == {"80x48", "48x80", "64x64"} == set(card.buckets or ())
    shards = Shards(corpus, NodeCache(tmp_path / "cache", None, counters), counters)
    found = {}
    for shard in corpus.shards:
        size = tuple(int(side) for side in shard.bucket.split("x"))
        for number in range(shard.info.samples):
            pixels = np.empty((3, *size), dtype=np.uint8)
            caption = shards.get(shard.number).read(number, {"image": pixels}, (size[0], size[1]))
            found[caption] = (shard.bucket, int(pixels[0, 5, 5]))
    shards.close()
    assert found.pop("turned")[0] == "80x48"
    assert found == {
        "tall": ("80x48", 0),
        "wide": ("48x80", 10),
        "square": ("64x64", 20),
        "panorama": ("48x80", 30),
    }
    assert not [t for t in threading.enumerate() if t.name.startswith("shards")]


def test_a_generator_has_no_buckets(tmp_path: Path) -> None:
    """All its images are square: the flag is a mistake."""
    with pytest.raises(DatasetError, match="for a folder"):
        prepare("shapes", tmp_path / "out", in_buckets=True)
    with pytest.raises(DatasetError, match=r"--multiple .* needs --buckets"):
        prepare("shapes", tmp_path / "out", multiple=16)


def test_big_patches_divide_every_bucket(tmp_path: Path) -> None:
    """With `multiple`: an image between two shapes goes to one that they divide."""
    source = tmp_path / "images"
    source.mkdir()
    Image.new("RGB", (64, 120)).save(source / "tall.png")
    (source / "tall.txt").write_text("tall")
    card = prepare(str(source), tmp_path / "out", resolution=96, in_buckets=True, multiple=32)
    assert set(card.buckets or ()) == {"128x64"}


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    """With buckets too, and every shard is listed once."""
    source = tmp_path / "images"
    source.mkdir()
    for number in range(12):
        file = source / f"{number}.png"
        Image.new("RGB", (40 + 7 * number, 80), (number, 0, 0)).save(file)
        file.with_suffix(".txt").write_text(f"image {number}")
    cards = [
        prepare(str(source), tmp_path / name, resolution=64, in_buckets=True, shard_bytes=1 << 9)
        for name in ("one", "two")
    ]
    one, two = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
        for name in ("one", "two")
    )
    assert one == two
    listed = [name for names in (cards[0].buckets or {}).values() for name in names]
    assert sorted(listed) == sorted(name for name in one if name.endswith(".mds"))
    assert len(listed) > 3
