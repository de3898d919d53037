"""PID 1 of a worker pod: starts the ranks, answers for them, and says truthfully how they ended.

torchrun runs in this process, because its command turns every failure into exit 1. Ranks are forked
after torch and diffusers are imported, so a pod pays for those imports once (10 s of CPU time on a
small machine, a launcher that imported them for itself would double it). Nothing touches CUDA
before the fork.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

from daybreak_trainer import contract
from daybreak_trainer.contract import RANKS_FOLDER, ExitCode, Progress, Termination

_STOP_MARGIN_SECONDS = 5
"""Kept of the grace period for writing the termination message."""
_JOIN_SECONDS = 900
"""Nodes of an attempt may be scheduled minutes apart."""

RankMain = Callable[[], int]


@dataclass(frozen=True)
class Ending:
    """How the ranks ended. `failures` maps a local rank to its process's exit code (negative: a
    signal), first failure first; empty where all returned."""

    failures: tuple[tuple[int, int], ...] = ()
    stopped: bool = False
    problem: str | None = None
    """What kept the ranks from starting."""


def prepare(environment: dict[str, str]) -> Path:
    """Makes the writable folders and points every library at them; returns the work folder."""
    work_dir = Path(environment.get(contract.ENV_WORK_DIR, contract.WORK_DIR))
    for name, folder in contract.worker_dirs(work_dir).items():
        environment[name] = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
    for stale in (work_dir / RANKS_FOLDER, Path(environment["PROMETHEUS_MULTIPROC_DIR"])):
        shutil.rmtree(stale, ignore_errors=True)
        stale.mkdir()
    (work_dir / "progress.json").unlink(missing_ok=True)
    return work_dir


class StopBeforeStart:
    """Ends the pod at once on a SIGTERM that comes before there are ranks to checkpoint.

    A thread on the signal's wake-up descriptor, because rendezvous blocks in C++ for minutes, in
    which no Python signal handler runs.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(write_end.fileno())
        self._sockets = (read_end, write_end)
        self._end = end
        Thread(target=self._wait, name="stop", daemon=True).start()

    def _wait(self) -> None:
        while data := self._sockets[0].recv(1):
            if data[0] == signal.SIGTERM and not active_children():
                self._end()


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
        rdzv_configs={"rank": node, "timeout": _JOIN_SECONDS},
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
    except (RuntimeError, OSError, TimeoutError) as error:
        return Ending(problem=f"{type(error).__name__}: {error}")
    return Ending()


def _rank_process(rank_main: RankMain) -> None:
    """A rank, in its own process. Non-zero codes leave past torchrun, which would make them 1."""
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


def conclude(ending: Ending, records: Mapping[int, tuple[float, Termination]]) -> Termination:
    """The pod's own termination from its ranks' records (by global rank, with the time each was
    written) and how their processes ended. Pure.

    The first cause wins. A rank that merely lost its peers says so in its record and explains
    nothing while another rank of this pod died of something else.
    """
    if ending.problem is not None:
        return Termination(reason="StartFailed", message=ending.problem, exit_code=ExitCode.FAILED)
    ordered = [record for _, record in sorted(records.values(), key=lambda item: item[0])]
    codes = {record.exit_code for record in ordered}
    if ending.stopped:
        if ordered and codes == {ExitCode.CHECKPOINTED}:
            return ordered[0]
        return Termination(
            reason="Terminated",
            message="stopped on request before a checkpoint of this stop was committed",
            exit_code=ExitCode.TERMINATED,
        )
    causes = [r for r in ordered if r.exit_code != ExitCode.DONE and r.reason != "PeerLost"]
    if causes:
        return causes[0]
    for local_rank, exitcode in ending.failures:
        if exitcode < 0:
            number = -exitcode
            name = signal.Signals(number).name
            return Termination(
                reason="RankKilled",
                message=f"local rank {local_rank} was ended by {name}",
                exit_code=128 + number,
                rank=local_rank,
            )
    for record in ordered:
        if record.exit_code != ExitCode.DONE:
            return record
    if ending.failures:
        local_rank, exitcode = ending.failures[0]
        return Termination(
            reason="RankFailed",
            message=f"local rank {local_rank} ended with {exitcode} and left no record",
            exit_code=exitcode,
            rank=local_rank,
        )
    if not ordered:
        return Termination(
            reason="NoRecord", message="the ranks left no record", exit_code=ExitCode.FAILED
        )
    return ordered[0]


def read_records(work_dir: Path) -> dict[int, tuple[float, Termination]]:
    """Every rank's record with the time it was written."""
    records = {}
    for file in (work_dir / RANKS_FOLDER).glob("*.json"):
        record = Termination.decode(file.read_text())
        if record is not None:
            records[int(file.stem)] = (file.stat().st_mtime, record)
    return records


def report(termination: Termination, progress: Progress) -> None:
    """Writes the termination message, with worker 0's last progress."""
    path = Path(os.environ.get(contract.ENV_TERMINATION_LOG, contract.TERMINATION_LOG))
    message = termination.model_copy(
        update={
            "progress": progress,
            "step": termination.step or progress.step,
            "samples": termination.samples or progress.samples,
            "checkpoint": termination.checkpoint or progress.checkpoint,
        }
    )
    try:
        path.write_bytes(message.encode())
    except OSError as error:
        print(f"cannot write the termination message to {path}: {error}", file=sys.stderr)
    print(f"{termination.reason}: {termination.message}", file=sys.stderr, flush=True)


def main(rank_main: RankMain | None = None) -> int:
    """Runs the pod; returns its exit code. `rank_main` replaces training in tests."""
    work_dir = prepare(os.environ)  # type: ignore[arg-type]
    # After `prepare`: prometheus-client reads its folder at import.
    from daybreak_trainer import settings as pod_settings
    from daybreak_trainer.recipe import RecipeError
    from daybreak_trainer.telemetry.progress import ProgressFile
    from daybreak_trainer.telemetry.server import WorkerServer

    started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        settings = pod_settings.read()
    except (pod_settings.SettingsError, RecipeError) as error:
        refused = Termination(reason="BadRecipe", message=str(error), exit_code=ExitCode.BAD_RECIPE)
        report(
            refused,
            Progress(
                run_uid="", attempt=0, phase="Starting", started_at=started, updated_at=started
            ),
        )
        return refused.exit_code
    run = settings.run
    starting = Progress(
        run_uid=run.uid,
        attempt=run.attempt,
        phase="Starting",
        total_steps=settings.recipe.total_steps,
        started_at=started,
        updated_at=started,
    )
    progress_file = ProgressFile(work_dir)

    def progress() -> Progress:
        return progress_file.read() or starting

    def end_now() -> None:
        termination = conclude(Ending(stopped=True), {})
        report(termination, progress())
        os._exit(termination.exit_code)

    StopBeforeStart(end_now)
    address = os.environ.get(contract.ENV_POD_IP, "127.0.0.1")
    server = WorkerServer(address, contract.HTTP_PORT, progress)
    if rank_main is None:
        from daybreak_trainer import train

        rank_main = train.main
    _await_name(run.master_address)
    ending = run_ranks(run, settings.node, rank_main)
    termination = conclude(ending, read_records(work_dir))
    report(termination, progress())
    server.close()
    return termination.exit_code


def _await_name(host: str) -> None:
    """Waits until worker 0's name resolves: its DNS record appears a moment after its pod."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror:
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
