"""The sampler against fields whose flow is known."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from daybreak_trainer.evaluate.euler import guided, integrate, velocity

NOISE = torch.randn((20_000, 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_point_is_reached_whatever_the_steps(prediction: str, steps: int) -> None:
    """All data is one point: the velocity leads straight to it, in one step as in seven, where a
    step begins above the floor of t."""
    point = 0.7

    def field(x: Tensor, moment: Tensor) -> Tensor:
        output = torch.full_like(x, point) if prediction == "x" else (x - point) / moment
        return velocity(prediction, output, x, moment)  # type: ignore[arg-type]

    data = integrate(field, NOISE, FlowMatchEulerDiscreteScheduler(shift=60.0), steps)
    torch.testing.assert_close(data, torch.full_like(data, point), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_gaussian_data_has_its_mean_and_deviation(shift: float) -> None:
    """Of data N(mean, deviation) the velocity is known in closed form; 200 steps draw that mean and
    deviation within 2 %."""
    mean, deviation = 0.5, 0.3

    def field(x: Tensor, moment: Tensor) -> Tensor:
        t = moment
        variance = (1 - t) ** 2 * deviation**2 + t**2
        gain = (t - (1 - t) * deviation**2) / variance
        return gain * (x - (1 - t) * mean) - mean

    data = integrate(field, NOISE, FlowMatchEulerDiscreteScheduler(shift=shift), 200)
    assert float(data.mean()) == pytest.approx(mean, abs=0.02 * deviation + 0.005)
    assert float(data.std()) == pytest.approx(deviation, rel=0.02)


def test_guidance_of_one_is_the_prompt_alone_and_spaces_agree() -> None:
    """Guidance on images and then the velocity, or on velocities: the same."""
    x, outputs = NOISE[:8], NOISE[8:24]
    moment = torch.tensor(0.4)
    torch.testing.assert_close(guided(outputs, 1.0), outputs[8:])
    on_images = velocity("x", guided(outputs, 3.5), x, moment)
    doubled = velocity("x", outputs, torch.cat([x, x]), moment)
    torch.testing.assert_close(on_images, guided(doubled, 3.5), rtol=1e-4, atol=1e-4)
