"""A user's own folder of images: upright square pictures, or a message that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare import folder


def save(path: Path, size: tuple[int, int] = (20, 10), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def captions(path: Path, *entries: object) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (path / "captions.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_sidecars_caption_images_of_each_kind(tmp_path: Path, suffix: str) -> None:
    """`a.png` goes with `a.txt`, in subfolders too; white space in a caption does not count."""
    image = save(tmp_path / "sub" / f"a.{suffix}")
    image.with_suffix(".txt").write_text("  a red\n box ")
    assert folder.captioned(folder.listed(tmp_path)) == [
        folder.Captioned(image, {"caption": "a red box"})
    ]


def test_captions_file_decides_what_is_used(tmp_path: Path) -> None:
    """Only the listed images are taken, in the listed order; empty lines are fine."""
    for name in ("a.png", "b.png", "unlisted.png"):
        save(tmp_path / name)
    captions(tmp_path, {"file": "b.png", "caption": "b"}, "", {"file": "a.png", "caption": "a"})
    assert [
        (c.file.name, c.captions["caption"]) for c in folder.captioned(folder.listed(tmp_path))
    ] == [
        ("b.png", "b"),
        ("a.png", "a"),
    ]


def test_an_image_may_have_several_captions(tmp_path: Path) -> None:
    """Each under a name of its own, from a line of the file or from a JSON file beside the image;
    what is no caption is left alone."""
    several = {"caption": "a long  one", "caption_short": "one", "author": "x"}
    wanted = {"caption": "a long one", "caption_short": "one"}
    save(tmp_path / "listed" / "a.png")
    captions(tmp_path / "listed", {"file": "a.png", **several})
    save(tmp_path / "beside" / "a.png").with_suffix(".json").write_text(json.dumps(several))
    for name in ("listed", "beside"):
        assert [item.captions for item in folder.captioned(folder.listed(tmp_path / name))] == [
            wanted
        ]


def empty(path: Path) -> None:
    path.mkdir(exist_ok=True)


def without_caption(path: Path) -> None:
    save(path / "lonely.png")


def with_blank_caption(path: Path) -> None:
    save(path / "a.png").with_suffix(".txt").write_text(" \n")


def with_latin1_caption(path: Path) -> None:
    save(path / "a.png").with_suffix(".txt").write_bytes("café".encode("latin-1"))


def with_broken_line(path: Path) -> None:
    captions(path, "{not json")


def with_a_list(path: Path) -> None:
    captions(path, ["a.png", "a"])


def with_missing_key(path: Path) -> None:
    captions(path, {"file": "a.png"})


def with_missing_file(path: Path) -> None:
    captions(path, {"file": "gone.png", "caption": "a"})


def with_other_captions(path: Path) -> None:
    save(path / "a.png").with_suffix(".json").write_text('{"caption": "a", "caption_short": "b"}')
    save(path / "b.png").with_suffix(".txt").write_text("b")


def with_json_of_no_caption(path: Path) -> None:
    save(path / "a.png").with_suffix(".json").write_text('{"text": "a"}')


def with_file_outside(path: Path) -> None:
    save(path.parent / "outside.png")
    captions(path, {"file": "../outside.png", "caption": "a"})


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (empty, "no images"),
        (without_caption, "lonely.png"),
        (with_blank_caption, "a.txt: the caption is empty"),
        (with_latin1_caption, "a.txt: not UTF-8"),
        (with_broken_line, "captions.jsonl:1"),
        (with_a_list, "captions.jsonl:1"),
        (with_missing_key, "captions.jsonl:1"),
        (with_missing_file, "gone.png does not exist"),
        (with_other_captions, "b.png and .*a.png do not both have caption_short"),
        (with_json_of_no_caption, "a.json: not of the form"),
        (with_file_outside, "outside.png lies outside"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, make: Callable[[Path], None], named: str) -> None:
    """Each mistake in a folder ends in one message with the file, and the line where there is
    one."""
    source = tmp_path / "images"
    source.mkdir()
    make(source)
    with pytest.raises(DatasetError, match=named):
        folder.captioned(folder.listed(source))


def test_the_centre_square_is_kept_upright(tmp_path: Path) -> None:
    """The crop keeps the middle; the camera's EXIF orientation is applied first."""
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = (0, 0, 255)
    pixels[:5, 10:20] = (255, 0, 0)  # the middle third: red over blue
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me clockwise to see me upright"
    turned.save(tmp_path / "a.png", exif=exif)
    image = folder.fitted(tmp_path / "a.png", 8, 8)
    assert image.shape == (8, 8, 3)
    inner = image[:, 2:6].astype(int)  # resampling mixes in a little of the neighbours
    assert np.abs(inner[1] - (255, 0, 0)).max() < 20
    assert np.abs(inner[-2] - (0, 0, 255)).max() < 20


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette, print and bilevel images are as good as others."""
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("I;16" if mode == "I;16" else mode, (9, 9)).save(path)
    assert folder.fitted(path, 8, 8).shape == (8, 8, 3)


def test_transparent_images_lie_on_white(tmp_path: Path) -> None:
    """What hides in fully transparent pixels is not what a person sees."""
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (folder.fitted(tmp_path / "a.png", 8, 8) == 255).all()


@pytest.mark.parametrize("damage", ["not an image", "truncated"])
def test_an_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    """No traceback of an image library: the file and what is wrong with it."""
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(b"hello" if damage == "not an image" else path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"a\.png: not a readable image"):
        folder.fitted(path, 8, 8)
