"""A worker pod from its settings to its exit code: serves, joins the others, runs the ranks."""

from __future__ import annotations

import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from daybreak_trainer import contract
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.contract import RANKS_FOLDER, ExitCode, Progress, Termination
from daybreak_trainer.ending import Ending, conclude, end_stopped, read_records, report
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.settings import Settings, SettingsError
from daybreak_trainer.stop import Stop
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.ledger import LEDGER_FILE
from daybreak_trainer.telemetry.progress import FILE_NAME, ProgressFile

if TYPE_CHECKING:
    from daybreak_trainer.gang import Gang
    from daybreak_trainer.rank_processes import RankMain

_TRACEBACK_LINES = 12


class StartError(Exception):
    """The pod cannot start its ranks; the message says what to do."""


def prepare(environment: MutableMapping[str, str]) -> Path:
    """Makes the writable folders and points every library at them; returns the work folder.

    Raises:
        StartError: they cannot be written.
    """
    work_dir = pod_settings.work_dir(environment)
    try:
        for name, folder in contract.worker_dirs(work_dir).items():
            environment[name] = folder
            Path(folder).mkdir(parents=True, exist_ok=True)
        for stale in (work_dir / RANKS_FOLDER, Path(environment["PROMETHEUS_MULTIPROC_DIR"])):
            shutil.rmtree(stale, ignore_errors=True)
            stale.mkdir(exist_ok=True)
        for name in (FILE_NAME, LEDGER_FILE):
            (work_dir / name).unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"the work folder {work_dir} cannot be written: {error}") from error
    return work_dir


class Pod:
    """This process as PID 1 of a worker pod."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._progress: Callable[[], Progress | None] = lambda: None
        self._gang: Gang | None = None

    def run(self, rank_main: RankMain | None, patience: Mapping[str, float]) -> int:
        """Runs the ranks and leaves a termination message; returns the pod's exit code.

        `rank_main` replaces training in tests, `patience` some of the launcher's waits.
        """
        try:
            termination = self._run(rank_main, patience)
        except (SettingsError, RecipeError) as error:
            termination = Termination(
                reason="BadRecipe", message=str(error), exit_code=ExitCode.BAD_RECIPE
            )
        except StartError as error:
            termination = conclude(Ending(problem=str(error)), {})
        except Exception as error:  # noqa: BLE001 (the message is all that outlives the pod)
            termination = _unforeseen(error)
        report(termination, self._progress())
        return termination.exit_code

    def _run(self, rank_main: RankMain | None, patience: Mapping[str, float]) -> Termination:
        work_dir = prepare(os.environ)
        settings = pod_settings.read()
        log.configure(lambda: _context(settings))
        # After `prepare`: prometheus-client reads its folder at import.
        from daybreak_trainer.telemetry.server import WorkerServer

        starting, progress_file = _starting(settings), ProgressFile(work_dir)

        def progress() -> Progress:
            return progress_file.read() or starting

        self._progress = progress
        address = os.environ.get(contract.ENV_POD_IP, "127.0.0.1")
        try:
            server = WorkerServer(address, contract.HTTP_PORT, progress)
        except OSError as error:
            raise StartError(
                f"cannot serve on {address}:{contract.HTTP_PORT}: {error}; on the host's network "
                "only one worker fits on a node"
            ) from error
        # After the server: the pod is up while torch is imported.
        from daybreak_trainer import gpus
        from daybreak_trainer.gang import Gang
        from daybreak_trainer.watch import Patience

        gpus.ask_nvml(os.environ)
        found = gpus.count()
        if rank_main is None:
            from daybreak_trainer.rank_main import main

            rank_main = main
        if found and gpus.are_lost_to_children():
            raise StartError(f"no rank could use the {found} GPUs: {gpus.REMEDY}")
        waits = Patience(**patience)
        _await_name(settings.run.master_address, waits.join)
        self._gang = Gang(settings, self._stop, progress_file, waits, processes(settings, found))
        termination = self._gang.run(rank_main)
        self._stop.over()
        server.close()
        return termination

    def end_now(self) -> None:
        """Ends the process, told to stop while no ranks are running: before they start, between
        two rounds, or while those of other nodes are waited for."""
        concluded = self._gang.concluded if self._gang is not None else None
        end_stopped(read_records(pod_settings.work_dir()), self._progress(), concluded)


def processes(settings: Settings, gpus_found: int) -> int:
    """Ranks of this node: as many as the run says, else one a GPU, else one."""
    wanted = settings.run.processes_per_node
    return max(1, gpus_found) if wanted == "auto" else wanted


def _context(settings: Settings) -> dict[str, object]:
    """What every log line of this launcher says."""
    run = settings.run
    return {
        "run": run.name,
        "namespace": run.namespace,
        "attempt": run.attempt,
        "worker": settings.node,
    }


def _starting(settings: Settings) -> Progress:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Progress(
        run_uid=settings.run.uid,
        attempt=settings.run.attempt,
        phase="Starting",
        total_steps=Course.of(settings.recipe).known_steps,
        started_at=now,
        updated_at=now,
    )


def _unforeseen(error: Exception) -> Termination:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return Termination(
        reason="LauncherFailed",
        message=f"{type(error).__name__}: {error}",
        exit_code=ExitCode.FAILED,
        traceback="\n".join(lines[-_TRACEBACK_LINES:]),
    )


def _await_name(host: str, seconds: float) -> None:
    """Waits until worker 0's name resolves: its DNS record appears a moment after its pod."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror:
            time.sleep(0.2)
        else:
            return
    raise StartError(f"{host}, worker 0's name, was not resolved within {seconds:g} s")
