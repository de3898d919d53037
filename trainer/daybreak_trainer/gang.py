"""The gang: all ranks of an attempt, which start, crash and start again together.

A round is one life of the ranks. Ranks that crash take the round down on all nodes, and the
launchers, which stay, start the next one from the newest commit. Ranks that end on purpose are
never started again. It is torchrun's environment that ranks find; its agent is not used, since it
waits half a minute for peers that a crash has wedged, restarts what ended on purpose, and keeps a
node's failure to itself.
"""

from __future__ import annotations

import json
import logging
import shutil
import time

from daybreak_trainer.contract import RANKS_FOLDER, ExitCode, Progress, Termination
from daybreak_trainer.ending import PEER_LOST, Ending, conclude, read_records
from daybreak_trainer.health.grace import tell_seconds
from daybreak_trainer.health.heartbeat import HEARTBEATS_FOLDER
from daybreak_trainer.health.restarts import ENV_RESTARTS
from daybreak_trainer.meeting import Meeting, PeersLostError, Place
from daybreak_trainer.rank_processes import RankMain, RankProcesses
from daybreak_trainer.restart import Again, NodeEnd, Over, Restarts, decide
from daybreak_trainer.settings import Settings
from daybreak_trainer.stop import Stop
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.progress import ProgressFile
from daybreak_trainer.watch import Patience, Watch


class Gang:
    """This node's part of it."""

    def __init__(
        self,
        settings: Settings,
        stop: Stop,
        progress: ProgressFile,
        patience: Patience,
        ranks: int,
    ) -> None:
        """`ranks` is how many this node has."""
        self._settings, self._stop, self._patience = settings, stop, patience
        self._ranks = ranks
        self._progress = progress
        self._meeting = Meeting(settings.run, settings.node)
        self.concluded: Termination | None = None
        """How the ranks ended, while it is not known yet whether others follow."""

    def run(self, rank_main: RankMain) -> Termination:
        """Round after round; returns how this node ended."""
        try:
            self._meeting.open(self._patience.join)
        except (RuntimeError, OSError, TimeoutError) as error:
            return conclude(Ending(problem=f"{type(error).__name__}: {error}"), {})
        restarts, patience = Restarts(), self._patience.join
        while True:
            number = len(restarts.causes)
            try:
                ranks = self._start(number, rank_main, restarts, patience)
            except PeersLostError as error:
                # Before any rank has run, nothing has been lost: the attempt did not start.
                ending = Ending(broken=str(error)) if number else Ending(problem=str(error))
                return _with(restarts, conclude(ending, {}))
            end = self._round(number, ranks)
            self.concluded = end.termination
            self._stop.has_ranks = False
            if self._stop.requested_at is not None:
                # It may have come just as the last rank ended: nobody waits for another round.
                end = end.model_copy(update={"stopped": True})
            ends = self._exchange(number, end)
            verdict = decide(ends, restarts, self._settings.run.health.rank_restarts)
            if isinstance(verdict, Over):
                return _with(restarts, _blaming(verdict, self._settings.node, ends, end))
            self.concluded = None
            self._note(verdict)
            restarts, patience = verdict.restarts, self._patience.rejoin

    def _start(
        self, number: int, rank_main: RankMain, restarts: Restarts, patience: float
    ) -> RankProcesses:
        """The ranks of round `number`, once all nodes have come to it.

        Raises:
            PeersLostError: some have not, within `patience` seconds, or worker 0 is gone.
        """
        place = self._meeting.join(number, self._ranks, patience)
        work_dir = self._settings.work_dir
        for folder in (RANKS_FOLDER, HEARTBEATS_FOLDER):
            shutil.rmtree(work_dir / folder, ignore_errors=True)
            (work_dir / folder).mkdir()
        environments = self._environments(place, restarts)
        ranks = RankProcesses(rank_main, environments, place.first_rank, work_dir)
        try:
            port = self._meeting.ranks_port(number)
        except PeersLostError:
            ranks.kill()
            raise
        self._stop.has_ranks = True  # a stop before this ends the launcher, and they go with it
        ranks.release({"MASTER_PORT": str(port)})
        return ranks

    def _round(self, number: int, ranks: RankProcesses) -> NodeEnd:
        """One life of this node's ranks."""
        work_dir = self._settings.work_dir
        watch = Watch(ranks, self._meeting, number, self._settings, self._stop, self._patience)
        ended = watch.to_the_end()
        termination = conclude(ended.ending, read_records(work_dir))
        if ended.left_behind:
            log.event("rank_left_behind", level=logging.ERROR, pids=list(ranks.pids.values()))
            message = f"{termination.message}; a rank is left behind that SIGKILL did not end"
            termination = termination.model_copy(update={"message": message})
        return NodeEnd(
            termination=termination,
            stopped=ended.ending.stopped,
            commit_step=_commit_step(termination, self._progress.read()),
            stalled=ended.stalled,
            left_behind=ended.left_behind,
        )

    def _exchange(self, number: int, end: NodeEnd) -> list[NodeEnd | None]:
        is_done = end.termination.exit_code in (ExitCode.DONE, ExitCode.CHECKPOINTED)
        seconds = self._patience.finish if is_done else self._patience.report
        if self._stop.requested_at is not None:
            told_by = self._stop.requested_at + tell_seconds(self._settings.run.grace_seconds)
            seconds = max(0.0, min(seconds, told_by - time.monotonic()))
        said = self._meeting.exchange(number, end.to_json(), seconds)
        return [None if text is None else NodeEnd.model_validate_json(text) for text in said]

    def _note(self, again: Again) -> None:
        log.event(
            "ranks_restarted",
            level=logging.WARNING,
            restarts=len(again.restarts.causes),
            without_commit=again.restarts.since_commit,
            reason=again.cause.reason,
            cause=again.cause.message,
        )

    def _environments(self, place: Place, restarts: Restarts) -> list[dict[str, str]]:
        """Of this node's ranks, in torchrun's names."""
        run = self._settings.run
        common = {
            "WORLD_SIZE": str(place.world),
            "LOCAL_WORLD_SIZE": str(place.ranks),
            "GROUP_RANK": str(self._settings.node),
            "GROUP_WORLD_SIZE": str(run.nodes),
            "MASTER_ADDR": run.master_address,
            "TORCHELASTIC_RUN_ID": f"{run.uid}-{run.attempt}",
            "TORCHELASTIC_RESTART_COUNT": str(len(restarts.causes)),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            ENV_RESTARTS: json.dumps(restarts.causes),
        }
        return [
            common | {"LOCAL_RANK": str(local), "RANK": str(place.first_rank + local)}
            for local in range(place.ranks)
        ]


