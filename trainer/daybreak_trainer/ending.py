"""How a pod ended, said truthfully: the first cause, with its own exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from daybreak_trainer import contract
from daybreak_trainer.contract import (
    FINAL_EXIT_CODES,
    RANKS_FOLDER,
    ExitCode,
    Progress,
    Termination,
)


@dataclass(frozen=True)
class Ending:
    """How the ranks ended. `failures` maps a local rank to its process's exit code (negative: a
    signal), first failure first; empty where all returned."""

    failures: tuple[tuple[int, int], ...] = ()
    stopped: bool = False
    problem: str | None = None
    """What kept the ranks from starting."""


def conclude(ending: Ending, records: Mapping[int, tuple[float, Termination]]) -> Termination:
    """The pod's own termination from its ranks' records (by global rank, with the time each was
    written) and how their processes ended. Pure.

    The first cause wins. A stop without a commit is a stop, unless a rank says that another attempt
    would end the same way; what ranks died of meanwhile is in its message. A rank that merely lost
    its peers says so in its record and explains nothing while another rank of this pod died of
    something else.
    """
    ordered = [record for _, record in sorted(records.values(), key=lambda item: item[0])]
    if ending.problem is not None and not ordered:
        return Termination(reason="StartFailed", message=ending.problem, exit_code=ExitCode.FAILED)
    codes = {record.exit_code for record in ordered}
    causes = [r for r in ordered if r.exit_code != ExitCode.DONE and r.reason != "PeerLost"]
    if ending.stopped:
        final = [record for record in ordered if record.exit_code in FINAL_EXIT_CODES]
        if final or codes in ({ExitCode.CHECKPOINTED}, {ExitCode.DONE}):
            return (final or ordered)[0]
        others = [f"; {r.reason}: {r.message}" for r in causes if r.exit_code == ExitCode.FAILED]
        return Termination(
            reason="Terminated",
            message="stopped on request before a checkpoint of this stop was committed"
            + "".join(others[:1]),
            exit_code=ExitCode.TERMINATED,
        )
    if causes:
        return causes[0]
    for local_rank, exitcode in ending.failures:
        if exitcode < 0:
            number = -exitcode
            return Termination(
                reason="RankKilled",
                message=f"local rank {local_rank} was ended by {_signal_name(number)}",
                exit_code=128 + number,
                rank=local_rank,
            )
        if exitcode not in codes:
            return Termination(
                reason="RankFailed",
                message=f"local rank {local_rank} ended with {exitcode} and left no record",
                exit_code=exitcode,
                rank=local_rank,
            )
    for record in ordered:
        if record.exit_code != ExitCode.DONE:
            return record
    if not ordered:
        return Termination(
            reason="NoRecord", message="the ranks left no record", exit_code=ExitCode.FAILED
        )
    return ordered[0]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def read_records(work_dir: Path) -> dict[int, tuple[float, Termination]]:
    """Every rank's record with the time it was written."""
    records = {}
    for file in (work_dir / RANKS_FOLDER).glob("*.json"):
        record = Termination.decode(file.read_text())
        if record is not None:
            records[int(file.stem)] = (file.stat().st_mtime, record)
    return records


def report(termination: Termination, progress: Progress | None) -> None:
    """Writes the termination message, with worker 0's last progress."""
    path = Path(os.environ.get(contract.ENV_TERMINATION_LOG, contract.TERMINATION_LOG))
    if progress is not None:
        termination = termination.model_copy(
            update={
                "progress": progress,
                "step": termination.step or progress.step,
                "samples": termination.samples or progress.samples,
                "checkpoint": termination.checkpoint or progress.checkpoint,
            }
        )
    try:
        path.write_bytes(termination.encode())
    except OSError as error:
        print(f"cannot write the termination message to {path}: {error}", file=sys.stderr)
    print(f"{termination.reason}: {termination.message}", file=sys.stderr, flush=True)


def end_stopped(
    records: Mapping[int, tuple[float, Termination]], progress: Progress | None
) -> NoReturn:
    """Ends this process at once: it was told to stop while no ranks were running."""
    termination = conclude(Ending(stopped=True), records)
    report(termination, progress)
    os._exit(termination.exit_code)
