"""What `daybreak watch` shows of a run, from its status alone."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from daybreak_cli.watch import panel, summary

TRAINING: dict[str, Any] = {
    "metadata": {"name": "night"},
    "status": {
        "phase": "Running",
        "attempt": 2,
        "workers": {"desired": 4, "ready": 3},
        "stage": {"name": "512px", "index": 1, "of": 2},
        "progress": {
            "step": 120,
            "totalSteps": 400,
            "percent": 30,
            "loss": "0.112",
            "imagesPerSecond": "1310",
            "estimatedCompletionTime": "2031-05-04T08:00:00Z",
        },
    },
}
FAILED: dict[str, Any] = {
    "metadata": {"name": "night"},
    "status": {
        "phase": "Failed",
        "conditions": [
            {"type": "Running", "status": "False", "reason": "BadData", "message": "-"},
            {"type": "Failed", "status": "True", "reason": "BadData", "message": "shard.00001.mds"},
        ],
    },
}


def _shown(run: dict[str, Any]) -> str:
    out = StringIO()
    Console(file=out, width=120).print(panel(run))
    return out.getvalue()


def test_a_line_says_stage_step_loss_speed_and_end() -> None:
    """The line that logs and pipes get has all that matters."""
    line = summary(TRAINING)
    for part in ("Running", "attempt 2", "512px (1/2)", "120/400", "0.112", "1310", "2031-05-04"):
        assert part in line


def test_the_panel_says_the_same() -> None:
    """A terminal shows the same figures, and how many workers are up."""
    shown = _shown(TRAINING)
    for part in ("night", "Running", "3 of 4 ready", "120 of 400", "1310", "2031-05-04"):
        assert part in shown


def test_a_failed_run_says_why() -> None:
    """The reason and message of the Failed condition, in both."""
    for shown in (summary(FAILED), _shown(FAILED)):
        assert "BadData: shard.00001.mds" in shown


def test_a_run_without_a_status_is_pending() -> None:
    """Right after `kubectl apply` there is nothing but a name."""
    new = {"metadata": {"name": "night"}}
    assert "Pending" in summary(new)
    assert "Pending" in _shown(new)


QUEUED: dict[str, Any] = {
    "metadata": {"name": "night"},
    "status": {
        "phase": "Queued",
        "attempt": 1,
        "ledger": {"goodput": "0.91", "cost": "12.50"},
        "conditions": [
            {"type": "Running", "status": "False", "reason": "Queued", "message": "no quota [/x]"},
            {"type": "Degraded", "status": "True", "reason": "Straggler", "message": "rank 3"},
        ],
    },
}


def test_a_run_that_waits_says_what_for() -> None:
    """In its own words, which are no markup, beside what it has cost."""
    assert summary(QUEUED).endswith("cost 12.50  Queued: no quota [/x]")
    shown = _shown(QUEUED)
    for part in ("no quota [/x]", "Straggler: rank 3", "0.91", "12.50"):
        assert part in shown
