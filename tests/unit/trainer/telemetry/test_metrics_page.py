"""The page of metrics lists exactly what there is."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

from daybreak_operator import metrics as operator_metrics
from daybreak_trainer.telemetry.metrics import train_metrics

PAGE = Path(__file__).parents[4] / "docs/metrics.md"


def test_the_page_lists_every_metric() -> None:
    """A metric that is added or renamed must be added or renamed on the page too."""
    train_metrics()
    runs = operator_metrics.RunCollector(list)
    there = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in (*REGISTRY.collect(), *runs.collect())
        if family.name.startswith("daybreak_")
    }
    assert set(re.findall(r"^\| `(daybreak_\w+)`", PAGE.read_text(), re.MULTILINE)) == there
