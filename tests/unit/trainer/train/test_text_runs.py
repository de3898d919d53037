"""Runs on a frozen encoder's text, from `prepare` to the end: real ranks over gloo."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from rank_runs import Bench
from tiny_encoders import save_t5

from daybreak_trainer.checkpoint import history
from daybreak_trainer.contract import EvaluationSettings, ExitCode
from daybreak_trainer.prepare.datasets import prepare_datasets
from daybreak_trainer.prepare.embeddings import Embedder, EmbeddingColumn
from daybreak_trainer.recipe import Recipe, resolve

WORDS = [
    "a",
    "and",
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "circle",
    "square",
    "triangle",
    "two",
    "three",
]
COLUMNS = ("caption", "caption_short")
TOKENS = 9
_STORED_TOLERANCE = 5e-3
"""Stored embeddings are rounded to bf16, 4e-3 of a value at most."""


def recipe(encoder: Path, **text: Any) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "text": {
                "kind": "pretrained",
                "path": str(encoder),
                "hiddenSize": None,
                "depth": None,
                "heads": None,
                "maxTokens": TOKENS,
                "padding": "longest",
                "paddingMultiple": 4,
                "captions": [{"column": name, "weight": 1} for name in COLUMNS],
                **text,
            },
            "stages": [{"resolution": 16, "steps": 6, "batchSize": 5}],
            "schedule": {"warmupSteps": 2},
        }
    )


def test_stored_embeddings_train_as_captions_encoded_in_every_step_do(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Of two columns of captions, one drawn for each sample, padded to the longest: the same losses
    but for the rounding of what is stored, on two ranks as on one, in training as where its weights
    are judged; a run ends with its export. Data of another encoder is refused before the first
    step."""
    encoder, data = save_t5(tmp_path / "t5", WORDS), tmp_path / "data"
    embedder = Embedder(str(encoder), TOKENS, "bf16")
    added = [EmbeddingColumn(embedder, name) for name in COLUMNS]
    prepare_datasets("shapes", data, [16], added=added, count=40, shard_bytes=1 << 12)
    stored = Bench(tmp_path / "stored", data, fork_server, recipe(encoder, precomputed=True))
    judged = EvaluationSettings(
        validation_samples=4, interval_steps=3, prompts=("a red circle",), images=2
    )
    assert stored.attempt(1, ranks=2, evaluation=judged) == [ExitCode.DONE] * 2
    encoded = Bench(tmp_path / "encoded", data, fork_server, recipe(encoder))
    stopped = encoded.attempt(1, ranks=1, stop_at=4, evaluation=judged)
    assert stopped == [ExitCode.CHECKPOINTED]
    third, last = history.load(stored.last(1)).evaluations()
    (other,) = history.load(encoded.last(1)).evaluations()
    assert (third.step, other.step, last.step) == (3, 3, 6)
    assert third.loss == pytest.approx(other.loss, rel=_STORED_TOLERANCE)
    lines = encoded.journal(1)
    losses = [line.loss for line in lines]
    others = [line.loss for line in stored.journal(1)][: len(losses)]
    assert len(losses) == 6
    assert losses == pytest.approx(others, rel=_STORED_TOLERANCE)
    assert losses != others
    foreign = recipe(save_t5(tmp_path / "other", WORDS, seed=1), precomputed=True)
    refused = Bench(tmp_path / "refused", data, fork_server, foreign)
    assert refused.attempt(1, ranks=1) == [ExitCode.BAD_DATA]
    assert "prepare the data with the recipe's encoder" in refused.said(1, 0)
