"""`daybreak checkpoints`: look into a storage, check it, and tidy it up. Needs no cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from daybreak_cli.errors import CommandError, said_plainly

if TYPE_CHECKING:  # the command answers at once: fsspec is imported when needed
    from daybreak_trainer.checkpoint.inventory import Entry, Place
    from daybreak_trainer.checkpoint.storage import Storage

app = typer.Typer(
    no_args_is_help=True,
    help="List, verify and remove checkpoints in any storage fsspec knows.\n\n"
    "URL is that of `spec.checkpoint` (`s3://bucket/folder`, a path), or of one run, attempt or "
    "checkpoint below it.",
)
console = Console()

Url = Annotated[str, typer.Argument(metavar="URL", help="Folder or URL of the checkpoints.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An fsspec option; may be repeated."),
]
OptionsFile = Annotated[
    Path | None,
    typer.Option(help="JSON object of fsspec options, as in the run's Secret (options.json)."),
]


@app.command("ls")
@said_plainly
def list_checkpoints(
    url: Url,
    option: Options = None,
    options_file: OptionsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for scripts.")] = False,
) -> None:
    """List checkpoints by run, attempt and step.

    `tip` is what the run's next attempt goes on from; `partial` was never finished and is never
    resumed from.
    """
    _, found = _open(url, option, options_file)
    if as_json:
        typer.echo(json.dumps([_document(entry) for entry in found], indent=2))
        return
    table = Table(Column("run", overflow="fold"), "attempt", "step", "state", "size", "age", "")
    for entry in found:
        table.add_row(
            entry.uid,
            str(entry.point.attempt),
            str(entry.point.step),
            entry.state,
            decimal(entry.bytes),
            _age(entry),
            "tip" if entry.is_tip else "",
        )
    console.print(table)
    for entry in found:
        if entry.problem:
            typer.echo(f"{entry.uid} {entry.point.folder}: {entry.problem}")


@app.command()
@said_plainly
def verify(url: Url, option: Options = None, options_file: OptionsFile = None) -> None:
    """Read every file of every committed checkpoint and compare it with what was written.

    Exits with 1 where a file is missing, cut or damaged, and names it. What a run removes meanwhile
    is no damage.
    """
    from daybreak_trainer.checkpoint.layout import COMMIT
    from daybreak_trainer.checkpoint.verify import damages

    root, found = _open(url, option, options_file)
    damaged = 0
    for entry in found:
        if entry.state == "partial":
            continue
        storage = entry.storage(root)
        with plain_storage_errors():
            if entry.commit is None:
                problems = [entry.problem]
            else:
                problems = damages(storage, entry.commit.files, sorted(entry.commit.files))
            if problems and not storage.exists(COMMIT):  # what goes first
                typer.echo(f"{storage.url}: removed meanwhile")
                continue
        damaged += bool(problems)
        typer.echo(f"{storage.url}: {'damaged' if problems else 'good'}")
        for problem in problems:
            typer.echo(f"  {problem}")
    if damaged:
        raise CommandError(f"{damaged} of {len(found)} checkpoints are damaged", exit_code=1)


@app.command()
@said_plainly
def prune(
    url: Url,
    keep: Annotated[int, typer.Option(min=2, help="Newest commits of each run to keep.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really remove.")] = False,
    option: Options = None,
    options_file: OptionsFile = None,
) -> None:
    """Remove old commits and folders that were never finished.

    Of each run the newest `--keep` commits stay, and whatever comes after the newest: it may be in
    flight. It is the rule by which a run tidies up after itself.
    """
    from daybreak_trainer.checkpoint import retention
    from daybreak_trainer.checkpoint.layout import run_folder

    if dry_run == yes:
        raise CommandError("say either --dry-run, to see what would go, or --yes, to remove it")
    root, found = _open(url, option, options_file)
    sizes = {(entry.uid, entry.point): entry.bytes for entry in found}
    freed = 0
    with plain_storage_errors():
        for uid in dict.fromkeys(entry.uid for entry in found):
            run = root.child(run_folder(uid))
            for point in retention.plan(run, uid, keep).remove:
                if (uid, point) not in sizes:  # not below the given URL
                    continue
                if not dry_run:
                    retention.remove(run, point)
                freed += sizes[uid, point]
                typer.echo(f"{'would remove' if dry_run else 'removed'} {run.url}/{point.folder}")
    typer.echo(f"{decimal(freed)} {'would be freed' if dry_run else 'freed'}")


def _open(
    url: str, option: list[str] | None, options_file: Path | None
) -> tuple[Storage, list[Entry]]:
    """The storage and what is below the URL; there is something, or CommandError says so.

    What does not answer now is given up soon; the work that follows on a store that did is long,
    and has the trainer's patience.
    """
    from daybreak_trainer.checkpoint.inventory import Place, entries
    from daybreak_trainer.checkpoint.storage import Storage
    from daybreak_trainer.stores.patience import AT_A_TERMINAL

    place, options = Place.parse(url), fsspec_options(option or [], options_file)
    with plain_storage_errors():
        found = list(entries(Storage(place.root, options, AT_A_TERMINAL), place))
        root = Storage(place.root, options)
    if not found:
        raise CommandError(_nothing(url, place))
    return root, found


def _nothing(url: str, place: Place) -> str:
    if place.uid is None:
        return (
            f"{url}: there are no checkpoints: no folder run-<uid> with any in it; give the URL "
            "of the run's spec.checkpoint"
        )
    return f"{url}: there is no such checkpoint; `daybreak checkpoints ls {place.root}` lists all"


class plain_storage_errors:  # noqa: N801 (used as a function)
    """What the store says becomes the command's error."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        from daybreak_trainer.checkpoint.storage import StorageError, StorageRefusedError

        if isinstance(error, StorageError):
            exit_code = 2 if isinstance(error, StorageRefusedError) else 1
            raise CommandError(str(error), exit_code) from None


def fsspec_options(pairs: list[str], file: Path | None) -> dict[str, Any]:
    """Of `--option` and `--options-file`."""
    options: dict[str, Any] = {}
    if file is not None:
        try:
            options = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CommandError(f"--options-file {file}: {error}") from None
        if not isinstance(options, dict):
            raise CommandError(f"--options-file {file}: must be a JSON object of fsspec options")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise CommandError(f"--option {pair}: must be KEY=VALUE")
        options[key] = value
    return options


def _document(entry: Entry) -> dict[str, object]:
    found: dict[str, object] = {
        "run": entry.uid,
        "attempt": entry.point.attempt,
        "step": entry.point.step,
        "state": entry.state,
        "bytes": entry.bytes,
        "tip": entry.is_tip,
    }
    if entry.commit is not None:
        found |= {
            "samples": entry.commit.samples,
            "time": entry.commit.time,
            "recipeHash": entry.commit.recipe_hash,
        }
    return found | ({"problem": entry.problem} if entry.problem else {})


def _age(entry: Entry) -> str:
    if entry.commit is None:
        return ""
    written = datetime.fromisoformat(entry.commit.time)
    seconds = max(0, int((datetime.now(UTC) - written).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
