"""One rank that saves beside its training: what is saved is the state of its step, and a leftover
of an old attempt does no harm."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch
from gated_store import Rule
from saved_run import EXPECTED, SHARD, Run, journal

from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    DATA,
    RECIPE,
    CommitPoint,
    DataPosition,
)
from daybreak_trainer.contract import Validation


def test_training_goes_on_while_a_save_is_written(run: Run, rules: list[Rule]) -> None:
    """The save returns while the store has not taken a byte; what is committed later is the state
    of its step, not that of the steps that followed."""
    gate = threading.Event()
    rules.append(Rule("open", SHARD, gate.wait))
    checkpointer = run.started(1)
    run.save(checkpointer, 1)
    for step in (2, 3, 4):
        run.at(step)
        assert checkpointer.poll() == []
        assert checkpointer.latest is None
    gate.set()
    (outcome,) = checkpointer.wait()
    assert outcome.commit is not None
    assert (outcome.step, outcome.error, outcome.give_up) == (1, "", False)
    assert outcome.bytes == 50 * 20 * 4 + 4
    assert outcome.blocked_seconds < outcome.staging_seconds + outcome.write_seconds
    assert checkpointer.reference is not None
    assert checkpointer.reference.url == f"{run.run.url}/attempt-0001/step-00000001"
    assert run.resumed(2) == 1


def test_a_commit_says_all_that_is_needed(run: Run) -> None:
    """The state of training, what wrote it, the recipe and the data, each file with its hash."""
    checkpointer = run.started(1)
    run.save(checkpointer, 2)
    checkpointer.wait()
    commit = run.attempt(2).find().commit
    assert commit is not None
    assert commit.state.data == DataPosition(samples=10)
    assert {"daybreak", "torch", "diffusers", "python"} == set(commit.state.versions)
    assert set(commit.files) == {SHARD, ".metadata", RECIPE, DATA, "history.jsonl.gz"}
    folder = run.run.child(commit.point.folder)
    assert set(folder.files()) == {*commit.files, COMMIT}
    assert b'"learningRate": 0.0001' in folder.read(RECIPE)
    assert len(history.read(folder)) == 2


def test_the_next_save_waits_for_the_one_in_flight(run: Run, rules: list[Rule]) -> None:
    """One at a time: the second begins when the first is committed, and both are."""
    order: list[str] = []

    def slow() -> None:
        time.sleep(0.3)
        order.append("first")

    rules.append(Rule("open", SHARD, slow))
    checkpointer = run.started(1)
    run.save(checkpointer, 1)
    run.save(checkpointer, 2)
    order.append("second returned")
    assert [outcome.step for outcome in checkpointer.wait()] == [1, 2]
    assert order == ["first", "second returned"]


def test_a_save_of_the_same_step_is_not_made_again(run: Run) -> None:
    """SIGTERM right after a save: the commit in flight is that of the stop. Its outcome is still
    told."""
    checkpointer = run.started(1)
    run.save(checkpointer, 3)
    commit = checkpointer.save_now(run.at(3), run.tensors, journal(3))
    assert commit.step == 3
    assert [outcome.step for outcome in checkpointer.poll()] == [3]
    assert checkpointer.save_now(run.at(4), run.tensors, journal(4)).step == 4


def test_what_came_after_the_last_step_is_committed_too(run: Run) -> None:
    """An attempt that goes on from the last step adds an evaluation to the journal: it commits the
    step as its own. With nothing to add the commit that is there will do."""
    run.started(1).save_now(run.at(3), run.tensors, journal(3))
    second = run.started(2)
    assert second.latest is not None
    grown = second.load(second.latest, run.tensors)
    assert second.save_now(run.at(3), run.tensors, grown).attempt == 1
    grown.append(Validation(step=3, loss=0.25))
    commit = second.save_now(run.at(3), run.tensors, grown)
    assert (commit.attempt, commit.parent) == (2, CommitPoint(attempt=1, step=3))
    assert second.save_now(run.at(3), run.tensors, grown) == commit
    third = run.started(3)
    assert third.latest == commit
    resumed = third.load(commit, run.tensors)
    assert [found.loss for found in resumed.evaluations()] == [0.25]
    assert third.save_now(run.at(3), run.tensors, resumed) == commit


def test_a_roll_back_past_a_damaged_commit(run: Run) -> None:
    """In mid-attempt. What was passed over is taken back: the step is saved again when it is
    trained again, its parent is the commit gone back to, and a crash meanwhile goes on from that
    commit too."""
    checkpointer = run.started(1)
    for step in (1, 2, 3):
        run.save(checkpointer, step)
        checkpointer.wait()
    run.run.write("attempt-0001/step-00000002/.metadata", b"")
    run.run.write("attempt-0001/step-00000003/.metadata", b"")
    search = checkpointer.find()
    checkpointer.begin(search)
    assert search.commit is not None
    assert checkpointer.latest == search.commit
    assert search.commit.step == 1
    checkpointer.load(search.commit, run.tensors)
    assert run.weight() == 1
    for step in (2, 3):
        assert not run.run.exists(f"attempt-0001/step-{step:08d}/{COMMIT}")
    commit = checkpointer.save_now(run.at(3), run.tensors, journal(3))
    assert commit.parent == search.commit.point
    assert run.run.exists(f"attempt-0001/step-00000003/{COMMIT}")
    checkpointer.close()
    assert run.run.folders("attempt-0001") == ["step-00000001", "step-00000003"]
    assert run.resumed(2) == 3


def test_a_leftover_of_an_old_attempt_commits_nothing(run: Run) -> None:
    """From the moment a new attempt looks for its commit on. It removes nothing either, is told to
    give up at once, and the new attempt's checkpoints are as they were."""
    old = run.started(1)
    for step in (1, 2, 3):
        run.save(old, step)
        old.wait()
    new = run.attempt(2)
    search = new.find()
    assert search.commit is not None
    assert search.commit.step == 3
    for step in (4, 5, 6, 7):
        run.save(old, step)
        (outcome,) = old.wait()
        assert outcome.give_up
        assert "attempt 2 has begun" in outcome.error
    old.close()
    assert run.run.folders("attempt-0001") == [f"step-{n:08d}" for n in (1, 2, 3)]
    new.begin(search)
    run.save(new, 4)
    new.wait()
    assert run.resumed(3) == 4


