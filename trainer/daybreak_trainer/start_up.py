"""What is looked at before a day is spent: stores, devices and the links between them.

Collectives: all ranks hear the same, so that no other error comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from daybreak_trainer.engine import Engine
from daybreak_trainer.health import self_test
from daybreak_trainer.health.heartbeat import Phase
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.settings import Settings
from daybreak_trainer.stores.errors import StorageError
from daybreak_trainer.stores.probe import places, probe


def ask_stores(settings: Settings, rank: Rank) -> None:
    """One rank of each node asks every store of the run.

    Raises:
        StorageError: one of them does not work, for any node.
        SettingsError: a Secret's file cannot be understood.
    """
    problem: StorageError | None = None
    if rank.is_first_of_node:
        try:
            probe(places(settings))
        except StorageError as error:
            problem = error
    problems: list[StorageError | None] = [None] * rank.world
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise found


def test_devices(context: RunContext, engine: Engine) -> Sequence[self_test.Result]:
    """Every rank's figures of devices, links and storage, by rank.

    Raises:
        SelfTestError: any device or link has a fault.
        StorageError: the run's storage failed one of the ranks.
    """
    context.heartbeat.enter(Phase.SELF_TEST)
    rank = context.rank
    sizes = self_test.CUDA_SIZES if rank.device.type == "cuda" else self_test.CPU_SIZES
    return self_test.run(rank, context.settings.node, engine.storage, sizes)
