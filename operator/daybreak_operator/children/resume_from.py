"""The commit that a run begins from (`checkpoint.resumeFrom`): what workers are told of it, and
what they mount to read it."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_trainer.contract import VOLUMES_DIR

_FOLDER = VOLUMES_DIR / "resume-from"


def _is_in_claim(path: str) -> bool:
    """Whether it is relative to the root of the claim that checkpoints go to."""
    return "://" not in path and not path.startswith("/")


def url(run: TrainingRun) -> str | None:
    """As a worker finds it."""
    given = run.spec.checkpoint.resume_from
    if given is None or not _is_in_claim(given):
        return given
    return str(_FOLDER / given)


def mounts(run: TrainingRun) -> list[dict[str, Any]]:
    """The whole claim, read-only: the other run's folder may lie beside this run's."""
    given = run.spec.checkpoint.resume_from
    if given is None or not _is_in_claim(given):
        return []
    return [{"name": "volume-checkpoint", "mountPath": str(_FOLDER), "readOnly": True}]
