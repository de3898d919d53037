"""The same few steps of a tiny model twice: by `TrainStep` on several ranks, and by plain torch in
one process.

Read by `runpy`: with the globals `rank`, `world`, `store`, `cases` and `out` it is one rank, and
writes what each case came to; without them it only lends its functions to the tests.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Dinov2Config, Dinov2Model

from daybreak_trainer.clean import CleanReader
from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.models import text_to_image
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.models.tricks import Tricks
from daybreak_trainer.objectives import draws as chance
from daybreak_trainer.objectives import flow
from daybreak_trainer.objectives.losses import Seers
from daybreak_trainer.objectives.teachers import Teacher
from daybreak_trainer.optim import build as optimizers
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.parallel.precision import compute_dtype, has_bf16
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.parallel.shard import mesh_of, shard
from daybreak_trainer.recipe import Recipe, resolve
from daybreak_trainer.step import TrainStep

CPU = torch.device("cpu")
WORDS = ["a", "blue", "red", "square"]
LEARNING_RATE = 3e-3
SIDE = 16
TEACHER_WIDTH = 16


@dataclass(frozen=True)
class Case:
    """How the ranks compute, and what."""

    name: str
    compute: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (8, 8, 8)
    """Global batch of each step."""
    optimizer: str = "adamw"
    precision: str = "fp32"
    units: bool = True
    """Each block a unit, as a large model has it."""
    bad: tuple[int, int] | None = None
    """Step and rank whose images are no numbers."""
    rehearse: bool = False
    objective: dict[str, Any] = field(default_factory=dict)
    denoiser: str = "prx"

    @property
    def recipe(self) -> Recipe:
        return resolve(
            {
                "preset": "smoke",
                "denoiser": {"kind": self.denoiser, "depth": 2},
                "objective": self.objective,
                "optimizer": {"kind": self.optimizer, "weightDecay": 0.1},
                "stages": [
                    {"resolution": SIDE, "steps": len(self.sizes), "batchSize": 8},
                    # Not reached; SPRINT wants one.
                    {"resolution": SIDE, "steps": 1, "batchSize": 8, "routing": False},
                ],
                "precision": self.precision,
            }
        )


@dataclass(frozen=True)
class Batch:
    step: int
    positions: np.ndarray[Any, np.dtype[np.int64]]
    tensors: Mapping[str, Tensor]
    captions: tuple[str, ...]
    global_size: int
    own: int
    whole: range


@dataclass
class Outcome:
    """After all steps: whole tensors by name, and what each step said."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    losses: list[float]
    norms: list[float]
    taken: list[bool]
    names: list[str]
    """Of the parameters, as a checkpoint holds them."""
    untouched: bool = True
    """Whether the bad step left weights, optimizer state and average of all ranks as they were."""
    read: list[str] = field(default_factory=list)
    """What the host read of tensors' values during the steps."""
    forwards: int = 0
    """Times that the first block's attention was computed."""
    graphs: tuple[int, int] = (0, 0)
    """Compiled after the rehearsal and after all steps."""


def batch(sizes: tuple[int, ...], step: int, rank: int, world: int) -> Batch:
    """A rank's part of a step's global batch; images and captions follow from the position."""
    part = rank_slice(sizes[step], rank, world)
    own = part.stop - part.start
    if not own:
        part = slice(0, 1)
    start = sum(sizes[:step])
    positions = np.arange(start + part.start, start + part.stop, dtype=np.int64)
    images = [
        torch.randint(256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(int(p)))
        for p in positions
    ]
    captions = tuple(f"a {WORDS[1 + int(p) % 2]} square" for p in positions)
    tensors = {"image": torch.stack(images).to(torch.uint8)}
    return Batch(
        step, positions, tensors, captions, sizes[step], own, range(start, start + sizes[step])
    )


def model_of(recipe: Recipe) -> tuple[text_to_image.TextToImage, TextTower]:
    """Weights that all matter: as built, gates and the last layer are zero."""
    aligned = recipe.objective.alignment is not None
    model, text = text_to_image.build(recipe, WORDS, TEACHER_WIDTH if aligned else None)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, text


