"""This node's ranks, run to their end by torchrun's agent, in this process.

torchrun's command turns every failure into exit 1. Ranks are forked after torch and diffusers are
imported, so a pod pays for those imports once (10 s of CPU time on a small machine, a launcher that
imported them for itself would double it). Nothing touches CUDA before the fork.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from daybreak_trainer import contract
from daybreak_trainer.contract import ExitCode
from daybreak_trainer.ending import Ending

JOIN_SECONDS = 900
"""Nodes of an attempt may be scheduled minutes apart."""
_STOP_MARGIN_SECONDS = 5
"""Kept of the grace period for writing the termination message."""

RankMain = Callable[[], int]


def run_ranks(settings: contract.RunSettings, node: int, rank_main: RankMain) -> Ending:
    """Runs this node's ranks to their end, through torchrun's agent."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=settings.nodes,
        max_nodes=settings.nodes,
        nproc_per_node=_processes(settings),
        run_id=f"{settings.uid}-{settings.attempt}",
        rdzv_backend="static",
        rdzv_endpoint=f"{settings.master_address}:{settings.master_port}",
        rdzv_configs={"rank": node, "timeout": JOIN_SECONDS},
        max_restarts=0,
        start_method="fork",
        local_addr=os.environ.get(contract.ENV_POD_IP),
        shutdown_timeout=max(1, int(settings.grace_seconds) - _STOP_MARGIN_SECONDS),
    )
    try:
        elastic_launch(config, _rank_process)(rank_main)
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return Ending(tuple((f.local_rank, f.exitcode) for f in failures))
    except SignalException:
        return Ending(stopped=True)
    except (RuntimeError, OSError) as error:
        return Ending(problem=f"{type(error).__name__}: {error}")
    return Ending()


def _rank_process(rank_main: RankMain) -> None:
    """A rank, in its own process. Non-zero codes leave past torchrun, which would make them 1, and
    past destructors: after an error NCCL's and gloo's wait for peers that may be gone."""
    signal.set_wakeup_fd(-1)
    code = rank_main()
    if code != ExitCode.DONE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _processes(settings: contract.RunSettings) -> int:
    if settings.processes_per_node != "auto":
        return settings.processes_per_node
    import torch

    return max(1, torch.cuda.device_count())
