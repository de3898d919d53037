"""What the launcher starts: one rank, from its environment to its exit code."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import numpy as np
from torch.distributed.checkpoint.api import CheckpointException

from daybreak_trainer import rank as ranks
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.allocator import keep_freed_memory
from daybreak_trainer.health import restarts
from daybreak_trainer.health.heartbeat import Heartbeat
from daybreak_trainer.parallel.process_group import joined
from daybreak_trainer.rank import Standing
from daybreak_trainer.rank_stop import StopFlag
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.telemetry import log
from daybreak_trainer.train import Trainer

_PATIENCE = timedelta(days=1)
"""For ranks that do not come to a collective: their launcher finds them, and the one to blame."""


def main() -> int:
    """Runs this rank to its end; returns the exit code of the contract, and leaves a record."""
    standing = Standing()
    number, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    flag = StopFlag()
    try:
        settings = pod_settings.read()
    except (pod_settings.SettingsError, RecipeError) as error:
        record = ranks.failure(error, number, standing)
        ranks.write_record(pod_settings.work_dir(), number, record)
        return record.exit_code
    run = settings.run
    named = {"run": run.name, "namespace": run.namespace, "attempt": run.attempt, "rank": number}
    log.configure(lambda: {**named, "step": standing.step})
    np.seterr(all="raise", under="ignore")
    heartbeat = Heartbeat(settings.work_dir, local)
    causes = restarts.read(os.environ)
    try:
        with joined(_PATIENCE) as rank:
            if rank.device.type == "cpu":
                keep_freed_memory()
            Trainer(settings, rank, standing, flag, heartbeat, causes).run()
        record = ranks.done(number, standing)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 (each becomes a record)
        record = ranks.failure(error, number, standing)
        if record.traceback:
            print(record.traceback, file=sys.stderr)
    ranks.write_record(settings.work_dir, number, record)
    return record.exit_code
