"""The identity of what others trained."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_encoders import save_t5
from torch import nn

from daybreak_trainer.models import pretrained_text
from daybreak_trainer.models.pretrained import checksum
from daybreak_trainer.models.pretrained_text import tokenizer_checksum


def test_a_checksum_counts_scalars_and_layouts() -> None:
    """A batch norm's counter has no dimension; how a tensor lies in memory does not matter."""
    norm = nn.BatchNorm1d(3)
    before = checksum(norm)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    assert checksum(norm) != before
    plain = nn.Linear(3, 3)
    first = checksum(plain)
    plain.weight.data = plain.weight.data.T.contiguous().T
    assert checksum(plain) == first


def test_a_checksum_is_of_values(tmp_path: Path) -> None:
    """An encoder that is stored in bf16 is the same one, read as it is or into fp32."""
    folder = save_t5(tmp_path / "t5", ["a"])
    _, whole = pretrained_text.load(str(folder))
    whole.bfloat16().save_pretrained(folder)
    _, exact = pretrained_text.load(str(folder))
    _, stored = pretrained_text.load(str(folder), "auto")
    assert next(stored.parameters()).dtype == torch.bfloat16
    assert next(exact.parameters()).dtype == torch.float32
    assert checksum(stored) == checksum(exact)


def test_a_tokenizer_is_known_by_its_rules(tmp_path: Path) -> None:
    """Not by its folder or what it was last asked for; other words make another one."""
    tokenizer, _ = pretrained_text.load(str(save_t5(tmp_path / "t5", ["a", "red", "circle"])))
    before = tokenizer_checksum(tokenizer)
    tokenizer(["a red circle"], padding="longest", max_length=2, truncation=True)
    assert tokenizer_checksum(tokenizer) == before
    tokenizer.save_pretrained(tmp_path / "t5")
    again, _ = pretrained_text.load(str(tmp_path / "t5"))
    assert tokenizer_checksum(again) == before
    other, _ = pretrained_text.load(str(save_t5(tmp_path / "other", ["a", "red", "square"])))
    assert tokenizer_checksum(other) != before
