"""`daybreak prepare`: a source becomes a dataset of MDS shards that training trusts.

The dataset is written under a temporary name and renamed when it is whole, so a folder with the
final name is complete. Equal source, seed and options give equal bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from daybreak_trainer.data.card import CARD, INDEX, DatasetCard, bucket_size
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import CAPTION, ID
from daybreak_trainer.prepare import buckets, digits, folder, shapes
from daybreak_trainer.prepare import shards as shard_files
from daybreak_trainer.prepare.shards import (
    JPEG_QUALITY,
    MOST_SHARD_BYTES,
    SHARD_BYTES,
    ImageEncoding,
    Sample,
    ShardFormat,
)
from daybreak_trainer.prepare.texts import CaptionSurvey
from daybreak_trainer.prepare.unreadable import Unreadable, UnreadableImageError

GENERATORS = ("digits", "shapes")
_RESOLUTIONS = {"digits": 16, "shapes": 32}
_SHAPES_COUNT = 20_000
_DIGITS_LICENCE = "UCI Optical Recognition of Handwritten Digits, CC BY 4.0, through scikit-learn"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    total: int
    """Samples, but for images that turn out unreadable."""
    parts: Mapping[str | None, Iterator[Sample]]
    """Samples by bucket; None: all are square."""
    resolution: int
    licence: str
    captions: tuple[str, ...] = (CAPTION,)
    """The columns of a sample's captions."""


def prepare(
    source: str,
    out: Path,
    *,
    resolution: int | None = None,
    count: int | None = None,
    seed: int = 0,
    in_buckets: bool = False,
    multiple: int | None = None,
    encoding: ImageEncoding | None = None,
    jpeg_quality: int = JPEG_QUALITY,
    shard_bytes: int = SHARD_BYTES,
    skip_unreadable: bool = False,
    part: range | None = None,
    images: Sequence[folder.Listed] | None = None,
    progress: Progress | None = None,
) -> DatasetCard:
    """Writes `out/index.json`, `out/dataset.json` and the shards.

    `source` is `digits`, `shapes` or a folder; `count` limits the number of samples. With
    `in_buckets` the images of a folder keep about their aspect ratio, and each shard is of one
    bucket, whose sides are multiples of `multiple` (8 if None) pixels. Images are stored as
    `encoding`; None is png for a generator, whose drawings are small and exact, and jpeg for a
    folder, whose files mostly are.

    An image that cannot be decoded ends the work, or with `skip_unreadable` is left out and listed
    in `out/skipped.json`.

    With `part`, only samples of these numbers, of as many as there are without it. `images` are
    those of the folder, where they were listed before.

    Raises:
        DatasetError: a source that cannot be read, an `out` that is there already or cannot be
            written, a count of none, or shards larger than the format allows.
    """
    if count is not None and count < 1:
        raise DatasetError(f"count {count}: a dataset needs at least one sample")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists already; choose another folder or remove it first")
    if multiple is not None and not in_buckets:
        raise DatasetError("--multiple is about the sides of buckets; it needs --buckets")
    if not 1 <= shard_bytes <= MOST_SHARD_BYTES:
        raise DatasetError(f"--shard-size: {shard_bytes} is not from 1 to {MOST_SHARD_BYTES} bytes")
    unreadable = Unreadable(skip_unreadable)
    numbers = part if part is not None else range(total(source, count, images))
    opened = _open(source, images, numbers, resolution, seed, in_buckets, multiple or 8, unreadable)
    form = ShardFormat(
        encoding or ("png" if source in GENERATORS else "jpeg"), jpeg_quality, shard_bytes
    )
    if opened.total == 0:
        raise DatasetError(f"{source}: nothing to prepare")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written there: {error}") from None
    try:
        survey = CaptionSurvey(opened.total)
        samples, shards = _write(opened, partial, form, survey, progress)
        if samples == 0:
            raise DatasetError(f"{source}: none of its {len(unreadable.found)} images is readable")
        unreadable.report(partial, Path(source))
        card = DatasetCard(
            source=source if source in GENERATORS else str(Path(source).resolve()),
            samples=samples,
            resolution=opened.resolution,
            seed=seed,
            licence=opened.licence,
            vocabulary=survey.words,
            word_counts=survey.word_counts,
            caption_sample=survey.sample,
            buckets=shards,
        )
        (partial / CARD).write_text(json.dumps(json.loads(card.to_json()), indent=2) + "\n")
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return card


