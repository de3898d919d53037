"""`README.md` of an export: a Hugging Face model card. What the model is and was made from, what it
cost, how good it is, and how to draw with it: everything is taken from the run, and what the run
does not know is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from daybreak_trainer.contract import Evaluation, Validation
from daybreak_trainer.data.corpus import source_of
from daybreak_trainer.data.description import CorpusDescription, StreamDescription
from daybreak_trainer.evaluate.metrics.scores import described
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.telemetry.ledger import PRODUCTIVE

CARD = "README.md"


@dataclass(frozen=True)
class About:
    """What the recipe does not say."""

    name: str
    step: int
    samples: int
    """Seen in training."""
    average: str
    """Which average of the weights this is."""
    dtype: str
    corpus: CorpusDescription
    seconds: Mapping[str, float] = field(default_factory=dict)
    """The ledger: seconds that devices were held, by cause."""
    device_seconds: float = 0.0
    """The same times the number of devices, which may have changed."""
    price: float | None = None
    """Of a device's hour, if known."""
    device: str = ""
    """What one of them is."""
    evaluation: Evaluation | None = None
    validation: Validation | None = None
    """The last one of the run."""
    grid: str = ""
    """File of drawn samples, if any."""


def model_card(recipe: Recipe, about: About) -> str:
    front = yaml.safe_dump(_front(about), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {about.name}", *_body(recipe, about)]
    return "\n\n".join(parts) + "\n"


def _front(about: About) -> dict[str, object]:
    found: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["daybreak", "flow-matching", "trained-from-scratch"],
    }
    datasets = sorted({stream.source for stream in about.corpus.streams if stream.source})
    return found | ({"daybreak_sources": datasets} if datasets else {})


def _body(recipe: Recipe, about: About) -> Iterator[str]:
    space = "pixels" if recipe.latent is None else f"latents of {recipe.latent.autoencoder}"
    side = recipe.stages[-1].resolution
    yield (
        f"Text-to-image model of {side} x {side} pixels, trained from scratch by "
        f"Daybreak on {space}: {recipe.denoiser.kind}, "
        f"{recipe.denoiser.depth} blocks of width {recipe.denoiser.hidden_size}, "
        f"{about.samples:,} training samples in {about.step:,} steps. "
        f"Weights: {about.average}, {about.dtype}."
    )
    if about.grid:
        yield f"![Drawn from prompts]({about.grid})"
    yield "## Drawing\n\n```python\n" + sampling_code(recipe, about.dtype) + "```"
    yield from _drawing_notes(recipe)
    yield "## Training data\n\n" + _data(recipe, about.corpus)
    if about.evaluation is not None:
        yield "## Evaluation\n\n" + _evaluation(about.evaluation)
    if about.validation is not None:
        yield "## Validation\n\n" + _validation(about.validation)
    if about.seconds:
        yield "## Cost\n\n" + _cost(about)
    yield (
        "## Use and limits\n\n"
        "The model draws what its training data shows and captions, with its biases, and nothing "
        "filters prompts or images. Whoever passes it on must look at the licences of the data "
        "above, of the text encoder and of the autoencoder: this card grants none."
    )
    document = json.dumps(json.loads(recipe.to_json()), indent=2)
    yield (
        f"## Recipe\n\nHash `{recipe.hash}`.\n\n<details>\n\n```json\n{document}\n```\n\n</details>"
    )


def sampling_code(recipe: Recipe, dtype: str = "fp32") -> str:
    """A program that draws one image with stock diffusers; run in the folder of the export."""
    sampling, side = recipe.sampling, recipe.stages[-1].resolution
    kind, latent = recipe.denoiser.kind, recipe.latent is not None
    is_velocity = recipe.objective.prediction == "v"
    bare = is_velocity and not latent
    name = (
        "SanaPipeline" if kind == "sana" else "PRXPipeline" if is_velocity else "PRXPixelPipeline"
    )
    of = "torch.bfloat16" if dtype == "bf16" else "torch.float32"
    no_vae = ", vae=None" if kind == "sana" and bare else ""
    options = [
        f"num_inference_steps={sampling.steps}",
        f"guidance_scale={sampling.guidance:g}",
        "use_resolution_binning=False",
    ]
    if kind == "sana":
        options += [
            "complex_human_instruction=None",
            f"max_sequence_length={recipe.text.max_tokens}",
        ]
    elif is_velocity:
        options.append("skip_text_cleaning=True")
    lines = [
        "import torch",
        f"from diffusers import {name}",
        "",
        'folder = "."  # or the name of its repository',
        f"pipeline = {name}.from_pretrained(folder, torch_dtype={of}{no_vae})",
        "generator = torch.Generator().manual_seed(0)",
    ]
    if bare:
        lines.append(
            f"noise = torch.randn((1, 3, {side}, {side}), generator=generator, dtype={of})"
        )
        # They play no part where noise is given, and must suit the pipeline.
        multiple = 32 if kind == "sana" else 8 * recipe.denoiser.patch_size
        options += ["latents=noise", f"height={multiple}", f"width={multiple}"]
        options.append('output_type="latent"')
    else:
        options.append("generator=generator")
        if kind == "sana":
            options += [f"height={side}", f"width={side}"]
    lines += ["image = pipeline(", '    "a red circle",', *(f"    {o}," for o in options)]
    lines.append(").images[0]")
    if bare:
        lines += [
            "pixels = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()",
            "from PIL import Image",
            "image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())",
        ]
    return "\n".join([*lines, 'image.save("image.png")']) + "\n"


