"""One rank that judges the averaged weights of a tiny sharded model.

Run by `runpy` with the globals `rank`, `world`, `store` and `out`; without them it lends its
functions to the test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.data.holdout import Indices
from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.data.validation import ValidationBatch
from daybreak_trainer.evaluate.averaged import averaged
from daybreak_trainer.evaluate.draw import Drawer
from daybreak_trainer.evaluate.validate import validation_loss
from daybreak_trainer.models import text_to_image
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.parallel.shard import mesh_of, shard
from daybreak_trainer.recipe import resolve

CPU = torch.device("cpu")
SIDE, TOTAL = 16, 7
WORDS = ["a", "blue", "red", "square"]
PROMPTS = ["a red square", "a blue square", "a square"]
SEED = 5
RECIPE = resolve(
    {
        "preset": "smoke",
        "denoiser": {"depth": 2},
        "stages": [{"resolution": SIDE, "steps": 1, "batchSize": 8}],
        "sampling": {"steps": 4, "guidance": 3.0},
        "precision": "fp32",
    }
)


def perturbed(seed: int) -> tuple[text_to_image.TextToImage, Any]:
    """Weights that all matter: as built, gates and the last layer are zero."""
    model, text = text_to_image.build(RECIPE, WORDS)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, text


def validation_batch(rank: int, world: int) -> ValidationBatch:
    """Seven samples over the ranks; images follow from the number."""
    part = rank_slice(TOTAL, rank, world)
    numbers = np.arange(part.start, part.stop, dtype=np.int64)
    images = [
        torch.randint(256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(int(n)))
        for n in numbers
    ]
    return ValidationBatch(
        numbers=numbers,
        tensors={"image": torch.stack(images).to(torch.uint8)},
        captions=tuple(PROMPTS[int(n) % 3] for n in numbers),
        own=len(numbers),
        rows=-(-TOTAL // world),
        total=TOTAL,
        bucket=(SIDE, SIDE),
    )


def clean(batch: ValidationBatch, chosen: Indices) -> Tensor:
    return batch.tensors["image"][torch.from_numpy(chosen)].float() / 127.5 - 1.0


def judged(model: Any, text: Any, rank: Rank) -> dict[str, Any]:
    """Loss and drawn images of a model as it is."""
    moved: list[int] = []
    batches = [validation_batch(rank.rank, rank.world)]
    loss = validation_loss(
        model, text, RECIPE, batches, clean, rank, torch.float32, 3, moved.append
    )
    drawer = Drawer(RECIPE, model, text, rank, torch.float32, 2, lambda x: x)
    images = drawer.together(PROMPTS, (SIDE, SIDE), SEED, moved.append)
    return {"loss": loss, "images": images}


def loss_of_training(model: Any) -> Tensor:
    """A pass with a gradient, as a step has it, of the weights that the model has."""
    generator = torch.Generator().manual_seed(3)
    noised = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    ids, mask = torch.tensor([[3, 2, 0], [4, 2, 0]]), torch.tensor([[True, True, False]] * 2)
    return model(noised, torch.tensor([0.3, 0.7]), mask, input_ids=ids).output.square().mean()


def main(rank: int, world: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    here = Rank(rank, world, CPU, rank, world, ranks_per_node=world)
    model, text = perturbed(1)
    compute = ComputeSettings(sharding="fsdp")
    shard(model, model.units, mesh_of(here, compute), torch.float32, compute, one_unit_parameters=0)
    ema = Ema(model, 0.9)
    averages, _ = perturbed(2)
    with torch.no_grad():
        from torch.distributed.tensor import distribute_tensor

        for name, parameter in averages.named_parameters():
            whole = ema.shadow[name]
            placed = distribute_tensor(parameter.detach(), whole.device_mesh, whole.placements)
            whole.copy_(placed)
    loss_of_training(model).backward()
    gradients = [p.grad.to_local().clone() for p in model.parameters() if p.grad is not None]
    before = {n: p.to_local().detach().clone() for n, p in model.named_parameters()}
    shadow = {n: v.to_local().clone() for n, v in ema.shadow.items()}
    random_state = torch.get_rng_state()
    expected = loss_of_training(model).detach()
    with averaged(model, ema):
        found = judged(model, text, here)
    untouched = (
        all(torch.equal(p.to_local(), before[n]) for n, p in model.named_parameters())
        and all(torch.equal(v.to_local(), shadow[n]) for n, v in ema.shadow.items())
        and all(
            torch.equal(p.grad.to_local(), g)
            for p, g in zip(
                (p for p in model.parameters() if p.grad is not None), gradients, strict=True
            )
        )
        and torch.equal(torch.get_rng_state(), random_state)
        and model.training
    )
    found |= {"untouched": untouched, "same": torch.equal(loss_of_training(model), expected)}
    get_model_state_dict(model)  # the model is whole
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if "world" in globals():
    main(globals()["rank"], globals()["world"], globals()["store"], globals()["out"])