def total(
    source: str, count: int | None = None, images: Sequence[folder.Listed] | None = None
) -> int:
    """Samples of a source, at most `count`; of a folder also those that are unreadable.

    Raises:
        DatasetError: as `folder.listed`, or there is no such source.
    """
    if source == "shapes":
        return count or _SHAPES_COUNT
    there = (
        len(digits.load("generator").labels)
        if source == "digits"
        else len(images if images is not None else folder.listed(_folder(source)))
    )
    return min(count or there, there)


def _folder(source: str) -> Path:
    path = Path(source)
    if not path.is_dir():
        raise DatasetError(
            f"{source}: neither a folder nor one of the generators {', '.join(GENERATORS)}"
        )
    return path


def _open(
    source: str,
    images: Sequence[folder.Listed] | None,
    numbers: range,
    resolution: int | None,
    seed: int,
    in_buckets: bool,
    multiple: int,
    unreadable: Unreadable,
) -> Source:
    if in_buckets and source in GENERATORS:
        raise DatasetError(f"{source}: all its images are square; --buckets is for a folder")
    if source == "shapes":
        size = resolution or _RESOLUTIONS[source]
        return Source(
            len(numbers),
            {None: _shapes(numbers, size, seed)},
            size,
            "generated by Daybreak, no rights",
            (CAPTION, shapes.SHORT_CAPTION),
        )
    if source == "digits":
        size = resolution or _RESOLUTIONS[source]
        drawn = _digits(digits.load("generator"), numbers, size)
        return Source(len(numbers), {None: drawn}, size, _DIGITS_LICENCE)
    path = _folder(source)
    if resolution is None:
        raise DatasetError(f"{source}: say --resolution, the side of the images in pixels")
    there = images if images is not None else folder.listed(path)
    found = folder.captioned(there[numbers.start : numbers.stop])
    by_bucket: dict[str | None, Iterator[Sample]]
    if in_buckets:
        groups = buckets.grouped(found, resolution, multiple, unreadable)
        by_bucket = {
            name: _images(path, group, bucket_size(name), unreadable)
            for name, group in groups.items()
        }
    else:
        by_bucket = {None: _images(path, found, (resolution, resolution), unreadable)}
    columns = tuple(found[0].captions)
    return Source(len(found), by_bucket, resolution, "as the images of the folder", columns)


def _images(
    path: Path, found: list[folder.Captioned], size: tuple[int, int], unreadable: Unreadable
) -> Iterator[Sample]:
    for item in found:
        try:
            image = folder.fitted(item.file, *size)
        except UnreadableImageError as error:
            unreadable.note(error)
            continue
        yield Sample(image, item.captions, str(item.file.relative_to(path)))


def _shapes(numbers: range, size: int, seed: int) -> Iterator[Sample]:
    for scene, number in islice(shapes.training_scenes(numbers.stop, seed), numbers.start, None):
        generator = np.random.default_rng([seed, 1, number])
        captions = {CAPTION: scene.caption, shapes.SHORT_CAPTION: scene.short_caption}
        image = shapes.render(scene, size, generator)
        yield Sample(image, captions, f"shapes-{seed}-{number}")


def _digits(data: digits.Digits, numbers: range, size: int) -> Iterator[Sample]:
    for number in numbers:
        image = digits.render(data.images[number], size)
        captions = {CAPTION: digits.caption(int(data.labels[number]))}
        yield Sample(image, captions, f"digits-{number}")


def _write(
    source: Source,
    out: Path,
    form: ShardFormat,
    survey: CaptionSurvey,
    progress: Progress | None,
) -> tuple[int, dict[str, tuple[str, ...]] | None]:
    """Writes the shards; returns the number of samples, and the shards of each bucket."""
    columns = dict.fromkeys((*source.captions, ID), "str")
    written = 0

    def counted(samples: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal written
        for sample in samples:
            yield sample
            survey.note(sample.captions)
            written += 1
            if progress is not None:
                progress(written, source.total)

    if (samples := source.parts.get(None)) is not None:
        shard_files.write(counted(samples), out, form, columns)
        return written, None
    shards: dict[str, tuple[str, ...]] = {}
    infos: list[dict[str, Any]] = []
    for bucket, samples in source.parts.items():
        assert bucket is not None  # the other kind of source
        part = out / f".{bucket}"
        shard_files.write(counted(samples), part, form, columns)
        moved = shard_files.moved(part, out, len(infos))
        if moved:  # else none of its images was readable
            shards[bucket] = tuple(info["raw_data"]["basename"] for info in moved)
        infos += moved
    (out / INDEX).write_text(json.dumps({"version": 2, "shards": infos}, sort_keys=True))
    return written, shards
