"""How a pod ended, said truthfully: the first cause, with its own exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

OUT_OF_MEMORY, DEVICE_OUT_OF_MEMORY = "OutOfMemory", "DeviceOutOfMemory"
"""Reasons of an end for want of the pod's memory, and of a device's."""
PEER_LOST = "PeerLost"
"""The reason of an end whose cause lies with ranks elsewhere."""
_SIGNAL_SLACK_SECONDS = 0.2
"""A rank that dies of a signal leaves no record, and is noticed a moment later; the errors that its
peers record meanwhile are its consequence."""


@dataclass(frozen=True)
class RankExit:
    """A rank's process has ended."""

    rank: int
    local_rank: int
    code: int
    """Negative: a signal."""
    time: float
    """When the launcher noticed, Unix time."""


@dataclass(frozen=True)
class Ending:
    """How this node's ranks ended."""

    exits: tuple[RankExit, ...] = ()
    """First exit first; none of those that were killed because others had ended."""
    stopped: bool = False
    problem: str | None = None
    """What kept the ranks from starting."""
    broken: str | None = None
    """What another node's launcher said of its own ranks' end, before any of ours."""
    hang: Termination | None = None
    """What the watchdog found."""
    cut_short: bool = False
    """The launcher killed ranks that had not ended: what others have done is not all there was to
    do."""
    unfinished: str = ""
    """What one of them was still at, in words."""
    oom_killed: bool = False
    """The kernel has killed a process of this pod for the memory it used."""


Records = Mapping[int, tuple[float, Termination]]
"""By global rank, with the time each was written."""


def conclude(ending: Ending, records: Records) -> Termination:
    """The pod's own termination from its ranks' records and how their processes ended. Pure.

    The first cause wins. A stop without a commit is a stop, unless a rank says that another attempt
    would end the same way; what ranks died of meanwhile is in its message. A rank that merely lost
    its peers says so in its record and explains nothing while another rank of this pod died of
    something else.
    """
    ordered = [record for _, record in sorted(records.values(), key=lambda item: item[0])]
    if ending.problem is not None and not ordered:
        return Termination(reason="StartFailed", message=ending.problem, exit_code=ExitCode.FAILED)
    if ending.stopped:
        # A rank that has no handler yet is ended by the stop itself.
        exits = tuple(end for end in ending.exits if end.code != -signal.SIGTERM)
        return _stopped(ordered, _crash(replace(ending, exits=exits), records), ending)
    if ending.hang is not None:
        return ending.hang
    for record in ordered:
        if record.exit_code in FINAL_EXIT_CODES or record.exit_code == ExitCode.CHECKPOINTED:
            return record
    return _crash(ending, records) or _without_cause(ending, ordered)


def _stopped(
    ordered: Sequence[Termination], crash: Termination | None, ending: Ending
) -> Termination:
    codes = {record.exit_code for record in ordered}
    final = [record for record in ordered if record.exit_code in FINAL_EXIT_CODES]
    is_done = codes == {ExitCode.DONE} and not ending.cut_short
    if final or is_done or codes == {ExitCode.CHECKPOINTED}:
        return (final or ordered)[0]
    unfinished = f"; {ending.unfinished}" if ending.unfinished else ""
    died_of = f"; {crash.reason}: {crash.message}" if crash is not None else ""
    return Termination(
        reason="Terminated",
        message="stopped on request before a checkpoint of this stop was committed"
        f"{unfinished}{died_of}",
        exit_code=ExitCode.TERMINATED,
    )


def _is_cause(record: Termination) -> bool:
    return record.exit_code == ExitCode.FAILED and record.reason != PEER_LOST


def _crash(ending: Ending, records: Records) -> Termination | None:
    """The earliest of the signals that ended ranks and the errors that ranks recorded."""
    causes = [(time, record) for time, record in records.values() if _is_cause(record)]
    recorded = {record.exit_code for _, record in records.values()}
    for end in ending.exits:
        if end.code < 0:
            killed = _killed(end, ending.oom_killed)
            causes.append((end.time - _SIGNAL_SLACK_SECONDS, killed))
        elif end.code != ExitCode.DONE and end.code not in recorded:
            causes.append((end.time, _silent(end)))
    return min(causes, key=lambda cause: cause[0])[1] if causes else None


def _killed(end: RankExit, oom_killed: bool) -> Termination:
    if oom_killed and end.code == -signal.SIGKILL:
        return Termination(
            reason=OUT_OF_MEMORY,
            message=f"local rank {end.local_rank} used more memory than the pod may: raise "
            "workers.resources.limits.memory, or lower compute.deviceBatchSize",
            exit_code=ExitCode.KILLED,
            rank=end.rank,
        )
    return Termination(
        reason="RankKilled",
        message=f"local rank {end.local_rank} {how_ended(end.code)}",
        exit_code=128 - end.code,
        rank=end.rank,
    )


def _silent(end: RankExit) -> Termination:
    return Termination(
        reason="RankFailed",
        message=f"local rank {end.local_rank} {how_ended(end.code)} and left no record",
        exit_code=end.code,
        rank=end.rank,
    )


def _without_cause(ending: Ending, ordered: Sequence[Termination]) -> Termination:
    for record in ordered:
        if record.exit_code != ExitCode.DONE:
            return record
    if ending.broken is not None and (ending.cut_short or not (ordered and ending.exits)):
        return Termination(reason=PEER_LOST, message=ending.broken, exit_code=ExitCode.FAILED)
    if not ordered:
        return Termination(
            reason="NoRecord", message="the ranks left no record", exit_code=ExitCode.FAILED
        )
    return ordered[0]


def how_ended(code: int) -> str:
    """A process's exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def read_records(work_dir: Path) -> Records:
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
    records: Records, progress: Progress | None, concluded: Termination | None = None
) -> NoReturn:
    """Ends this process at once: it was told to stop while no ranks were running. `concluded` is
    how its ranks had ended before, where they had and no others were to follow."""
    termination = concluded or conclude(Ending(stopped=True), records)
    report(termination, progress)
    os._exit(termination.exit_code)