def seers_of(recipe: Recipe) -> Seers:
    """A small teacher, the same in every process, where the recipe has one."""
    if recipe.objective.alignment is None:
        return Seers()
    config = Dinov2Config(
        hidden_size=TEACHER_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=2,
        layerscale_value=1.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Dinov2Model(config).requires_grad_(False).eval()
    half = torch.full((3, 1, 1), 0.5)
    return Seers(Teacher(model, 2, 16, half, half, torch.float32, TEACHER_WIDTH))


class Reads(TorchDispatchMode):
    """Notes every operation whose result depends on values: on a GPU the host waits for each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or "nonzero" in str(func):
            self.found.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


# --- one process, plain torch -------------------------------------------------------------------


def reference(case: Case) -> Outcome:
    recipe = case.recipe
    model, text = model_of(recipe)
    dtype = compute_dtype(case.precision, has_bf16(CPU))
    if case.optimizer == "adamw":
        options = recipe.optimizer
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        made: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
                lr=LEARNING_RATE,
                betas=(options.beta1, options.beta2),
                eps=options.epsilon,
                weight_decay=options.weight_decay,
                foreach=False,
            )
        ]
    else:
        made = optimizers.build(model, recipe.optimizer, dtype)
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * group["factor"]
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, norms, taken = [], [], []
    for step in range(len(case.sizes)):
        computing = copy.deepcopy(model).to(dtype)
        loss = _mean_loss(recipe, computing, text, dtype, batch(case.sizes, step, 0, 1))
        loss.backward()
        for parameter, computed in zip(model.parameters(), computing.parameters(), strict=True):
            assert computed.grad is not None
            parameter.grad = computed.grad.float()
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm or 1e9)
        bad = case.bad is not None and case.bad[0] == step
        losses.append(float("nan") if bad else loss.item())
        norms.append(float("nan") if bad else norm.item())
        taken.append(not bad)
        if bad:
            continue
        for optimizer in made:
            optimizer.step()
        decay = min(recipe.ema.decay, (2 + step) / (11 + step))
        for name, parameter in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return Outcome(weights, average, losses, norms, taken, sorted(model.state_dict()))


def _mean_loss(
    recipe: Recipe, model: nn.Module, text: TextTower, dtype: torch.dtype, given: Batch
) -> Tensor:
    clean = given.tensors["image"].float() / 127.5 - 1
    draws = chance.draw(
        recipe.objective,
        recipe.text.caption_dropout,
        recipe.seed,
        given.positions,
        given.whole,
        (3, SIDE, SIDE),
        recipe.tokens(SIDE, SIDE),
        CPU,
    )
    dropped = draws.drop_caption.tolist()
    captions = ["" if d else c for d, c in zip(dropped, given.captions, strict=True)]
    ids, mask = text.tokenize(captions, CPU)
    noised = flow.noised(clean, draws.noise, draws.timesteps).to(dtype)
    tricks = Tricks.of(recipe, recipe.stages[0])
    found = model(noised, draws.timesteps, mask, input_ids=ids, scores=draws.scores, tricks=tricks)
    loss = flow.loss_per_sample(
        recipe.objective, found.output, clean, draws.noise, draws.timesteps, found.kept
    ).mean()
    if recipe.objective.contrast:
        loss = loss - recipe.objective.contrast * _contrast(recipe, found.output, clean, draws)
    if (aligned := recipe.objective.alignment) is not None:
        teacher = seers_of(recipe).teacher
        assert teacher is not None
        patches = SIDE // recipe.denoiser.patch_size
        wanted = teacher.features(clean, (patches, patches))
        here, there = (
            values / values.norm(dim=2, keepdim=True) for values in (found.hidden, wanted)
        )
        if found.visible is not None:
            there = torch.stack([row[at] for row, at in zip(there, found.visible, strict=True)])
        loss = loss + aligned.weight * (1 - (here * there).sum(dim=2)).mean()
    return loss


def _contrast(recipe: Recipe, output: Tensor, clean: Tensor, draws: Any) -> Tensor:
    """Mean square distance to the velocity of the sample before, on the same of four ranks."""
    t = draws.timesteps[:, None, None, None]
    x_t = (1 - t) * clean + t * draws.noise
    found = (x_t - output.float()) / t.clamp_min(recipe.objective.timestep_floor)
    total = torch.zeros(())
    for rank in range(4):
        part = rank_slice(len(clean), rank, 4)
        if part.stop - part.start > 1:
            others = (draws.noise - clean)[part].roll(1, dims=0)
            total = total + (found[part] - others).square().mean(dim=(1, 2, 3)).sum()
    return total / len(clean)


# --- several ranks ------------------------------------------------------------------------------


def sharded(case: Case, rank: Rank) -> Outcome:
    recipe, compute = case.recipe, ComputeSettings(**case.compute)
    model, text = model_of(recipe)
    dtype = compute_dtype(case.precision, has_bf16(CPU))
    threshold = 0 if case.units else 1 << 30
    mesh = mesh_of(rank, compute)
    shard(model, model.units, mesh, dtype, compute, one_unit_parameters=threshold)
    made = optimizers.build(model, recipe.optimizer, dtype)
    ema = Ema(model, recipe.ema.decay)
    aligned = recipe.objective.in_stage(recipe.stages[0]).alignment is not None
    used = [p for n, p in model.named_parameters() if aligned or "projector" not in n]
    called: list[bool] = []
    step = TrainStep(
        recipe,
        model,
        text,
        made,
        ema,
        rank,
        dtype,
        CleanReader(recipe, None, CPU, dtype),
        device_batch_size=compute.device_batch_size,
        seers=seers_of(recipe),
        before_update=lambda: called.append(all(p.grad is not None for p in used)),
    )
    forwards: list[None] = []
    if compute.compile == "none":
        attention = {"prx": "attention", "sana": "attn1"}[case.denoiser]
        hooked = model.units[0].get_submodule(attention)
        hooked.register_forward_hook(lambda *_: forwards.append(None))
    state, reads = torch.get_rng_state(), Reads()
    if case.rehearse:
        before = _everything(model, made, ema)
        for size in sorted(set(case.sizes)):
            step.rehearse(SIDE, SIDE, size, 16)
        _same(before, _everything(model, made, ema))
        assert all(p.grad is None for p in model.parameters())
    graphs = _graphs()
    losses, norms, taken, untouched = [], [], [], True
    for number in range(len(case.sizes)):
        given = batch(case.sizes, number, rank.rank, rank.world)
        bad = case.bad is not None and case.bad[0] == number
        if case.bad == (number, rank.rank):
            given.tensors["image"] = given.tensors["image"].float() * torch.nan  # type: ignore[index]
        before = _everything(model, made, ema)
        with reads if compute.compile == "none" else nullcontext():
            numbers = step.run(given, LEARNING_RATE)
        if bad:
            untouched = _same(before, _everything(model, made, ema))
        loss = numbers.loss_share.clone()
        dist.all_reduce(loss)
        losses.append(float(loss))
        norms.append(float(numbers.norm))
        taken.append(bool(numbers.finite))
    assert called == [True] * len(case.sizes)
    assert torch.equal(state, torch.get_rng_state())
    everywhere = torch.tensor([untouched, *taken], dtype=torch.int64)
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return Outcome(
        weights={name: _whole(p) for name, p in model.named_parameters()},
        average={name: _whole(p) for name, p in ema.shadow.items()},
        losses=losses,
        norms=norms,
        taken=[bool(flag) for flag in everywhere[1:]],
        names=sorted(get_model_state_dict(model)),
        untouched=bool(everywhere[0]),
        read=reads.found,
        forwards=len(forwards),
        graphs=(graphs, _graphs()),
    )


def _everything(model: nn.Module, made: list[torch.optim.Optimizer], ema: Ema) -> dict[str, Tensor]:
    """Copies of this rank's weights, optimizer state and average."""
    found = {f"model.{name}": p for name, p in model.named_parameters()}
    found |= {f"ema.{name}": p for name, p in ema.shadow.items()}
    for kind, optimizer in enumerate(made):
        for number, state in enumerate(optimizer.state.values()):
            found |= {f"optimizer.{kind}.{number}.{name}": value for name, value in state.items()}
    local = {k: v.to_local() if isinstance(v, DTensor) else v for k, v in found.items()}
    return {name: value.detach().clone() for name, value in local.items()}


def _same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """To the bit; state that a first step makes is zero."""
    zero = all(not after[name].any() for name in after.keys() - before.keys())
    return zero and all(torch.equal(value, after[name]) for name, value in before.items())


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def main(number: int, world: int, store: str, cases: list[dict[str, Any]], out: str) -> None:
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{Path(out).parent}/inductor"  # a pod's ranks share it
    inductor.compile_threads = 1  # no pool of processes, each of which imports torch
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    rank = Rank(number, world, CPU, number % 2, 2, nodes=max(1, world // 2), ranks_per_node=2)
    outcomes = {}
    for case in cases:
        torch._dynamo.reset()
        outcomes[case["name"]] = vars(sharded(Case(**case), rank))
    if number == 0:
        torch.save(outcomes, out)
    dist.destroy_process_group()


if "rank" in globals():
    given = globals()
    main(given["rank"], given["world"], given["store"], given["cases"], given["out"])
