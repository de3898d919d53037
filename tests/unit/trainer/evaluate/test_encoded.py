"""Prompts of evaluations where the encoder is kept for the export alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_encoders import save_qwen, save_t5

from daybreak_trainer.evaluate.encoded import EncodedPrompts
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.text import pretrained

WORDS = ["a", "red", "blue", "circle", "square"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("save", [save_t5, save_qwen])
@pytest.mark.parametrize("padding", [Padding(12, None), Padding(12, 4)])
def test_a_prompt_is_encoded_once(
    save: Callable[[Path, list[str]], Path], padding: Padding, tmp_path: Path
) -> None:
    """To what the encoder makes of it, in any company. What the evaluation has no use for any more
    is forgotten, and the encoder's weights stay the very ones."""
    tower = pretrained(str(save(tmp_path / "encoder", WORDS)), padding)
    weights = {name: value.clone() for name, value in tower.encoder.named_parameters()}
    seen: list[int] = []
    moved: list[int] = []
    module = tower.encoder
    module.register_forward_hook(
        lambda _, args, given, out: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    prompts = EncodedPrompts(tower, CPU, torch.float32)
    texts = ["", *(f"a {one} {shape}" for one in WORDS for shape in WORDS * 2), "red"]
    prompts.hold([*texts, *texts], moved.append)
    assert (sum(seen), moved) == (27, [1])
    seen.clear()
    prompts.hold(texts, moved.append)
    drawn = ["red", "a blue circle", "", "red"]
    found = prompts.condition(drawn, CPU, torch.bfloat16)
    assert (seen, moved) == ([], [1])
    expected = tower.condition(drawn, CPU, torch.float32)
    assert torch.equal(found["mask"], expected["mask"])
    real = found["mask"][:, :, None]
    assert found["text"].dtype == torch.bfloat16
    torch.testing.assert_close(
        found["text"].float(), torch.where(real, expected["text"], 0.0), rtol=1e-2, atol=1e-3
    )
    prompts.hold(["red"], moved.append)
    with pytest.raises(KeyError, match="a blue circle"):
        prompts.condition(drawn, CPU, torch.float32)
    for name, value in tower.encoder.named_parameters():
        assert torch.equal(value, weights[name])
