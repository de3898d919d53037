"""Opens an exported model for a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak_cli.checkpoints import fsspec_options
from daybreak_cli.errors import CommandError

if TYPE_CHECKING:  # the command answers at once: torch is imported when needed
    import torch

    from daybreak_trainer.export.load import Sampling


def device_of(option: str) -> torch.device:
    """What `--device` names: a GPU where it is empty and there is one.

    Raises:
        CommandError: it is no device, or one that this machine has not.
    """
    import torch

    gpus = torch.cuda.device_count()
    try:
        found = torch.device(option or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise CommandError(f"--device {option}: must be cpu, cuda or cuda:NUMBER")
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise CommandError(f"--device {option}: PyTorch finds {gpus} GPUs here; try --device cpu")
    return found


def opened(url: str, options_file: Path | None, device: torch.device) -> tuple[Any, Sampling]:
    """The pipeline of an export on `device`, and how its recipe samples."""
    from daybreak_trainer.checkpoint.storage import StorageError
    from daybreak_trainer.export.load import ExportError, fetched, load_pipeline

    cache = Path.home() / ".cache" / "daybreak"
    try:
        folder = fetched(url, cache, fsspec_options([], options_file))
        return load_pipeline(folder, str(device))
    except ExportError as error:
        raise CommandError(str(error)) from None
    except StorageError as error:
        raise CommandError(str(error), exit_code=1) from None
