"""REPA: the cosine to a teacher's features, of those tokens that are there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.objectives import alignment


def features(seed: int, batch: int = 2, tokens: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_the_loss_is_bounded_and_of_direction_alone(seed: int, scale: float) -> None:
    """0 for the same direction, 2 for the opposite one, whatever the lengths."""
    wanted = features(seed)
    found = alignment.loss_per_sample(features(seed + 1), wanted, None)
    assert bool(((found >= 0) & (found <= 2)).all())
    same = alignment.loss_per_sample(scale * wanted, wanted, None)
    torch.testing.assert_close(same, torch.zeros(2), atol=1e-5, rtol=0)
    opposite = alignment.loss_per_sample(-scale * wanted, wanted, None)
    torch.testing.assert_close(opposite, torch.full((2,), 2.0))


def test_visible_tokens_meet_their_own_features() -> None:
    """Of a routed layer: token i of what is there with feature visible[i]."""
    wanted = features(0)
    visible = torch.tensor([[0, 3, 5], [1, 2, 4]])
    hidden = torch.stack([row[at] for row, at in zip(wanted, visible, strict=True)])
    found = alignment.loss_per_sample(hidden, wanted, visible)
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-6, rtol=0)
    assert bool((alignment.loss_per_sample(hidden, wanted, visible.flip(1)) > 0.1).all())


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_spatial_normalisation_takes_off_what_places_share(share: float) -> None:
    """What is added to all tokens alike goes, as far as the share goes; 0 is off."""
    plain = features(0)
    found = alignment.spatially_normalised(plain, share)
    if not share:
        assert torch.equal(found, plain)
        return
    left = (1 - share) * plain.mean(dim=1) / plain.std(dim=1, correction=0)
    torch.testing.assert_close(found.mean(dim=1), left, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.std(dim=1, correction=0), torch.ones(2, 5))
