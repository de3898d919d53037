"""Images where the scorers of GenEval and DPG-Bench look for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daybreak_trainer.evaluate.layouts import (
    NOTE,
    DrawnNote,
    Images,
    OtherImagesError,
    digest_of_model,
    digest_of_prompts,
    write_images,
)
from daybreak_trainer.evaluate.prompt_sets import BenchmarkPrompt, Kind, PromptsError, read_prompts

LINES = [
    {
        "tag": "single_object",
        "include": [{"class": "cup", "count": 1}],
        "prompt": "a photo of a cup",
    },
    {"tag": "counting", "include": [{"class": "cup", "count": 3}], "prompt": "three cups"},
]


def draw(texts: Sequence[str], numbers: Sequence[int]) -> Images:
    """Images that say their number."""
    assert len(texts) == len(numbers)
    return np.stack([np.full((6, 6, 3), number, dtype=np.uint8) for number in numbers])


def note(kind: Kind, prompts: Sequence[BenchmarkPrompt], **changes: object) -> DrawnNote:
    return DrawnNote(
        benchmark=kind,
        model="model",
        model_digest="d",
        prompts=digest_of_prompts(prompts),
        prompt_count=len(prompts),
        images_a_prompt=4,
        seed=1,
        steps=2,
        guidance=3.0,
        resolution=6,
    ).model_copy(update=changes)


def shown(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_genevals_folders(tmp_path: Path) -> None:
    """Numbered, each with its line as it was and four samples; what is there is not drawn again,
    and what was lost comes back as it was."""
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n")
    prompts = read_prompts("geneval", file)
    seen: list[tuple[int, int]] = []
    assert (
        write_images(out, note("geneval", prompts), prompts, draw, lambda *s: seen.append(s)) == 2
    )
    assert seen == [(0, 2), (2, 2)]
    for number, line in enumerate(LINES):
        folder = out / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        assert sorted(f.name for f in (folder / "samples").iterdir()) == [
            f"{n:04d}.png" for n in range(4)
        ]
        for n in range(4):
            assert (shown(folder / f"samples/{n:04d}.png") == number * 4 + n).all()
    (out / "00001/samples/0002.png").unlink()
    assert write_images(out, note("geneval", prompts), prompts, draw, lambda *_: None) == 1
    assert (shown(out / "00001/samples/0002.png") == 6).all()
    assert write_images(out, note("geneval", prompts), prompts, draw, lambda *_: None) == 0
    told = json.loads((out / NOTE).read_text())
    assert (told["guidance"], told["steps"], told["seed"], told["rewritten"]) == (3.0, 2, 1, False)


def test_dpgs_images(tmp_path: Path) -> None:
    """One a prompt, named by its id, four images in two rows; ids from files or from lines."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/COCOval_7.txt").write_text("A long prompt.\n")
    prompts = read_prompts("dpg", tmp_path / "prompts")
    lines = tmp_path / "prompts.jsonl"
    lines.write_text(json.dumps({"id": "COCOval_7", "prompt": "A long prompt."}))
    assert [(p.name, p.prompt) for p in read_prompts("dpg", lines)] == [
        (p.name, p.prompt) for p in prompts
    ]
    separated = {"id": "b", "prompt": "Two\u2028lines."}
    lines.write_text(json.dumps(separated, ensure_ascii=False), encoding="utf-8")
    assert [p.prompt for p in read_prompts("dpg", lines)] == ["Two\u2028lines."]
    write_images(tmp_path / "out", note("dpg", prompts), prompts, draw, lambda *_: None)
    page = shown(tmp_path / "out/COCOval_7.png")
    assert page.shape == (12, 12, 3)
    assert [page[0, 0, 0], page[0, 6, 0], page[6, 0, 0], page[6, 6, 0]] == [0, 1, 2, 3]


def test_images_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    """By what the note says; a model that was moved is the same one."""
    prompts = (BenchmarkPrompt("a", "a cup", ""),)
    out = tmp_path / "out"
    write_images(out, note("dpg", prompts), prompts, draw, lambda *_: None)
    moved = note("dpg", prompts, model="elsewhere")
    assert write_images(out, moved, prompts, draw, lambda *_: None) == 0
    for change in ({"seed": 2}, {"model_digest": "e"}, {"guidance": 1.5}):
        with pytest.raises(OtherImagesError, match="choose another folder"):
            write_images(out, note("dpg", prompts, **change), prompts, draw, lambda *_: None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").touch()
    (out / NOTE).write_text("[]")
    with pytest.raises(OtherImagesError, match="not an object of JSON"):
        write_images(out, note("dpg", prompts), prompts, draw, lambda *_: None)
    with pytest.raises(OtherImagesError, match="not empty"):
        write_images(tmp_path / "photos", note("dpg", prompts), prompts, draw, lambda *_: None)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("geneval", '{"prompt": "a"}\n{"prompt": 3}', "line 2: prompt must be a text, not 3"),
        ("geneval", '{"prompt": "a"}\n\nnonsense', "line 3: not JSON"),
        ("geneval", '["a"]', "line 1: must be an object"),
        ("geneval", "", "there are no prompts"),
        ("dpg", '{"prompt": "a"}', "line 1: id must be a text, not null"),
        ("dpg", '{"id": "../a", "prompt": "a"}', "line 1: id '../a' must be of letters"),
        ("dpg", '{"id": "a.1", "prompt": "a"}', "line 1: id 'a.1' must be of letters"),
        ("dpg", '{"id": "a", "prompt": "b"}\n{"id": "a", "prompt": "c"}', "id a stands twice"),
    ],
)
def test_wrong_lines_are_refused_by_number(
    kind: Kind, text: str, message: str, tmp_path: Path
) -> None:
    """Before a GPU has drawn for an hour."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(PromptsError, match=r"prompts\.jsonl") as caught:
        read_prompts(kind, file)
    assert message in str(caught.value)


def test_a_models_digest_is_of_its_content(tmp_path: Path) -> None:
    """Not of its place; other weights are another model."""
    for name in ("a", "b"):
        (tmp_path / name / "transformer").mkdir(parents=True)
        (tmp_path / name / "transformer/model.safetensors").write_bytes(b"weights")
    assert digest_of_model(tmp_path / "a") == digest_of_model(tmp_path / "b")
    (tmp_path / "b/transformer/model.safetensors").write_bytes(b"weightz")
    assert digest_of_model(tmp_path / "a") != digest_of_model(tmp_path / "b")