def _commit_step(termination: Termination, progress: Progress | None) -> int:
    """The newest commit that this node knows of; worker 0 always does."""
    known = [termination.checkpoint, progress.checkpoint if progress is not None else None]
    return max((reference.step for reference in known if reference is not None), default=-1)


def _blaming(over: Over, node: int, ends: list[NodeEnd | None], own: NodeEnd) -> Termination:
    """How this node ends: as its ranks did, unless that was because of a node elsewhere, which hung
    or has not said anything."""
    culprit = ends[over.culprit] if over.culprit is not None else None
    if culprit is None or over.culprit == node:
        silent = [number for number, end in enumerate(ends) if end is None]
        if own.termination.reason != PEER_LOST or not silent:
            return own.termination
        # Without worker 0 nothing is heard of the others either.
        gone = "worker 0" if 0 in silent else f"worker {', '.join(map(str, silent))}"
        message = f"{gone} is gone: nothing says how its ranks ended"
        return own.termination.model_copy(update={"message": message})
    return Termination(
        reason=PEER_LOST,
        message=f"worker {over.culprit}: {culprit.termination.message}",
        exit_code=ExitCode.FAILED,
    )


def _with(restarts: Restarts, termination: Termination) -> Termination:
    """A failure says what was tried before."""
    if termination.exit_code in (ExitCode.DONE, ExitCode.CHECKPOINTED):
        return termination
    message = termination.message + restarts.sentence
    return termination.model_copy(update={"message": message})
