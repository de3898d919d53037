"""One rank of a run in a process of its own, for `test_resume.py`.

Run by `runpy` with three globals: `environment`, as torchrun would set it, `settings` of the run,
and `stop_at`, the step after which this rank wants to stop, or None.
"""

from __future__ import annotations

import os
import sys

environment: dict[str, str] = globals()["environment"]
os.environ.update(environment)

from daybreak_trainer import rank as ranks  # noqa: E402 (as in a pod, the environment comes first)
from daybreak_trainer.health.heartbeat import Heartbeat  # noqa: E402
from daybreak_trainer.parallel.process_group import joined  # noqa: E402
from daybreak_trainer.settings import Settings  # noqa: E402
from daybreak_trainer.train import StopFlag, Trainer  # noqa: E402

settings: Settings = globals()["settings"]
stop_at: int | None = globals()["stop_at"]


class StopAfter(StopFlag):
    """A SIGTERM that always comes in the same step."""

    trainer: Trainer | None = None

    def __init__(self, step: int | None) -> None:
        self.step, self.requested_at = step, None

    @property
    def is_set(self) -> bool:  # type: ignore[override]
        return self.step is not None and self.trainer is not None and self.trainer.step >= self.step


standing, stop = ranks.Standing(), StopAfter(stop_at)
try:
    with joined() as rank:
        stop.trainer = Trainer(settings, rank, standing, stop, Heartbeat(settings.work_dir, 0))
        stop.trainer.run()
    code = 0
except ranks.StopRequestedError as error:
    code = ranks.failure(error, 0, standing).exit_code
sys.exit(code)
