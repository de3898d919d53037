"""Prompt sets of public benchmarks, from files that the user brings.

GenEval (arXiv 2310.11513): JSON lines, each an object with a `prompt`; what else it holds is its
scorer's and goes through as it is. DPG-Bench (arXiv 2403.05135): a folder of texts, one file a
prompt, named by its id; or JSON lines with `id` and `prompt`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["geneval", "dpg"]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


class PromptsError(Exception):
    """A file of prompts is not what it must be; the message names it and the line."""


@dataclass(frozen=True)
class BenchmarkPrompt:
    name: str
    """Of its folder (GenEval) or image (DPG-Bench)."""
    prompt: str
    metadata: str
    """GenEval: the line, as its scorer wants it back."""


def read_prompts(kind: Kind, path: Path) -> tuple[BenchmarkPrompt, ...]:
    """Raises PromptsError: no such file, a line that is no prompt, an id that stands twice."""
    try:
        found = _folder(path) if kind == "dpg" and path.is_dir() else _lines(kind, path)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"{path}: cannot be read: {error}") from None
    if not found:
        raise PromptsError(f"{path}: there are no prompts in it")
    seen: set[str] = set()
    for prompt in found:
        if prompt.name in seen:
            raise PromptsError(f"{path}: id {prompt.name} stands twice")
        seen.add(prompt.name)
    return tuple(found)


def _folder(path: Path) -> list[BenchmarkPrompt]:
    found: list[BenchmarkPrompt] = []
    for file in sorted(path.glob("*.txt")):
        if not (text := file.read_text(encoding="utf-8").strip()):
            raise PromptsError(f"{file}: is empty; a prompt belongs here")
        found.append(BenchmarkPrompt(_checked_id(file.stem, str(file)), text, ""))
    return found


def _lines(kind: Kind, path: Path) -> list[BenchmarkPrompt]:
    found: list[BenchmarkPrompt] = []
    # Not `splitlines`, which also cuts at characters that JSON allows within a text (U+2028).
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        content = _object(line, where)
        prompt = _string(content, "prompt", where)
        name = (
            f"{len(found):05d}"
            if kind == "geneval"
            else _checked_id(_string(content, "id", where), where)
        )
        found.append(BenchmarkPrompt(name, prompt, line.strip()))
    return found


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise PromptsError(f"{where}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise PromptsError(f'{where}: must be an object such as {{"prompt": "a red cup"}}')
    return content


def _string(content: dict[str, Any], key: str, where: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise PromptsError(f"{where}: {key} must be a text, not {json.dumps(value)}")
    return value


def _checked_id(name: str, where: str) -> str:
    """It names a file: no path that leads elsewhere, and no dot, for DPG-Bench's scorer takes what
    stands before the first one for the id."""
    if not _ID.fullmatch(name):
        raise PromptsError(f"{where}: id {name!r} must be of letters, digits and _ - alone")
    return name
