"""The progress file: rank 0 writes it, the launcher serves it at `/progress`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from daybreak_trainer.contract import Progress

FILE_NAME = "progress.json"


class ProgressFile:
    """Replaced whole, so a reader never sees half of it."""

    def __init__(self, work_dir: Path) -> None:
        self._path = work_dir / FILE_NAME

    def write(self, progress: Progress) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(progress.to_json())
        partial.replace(self._path)

    def read(self) -> Progress | None:
        """The last progress, or None where none was written yet."""
        try:
            return Progress.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
