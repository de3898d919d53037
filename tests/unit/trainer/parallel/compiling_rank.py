"""The only rank of an attempt that compiles a small function, for `test_compile.py`.

Run by `runpy` with three globals: `folder`, this attempt's own disk, `store`, which outlives it,
and `shapes`; it dies at one that has no height.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

folder: Path = globals()["folder"]
store: str = globals()["store"]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")

import torch  # noqa: E402 (as in a pod, the environment comes first)
import torch._dynamo.config as dynamo_config  # noqa: E402
import torch._inductor.config as inductor  # noqa: E402
import torch.distributed as dist  # noqa: E402

from daybreak_trainer.checkpoint.storage import Storage  # noqa: E402
from daybreak_trainer.parallel.compile import Artifacts, Shape, warm_up  # noqa: E402
from daybreak_trainer.parallel.process_group import Rank  # noqa: E402

events: list[tuple[str, dict[str, Any]]] = []


class Listening(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        events.append((record.getMessage(), vars(record)))


class Doubling:
    """Stands for a step: one compiled function, forward and backward."""

    def __init__(self) -> None:
        self._function = torch.compile(lambda x: torch.sin(x) * 2, fullgraph=True, dynamic=False)

    def enter(self, stage: int) -> None:
        """All stages are alike here."""

    def rehearse(self, height: int, width: int, global_size: int, tokens: int) -> None:
        if height == 0:
            raise KeyError("dies here")
        rows = torch.ones(global_size, height, width, requires_grad=True)
        self._function(rows).sum().backward()


logging.getLogger("daybreak").addHandler(Listening())
logging.getLogger("daybreak").setLevel(logging.INFO)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
shapes = [Shape(*shape, 4) for shape in globals()["shapes"]]
told: list[int] = []
rank = Rank(0, 1, torch.device("cpu"), local_world=10_000)
artifacts = Artifacts(Storage(store), "key")
try:
    warm_up(Doubling(), shapes, 40, rank, dist.group.WORLD, artifacts, told.append)
except KeyError:
    os._exit(9)
(compiled,) = (fields["compiled_graphs"] for name, fields in events if name == "compile_warmed_up")
found = {
    "events": [name for name, _ in events],
    "compiled": compiled,
    "told": told,
    "threads": inductor.compile_threads,
    "recompile_limit": dynamo_config.recompile_limit,
}
(folder / "found.json").write_text(json.dumps(found))
dist.destroy_process_group()
