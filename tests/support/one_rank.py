"""One rank of a run in a process of its own, for `rank_runs`.

Run by `runpy` with globals: `environment`, as the launcher would set it, `settings` of the run,
`stop_at`, the step after which this rank wants to stop, or None, and `poisoned`, a range of
positions whose samples make the loss NaN.
"""

from __future__ import annotations

import os
import sys

environment: dict[str, str] = globals()["environment"]
os.environ.update(environment)

import numpy as np  # noqa: E402 (as in a pod, the environment comes first)

from daybreak_trainer import rank as ranks  # noqa: E402
from daybreak_trainer.health.heartbeat import Heartbeat  # noqa: E402
from daybreak_trainer.objectives import draws  # noqa: E402
from daybreak_trainer.parallel.process_group import joined  # noqa: E402
from daybreak_trainer.rank_stop import StopFlag  # noqa: E402
from daybreak_trainer.settings import Settings  # noqa: E402
from daybreak_trainer.train import Trainer  # noqa: E402

settings: Settings = globals()["settings"]
stop_at: int | None = globals()["stop_at"]
poisoned: range = globals()["poisoned"]


class StopAfter(StopFlag):
    """A SIGTERM that always comes in the same step."""

    trainer: Trainer | None = None

    def __init__(self, step: int | None) -> None:
        self.step, self.requested_at = step, None

    @property
    def is_set(self) -> bool:
        return self.step is not None and self.trainer is not None and self.trainer.step >= self.step


def poison(draw):  # type: ignore[no-untyped-def]
    def drawn(objective, dropout, seed, positions, *rest):  # type: ignore[no-untyped-def]
        made = draw(objective, dropout, seed, positions, *rest)
        made.noise[np.isin(positions, poisoned)] = np.nan
        return made

    return drawn


if poisoned:
    draws.draw = poison(draws.draw)
standing, stop, number = ranks.Standing(), StopAfter(stop_at), int(environment["RANK"])
heartbeat = Heartbeat(settings.work_dir, int(environment["LOCAL_RANK"]))
try:
    with joined() as rank:
        stop.trainer = Trainer(settings, rank, standing, stop, heartbeat)
        stop.trainer.run()
    record = ranks.done(number, standing)
except Exception as error:  # noqa: BLE001 (each becomes a record)
    record = ranks.failure(error, number, standing)
    if record.traceback:
        print(record.traceback, file=sys.stderr)
ranks.write_record(settings.work_dir, number, record)
if record.exit_code:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(record.exit_code)  # past destructors, which may wait for peers, as in a pod
