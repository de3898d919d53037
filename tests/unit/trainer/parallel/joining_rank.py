"""One rank that joins and says what it knows, for `test_process_group.py`.

Run by `runpy` with two globals: `environment`, as torchrun would set it, and `folder`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

environment: dict[str, str] = globals()["environment"]
folder: Path = globals()["folder"]
os.environ.update(environment)

from daybreak_trainer.parallel.process_group import joined  # noqa: E402 (environment first)

with joined() as rank:
    known = asdict(rank) | {"device": str(rank.device)}
    (folder / f"{rank.rank}.json").write_text(json.dumps(known))
