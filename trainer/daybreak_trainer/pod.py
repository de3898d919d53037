"""A worker pod from its settings to its exit code: serves, joins the others, runs the ranks."""

from __future__ import annotations

import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path

from daybreak_trainer import contract, gang
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.contract import RANKS_FOLDER, ExitCode, Progress, Termination
from daybreak_trainer.ending import Ending, conclude, end_stopped, read_records, report
from daybreak_trainer.gang import RankMain
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.settings import Settings, SettingsError
from daybreak_trainer.stop import StopWithoutRanks
from daybreak_trainer.telemetry.progress import FILE_NAME, ProgressFile

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
        (work_dir / FILE_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"the work folder {work_dir} cannot be written: {error}") from error
    return work_dir


class Pod:
    """This process as PID 1 of a worker pod."""

    def __init__(self, stop: StopWithoutRanks) -> None:
        self._stop = stop
        self._progress: Callable[[], Progress | None] = lambda: None

    def run(self, rank_main: RankMain | None = None) -> int:
        """Runs the ranks and leaves a termination message; returns the pod's exit code.

        `rank_main` replaces training in tests.
        """
        try:
            termination = self._run(rank_main)
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

    def _run(self, rank_main: RankMain | None) -> Termination:
        work_dir = prepare(os.environ)
        settings = pod_settings.read()
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
        if rank_main is None:
            from daybreak_trainer import train

            rank_main = train.main
        _await_name(settings.run.master_address)
        ended = gang.run_ranks(settings.run, settings.node, rank_main)
        self._stop.over()
        termination = conclude(ended, read_records(work_dir))
        server.close()
        return termination

    def end_now(self) -> None:
        """Ends the process, told to stop while no ranks are running: before they start, or while
        torchrun's agent still waits for those of other nodes."""
        end_stopped(read_records(pod_settings.work_dir()), self._progress())


def _starting(settings: Settings) -> Progress:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Progress(
        run_uid=settings.run.uid,
        attempt=settings.run.attempt,
        phase="Starting",
        total_steps=settings.recipe.total_steps,
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


def _await_name(host: str) -> None:
    """Waits until worker 0's name resolves: its DNS record appears a moment after its pod."""
    deadline = time.monotonic() + gang.JOIN_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror:
            time.sleep(0.2)
        else:
            return
    raise StartError(f"{host}, worker 0's name, was not resolved within {gang.JOIN_SECONDS} s")
