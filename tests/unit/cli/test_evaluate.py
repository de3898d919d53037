"""`daybreak evaluate` on an exported model, a tiny one that was never trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daybreak_cli.main import app
from daybreak_trainer.export.pipeline import build_pipeline, save_folder
from daybreak_trainer.models import text_to_image
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve

RECIPE = resolve(
    {
        "preset": "smoke",
        "denoiser": {"depth": 1},
        "stages": [{"resolution": 16, "steps": 1, "batchSize": 8}],
        "sampling": {"steps": 1, "guidance": 2.0},
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    built, text = text_to_image.build(RECIPE, ["a", "cup"])
    weights = {name: p.detach() for name, p in built.named_parameters()}
    save_folder(build_pipeline(RECIPE, weights, text), RECIPE, folder)
    return folder


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, the last line of stdout, and stderr."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    lines = result.stdout.strip().splitlines()
    return result.exit_code, lines[-1] if lines else "", " ".join(result.stderr.split())


def test_images_for_genevals_scorer(model: Path, tmp_path: Path) -> None:
    """Once; another seed is another set of images and is not mixed in."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text('{"prompt": "a cup", "tag": "single_object"}\n{"prompt": "a"}\n')
    for drawn in (2, 0):
        code, said, _ = run(model, "--geneval", prompts, "--out", out)
        assert code == 0
        assert json.loads(said) == {"out": str(out), "prompts": 2, "drawn": drawn}
    assert len(list(out.glob("0000?/samples/000?.png"))) == 8
    told = json.loads((out / "drawn.json").read_text())
    assert (told["guidance"], told["steps"], told["resolution"]) == (2.0, 1, 16)
    code, _, problem = run(model, "--geneval", prompts, "--out", out, "--seed", "1")
    assert code == 2
    assert "were drawn with seed 0, not 1" in problem


def test_distances_say_what_saw_them(model: Path, tmp_path: Path) -> None:
    """Against the last tenth of a dataset, with its captions; by the extractor's own name."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size).save_pretrained(tmp_path / "tiny")
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "tiny")
    prepare("digits", tmp_path / "data", count=60)
    given = ("--data", tmp_path / "data", "--extractor", f"dino={tmp_path / 'tiny'}")
    code, said, described = run(model, *given)
    assert code == 0, described
    scores = {score["name"]: score for score in json.loads(said)["metrics"]}
    assert set(scores) == {"frechet_distance", "mmd"}
    assert scores["mmd"]["images"] == scores["mmd"]["referenceImages"] == 6
    assert scores["mmd"]["standard"] is False
    assert "folder tiny, not the standard extractor" in described


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give one of BENCHMARK, --data, --geneval and --dpg"),
        (("digits", "--dpg", "x", "--out", "y"), "give one of BENCHMARK"),
        (("--dpg", "x"), "--out is where"),
        (("digits", "--out", "y"), "--out is where"),
        (("--data", "x"), "--data and --extractor belong together"),
        (("--data", "x", "--extractor", "vgg=y"), "--extractor vgg=y: must be inception="),
        (("--geneval", "nowhere", "--out", "y"), "nowhere: cannot be read"),
    ],
)
def test_a_call_that_makes_no_sense_is_said(
    model: Path, arguments: tuple[str, ...], problem: str
) -> None:
    """In one line, before the model is loaded."""
    code, _, said = run(model, *arguments)
    assert code == 2
    assert problem in said
