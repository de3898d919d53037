"""The export is a stock diffusers pipeline: nobody needs Daybreak to draw with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from daybreak_trainer.export.pipeline import build_pipeline, save_folder
from daybreak_trainer.models import text_to_image
from daybreak_trainer.recipe import resolve

DRAW = """
import sys

class NoDaybreak:
    def find_spec(self, name, *_):
        if name.startswith("daybreak"):
            raise ImportError(name)

sys.meta_path.insert(0, NoDaybreak())
from diffusers import PRXPixelPipeline

pipeline = PRXPixelPipeline.from_pretrained(sys.argv[1])
image = pipeline(
    "a red circle", num_inference_steps=2, guidance_scale=2.0, use_resolution_binning=False
).images[0]
print(image.size)
"""


def test_stock_diffusers_draws_from_a_prompt(tmp_path: Path) -> None:
    """In a process that cannot import Daybreak."""
    recipe, words = resolve({"preset": "smoke"}), ["a", "circle", "red"]
    model, tower = text_to_image.build(recipe, words)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_folder(build_pipeline(recipe, words, weights, tower), recipe, tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", DRAW, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(16, 16)"