def _drawing_notes(recipe: Recipe) -> Iterator[str]:
    if recipe.objective.prediction == "v" and recipe.latent is None:
        yield (
            "The model works on pixels and has no autoencoder: the pipeline is given noise of the "
            "image's size and returns pixels in -1..1."
        )
    if recipe.denoiser.kind == "sana":
        yield "`SanaPipeline` puts prompts into lower case, as captions were in training."


def _data(recipe: Recipe, corpus: CorpusDescription) -> str:
    """Every stream of the run, whichever stages draw from it. Shares are of what those draw."""
    rows = [
        "| Source | Licence | Stages | Samples | Share | Hash of the index (xxh3-128) |",
        "|---|---|---|---|---|---|",
    ]
    for stream in corpus.streams:
        stages = _drawing_stages(recipe, corpus, stream)
        beside = [other for other in corpus.streams if other.resolution == stream.resolution]
        share = stream.weight / sum(other.weight for other in beside) if stages else 0.0
        rows.append(
            f"| {stream.source or stream.url} | {stream.licence or 'not stated'} | "
            f"{stages or 'none'} | {stream.samples:,} | {share:.1%} | `{stream.index}` |"
        )
    rows += ["", f"Fingerprint of all of it: `{corpus.fingerprint}`."]
    if corpus.validation_samples:
        rows.append(f"{corpus.validation_samples:,} samples were held out of training.")
    return "\n".join(rows)


def _drawing_stages(recipe: Recipe, corpus: CorpusDescription, stream: StreamDescription) -> str:
    """Of a stream, in words; empty where no stage draws from it."""
    there = {one.resolution for one in corpus.streams if one.resolution is not None}
    if stream.resolution is None or len(there) == 1:
        return "all"
    sides = dict.fromkeys(stage.resolution for stage in recipe.stages)
    return ", ".join(f"{side} px" for side in sides if source_of(side, there) == stream.resolution)


def _evaluation(found: Evaluation) -> str:
    rows = [
        f"Benchmark `{found.benchmark}`: **{found.alignment:.3f}** of {found.images} images show "
        "what held-out prompts ask for (mean over tags).",
        "",
        "| Tag | Alignment | Judge on real images |",
        "|---|---|---|",
    ]
    for tag, value in found.alignment_by_tag.items():
        accuracy = found.judge_accuracy.get(tag)
        rows.append(f"| {tag} | {value:.3f} | {'' if accuracy is None else f'{accuracy:.3f}'} |")
    return "\n".join(rows)


def _validation(found: Validation) -> str:
    lines = []
    if found.loss is not None:
        bins = ", ".join(f"{value:.4f} in {name}" for name, value in found.bins.items())
        lines.append(
            f"- velocity loss {found.loss:.4f} on {found.samples:,} samples, by t ({bins}; 0 is "
            "data)"
        )
    lines += [f"- {line}" for line in described(found.metrics)]
    return f"On samples that were held out of training, after {found.step:,} steps:\n\n" + (
        "\n".join(lines)
    )


def _cost(about: About) -> str:
    held, hours = sum(about.seconds.values()), about.device_seconds / 3600
    price = (
        "" if about.price is None else f", {hours * about.price:,.2f} at {about.price:g} an hour"
    )
    return (
        f"{hours:,.2f} device-hours ({about.device}){price}. Devices were held for "
        f"{held / 3600:.2f} h, {about.seconds.get(PRODUCTIVE, 0.0) / held:.1%} of it in training "
        "steps that count (goodput); writing this card and what comes after are not in it."
    )
