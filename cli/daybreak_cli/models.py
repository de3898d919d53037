"""Opens an exported model for a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak_cli.checkpoints import fsspec_options
from daybreak_cli.errors import CommandError

if TYPE_CHECKING:  # the command answers at once: torch is imported when needed
    from daybreak_trainer.export.load import Sampling


def opened(url: str, options_file: Path | None, device: str) -> tuple[Any, Sampling]:
    """The pipeline of an export, and how its recipe samples; on a GPU where `device` is empty and
    there is one."""
    import torch

    from daybreak_trainer.checkpoint.storage import StorageError
    from daybreak_trainer.export.load import ExportError, fetched, load_pipeline

    cache = Path.home() / ".cache" / "daybreak"
    try:
        folder = fetched(url, cache, fsspec_options([], options_file))
        return load_pipeline(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except ExportError as error:
        raise CommandError(str(error)) from None
    except StorageError as error:
        raise CommandError(str(error), exit_code=1) from None
