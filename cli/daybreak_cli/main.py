"""The `daybreak` command. Each sub-command imports what it needs when it runs, so `--help` is quick
and the commands that talk to a cluster work without the trainer's dependencies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from daybreak_cli import averages, checkpoints, plans, recipes
from daybreak_cli.errors import CommandError, said_plainly
from daybreak_devcluster.info import ClusterInfo

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train a text-to-image model from scratch on whatever GPUs a Kubernetes cluster has.\n\n"
    "A cluster on this machine, without Docker or GPUs: `daybreak up`, then "
    "`kubectl apply -k manifests/overlays/devcluster` for the operator, and a run such as "
    "manifests/examples/volumes.yaml, whose first lines say how it begins; "
    "`daybreak watch volumes` follows it, and `daybreak down` ends it all. "
    "`make demo` does the like in one command.\n\n"
    "Exit codes: 0 done, 1 the work failed, 2 the call or its input was wrong.",
)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(recipes.app, name="recipe")
app.command("plan")(plans.plan)
app.command("ema")(averages.ema)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(", ".join(_versions()))
        raise typer.Exit


def _versions() -> Iterator[str]:
    """Of Daybreak, and of what decides most about a run where it is installed; imports nothing."""
    for package in ("daybreak", "torch", "diffusers"):
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions and exit."
        ),
    ] = False,
) -> None: ...


console = Console()
_MOST_NAMED = 10

_MOST_SEED = 10**12
"""A million times this, an image's own seed, still fits into torch's 64 bits."""

Seed = Annotated[int, typer.Option(min=0, max=_MOST_SEED, help="Of the images' noise.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; if not given, a GPU if any.")]
StateDir = Annotated[
    Path | None, typer.Option(help="Where the cluster keeps its files; default: build/devcluster.")
]


@app.command()
@said_plainly
def up(
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Nodes that run pods.")] = 1,
    state_dir: StateDir = None,
) -> None:
    """Start a Kubernetes control plane on this machine; it stays until `daybreak down`.

    The first start on a machine may build the programs, which takes minutes; it says so.
    """
    from daybreak_devcluster import background
    from daybreak_devcluster.binaries import BinariesNotFoundError
    from daybreak_devcluster.launch import StartError
    from daybreak_devcluster.statedir import StateDirError

    try:
        info = background.up(nodes=nodes, state_dir=state_dir, console=Console(stderr=True))
    except (BinariesNotFoundError, FileNotFoundError, StartError, StateDirError) as error:
        raise CommandError(str(error), exit_code=1) from None
    _say_how_to_reach(info)


def _say_how_to_reach(info: ClusterInfo) -> None:
    """Unwrapped, for it is to be copied."""
    for line in (
        f"Kubernetes {info.version} is ready after {info.start_seconds:.1f} s. For this shell, and "
        "then kubectl apply -k manifests/overlays/devcluster for the operator:",
        f"export KUBECONFIG={info.kubeconfig}",
        f"export PATH={info.binaries}:$PATH",
    ):
        console.print(line, soft_wrap=True, highlight=False)


@app.command()
@said_plainly
def down(state_dir: StateDir = None) -> None:
    """End the cluster that `daybreak up` started and remove its files."""
    from daybreak_devcluster import background
    from daybreak_devcluster.statedir import StateDirError

    try:
        was_there = background.down(state_dir=state_dir)
    except StateDirError as error:
        raise CommandError(str(error)) from None
    console.print("the cluster is gone" if was_there else "there was no cluster")


@app.command()
@said_plainly
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="`digits`, `shapes`, a folder of images, or a dataset, its folder or URL, that is "
            "to get more columns."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Local folder to write, new or empty.")],
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the images; a folder needs it. Several, as in 512,1024, give a dataset "
            "each, in OUT/512 and OUT/1024.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the generators.")] = 0,
    buckets: Annotated[
        bool, typer.Option("--buckets", help="Keep a folder's aspect ratios, at most 2:1.")
    ] = False,
    multiple: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sides of buckets are multiples of so many pixels, 8 if not given; the model's "
            "patch size must divide them.",
        ),
    ] = None,
    encoding: Annotated[
        Literal["png", "jpeg"] | None,
        typer.Option(
            help="How images are stored; if not given, jpeg for a folder and png for a generator.",
        ),
    ] = None,
    jpeg_quality: Annotated[int, typer.Option(min=1, max=100, help="Of --encoding jpeg.")] = 92,
    shard_size: Annotated[
        str,
        typer.Option(metavar="BYTES", help="Most bytes of a shard, such as 128MB or 64MiB."),
    ] = "4MiB",
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave out images that cannot be decoded, and list them in OUT/skipped.json.",
        ),
    ] = False,
    latents: Annotated[
        str | None,
        typer.Option(
            metavar="AUTOENCODER",
            help="Add a column of latents, made by this AutoencoderDC or AutoencoderKL of "
            "diffusers, a local folder or a Hugging Face repository; on a GPU, if there is one.",
        ),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="Add the captions' embeddings, made by this text encoder, a local folder or a "
            "Hugging Face repository; on a GPU, if there is one.",
        ),
    ] = None,
    embedding_precision: Annotated[
        Literal["bf16", "8bit"], typer.Option(help="How --embeddings are stored.")
    ] = "bf16",
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Of --embeddings: captions are cut to it, as text.maxTokens has."),
    ] = 256,
    embedded: Annotated[
        str,
        typer.Option(
            "--captions", metavar="NAMES", help="Of --embeddings: as in caption,caption_short."
        ),
    ] = "caption",
    lower_case: Annotated[
        bool,
        typer.Option(
            "--lower-case",
            help="Of --embeddings: captions in lower case, which a model of denoiser.kind sana is "
            "trained on and drawn with.",
        ),
    ] = False,
    drop_images: Annotated[
        bool, typer.Option("--drop-images", help="With --latents: leave the images out.")
    ] = False,
) -> None:
    """Write a dataset of MDS shards with hashes.

    A folder has its captions in `captions.jsonl` (`{"file": "a.png", "caption": "..."}` a line) or
    in a `.txt` or `.json` beside each image; `caption_short` and the like are further captions.
    Adding columns goes on where it was stopped, if called again.
    """
    from daybreak_trainer.data.errors import BadDataError, DataUnavailableError
    from daybreak_trainer.models.pretrained import HubUnreachableError
    from daybreak_trainer.prepare.datasets import prepare_datasets
    from daybreak_trainer.prepare.unreadable import reported
    from daybreak_trainer.recipe import RecipeError

    shard_bytes, sides = _bytes("--shard-size", shard_size), _sides(resolution)
    if ":/" in str(out) or (":/" in source and not (latents or embeddings)):
        raise CommandError(
            f"{out if ':/' in str(out) else source}: prepare writes local folders, and reads them "
            "unless it adds to a dataset (--latents, --embeddings); write one and copy it to the "
            "store, for S3 with: aws s3 sync OUT s3://bucket/folder"
        )
    if drop_images and latents is None:
        raise CommandError("--drop-images leaves nothing to train on without --latents")
    try:
        embedder = _embedder(embeddings, max_tokens, embedding_precision, lower_case)
        with _bar("samples") as (bar, task):
            cards = prepare_datasets(
                source,
                out,
                sides,
                added=[*_latents(latents), *_embeddings(embedder, embedded)],
                drop_images=drop_images,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                count=count,
                seed=seed,
                in_buckets=buckets,
                multiple=multiple,
                encoding=encoding,
                jpeg_quality=jpeg_quality,
                shard_bytes=shard_bytes,
                skip_unreadable=skip_unreadable,
            )
    except (BadDataError, RecipeError) as error:
        raise CommandError(str(error)) from None
    except (DataUnavailableError, HubUnreachableError) as error:
        raise CommandError(str(error), exit_code=1) from None
    for folder, card in cards.items():
        console.print(f"{folder}: {card.samples} samples of {card.resolution} px")
        _say_skipped(reported(folder), folder)
    if embedder is not None and embedder.captions:
        tokens, size = embedder.tokens / embedder.captions, embedder.bytes / embedder.captions
        console.print(
            f"{embedder.captions} captions embedded: {tokens:.1f} tokens and {size:,.0f} bytes each"
        )


def _embedder(
    path: str | None, max_tokens: int, precision: Literal["bf16", "8bit"], lower_case: bool
) -> Any:
    if path is None:
        return None
    from daybreak_trainer.prepare.embeddings import Embedder

    return Embedder(path, max_tokens, precision, lower_case=lower_case)


def _embeddings(embedder: Any, captions: str) -> list[Any]:
    if embedder is None:
        return []
    from daybreak_trainer.prepare.embeddings import EmbeddingColumn

    names = dict.fromkeys(name.strip() for name in captions.split(","))
    return [EmbeddingColumn(embedder, name) for name in names]


def _sides(text: str | None) -> list[int]:
    """Resolutions: 512 or 512,1024."""
    sides = text.split(",") if text is not None else []
    if not all(side.strip().isdecimal() and int(side) for side in sides):
        raise CommandError(f"--resolution {text}: not pixels, such as 512 or 512,1024")
    return sorted({int(side) for side in sides})


def _latents(source: str | None) -> list[Any]:
    if source is None:
        return []
    from daybreak_trainer.models.autoencoder import load
    from daybreak_trainer.prepare.latents import LatentColumn

    return [LatentColumn(load(source, "--latents"))]


def _bytes(option: str, text: str) -> int:
    """A number of bytes: 128MB, 64MiB, 4194304."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise CommandError(f"{option} {text}: not a number of bytes, such as 128MB") from None


