"""The model card: what it says is the run's, and its program draws."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import yaml
from PIL import Image
from typer.testing import CliRunner

from daybreak_cli.main import app
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import Evaluation, MetricScore, Validation
from daybreak_trainer.data.description import CorpusDescription, StreamDescription
from daybreak_trainer.export.model_card import About, model_card, sampling_code
from daybreak_trainer.export.pipeline import build_pipeline, save_folder
from daybreak_trainer.export.publish import ExportCard, publish
from daybreak_trainer.recipe import resolve

ABOUT = About(
    name="digits",
    step=300,
    samples=19_200,
    average="an average",
    dtype="fp32",
    corpus=CorpusDescription(
        streams=(
            StreamDescription(
                url="s3://b/d", weight=1.0, index="abc", shards=2, samples=64, source="digits",
                licence="CC0",
            ),
        )
    ),
    seconds={"productive": 1800.0, "startup": 600.0, "checkpoint": 1200.0},
    device_seconds=28_800.0,
    price=2.5,
    device="CPU",
    evaluation=Evaluation(
        benchmark="digits", step=300, alignment=0.9, alignment_by_tag={"one": 0.9}, images=10
    ),
    validation=Validation(
        step=300,
        samples=256,
        loss=0.25,
        bins={"0-0.3": 0.5},
        metrics=(
            MetricScore(
                name="fid",
                value=12.5,
                extractor="inception",
                standard=True,
                images=256,
                reference_images=256,
            ),
        ),
    ),
)  # fmt: skip

NO_DAYBREAK = """
import sys

class NoDaybreak:
    def find_spec(self, name, *_):
        if name.startswith("daybreak"):
            raise ImportError(name)

sys.meta_path.insert(0, NoDaybreak())
"""


def program(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.S)
    assert found is not None
    return found[1]


def test_it_says_what_the_run_knows(tmp_path: Path) -> None:
    """Data with licence and hash, recipe, cost, scores; front matter that Hugging Face reads."""
    recipe = tiny_models.recipe_of("prx-pixel-x", tmp_path)
    card = model_card(recipe, ABOUT)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "text-to-image"
    for said in (
        "19,200 training samples in 300 steps",
        "| digits | CC0 | all | 64 | 100.0% | `abc` |",
        "held for 1.00 h, 50.0%",
        "8.00 device-hours (CPU), 20.00 at 2.5 an hour",
        "**0.900** of 10 images",
        "held out of training, after 300 steps",
        "velocity loss 0.2500 on 256 samples, by t (0.5000 in 0-0.3; 0 is data)",
        "- fid 12.5 (inception",
        recipe.hash,
        '"preset": "smoke"',
    ):
        assert said in card


def test_it_lists_the_data_of_every_stage() -> None:
    """Of all resolutions, each stream with its share of what the stages draw that it is for; and
    what is there and was never drawn from."""
    sides = [(16, 3.0), (16, 1.0), (64, 5.0), (128, 1.0)]
    streams = tuple(
        StreamDescription(
            url="u", weight=weight, index="i", shards=1, samples=9, source=f"s{n}", resolution=side
        )
        for n, (side, weight) in enumerate(sides)
    )
    stage = {"steps": 1, "batchSize": 4}
    stages = [{**stage, "resolution": side} for side in (16, 32, 64)]
    recipe = resolve({"preset": "smoke", "stages": stages})
    card = model_card(recipe, replace(ABOUT, corpus=CorpusDescription(streams=streams)))
    for said in (
        "| s0 | not stated | 16 px | 9 | 75.0% |",
        "| s1 | not stated | 16 px | 9 | 25.0% |",
        "| s2 | not stated | 32 px, 64 px | 9 | 100.0% |",
        "| s3 | not stated | none | 9 | 0.0% |",
    ):
        assert said in card


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_its_program_is_one_for_every_kind(kind: str, tmp_path: Path) -> None:
    """Python that names the pipeline and passes on what training asks for."""
    recipe = tiny_models.recipe_of(kind, tmp_path)
    text = sampling_code(recipe)
    compile(text, kind, "exec")
    assert ("max_sequence_length" in text) == kind.startswith("sana")
    assert ("latents=noise" in text) == (kind in ("prx-pixel-v", "sana-pixel"))


@pytest.mark.parametrize("kind", ["prx-pixel-x", "sana-pixel"])
def test_its_program_draws_where_daybreak_is_not(kind: str, tmp_path: Path) -> None:
    """In a process that cannot import Daybreak, in the folder of the export; of the pipelines with
    an autoencoder and of the one without."""
    recipe = tiny_models.recipe_of(kind, tmp_path / "autoencoder")
    save_folder(build_pipeline(recipe, *tiny_models.trained(recipe)), recipe, tmp_path / "model")
    code = NO_DAYBREAK + program(model_card(recipe, ABOUT))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path / "model", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "model" / "image.png") as image:
        assert image.size == (32, 32)


def test_an_export_is_drawn_from_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`daybreak sample` with a URL copies the export once and verifies it; a file that is another
    is refused by name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = tiny_models.recipe_of("prx-pixel-x", tmp_path)
    save_folder(build_pipeline(recipe, *tiny_models.trained(recipe)), recipe, tmp_path / "model")
    store = Storage(f"memory://{tmp_path.name}")
    card = ExportCard(uid="u", run="m", namespace="n", recipe_hash="r", step=1)
    url = publish(tmp_path / "model", store, "m", card)
    out = tmp_path / "grid.png"
    command = ["sample", url, "--prompt", "a red circle", "--prompt", "a", "--images", "2"]
    command += ["--steps", "1", "--guidance", "1", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert out.exists()
    for number in range(4):  # beside the grid, at their own size
        with Image.open(tmp_path / f"grid-{number}.png") as image:
            assert image.size == (32, 32)
    one = ["sample", url, "--prompt", "a", "--steps", "1", "--device", "cpu"]
    one += ["--out", str(tmp_path / "one.png")]
    assert CliRunner().invoke(app, one).exit_code == 0
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (32, 32)
    (folder,) = (tmp_path / "home" / ".cache" / "daybreak").iterdir()
    (folder / "model_index.json").unlink()
    store.child("m").write("model_index.json", b"x" * 8)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "model_index.json is not the file that was exported" in result.output
