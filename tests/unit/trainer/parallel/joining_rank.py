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

from daybreak_trainer.parallel.precision import compute_dtype  # noqa: E402 (environment first)
from daybreak_trainer.parallel.process_group import joined  # noqa: E402
from daybreak_trainer.parallel.turns import in_turns  # noqa: E402

with joined() as rank:

    def take() -> list[str]:
        """The ranks of this node that had their turn before."""
        node = folder / f"node-{environment['GROUP_RANK']}"
        node.mkdir(exist_ok=True)
        before = sorted(path.name for path in node.iterdir())
        (node / environment["LOCAL_RANK"]).touch()
        return before

    known = asdict(rank) | {"device": str(rank.device), "before": in_turns(rank, take)}
    # The last rank's CPU has no hardware for bf16; then all have it.
    here = (rank.rank < rank.world - 1, True)
    known["auto"] = [str(compute_dtype("auto", has)) for has in here]
    (folder / f"{rank.rank}.json").write_text(json.dumps(known))
