"""`prepare`: a whole dataset or none, the same bytes for the same request."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import opened, read

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare import digits, shapes, unreadable
from daybreak_trainer.prepare.prepare import prepare


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every file is equal, so the fingerprint is; another seed gives another dataset."""
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        prepare("shapes", tmp_path / name, count=30, seed=seed, shard_bytes=1 << 13)
    one, two, three = (files(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert len(one) > 3  # more than one shard
    assert one["index.json"] != three["index.json"]


def test_what_is_read_is_what_was_drawn(tmp_path: Path) -> None:
    """Pixels, captions and ids come back losslessly and in order, across shards."""
    card = prepare("shapes", tmp_path / "out", count=20, seed=5, shard_bytes=1 << 13)
    corpus, samples = opened(tmp_path / "out", tmp_path / "cache")
    assert len(samples) == card.samples == 20
    assert corpus.resolution == 32
    for scene, number in shapes.training_scenes(20, seed=5):
        drawn = shapes.render(scene, 32, np.random.default_rng([5, 1, number]))
        sample = samples[number]
        assert np.array_equal(sample.image, drawn.transpose(2, 0, 1))
        assert sample.caption == scene.caption


def test_digits_are_the_generators_part_only(tmp_path: Path) -> None:
    """No image of the judge's gets into the training set; provenance and licence are recorded."""
    card = prepare("digits", tmp_path / "out")
    generator = digits.load("generator")
    assert card.samples == len(generator.labels)
    assert "CC BY 4.0" in card.licence
    assert set(card.vocabulary) == {"the", "handwritten", "digit", *digits.WORDS}
    samples = read(tmp_path / "out", tmp_path / "cache")
    allowed = {digits.render(image, 16).tobytes() for image in generator.images}
    images = (sample.image.transpose(1, 2, 0) for sample in samples)
    assert {np.ascontiguousarray(image).tobytes() for image in images} == allowed


def test_a_folder_becomes_a_dataset(tmp_path: Path) -> None:
    """The user's own images, with the words of their captions, whatever the punctuation."""
    source = tmp_path / "images"
    source.mkdir()
    for name, caption in (("a", "A red box!"), ("b", "the Red boat")):
        Image.new("RGB", (40, 20), "red").save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(caption)
    card = prepare(str(source), tmp_path / "out", resolution=16)
    corpus, samples = opened(tmp_path / "out", tmp_path / "cache")
    assert card.vocabulary == tuple(corpus.vocabulary) == ("!", "a", "boat", "box", "red", "the")
    assert card.word_counts == (1, 1, 1, 1, 2, 1)
    assert card.caption_sample == {"caption": ("A red box!", "the Red boat")}
    assert [sample.id for sample in samples] == ["a.png", "b.png"]
    assert samples[0].image.shape == (3, 16, 16)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    """A progress bar can be drawn from it: every sample once, of a total known from the start."""
    seen: list[tuple[int, int]] = []
    prepare(
        "shapes", tmp_path / "out", count=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(number, 5) for number in range(1, 6)]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    """An image that turns out unreadable late ends the work without a dataset or a remnant."""
    source = tmp_path / "images"
    source.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(name)
    (source / "b.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"b\.png: not a .*; --skip-unreadable leaves such"):
        prepare(str(source), tmp_path / "out", resolution=8)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def with_damaged_exif() -> bytes:
    """A JPEG whose orientation is said, beside a text that claims to be a number."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", exif=exif)
    content = bytearray(file.getvalue())
    content[content.index(b"Exif\0\0") + 6 + 11] = 84  # the low byte of the first tag's type
    return bytes(content)


@pytest.mark.parametrize("in_buckets", [False, True])
def test_unreadable_images_can_be_left_out(tmp_path: Path, in_buckets: bool) -> None:
    """One that is no image, one that is cut short, the only one of its bucket, and one whose
    metadata are damaged: all are in the report, the rest is a dataset that is read as ever."""
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    sizes = {"a": (64, 64), "b": (64, 64), "sub/c": (120, 64), "d": (64, 64)}
    for name, size in sizes.items():
        noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(f"caption {name[-1]}")
    (source / "b.png").write_bytes(b"hello")
    cut = (source / "sub/c.png").read_bytes()[:3000]
    (source / "sub/c.png").write_bytes(cut)
    (source / "e.jpg").write_bytes(with_damaged_exif())
    (source / "e.txt").write_text("caption e")
    out = tmp_path / "out"
    card = prepare(str(source), out, resolution=64, in_buckets=in_buckets, skip_unreadable=True)
    assert card.samples == 2
    report = unreadable.reported(out)
    assert {entry["file"] for entry in report} == {"b.png", "sub/c.png", "e.jpg"}
    assert all(entry["error"] for entry in report)
    assert {sample.id for sample in read(out, tmp_path / "cache")} == {"a.png", "d.png"}
    for name in ("a.png", "d.png"):
        (source / name).write_bytes(b"hello")
    with pytest.raises(DatasetError, match="none of its 5 images is readable"):
        prepare(
            str(source),
            tmp_path / "none",
            resolution=64,
            in_buckets=in_buckets,
            skip_unreadable=True,
        )


def test_a_file_that_cannot_be_opened_is_never_left_out(tmp_path: Path) -> None:
    """A disk that fails says nothing about the image."""
    (tmp_path / "images" / "a.png").mkdir(parents=True)
    (tmp_path / "images" / "a.txt").write_text("a")
    with pytest.raises(DatasetError, match=r"a\.png: cannot be read: Is a directory"):
        prepare(str(tmp_path / "images"), tmp_path / "out", resolution=8, skip_unreadable=True)


def test_images_are_stored_as_asked_for(tmp_path: Path) -> None:
    """png is exact; jpeg is close, the closer the higher its quality, and smaller. A folder is jpeg
    of quality 92 unless something else is said, a generator png."""
    source = tmp_path / "images"
    source.mkdir()
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3)
    noise = np.random.default_rng(0).normal(0, 8, ramp.shape)
    pixels = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(source / "a.png")
    (source / "a.txt").write_text("a")
    sizes, errors = {}, {}
    ways: dict[str, dict[str, Any]] = {
        "usual": {},
        "png": {"encoding": "png"},
        "92": {"encoding": "jpeg", "jpeg_quality": 92},
        "50": {"encoding": "jpeg", "jpeg_quality": 50},
    }
    for name, options in ways.items():
        out = tmp_path / name
        prepare(str(source), out, resolution=64, **options)
        (sample,) = read(out, tmp_path / f"cache-{name}")
        sizes[name] = (out / "shard.00000.mds").stat().st_size
        difference = sample.image.transpose(1, 2, 0).astype(float) - pixels
        errors[name] = float(np.sqrt((difference**2).mean()))
    assert files(tmp_path / "usual") == files(tmp_path / "92")
    assert sizes["png"] > sizes["92"] > sizes["50"]
    assert 0 == errors["png"] < errors["92"] < errors["50"]
    prepare("digits", tmp_path / "digits", count=2)
    assert '"png"' in (tmp_path / "digits/index.json").read_text()


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle: no folder has the dataset's name, and no temporary one stays."""

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("shapes", tmp_path / "out", count=10, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    """A folder with anything in it, or a file, is refused and left as it was."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "folder", tmp_path / "file"):
        with pytest.raises(DatasetError, match=f"{out} exists already"):
            prepare("shapes", out, count=2)
    assert (tmp_path / "folder" / "precious").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """`mkdir out` before `daybreak prepare` is no mistake; others may read the result."""
    out = tmp_path / "out"
    out.mkdir()
    prepare("shapes", out, count=2)
    assert json.loads((out / "dataset.json").read_text())["samples"] == 2
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("count", [0, -1])
def test_a_dataset_of_nothing_is_refused(tmp_path: Path, count: int) -> None:
    """Zero does not mean "the default"."""
    with pytest.raises(DatasetError, match="at least one"):
        prepare("shapes", tmp_path / "out", count=count)


def test_an_unknown_source_names_the_generators(tmp_path: Path) -> None:
    """A typo in `shapes` reads as a folder that is not there; the message knows both."""
    with pytest.raises(DatasetError, match="digits, shapes"):
        prepare(str(tmp_path / "shape"), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A parent that is a file gives a message, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        prepare("shapes", tmp_path / "file" / "out", count=2)
