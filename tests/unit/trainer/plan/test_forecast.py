"""What cannot fit is refused with changes each of which alone makes it fit."""

from __future__ import annotations

import re

import pytest

from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.plan.forecast import Forecast, forecast
from daybreak_trainer.plan.limits import Limits
from daybreak_trainer.recipe import RecipeError, resolve

STEPS = 10_000


def planned(budget: BudgetSettings, devices: int = 8, steps: int = STEPS) -> Forecast:
    """Ten hours of training on eight devices, and half of that on twice as many."""
    recipe = resolve(
        {"preset": "smoke", "stages": [{"resolution": 16, "steps": steps, "batchSize": 36}]}
    )
    limits = Limits(budget)
    return forecast(recipe, limits, [1.25 * devices], devices, now=0.0, parameters=1, keep_last=1)


@pytest.mark.parametrize("hours", [2, 5, 9])
@pytest.mark.parametrize("cost", [None, 13, 60, 80.5, 1000])
def test_every_remedy_of_a_refusal_does(hours: int, cost: float | None) -> None:
    """More devices only where time binds and money suffices: start and end cost more on more."""
    price = None if cost is None else 1.0
    budget = BudgetSettings(duration_seconds=hours * 3600, gpu_hour_price=price, max_cost=cost)
    with pytest.raises(RecipeError) as caught:
        planned(budget)
    told = str(caught.value)
    if (share := re.search(r"give stages (\d+) %", told)) is not None:
        planned(budget, steps=STEPS * int(share[1]) // 100)
    more = re.search(r"take (\d+) devices", told)
    if more is not None:
        planned(budget, devices=int(more[1]))
        with pytest.raises(RecipeError):
            planned(budget, devices=int(more[1]) - 1)
    assert (more is not None) == (cost is None or cost == 1000)
    raised = budget.model_copy(
        update={
            "duration_seconds": 60 * float(found[1])
            if (found := re.search(r"duration to (\d+)m", told))
            else budget.duration_seconds,
            "max_cost": float(found[1])
            if (found := re.search(r"maxCost to ([\d.]+)", told))
            else cost,
        }
    )
    planned(raised)
