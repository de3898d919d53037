"""Images that cannot be decoded: the first ends the work, or all are left out and reported."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image

from daybreak_trainer.data.errors import DatasetError

REPORT = "skipped.json"
"""In the dataset's folder, where anything was left out: `[{"file": ..., "error": ...}]`."""
T = TypeVar("T")
_UNDECODABLE = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError),
    # Out of PIL's readers of metadata, where a damaged field is not what they expect.
    *(ArithmeticError, EOFError, LookupError, TypeError, struct.error),
)


class UnreadableImageError(DatasetError):
    """A file that is no image, or a damaged one."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: not a readable image: {reason}")
        self.file, self.reason = file, reason


def decoded(file: Path, decode: Callable[[Image.Image], T]) -> T:
    """What `decode` makes of the opened image.

    Raises:
        UnreadableImageError: it cannot be decoded.
        DatasetError: the file itself cannot be read, as from a disk that fails: no reason to train
            without it.
    """
    try:
        with Image.open(file) as opened:
            return decode(opened)
    except _UNDECODABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DatasetError(f"{file}: cannot be read: {error.strerror}") from None
        raise UnreadableImageError(file, str(error) or type(error).__name__) from None


class Unreadable:
    """What is done about them."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.found: list[UnreadableImageError] = []
        """Left out so far."""

    def note(self, error: UnreadableImageError) -> None:
        """Returns where the image is left out.

        Raises:
            DatasetError: it must not be.
        """
        if not self._skip:
            raise DatasetError(f"{error}; --skip-unreadable leaves such files out") from None
        self.found.append(error)

    def report(self, folder: Path, source: Path) -> None:
        """Writes the report, if there is anything to say. Files are relative to the source."""
        if not self.found:
            return
        entries = [
            {"file": str(error.file.relative_to(source)), "error": error.reason}
            for error in self.found
        ]
        (folder / REPORT).write_text(json.dumps(entries, indent=2) + "\n")


def reported(folder: Path) -> list[dict[str, str]]:
    """What the report of a dataset says: `file` and `error` of each image that was left out."""
    try:
        entries: list[dict[str, str]] = json.loads((folder / REPORT).read_text())
    except FileNotFoundError:
        return []
    return entries