def _say_skipped(skipped: list[dict[str, str]], out: Path) -> None:
    if not skipped:
        return
    typer.echo(
        f"{len(skipped)} unreadable images were left out ({out / 'skipped.json'}):", err=True
    )
    for entry in skipped[:_MOST_NAMED]:
        typer.echo(f"  {entry['file']}: {entry['error']}", err=True)
    if len(skipped) > _MOST_NAMED:
        typer.echo(f"  and {len(skipped) - _MOST_NAMED} more", err=True)


@app.command()
@said_plainly
def watch(
    name: Annotated[str, typer.Argument(help="The run.")],
    namespace: Annotated[str | None, typer.Option("--namespace", "-n")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(exists=True)] = None,
) -> None:
    """Follow a run live until it ends: stage, step, loss, images/s, ETA.

    Exits with 0 where the run completed and 1 where it failed.
    """
    from daybreak_cli.watch import reason
    from daybreak_cli.watch import watch as watch_run

    run = watch_run(name, namespace, kubeconfig, console)
    if run.get("status", {}).get("phase") == "Failed":
        raise CommandError(f"{name} failed: {reason(run)}", exit_code=1)


@app.command()
@said_plainly
def sample(
    model: Annotated[str, typer.Argument(metavar="URL", help="An exported model: folder or URL.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="PNG to write; of several images a grid, with each beside it.")
    ] = Path("samples.png"),
    negative: Annotated[str, typer.Option(help="What to stay away from, with guidance.")] = "",
    images: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="If not given, the recipe's.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, help="1 is none; if not given, the recipe's.")
    ] = None,
    seed: Seed = 0,
    device: Device = "",
    options_file: Annotated[
        Path | None, typer.Option(help="JSON object of fsspec options for the URL.")
    ] = None,
) -> None:
    """Draw images from an exported model, on a GPU or without one.

    One image is written to OUT as it is. Of several, OUT is a labelled grid for a first look, and
    the images themselves lie beside it, numbered: samples-0.png, samples-1.png.

    A remote model is copied to ~/.cache/daybreak first, each file verified by size and hash.
    """
    from daybreak_cli import models
    from daybreak_trainer.evaluate.grid import save_images
    from daybreak_trainer.evaluate.sampler import sample as draw

    _check_png(out)
    pipeline, sampling = models.opened(model, options_file, models.device_of(device))
    texts = [text for text in prompt for _ in range(images)]
    with _bar("images") as (bar, task):
        drawn = draw(
            pipeline,
            texts,
            steps=steps or sampling.steps,
            guidance=guidance or sampling.guidance,
            seed=seed,
            negative=negative,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    beside = save_images(drawn, texts, out)
    console.print(f"wrote {out}" + (f" and {beside[0]} to {beside[-1].name}" if beside else ""))


@app.command()
@said_plainly
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model.")],
    benchmark: Annotated[
        Literal["digits", "shapes"] | None,
        typer.Argument(help="Score held-out prompts of this benchmark."),
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="PNG of the images to write.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Dataset whose last samples drawn images are compared with."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=2, help="With --data: images to draw and to compare with.")
    ] = 256,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PATH",
            help="With --data: inception=, clip= or dino= and a local folder, a file of Inception "
            "weights or a Hugging Face repository; may be repeated.",
        ),
    ] = None,
    geneval: Annotated[
        Path | None, typer.Option(help="JSON lines of GenEval's prompts; needs --out.")
    ] = None,
    dpg: Annotated[
        Path | None,
        typer.Option(help="Folder of DPG-Bench's prompts, or JSON lines with id; needs --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for images in the benchmark's layout.")
    ] = None,
    seed: Seed = 0,
    device: Device = "",
) -> None:
    """Score a model, or draw the images that a public benchmark's own scorer reads.

    With BENCHMARK: the share of images that show what a held-out prompt asks for. With --data and
    --extractor: FID, CMMD, CLIP score. With --geneval or --dpg: four images a prompt into --out; a
    second call draws what is missing. The last line is JSON, for scripts.
    """
    from daybreak_cli import evaluations, models

    wanted = [geneval is not None, dpg is not None, data is not None, benchmark is not None]
    if sum(wanted) != 1:
        raise CommandError("give one of BENCHMARK, --data, --geneval and --dpg")
    if (out is None) == (geneval is not None or dpg is not None):
        raise CommandError("--out is where --geneval and --dpg write their images")
    if (data is None) == bool(extractor):
        raise CommandError("--data and --extractor belong together")
    if samples is not None:
        _check_png(samples)
    if benchmark is not None:
        task: evaluations.Task = evaluations.Alignment(benchmark, samples)
    elif data is not None:
        task = evaluations.Distances(data, images, evaluations.extractors(extractor or []))
    elif dpg is not None:
        assert out is not None  # said above
        task = evaluations.Drawn("dpg", dpg, out)
    else:
        assert out is not None  # said above
        assert geneval is not None  # the only one left
        task = evaluations.Drawn("geneval", geneval, out)
    task.check()
    place = models.device_of(device)
    pipeline, told = models.opened(str(model), None, place)
    sampling = {"steps": told.steps, "guidance": told.guidance}
    with _bar("images") as (bar, row):

        def progress(done: int, total: int) -> None:
            bar.update(row, completed=done, total=total)

        result = task.run(evaluations.Model(model, pipeline, sampling, seed, place), progress)
    typer.echo(json.dumps(result))


def _check_png(path: Path) -> None:
    """Before anything is drawn: raises CommandError where the image could not be written."""
    if path.suffix.lower() != ".png":
        raise CommandError(f"{path}: images are written as PNG; give it a name that ends in .png")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}; make it first")


class _bar:  # noqa: N801 (used as a function)
    """A progress bar on stderr: `with _bar("samples") as (bar, task)`."""

    def __init__(self, what: str) -> None:
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> tuple[Progress, TaskID]:
        self._bar.start()
        return self._bar, self._bar.add_task("work", total=None)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
