"""A run that is stopped and goes on with another number of ranks learns what an undisturbed one
learns: the same samples in the same steps, and the same losses but for rounding.

Real ranks over gloo, each a process.
"""

from __future__ import annotations

import runpy
import socket
from dataclasses import asdict
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checkpoint.layout import ATTEMPT, Attempt, CommitPoint, attempt_folder
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ExitCode, RunSettings, StreamSettings
from daybreak_trainer.export.publish import check
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import Recipe, resolve
from daybreak_trainer.settings import Settings

SCRIPT = Path(__file__).with_name("one_rank.py")
STEPS = 21
RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 5}],
        "optimizer": {"learningRate": 3e-3},
        "schedule": {"warmupSteps": 2},
    }
)
"""Five images a step: two ranks compute three and two of them."""
_SECONDS = 200.0

_LOSS_TOLERANCE = 1e-5
"""One rank adds the gradients of five images, two ranks those of three and two and then the two
sums: fp32 rounding, 1e-7 of a gradient, which fourteen AdamW steps carry on. Measured: 2e-7."""


class Bench:
    """One run's storage, and the means to run attempts of it."""

    def __init__(
        self, folder: Path, dataset: Path, context: ForkServerContext, recipe: Recipe = RECIPE
    ) -> None:
        self.folder, self._dataset, self._context = folder, dataset, context
        self.recipe = recipe
        self.storage = Storage(str(folder / "checkpoints" / "run-u"))

    def attempt(self, number: int, ranks: int, stop_at: int | None = None) -> list[int | None]:
        """Runs one attempt to its end; only its last rank wants to stop. Returns the exit codes."""
        run = RunSettings(
            name="run",
            namespace="ns",
            uid="u",
            attempt=number,
            nodes=1,
            master_address="127.0.0.1",
            master_port=free_port(),
            recipe_hash=self.recipe.hash,
            streams=(StreamSettings(url=str(self._dataset), role="data-0"),),
            checkpoint_url=str(self.folder / "checkpoints"),
            export_url=str(self.folder / "models"),
        )
        processes = []
        for rank in range(ranks):
            work = self.folder / f"work-{number}-{rank}"
            work.mkdir()
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(run.master_port),
            }
            given = {
                "environment": environment,
                "settings": Settings(run, 0, self.recipe, work, work / "secrets"),
                "stop_at": stop_at if rank == ranks - 1 else None,
            }
            processes.append(
                self._context.Process(target=runpy.run_path, args=(str(SCRIPT), given))
            )
        for process in processes:
            process.start()
        for process in processes:
            process.join(_SECONDS)
        return [process.exitcode for process in processes]

    def journal(self, attempt: int) -> list[HistoryLine]:
        """Of the attempt's last commit."""
        place = self.storage.child(attempt_folder(attempt))
        return history.read(place.child(place.folders()[-1]))

    def origin(self, attempt: int) -> CommitPoint | None:
        raw = self.storage.read(f"{attempt_folder(attempt)}/{ATTEMPT}")
        return Attempt.model_validate_json(raw).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def benches(
    fork_server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bench, Bench]:
    """Two runs of one recipe: one that is left alone and one that is stopped twice."""
    folder = tmp_path_factory.mktemp("resume")
    prepare("digits", folder / "dataset", count=64, shard_bytes=1 << 12)
    made = []
    for name in ("calm", "stopped"):
        (folder / name).mkdir()
        made.append(Bench(folder / name, folder / "dataset", fork_server))
    return made[0], made[1]


def test_two_ranks_one_rank_two_ranks_are_one_run(benches: tuple[Bench, Bench]) -> None:
    """Every stop commits at one step that all ranks agree on, every attempt goes on from the commit
    before it, and the journal of the last holds each step once: the samples of the undisturbed run,
    and its losses. Up to the first change of size they are equal to the bit."""
    calm, stopped = benches
    assert calm.attempt(1, ranks=2) == [ExitCode.DONE] * 2
    assert stopped.attempt(1, ranks=2, stop_at=6) == [ExitCode.CHECKPOINTED] * 2
    assert stopped.attempt(2, ranks=1, stop_at=13) == [ExitCode.CHECKPOINTED]
    assert stopped.attempt(3, ranks=2) == [ExitCode.DONE] * 2
    origins = [stopped.origin(attempt) for attempt in (1, 2, 3)]
    assert origins[0] is None
    # What is agreed on after a step is read two steps later: there the stop takes effect.
    assert origins[1:] == [CommitPoint(attempt=1, step=8), CommitPoint(attempt=2, step=15)]
    whole, parts = calm.journal(1), stopped.journal(3)
    assert [line.world for line in parts] == [2] * 8 + [1] * 7 + [2] * 6
    assert [line.step for line in parts] == list(range(1, STEPS + 1))
    assert [_sampled(line) for line in parts] == [_sampled(line) for line in whole]
    assert parts[:8] == whole[:8]
    losses = [line.loss for line in parts]
    assert losses == pytest.approx([line.loss for line in whole], rel=_LOSS_TOLERANCE)
    assert losses[8:] != [line.loss for line in whole[8:]], "is rounding no longer different?"


def _sampled(line: HistoryLine) -> dict[str, object]:
    return {key: value for key, value in asdict(line).items() if key not in ("loss", "world")}


def test_a_complete_run_completes_again_at_once(benches: tuple[Bench, Bench]) -> None:
    """An attempt that finds the run's last commit trains no step, leaves the model where it is, and
    is done: the pod may have died between export and exit."""
    calm, _ = benches
    models = Storage(str(calm.folder / "models"))
    before = check(models, "run", "u")
    assert before is not None
    assert before.step == STEPS
    assert calm.attempt(2, ranks=1) == [ExitCode.DONE]
    assert calm.storage.folders(attempt_folder(2)) == []
    assert check(models, "run", "u") == before


def test_more_ranks_than_images_train_the_same(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """One image a step on two ranks: the rank without one takes part and changes nothing. Muon's
    state, which only owners use whole, travels too."""
    prepare("digits", tmp_path / "dataset", count=16)
    recipe = resolve(
        {
            "preset": "smoke",
            "stages": [{"resolution": 16, "steps": 6, "batchSize": 1}],
            "optimizer": {"kind": "muon"},
        }
    )
    journals = []
    for name, sizes in (("one", (1,)), ("two", (2, 1))):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, tmp_path / "dataset", fork_server, recipe)
        for number, ranks in enumerate(sizes, start=1):
            last = number == len(sizes)
            ending = ExitCode.DONE if last else ExitCode.CHECKPOINTED
            stop_at = None if last else 2
            assert bench.attempt(number, ranks, stop_at) == [ending] * ranks
        journals.append(bench.journal(len(sizes)))
    one, two = journals
    assert [line.world for line in two] == [2] * 4 + [1] * 2
    assert [_sampled(line) for line in two] == [_sampled(line) for line in one]
    losses = [line.loss for line in two]
    assert losses == pytest.approx([line.loss for line in one], rel=_LOSS_TOLERANCE)