def test_a_leftovers_late_commit_is_not_believed(run: Run, rules: list[Rule]) -> None:
    """It asked just before the new attempt began, and its COMMIT.json came after: its steps are off
    the lineage, and count for nothing when old checkpoints are removed."""
    old = run.started(1)
    run.save(old, 1)
    old.wait()
    reached, gate = threading.Event(), threading.Event()

    def stop_there() -> None:
        reached.set()
        gate.wait()

    rules.append(Rule("open", f"step-00000009/{COMMIT}", stop_there))
    run.save(old, 9)
    assert reached.wait(10)
    new = run.started(2)
    gate.set()
    (outcome,) = old.wait()
    assert outcome.commit is not None
    old.close()
    for step in (2, 3):
        run.save(new, step)
        new.wait()
    new.close()
    assert run.run.folders("attempt-0001") == ["step-00000001", "step-00000009"]
    assert run.resumed(3) == 3
    run.run.write("attempt-0002/step-00000003/.metadata", b"")
    run.run.write("attempt-0002/step-00000002/.metadata", b"")
    assert run.resumed(4) == 1


def test_a_restart_in_place_takes_back_what_it_passed_over(run: Run) -> None:
    """The attempt's ranks start again and its newest commit is damaged: they go on from the one
    before, and what they commit then is the newest even though its step is lower."""
    first = run.started(1)
    for step in (1, 5):
        run.save(first, step)
        first.wait()
    run.run.write("attempt-0001/step-00000005/.metadata", b"")
    origin = run.run.read(f"attempt-0001/{ATTEMPT}")
    again = run.started(1)
    assert again.latest is not None
    assert again.latest.step == 1
    assert run.run.read(f"attempt-0001/{ATTEMPT}") == origin
    run.save(again, 3)
    again.wait()
    assert run.resumed(2) == 3


def test_a_killed_save_of_the_same_step_leaves_nothing_behind(run: Run) -> None:
    """Files of another number of ranks, say: they would look like this commit's."""
    run.run.write("attempt-0001/step-00000002/__7_0.distcp", b"of eight ranks")
    checkpointer = run.started(1)
    run.save(checkpointer, 2)
    checkpointer.wait()
    assert "__7_0.distcp" not in run.run.files("attempt-0001/step-00000002")
    assert run.resumed(2) == 2


def test_a_changed_recipe_is_refused_until_accepted(run: Run) -> None:
    """And the run that accepts it goes on from there."""
    run.save(first := run.started(1), 2)
    first.wait()
    changed = replace(EXPECTED, recipe_hash="r2", recipe={"optimizer": {"learningRate": 2e-4}})
    with pytest.raises(ChangedError, match=r"optimizer.learningRate: 0.0001 -> 0.0002"):
        run.attempt(2, changed).find()
    accepting = run.started(2, replace(changed, accepted=frozenset({"recipe"})))
    assert accepting.latest is not None
    run.save(accepting, 3)
    accepting.wait()
    assert run.attempt(3, changed).find().commit is not None


def test_another_model_does_not_fit(run: Run) -> None:
    """Accepted or not, the tensors that differ are named, and none is filled."""
    run.save(first := run.started(1), 2)
    first.wait()
    second = run.attempt(2)
    commit = second.find().commit
    assert commit is not None
    other = {"model": {"weight": torch.zeros(50, 21), "bias": torch.zeros(3)}}
    with pytest.raises(ChangedError) as caught:
        second.load(commit, other)
    for part in (
        "model.bias is new",
        "optimizer.state.weight.step is gone",
        "model.weight is [50, 21] instead of [50, 20]",
    ):
        assert part in str(caught.value)
    assert other["model"]["weight"].count_nonzero() == 0
