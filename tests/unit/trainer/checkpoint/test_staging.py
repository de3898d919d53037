"""The copies of the state are those of one moment, and cost memory once."""

from __future__ import annotations

import threading

import pytest
import torch

from daybreak_trainer.checkpoint.staging import Stager, flattened

CPU = torch.device("cpu")


def test_the_update_waits_for_the_copies() -> None:
    """Until the writer's thread has made them: else they were half of one step, half of the
    next."""
    live = {"weight": torch.ones(3)}
    staging = Stager(CPU).start(live)
    updated = threading.Event()

    def update() -> None:
        staging.before_update()
        live["weight"].fill_(2)
        updated.set()

    thread = threading.Thread(target=update)
    thread.start()
    assert not updated.wait(0.1)
    copies = staging.finish()
    thread.join(5)
    assert updated.is_set()
    assert copies["weight"].tolist() == [1, 1, 1]


def test_a_copy_that_fails_does_not_block_the_update() -> None:
    """The save has failed, training goes on."""
    staging = Stager(CPU).start({"weight": torch.ones(3)})
    staging._live = {"gone": torch.ones(1)}
    with pytest.raises(KeyError):
        staging.finish()
    staging.before_update()


def test_memory_is_kept_from_save_to_save() -> None:
    """Where name, shape and type are the same; what is no longer saved is let go."""
    stager = Stager(CPU)
    first = {"a": torch.zeros(4), "b": torch.zeros(2), "scalar": torch.tensor(1.5)}
    stager.reserve(first)
    before = {name: copy.data_ptr() for name, copy in stager.start(first).finish().items()}
    copies = stager.start({"a": torch.ones(4), "b": torch.ones(3)}).finish()
    assert copies["a"].data_ptr() == before["a"]
    assert copies["b"].tolist() == [1, 1, 1]
    assert copies.keys() == {"a", "b"}


def test_only_tensors_are_saved() -> None:
    """By dotted name, as deep as they are."""
    weight, step = torch.zeros(2), torch.tensor(1.0)
    state = {
        "model": {"weight": weight},
        "optimizer": {"state": {"weight": {"step": step}}, "param_groups": [{"lr": 0.1}]},
    }
    assert flattened(state) == {"model.weight": weight, "optimizer.state.weight.step": step}


def test_two_tensors_of_one_name_are_refused() -> None:
    """One of them would be lost."""
    with pytest.raises(ValueError, match=r"two tensors of the state are named a\.b"):
        flattened({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
