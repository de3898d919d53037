"""Writes images as the scorers of public benchmarks read them.

GenEval: `00000/metadata.jsonl` and `00000/samples/0000.png` to `0003.png`. DPG-Bench: `<id>.png`,
four images in two rows. Beside them `drawn.json` says how they were drawn. Drawing goes on where it
was stopped: an image's noise is a function of the seed and of its place in the prompts, so it does
not matter which are there already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from daybreak_trainer.contract import Message
from daybreak_trainer.evaluate.prompt_sets import BenchmarkPrompt, Kind

NOTE = "drawn.json"
IMAGES_A_PROMPT = 4
Images = npt.NDArray[np.uint8]
Draw = Callable[[Sequence[str], Sequence[int]], Images]
"""Images of prompts, whose noise comes from these numbers."""
_PROMPTS_AT_ONCE = 8


class OtherImagesError(Exception):
    """The folder holds images that were drawn otherwise."""


class DrawnNote(Message):
    """`drawn.json`: what a published score has to say of its images."""

    benchmark: Kind
    model: str
    model_digest: str
    """xxh3-128 of the model's files."""
    prompts: str
    """xxh3-128 of all prompts in their order."""
    prompt_count: int
    images_a_prompt: int
    seed: int
    steps: int
    guidance: float
    resolution: int
    rewritten: bool = False
    """Whether a language model rewrote the prompts first; Daybreak draws them as they are."""


def digest_of_prompts(prompts: Sequence[BenchmarkPrompt]) -> str:
    lines = [json.dumps([p.name, p.prompt, p.metadata]) for p in prompts]
    return str(xxhash.xxh3_128("\n".join(lines).encode()).hexdigest())


def digest_of_model(folder: Path) -> str:
    """Of the weights and settings in an exported folder, by name and content."""
    digest = xxhash.xxh3_128()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json") and file.is_file():
            digest.update(f"{file.relative_to(folder)}\n".encode())
            with file.open("rb") as opened:
                while chunk := opened.read(1 << 22):
                    digest.update(chunk)
    return str(digest.hexdigest())


def write_images(
    out: Path,
    note: DrawnNote,
    prompts: Sequence[BenchmarkPrompt],
    draw: Draw,
    progress: Callable[[int, int], None],
) -> int:
    """Draws what is not there yet; returns how many prompts that were.

    Raises:
        OtherImagesError: `out` holds images of another model, seed, sampling or prompt set.
    """
    _claim(out, note)
    places = [_Place(note.benchmark, out, prompt) for prompt in prompts]
    missing = [number for number, place in enumerate(places) if not place.is_whole]
    done = len(prompts) - len(missing)
    progress(done, len(prompts))
    for start in range(0, len(missing), _PROMPTS_AT_ONCE):
        chunk = missing[start : start + _PROMPTS_AT_ONCE]
        copies = range(IMAGES_A_PROMPT)
        texts = [prompts[number].prompt for number in chunk for _ in copies]
        images = draw(texts, [number * IMAGES_A_PROMPT + k for number in chunk for k in copies])
        for row, number in enumerate(chunk):
            own = images[row * IMAGES_A_PROMPT : (row + 1) * IMAGES_A_PROMPT]
            places[number].write(own)
        done += len(chunk)
        progress(done, len(prompts))
    return len(missing)


def _claim(out: Path, note: DrawnNote) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / NOTE
    if not file.exists():
        if any(out.iterdir()):
            raise OtherImagesError(f"{out} is not empty and has no {NOTE}; choose another folder")
        _replace(file, (json.dumps(json.loads(note.to_json()), indent=2) + "\n").encode())
        return
    try:
        known = json.loads(file.read_text())
    except ValueError as error:
        raise OtherImagesError(f"{file}: not JSON: {error}; choose another folder") from None
    if not isinstance(known, dict):
        raise OtherImagesError(f"{file}: not an object of JSON; choose another folder")
    # A model may have moved: what it is decides, not where it lies.
    ours = json.loads(note.to_json())
    differing = [key for key in ours if key != "model" and known.get(key) != ours[key]]
    if differing:
        key = differing[0]
        raise OtherImagesError(
            f"{out} holds images that were drawn with {key} {known.get(key)}, not {ours[key]}; "
            "choose another folder"
        )


class _Place:
    """Where one prompt's images go."""

    def __init__(self, kind: Kind, out: Path, prompt: BenchmarkPrompt) -> None:
        self._kind, self._prompt = kind, prompt
        self._folder = out / prompt.name if kind == "geneval" else out
        self._files = (
            [self._folder / "samples" / f"{n:04d}.png" for n in range(IMAGES_A_PROMPT)]
            if kind == "geneval"
            else [out / f"{prompt.name}.png"]
        )

    @property
    def is_whole(self) -> bool:
        return all(file.exists() for file in self._files)

    def write(self, images: Images) -> None:
        pages = list(images) if self._kind == "geneval" else [_two_by_two(images)]
        self._files[0].parent.mkdir(parents=True, exist_ok=True)
        if self._kind == "geneval":
            metadata = f"{self._prompt.metadata}\n"
            _replace(self._folder / "metadata.jsonl", metadata.encode())
        for file, page in zip(self._files, pages, strict=True):
            partial = file.with_suffix(".partial")
            Image.fromarray(page).save(partial, format="PNG")
            partial.replace(file)


def _two_by_two(images: Images) -> Images:
    rows = [np.concatenate(list(images[row : row + 2]), axis=1) for row in (0, 2)]
    page: Images = np.concatenate(rows)
    return page


def _replace(file: Path, data: bytes) -> None:
    partial = file.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(file)
