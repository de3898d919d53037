"""One run with the real trainer in pods: two ranks over gloo that train a tiny model on digits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from free_ports import free_port
from storage_faults import Fault
from worker_pods import SECONDS, Pod, make_pod

from daybreak_trainer.checkpoint import history, verify
from daybreak_trainer.checkpoint.layout import COMMIT, Commit, CommitPoint, DataPosition
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ExitCode, Progress, StreamSettings
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.health.heartbeat import Beat, read
from daybreak_trainer.recipe import resolve

STEPS, EVERY, BATCH = 48, 12, 8
RECIPE = resolve(
    {"preset": "smoke", "stages": [{"resolution": 16, "steps": STEPS, "batchSize": BATCH}]}
)
PATIENCE = {"wedged": 5.0, "leave": 60.0, "report": 3.0}
"""As in a cluster, but for nodes that have not said yet how their ranks ended."""
Samples = list[tuple[int, int, str]]


@dataclass
class TrainingRun:
    """A run's storage, and its attempts. It commits every `EVERY` of `STEPS` steps, removes no
    commit, and never starts ranks again unless a test says so."""

    folder: Path
    dataset: Path
    fork_server: ForkServerContext
    attempts: int = 0
    known: set[CommitPoint] = field(default_factory=set)
    """Commits that were seen once, and must be there for ever."""

    def settings(self, *, gated: bool) -> dict[str, Any]:
        store = f"{'gated://' if gated else ''}{self.folder}"
        return {
            "recipe": RECIPE,
            "attempt": self.attempts,
            "streams": (StreamSettings(url=str(self.dataset), role="data-0"),),
            "checkpoint_url": f"{store}/checkpoints",
            "checkpoint_interval_steps": EVERY,
            "checkpoint_keep_last": 100,
            "export_url": f"{store}/models",
            "grace_seconds": 60.0,
        }

    @contextmanager
    def attempt(self, *faults: Fault, **changes: Any) -> Iterator[Pod]:
        """The next attempt, running in one pod."""
        with self.pods(1, *faults, **changes) as (pod,):
            yield pod

    @contextmanager
    def pods(self, nodes: int, *faults: Fault, **changes: Any) -> Iterator[list[Pod]]:
        """The next attempt, running: two ranks in all, on one node or two."""
        self.attempts += 1
        self.folder.mkdir(exist_ok=True)
        shared = {"nodes": nodes, "master_port": free_port(), "ranks": 2 // nodes}
        settings = self.settings(gated=bool(faults)) | shared | changes
        made = [
            make_pod(self.folder / f"pod-{self.attempts}-{node}", node=node, **settings)
            for node in range(nodes)
        ]
        try:
            for pod in made:
                pod.faults = faults
                pod.start(self.fork_server, ["train"], **PATIENCE)
            yield made
        finally:
            for pod in made:
                pod.close()

    def complete(self, **changes: Any) -> Progress:
        """An attempt that nothing disturbs; returns what it said last."""
        with self.attempt(**changes) as pod:
            code, termination = pod.end()
        assert code == ExitCode.DONE, termination
        assert termination.progress is not None
        assert self.commits()[-1].step == STEPS
        return termination.progress

    def commits(self) -> list[Commit]:
        """All that are real, oldest first, every byte of them compared. None that was there at an
        earlier call may be missing."""
        found = {}
        for file in (self.folder / "checkpoints").glob(f"run-u/attempt-*/step-*/{COMMIT}"):
            commit = Commit.unseal(file.read_bytes())
            assert not verify.damages(_storage(file), commit.files, list(commit.files))
            found[commit.point] = commit
        assert self.known <= found.keys(), "a commit was lost"
        self.known |= found.keys()
        return [found[point] for point in sorted(found, key=lambda point: point.order)]

    def is_under_way(self, beat: Beat) -> bool:
        """A condition of `strike`: in the middle of training, and there is a commit to go on from.
        The one of step `EVERY` may long be in flight, but step 2 * `EVERY` waits for it."""
        return beat.step > EVERY + EVERY // 2 and bool(self.commits())

    def steps(self, attempt: int) -> list[int]:
        """Of its commits."""
        return [commit.step for commit in self.commits() if commit.attempt == attempt]

    def samples(self) -> Samples:
        """Step, position and samples of every line of the newest commit's journal."""
        point = self.commits()[-1].point
        journal = history.read(Storage(str(self.folder / "checkpoints/run-u" / point.folder)))
        return [(line.step, line.position, line.samples) for line in journal]


def _storage(commit: Path) -> Storage:
    return Storage(str(commit.parent))


def last_shard(dataset: Path) -> tuple[Path, int]:
    """The shard that a run needs last of all, and the step that needs it first, counted from 1."""
    corpus = open_corpus([Stream(str(dataset), {}, 1.0)], DataCounters())
    order, position = corpus.order(RECIPE.seed), DataPosition()
    first: dict[int, int] = {}
    for step in range(1, STEPS + 1):
        for number in order.batch(position, BATCH, slice(0, BATCH)).shards.tolist():
            first.setdefault(number, step)
        position = order.after(position, BATCH)
    number = max(first, key=lambda shard: first[shard])
    return dataset / corpus.shards[number].info.raw.name, first[number]


def await_beat(pod: Pod, condition: Callable[[Beat], bool], rank: int = 0) -> Beat:
    """The rank's first beat that meets the condition."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        beat = read(pod.folder / "work", rank)
        if beat is not None and condition(beat):
            return beat
        assert pod.process.is_alive(), "the pod ended before that"
        time.sleep(0.005)
    raise AssertionError("the ranks do not get that far")


def strike(pod: Pod, number: int, condition: Callable[[Beat], bool], rank: int = 1) -> Beat:
    """Sends a signal to a rank as soon as its beat meets the condition; returns that beat."""
    beat = await_beat(pod, condition, rank)
    os.kill(beat.pid, number)
    return beat
