"""What is drawn for a sample, and that nothing but seed and position decides it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.objectives import draws
from daybreak_trainer.objectives.draws import Draws
from daybreak_trainer.recipe import resolve
from daybreak_trainer.recipe.objective import Objective

CPU = torch.device("cpu")
BASE = resolve({"preset": "smoke"}).objective
ROUTED = {"kind": "tread", "share": 0.5, "first": 0, "last": 1}


def objective(**changes: Any) -> Objective:
    return Objective.model_validate(BASE.model_dump() | changes)


def drawn(
    wanted: Objective,
    whole: range,
    part: slice = slice(None),
    dropout: float = 0.0,
    seed: int = 0,
    shape: tuple[int, int, int] = (1, 1, 1),
) -> Draws:
    return draws.draw(wanted, dropout, seed, np.array(whole)[part], whole, shape, 6, CPU)


@pytest.mark.parametrize("stratified", [False, True])
@settings(max_examples=30)
@given(
    start=st.integers(0, 2**40),
    batch=st.integers(1, 12),
    world=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_draws_do_not_depend_on_how_a_batch_is_split(
    stratified: bool, start: int, batch: int, world: int, seed: int
) -> None:
    """Any number of ranks draws, to the bit, what one rank draws."""
    wanted = objective(stratified=stratified, routing=ROUTED)
    whole, shape = range(start, start + batch), (3, 2, 2)
    one = drawn(wanted, whole, dropout=0.5, seed=seed, shape=shape)
    for rank in range(world):
        part = rank_slice(batch, rank, world)
        if part.stop == part.start:
            continue
        mine = drawn(wanted, whole, part, 0.5, seed, shape)
        for name, values in vars(one).items():
            assert torch.equal(vars(mine)[name], values[part]), name


def test_positions_and_seeds_draw_differently() -> None:
    """No two samples of a run, and no two runs, share their noise."""
    seeds = {draws.sample_seed(seed, position) for seed in range(50) for position in range(200)}
    assert len(seeds) == 50 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stratified_timesteps_leave_no_part_out() -> None:
    """Of a uniform distribution each of as many equal parts has one, and the mean hardly varies."""
    wanted = objective(stratified=True, timestep_uniform_share=1.0, timestep_shift=1.0)
    means = []
    for start in range(0, 640, 64):
        t = drawn(wanted, range(start, start + 64)).timesteps
        assert sorted((64 * t).long().tolist()) == list(range(64))
        means.append(float(t.mean()))
    # Plain draws stray by 1 / sqrt(12 * 64), 0.036; stratified ones by a 64th of that.
    assert max(abs(mean - 0.5) for mean in means) < 0.003


def test_tricks_do_not_change_what_else_is_drawn() -> None:
    """So a stage without routing sees the same noise."""
    plain, routed = (drawn(objective(routing=r), range(8)) for r in (None, ROUTED))
    assert plain.scores is None
    assert routed.scores is not None
    assert routed.scores.shape == (8, 6)
    assert torch.equal(plain.noise, routed.noise)
    assert torch.equal(plain.timesteps, routed.timesteps)


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.0, 0, 0), (0.1, 320, 480), (1.0, 4000, 4000)]
)
def test_captions_are_dropped_at_the_recipes_rate(rate: float, least: int, most: int) -> None:
    """None, about a tenth, all; and independently of the timestep."""
    made = drawn(objective(), range(4000), dropout=rate)
    dropped = made.drop_caption
    assert least <= int(dropped.sum()) <= most
    if 0 < rate < 1:
        gap = made.timesteps[dropped].mean() - made.timesteps[~dropped].mean()
        assert abs(float(gap)) < 0.05


def test_noise_has_the_recipes_scale() -> None:
    """Normal, with mean zero and the standard deviation `noiseScale`."""
    noise = drawn(objective(noise_scale=2.0), range(50), shape=(3, 16, 16)).noise
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(2.0, rel=0.02)
