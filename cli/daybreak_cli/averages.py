"""`daybreak ema`: an average of another length, after the run."""

from __future__ import annotations

import posixpath
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from daybreak_cli.checkpoints import fsspec_options, plain_storage_errors
from daybreak_cli.errors import CommandError, said_plainly

if TYPE_CHECKING:
    from daybreak_trainer.checkpoint.storage import Storage
    from daybreak_trainer.export.post_hoc import Plan

console = Console()


@said_plainly
def ema(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="spec.checkpoint of the run, or below it run-<uid>."),
    ],
    deviation: Annotated[
        float, typer.Option(help="Width of the average, as a share of the time: 0.02 to 0.28.")
    ],
    out: Annotated[str, typer.Option(metavar="URL", help="Folder to write, new: the model.")],
    at: Annotated[
        int | None, typer.Option(min=1, help="At so many samples; if not given, the run's last.")
    ] = None,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the weights.")] = "fp32",
    options_file: Annotated[
        Path | None, typer.Option(help="JSON object of fsspec options for the checkpoints.")
    ] = None,
    out_options_file: Annotated[Path | None, typer.Option(help="The same for --out.")] = None,
) -> None:
    """Put an average of another length together and export it; needs no GPU.

    The run must have kept averages (recipe.ema.power). Shown are the weight of each and how far
    their sum is from the average that was asked for: 0 is exact, and a few hundredths are little.
    """
    from daybreak_trainer.checkpoint.storage import Storage
    from daybreak_trainer.export import post_hoc
    from daybreak_trainer.export.publish import ExportTakenError
    from daybreak_trainer.models.pretrained import HubUnreachableError
    from daybreak_trainer.recipe import RecipeError

    target = Storage(
        posixpath.dirname(out.rstrip("/")) or ".", fsspec_options([], out_options_file)
    )
    with plain_storage_errors():
        try:
            run = _run(url, options_file)
            chosen = post_hoc.plan(run, deviation, at)
            _show(chosen)
            with tempfile.TemporaryDirectory(prefix="daybreak-ema-") as folder:
                where = post_hoc.export(
                    chosen, Path(folder), target, posixpath.basename(out.rstrip("/")), dtype
                )
        except (ValueError, ExportTakenError, RecipeError) as error:
            raise CommandError(str(error)) from None
        except HubUnreachableError as error:
            raise CommandError(str(error), exit_code=1) from None
    console.print(f"wrote {where}", soft_wrap=True, highlight=False)


def _run(url: str, options_file: Path | None) -> Storage:
    from daybreak_trainer.checkpoint.inventory import Place
    from daybreak_trainer.checkpoint.layout import run_folder
    from daybreak_trainer.checkpoint.storage import Storage

    place = Place.parse(url)
    root = Storage(place.root, fsspec_options([], options_file))
    names = [name for name in root.folders() if name.startswith(run_folder(""))]
    if place.uid is not None:
        names = [name for name in names if name == run_folder(place.uid)]
    if not names:
        raise CommandError(f"{url}: there is no run; give the URL of its spec.checkpoint")
    if len(names) > 1:
        raise CommandError(f"{url} holds several runs; give one of them: {', '.join(names)}")
    return root.child(names[0])


def _show(chosen: Plan) -> None:
    table = Table("samples", "deviation", "coefficient")
    for snapshot, _, deviation, coefficient in chosen.terms:
        table.add_row(f"{snapshot.samples:,}", f"{deviation:g}", f"{coefficient:+.4f}")
    console.print(table)
    console.print(
        f"deviation {chosen.wanted.deviation:g} at {chosen.wanted.samples:,.0f} samples: "
        f"fit error {chosen.combination.error:.4f}"
    )
