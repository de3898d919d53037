"""Real ranks that train, save beside it, are killed in every phase of a save, and go on in another
number: what was committed is found and is, to the bit, what the ranks had at that step."""

from __future__ import annotations

import json
import runpy
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

SCRIPT = Path(__file__).with_name("saving_rank.py")
_CLOCK_SECONDS = 120.0


def start(
    context: ForkServerContext, folder: Path, ranks: int, **told: Any
) -> tuple[list[int | None], list[dict[str, Any] | None]]:
    """Runs one attempt; returns how its ranks ended and what they saw. A rank that hangs fails the
    test."""
    port = free_port()
    processes = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        given = {"environment": environment, "told": {"folder": str(folder), **told}}
        processes.append(context.Process(target=runpy.run_path, args=(str(SCRIPT), given)))
    end = time.monotonic() + _CLOCK_SECONDS
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        assert not hanging, f"ranks {hanging} hang"
    finally:
        for process in processes:
            process.kill()
    files = [folder / f"seen-{told['attempt']}-{rank}.json" for rank in range(ranks)]
    seen = [json.loads(file.read_text()) if file.exists() else None for file in files]
    return [process.exitcode for process in processes], seen


@pytest.mark.e2e
@pytest.mark.training
def test_four_ranks_two_three_and_four_again(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Each attempt trains on while its save is written to a slow store, and dies with steps that it
    did not save. The next has the weights, optimizer and average of the saved step, to the bit,
    whatever number of ranks wrote them, and the journal up to it."""
    resumed = None
    for attempt, ranks in enumerate((4, 2, 3, 4), start=1):
        rules = [{"operation": "write", "match": ".distcp", "action": "slow", "times": 40}]
        codes, seen = start(
            *(fork_server, tmp_path, ranks),
            attempt=attempt,
            steps=5,
            save_at=[1],
            rules=rules,
            rule_rank=ranks - 1,
        )
        assert codes == [0] * ranks
        for told in seen:
            assert told is not None
            assert told["resumed"] == resumed
            assert told.get("equal", resumed is None)
            assert told.get("journal", []) == list(range(1, (resumed or 0) + 1))
            assert [o["committed"] for o in told["outcomes"]] == [True]
            assert told["steps_in_flight"] >= 2, "the save did not overlap training"
            assert told["training_step"] == (resumed or 0) + 5
        resumed = (resumed or 0) + 1


KILLS = {
    # where: (rank, rule, the step that the next attempt goes on from)
    "staging": (1, None, 2),
    "rank 0 opening a file": (0, {"operation": "open", "match": "step-00000004/__0_0"}, 2),
    "opening a file": (1, {"operation": "open", "match": "step-00000004/__1_0"}, 2),
    "writing": (1, {"operation": "write", "match": "step-00000004/__1_0", "skip": 9}, 2),
    "rank 0 writing": (0, {"operation": "write", "match": "step-00000004/__0_0", "skip": 9}, 2),
    "ending a file": (1, {"operation": "closed", "match": "step-00000004/__1_0"}, 2),
    "the metadata": (0, {"operation": "write", "match": "step-00000004/.metadata"}, 2),
    "gathering": (0, {"operation": "open", "match": "step-00000004/history"}, 2),
    "before the commit": (0, {"operation": "open", "match": "step-00000004/COMMIT"}, 2),
    "in the commit": (0, {"operation": "close", "match": "step-00000004/COMMIT"}, 2),
    "after the commit": (0, {"operation": "closed", "match": "step-00000004/COMMIT"}, 4),
    "before pruning": (0, {"operation": "remove", "match": "step-00000001/COMMIT"}, 4),
    "in pruning": (0, {"operation": "removed", "match": "step-00000001/COMMIT"}, 4),
    "late in pruning": (0, {"operation": "removed", "match": "step-00000001/", "skip": 3}, 4),
}


ALWAYS_TESTED = {"staging", "writing", "before the commit", "in the commit", "in pruning"}


@pytest.mark.training
@pytest.mark.parametrize(
    "phase",
    [p if p in ALWAYS_TESTED else pytest.param(p, marks=pytest.mark.e2e) for p in KILLS],
)
def test_a_rank_is_killed_in_a_save(
    fork_server: ForkServerContext, tmp_path: Path, phase: str
) -> None:
    """SIGKILL, exactly there. The others come to an end. What they say of the save is a failure and
    no commit (but where it was real already), and that nothing more can be saved together. The next
    attempt finds the last commit, whole, and clears up what the killed one left."""
    rank, rule, step = KILLS[phase]
    codes, seen = start(
        *(fork_server, tmp_path, 2),
        attempt=1,
        steps=50,
        save_at=[1, 2, 4],
        rules=[rule | {"action": "kill"}] if rule else [],
        rule_rank=rank,
        kill_after_save=None if rule else rank,
        width=11 if rule else 200_000,
    )
    assert codes[rank] == -signal.SIGKILL
    survivor = seen[1 - rank]
    assert codes[1 - rank] == 1, "it did not notice, or did not end by itself"
    assert survivor is not None
    assert survivor["waited_seconds"] < 50.0
    assert [o["committed"] for o in survivor["outcomes"][:2]] == [True, True]
    if step == 2:
        (outcome,) = survivor["outcomes"][2:]
        assert (outcome["committed"], outcome["give_up"]) == (False, True)
        assert survivor["found_again"] == f"RanksLostError: {outcome['error']}"
    assert "RanksLostError: the ranks cannot save or load together" in survivor["found_again"]
    store = tmp_path / "store/run-u/attempt-0001"
    codes, seen = start(
        *(fork_server, tmp_path, 1),
        attempt=2,
        steps=1,
        save_at=[1],
        width=11 if rule else 200_000,
    )
    assert codes == [0]
    assert seen[0] is not None
    assert (seen[0]["resumed"], seen[0]["equal"]) == (step, True)
    assert [o["committed"] for o in seen[0]["outcomes"]] == [True]
    assert {file.parent.name for file in store.glob("*/COMMIT.json")} >= {f"step-{step:08d}"}
    assert not (store / "step-00000001").exists(), "it is older than the two that are kept"
    unfinished = [
        f.name for f in store.iterdir() if f.is_dir() and not (f / "COMMIT.json").exists()
    ]
    assert unfinished == []


HANG = {"operation": "write", "match": "step-00000001/__1_0", "action": "wait"}


@pytest.mark.training
def test_a_store_that_hangs_on_one_rank(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """All ranks give the save up at the same moment and name the rank and what it did. Until its
    store answers every later save and search fails at once, with that cause; once it does, commits
    are made again: the ranks have lost nothing of each other."""
    codes, seen = start(
        *(fork_server, tmp_path, 2),
        attempt=1,
        steps=4,
        save_at=[1, 2, 3],
        rules=[HANG],
        rule_rank=1,
        rule_at=0,
        timeout_seconds=3.0,
        find_again=True,
        release_rank=1,
        save_at_last=True,
    )
    assert codes == [0, 0]
    cause = (
        f"rank 1: cannot write this rank's part of gated://{tmp_path}/store/run-u/attempt-0001/"
        "step-00000001: the store stands still, nothing moved for 3 s"
    )
    for told in seen:
        assert told is not None
        assert [outcome["step"] for outcome in told["outcomes"]] == [1, 2, 3]
        assert [outcome["committed"] for outcome in told["outcomes"]] == [False] * 3
        assert [outcome["give_up"] for outcome in told["outcomes"]] == [False, False, True]
        assert told["outcomes"][0]["error"] == cause
        again = f"rank 1: the store has not answered since: {cause}"
        assert told["outcomes"][1]["error"] == told["outcomes"][2]["error"] == again
        assert told["found_again"] == f"StorageError: {again}"
        assert told["training_step"] == told["saved_at_last"] == 4


@pytest.mark.training
def test_a_store_that_is_slow_on_one_rank(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """It takes longer than the timeout, and moves: the save is committed, and a rank that has long
    written its own part waits for it."""
    action = "takes 0.8 s of its clock"
    rule = {"operation": "write", "match": "__1_0", "action": action, "times": 5}
    codes, seen = start(
        *(fork_server, tmp_path, 2),
        attempt=1,
        steps=2,
        save_at=[1],
        rules=[rule],
        rule_rank=1,
        timeout_seconds=2.0,
        own_clock=True,
        wait=True,
    )
    assert codes == [0, 0]
    for told in seen:
        assert told is not None
        assert [outcome["committed"] for outcome in told["outcomes"]] == [True]
    assert (tmp_path / "store/run-u/attempt-0001/step-00000001/COMMIT.json").exists()
