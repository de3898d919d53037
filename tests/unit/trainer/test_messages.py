"""What operator and workers say to each other where they are not of one version."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from run_settings import run_settings

from daybreak_trainer.contract import (
    CheckpointRef,
    Progress,
    RunSettings,
    StageProgress,
    Termination,
)

NOW = "2026-01-01T00:00:00Z"
CHECKPOINT = CheckpointRef(step=3, time=NOW, url="c")
PROGRESS = Progress(
    run_uid="u",
    attempt=1,
    phase="Training",
    stage=StageProgress(name="16px", index=1, of=1),
    checkpoint=CHECKPOINT,
    started_at=NOW,
    updated_at=NOW,
)


def newer(raw: str) -> str:
    """With a field more in every object."""

    def more(value: object) -> object:
        if isinstance(value, list):
            return [more(item) for item in value]
        if not (isinstance(value, dict) and value):
            return value
        return {key: more(item) for key, item in value.items()} | {"sinceThen": [1]}

    return json.dumps(more(json.loads(raw)))


def test_an_operator_reads_what_a_newer_trainer_says() -> None:
    """All that it knows of it, at any depth."""
    assert Progress.model_validate_json(newer(PROGRESS.to_json())) == PROGRESS
    ended = Termination(
        reason="Checkpointed", message="m", exit_code=75, checkpoint=CHECKPOINT, progress=PROGRESS
    )
    assert Termination.decode(newer(ended.to_json())) == ended


def test_a_worker_refuses_settings_that_it_does_not_know() -> None:
    """What it is told to do and cannot, it must not pass over."""
    with pytest.raises(ValidationError, match="sinceThen"):
        RunSettings.model_validate_json(newer(run_settings().to_json()))


@pytest.mark.parametrize(
    "said",
    [
        {"updatedAt": "soon"},
        {"firstStepAt": "2026-02-31T00:00:00Z"},
        {"firstStepAt": "2026-01-01T00:00:00"},
        {"estimatedCompletionTime": "2026-01-01"},
        {"estimatedCompletionTime": "20260101T000000Z"},
        {"step": 10**20},
        {"samples": -1},
        {"ledger": {"productive": float("inf")}},
        {"ledger": {str(number): 1.0 for number in range(65)}},
        {"checkpoint": {"step": 1, "time": "now", "url": "u"}},
        {"exportUrl": "u" * 5000},
    ],
)
def test_what_a_status_cannot_hold_is_no_message(said: dict[str, object]) -> None:
    """The API server would refuse the status, again and again, and with it whatever else there is
    to say of the run."""
    raw = json.dumps(json.loads(PROGRESS.to_json()) | said)
    with pytest.raises(ValidationError):
        Progress.model_validate_json(raw)
