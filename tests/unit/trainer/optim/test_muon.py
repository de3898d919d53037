"""Muon: what an update is, and that sharding changes none of it."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from daybreak_trainer.models import text_to_image
from daybreak_trainer.optim import build as optimizers
from daybreak_trainer.optim.muon import Matrix, Muon, orthogonalised
from daybreak_trainer.recipe import resolve

_STEPS = 3


def _gaussian(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(8, 96), st.integers(8, 96), st.integers(0, 10))
@settings(max_examples=30)
def test_an_update_has_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    """The iteration's band: no singular value above 1.25, and, but for the near-singular ones of
    an almost square matrix, none below 0.3."""
    if max(rows, columns) < 2 * min(rows, columns):
        rows = 2 * max(rows, columns)
    values = torch.linalg.svdvals(orthogonalised(_gaussian(rows, columns, seed)))
    assert float(values.max()) < 1.25
    assert float(values.min()) > 0.3


def test_the_update_keeps_the_singular_vectors() -> None:
    """U S V^T becomes about U V^T: the direction is the gradient's."""
    gradient = _gaussian(64, 16, 1)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    inner = left.T @ orthogonalised(gradient) @ right.T
    assert float((inner - torch.diag(inner.diag())).abs().max()) < 1e-3


def test_many_matrices_at_once_are_each_by_itself() -> None:
    """A stack of matrices, as a GPU gets them, is the same as one after the other."""
    stack = torch.stack([_gaussian(48, 16, n) * 10.0**n for n in range(3)])
    alone = torch.stack([orthogonalised(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalised(stack), alone, rtol=1e-4, atol=1e-4)


def test_fused_matrices_are_orthogonal_one_by_one() -> None:
    """Q, K and V of very unlike size all get an update of the same size."""
    fused = nn.Parameter(torch.zeros(96, 32))
    fused.grad = torch.cat([_gaussian(32, 32, n) * 10.0**n for n in range(3)])
    Muon([Matrix(fused, 3)], learning_rate=1.0, momentum=0.0, weight_decay=0.0).step()
    sizes = [float(part.norm()) for part in fused.detach().chunk(3)]
    assert max(sizes) / min(sizes) < 1.2


def test_a_convolution_of_one_pixel_is_a_matrix() -> None:
    """Updated as the matrix that it is; and a factor slows it down, though not its decay."""
    flat, convolution = (
        nn.Parameter(_gaussian(8, 6, 1).reshape(shape)) for shape in ((8, 6), (8, 6, 1, 1))
    )
    for parameter, factor in ((flat, 1.0), (convolution, 0.5)):
        before = parameter.detach().clone()
        muon = Muon(
            [Matrix(parameter, 2, factor)], learning_rate=1.0, momentum=0.9, weight_decay=0.1
        )
        parameter.grad = _gaussian(8, 6, 2).reshape(parameter.shape)
        for group in muon.param_groups:
            group["lr"] *= group["factor"]
        muon.step()
        update = (parameter.detach() - 0.9 * before).flatten(1) / factor
        if parameter is flat:
            expected = update
    torch.testing.assert_close(update, expected)


def test_a_vector_is_refused() -> None:
    """Only matrices have singular values; the message says the shape."""
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        Muon([Matrix(nn.Parameter(torch.zeros(4)))], learning_rate=1, momentum=0, weight_decay=0)


def test_each_parameter_has_one_optimizer() -> None:
    """Muon takes the blocks' matrices, AdamW all the rest, none both and none neither."""
    recipe = resolve({"preset": "smoke", "optimizer": {"kind": "muon"}})
    model, _ = text_to_image.build(recipe, ["a"])
    adamw, muon = optimizers.build(model, recipe.optimizer, torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    mine = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    rest = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(mine + rest) == sorted(names.values())
    assert "denoiser.blocks.0.attention.img_qkv_proj.weight" in mine
    assert any("text_encoder" in name for name in mine)
    assert not any(
        word in name for name in mine for word in ("modulation", "norm", "bias", "shared", "final")
    )


def test_mup_slows_down_matrices_and_not_their_decay() -> None:
    """AdamW by 256 / width, Muon by its root; and AdamW's part may have a rate of its own."""
    changes = {"kind": "muon", "learningRate": 0.01, "adamwLearningRate": 0.002, "weightDecay": 0.1}
    recipe = resolve(
        {
            "preset": "smoke",
            "denoiser": {"initialisation": "mup", "hiddenSize": 64},
            "optimizer": changes,
        }
    )
    model, _ = text_to_image.build(recipe, ["a"])
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)].removesuffix(".weight"): (group["factor"], group["weight_decay"])
        for optimizer in optimizers.build(model, recipe.optimizer, torch.float32)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found["denoiser.blocks.0.up_proj"] == (2.0, 0.05)
    assert found["denoiser.blocks.0.modulation.lin"] == (pytest.approx(0.2 * 4), 0.1 / 4)
    assert found["denoiser.img_in"] == (pytest.approx(0.2), 0.1)
    assert found["denoiser.img_in.bias"] == (pytest.approx(0.2), 0.0)


def test_only_matrices_decay() -> None:
    """Sana's tables of shifts and scales have two dimensions and are none."""
    recipe = resolve(
        {
            "preset": "smoke",
            "denoiser": {"kind": "sana"},
            "objective": {"prediction": "v"},
            "optimizer": {"weightDecay": 0.1},
        }
    )
    model, _ = text_to_image.build(recipe, ["a"])
    names = {id(p): name for name, p in model.named_parameters()}
    (adamw,) = optimizers.build(model, recipe.optimizer, torch.float32)
    kept = {names[id(p)] for g in adamw.param_groups if not g["weight_decay"] for p in g["params"]}
    tables = {name for name in names.values() if name.endswith("scale_shift_table")}
    vectors = {name for name, p in model.named_parameters() if p.ndim < 2}
    assert len(tables) == recipe.denoiser.depth + 1
    assert kept == tables | vectors


class _Toy(nn.Module):
    """Rows that three ranks cannot share evenly, and a matrix of which one rank holds nothing."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"fused": (30, 10), "wide": (7, 12), "small": (2, 5), "tall": (20, 4)}
        for number, (name, shape) in enumerate(shapes.items()):
            self.register_parameter(name, nn.Parameter(_gaussian(*shape, seed=number)))


def _train(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    parts = {"fused": 3}
    muon = Muon(
        [Matrix(p, parts.get(name, 1)) for name, p in model.named_parameters()],
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.01,
        dtype=dtype,
    )
    for step in range(_STEPS):
        for number, p in enumerate(model.parameters()):
            p.grad = _like(_gaussian(*p.shape, seed=100 * step + number), p)
        muon.step()
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in model.named_parameters()
    }


def _like(full: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`full`, sharded as the parameter is."""
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements)


def _rank(rank: int, mesh_shape: tuple[int, ...], dtype: torch.dtype, store: str, out: str) -> None:
    world = int(torch.tensor(mesh_shape).prod())
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    model = _Toy()
    fully_shard(model, mesh=mesh)
    trained = _train(model, dtype)
    if rank == world - 1:
        torch.save(trained, out)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("mesh", "dtype", "within"),
    [
        ((3,), torch.float32, 1e-5),
        ((2, 2), torch.float32, 1e-5),
        ((3,), torch.bfloat16, 1e-2),
    ],
    ids=["fsdp-3", "hsdp-2x2", "fsdp-3-bf16"],
)
def test_sharding_changes_nothing(
    mesh: tuple[int, ...], dtype: torch.dtype, within: float, tmp_path: Path
) -> None:
    """FSDP over ranks that rows do not divide by, and HSDP, train what one process trains: the
    same matrices are multiplied, whole, by their owner. What is exchanged in bf16 is rounded once
    more."""
    alone = _train(_Toy(), dtype)
    context, out = get_context("fork"), tmp_path / "trained.pt"
    ranks = [
        context.Process(target=_rank, args=(rank, mesh, dtype, str(tmp_path / "store"), str(out)))
        for rank in range(int(torch.tensor(mesh).prod()))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * len(ranks)
    trained = torch.load(out)
    for name, value in alone.items():
        torch.testing.assert_close(trained[name], value, rtol=within, atol=within)
