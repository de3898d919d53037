"""Muon: momentum whose update is made orthogonal, for the matrices of the blocks.

A matrix's update needs the whole matrix, and a sharded model has it nowhere. Here every matrix has
an owner among the ranks that share it: one exchange brings an owner its matrices' pieces, the owner
does all iterations by itself, and a second exchange sends the pieces back. So a step costs two
collectives, not some for each iteration of each matrix, and the ranks share the work.

Source: K. Jordan et al., "Muon", 2024; the scale that lets AdamW's learning rate be used is
Moonlight's (arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SCALE = 0.2
"""Root mean square of an update over the learning rate: about what AdamW's is."""

_BATCH_ELEMENTS = 1 << 26
"""Of matrices that are iterated on together: bounds the memory for the iteration's products."""


@dataclass(frozen=True)
class Matrix:
    """A parameter `(rows, columns)`, or a convolution of 1 × 1 `(rows, columns, 1, 1)`, that is
    `parts` matrices on top of each other (fused Q, K, V: each is made orthogonal by itself).
    `factor` is on its learning rate."""

    parameter: torch.nn.Parameter
    parts: int = 1
    factor: float = 1.0


class Muon(Optimizer):
    """Muon over sharded or plain parameters, on any mesh that shards rows in one dimension."""

    def __init__(
        self,
        matrices: Iterable[Matrix],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is what matrices are exchanged and iterated on in; bf16 does (Jordan et al.).

        Raises:
            ValueError: a parameter that is no matrix, or whose rows the parts do not divide.
        """
        given = list(matrices)
        for matrix in given:
            shape = tuple(matrix.parameter.shape)
            if len(shape) < 2 or prod(shape[2:]) != 1 or shape[0] % matrix.parts:
                raise ValueError(f"Muon takes matrices of {matrix.parts} equal parts, not {shape}")
        defaults = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(_groups(given, weight_decay), defaults)
        self._parts: dict[Tensor, int] = {m.parameter: m.parts for m in given}
        self._dtype = dtype
        self.found_inf: Tensor | None = None
        """As torch's fused AdamW has it: 1 skips the next steps' updates, decided on the device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient; a collective where they are sharded.

        Where `found_inf`, a scalar on the device, is 1, nothing changes but that the collectives
        take place: the host does not know.
        """
        assert closure is None  # no line search here
        keep = None if self.found_inf is None else 1.0 - self.found_inf
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"], keep) for p in parameters]
            self._orthogonalise(parameters, updates)
            locals_ = [_local(p).flatten(1) for p in parameters]
            decay = group["lr"] * group["weight_decay"]
            if keep is not None:
                torch._foreach_mul_(updates, keep)
                decay = decay * keep
            if group["weight_decay"]:
                torch._foreach_mul_(locals_, 1.0 - decay)
            torch._foreach_add_(locals_, updates, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor, momentum: float, keep: Tensor | None) -> Tensor:
        """Nesterov momentum of this rank's rows, a new matrix; finite where `keep` is 0."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None  # asked before
        gradient, average = _local(parameter.grad), _local(state["momentum_buffer"])
        if keep is None:
            average.lerp_(gradient, 1.0 - momentum)
        else:
            gradient = torch.where(keep > 0, gradient, 0.0)
            average.lerp_(gradient, (1.0 - momentum) * keep)
        return gradient.lerp(average, momentum).flatten(1)

    def _orthogonalise(self, parameters: list[Tensor], updates: list[Tensor]) -> None:
        """Replaces each update, in place, by this rank's rows of the orthogonalised matrix."""
        by_group: dict[dist.ProcessGroup | None, list[int]] = {}
        for number, parameter in enumerate(parameters):
            by_group.setdefault(_shard_group(parameter), []).append(number)
        for group, numbers in by_group.items():
            if group is None:
                self._finish([(parameters[n], updates[n]) for n in numbers])
                continue
            # Work is dealt out by size, largest first, so that owners end at about the same time.
            numbers.sort(key=lambda n: (-parameters[n].numel(), n))
            self._exchange(group, [(parameters[n], updates[n]) for n in numbers])

    def _finish(self, work: list[tuple[Tensor, Tensor]]) -> None:
        """Makes whole updates orthogonal and of AdamW's size, in place: on a GPU those of one shape
        at once, for launching many small products takes longer than computing them."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter, update in work:
            for part in torch.chunk(update, self._parts[parameter]):
                by_shape.setdefault(part.shape, []).append(part)
        for shape, parts in by_shape.items():
            scale = _SCALE * sqrt(max(shape))
            if not parts[0].is_cuda:
                for part in parts:
                    part.copy_(orthogonalised(part, self._dtype)).mul_(scale)
                continue
            size = max(1, _BATCH_ELEMENTS // shape.numel())
            for start in range(0, len(parts), size):
                batch = parts[start : start + size]
                done = orthogonalised(torch.stack(batch), self._dtype) * scale
                for part, result in zip(batch, done, strict=True):
                    part.copy_(result)

    def _exchange(self, group: dist.ProcessGroup, work: list[tuple[Tensor, Tensor]]) -> None:
        """Brings owners whole matrices, and everybody their rows of the results."""
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        dealt = [work[owner::world] for owner in range(world)]
        mine = dealt[rank]
        rows = {p: _rows(p.shape[0], world) for p, _ in work}
        sent = [[p.shape[1] * rows[p][rank] for p, _ in owned] for owned in dealt]
        received = [[p.shape[1] * rows[p][source] for p, _ in mine] for source in range(world)]
        flat = torch.cat([u.to(self._dtype).reshape(-1) for owned in dealt for _, u in owned])
        pieces = _all_to_all(flat, sent, received, group)
        whole = [
            torch.cat([pieces[source][number].view(-1, p.shape[1]) for source in range(world)])
            for number, (p, _) in enumerate(mine)
        ]
        self._finish([(p, matrix) for (p, _), matrix in zip(mine, whole, strict=True)])
        results: list[list[Tensor]] = [[] for _ in range(world)]
        for (parameter, _), matrix in zip(mine, whole, strict=True):
            for destination, part in enumerate(torch.split(matrix, rows[parameter])):
                results[destination].append(part.reshape(-1))
        empty = flat.new_empty(0)
        back = torch.cat([empty, *(part for parts in results for part in parts)])
        pieces = _all_to_all(back, received, sent, group)
        for owner, owned in enumerate(dealt):
            for number, (_, update) in enumerate(owned):
                update.copy_(pieces[owner][number].view_as(update))


def _groups(matrices: list[Matrix], weight_decay: float) -> list[dict[str, Any]]:
    """A parameter group for each factor. The decay does not follow the factor."""
    by_factor: dict[float, list[torch.nn.Parameter]] = {}
    for matrix in matrices:
        by_factor.setdefault(matrix.factor, []).append(matrix.parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": weight_decay / factor}
        for factor, parameters in by_factor.items()
    ]


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix `(rows, columns)`, or a stack `(count, rows, columns)` of them, with the same
    singular vectors and singular values near 1: 0.7 to 1.2, for the quintic Newton-Schulz iteration
    trades accuracy for speed. Computed, and returned, in `dtype`."""
    a, b, c = _COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # beta * first + alpha * second @ third, in one call: on small matrices calls are what costs.
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = fused(gram, gram, gram, beta=b, alpha=c)
        x = fused(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _all_to_all(
    flat: Tensor, sent: list[list[int]], received: list[list[int]], group: dist.ProcessGroup
) -> list[list[Tensor]]:
    """Sends pieces of `sent[destination]` elements each; returns those of every source."""
    totals = [sum(sizes) for sizes in received]
    out = flat.new_empty(sum(totals))
    dist.all_to_all_single(out, flat, totals, [sum(sizes) for sizes in sent], group=group)
    parts = zip(torch.split(out, totals), received, strict=True)
    return [list(torch.split(part, sizes)) for part, sizes in parts]


def _rows(rows: int, world: int) -> list[int]:
    """How many rows of a matrix each rank holds: `torch.chunk`'s split, as FSDP2 shards."""
    size = -(-rows // world)
    return [max(0, min(size, rows - rank * size)) for rank in range(world)]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard_group(parameter: Tensor) -> dist.ProcessGroup | None:
    """The ranks that together hold the parameter once; None where this rank holds it whole.

    Under HSDP these are the ranks of one replica, and every replica computes the same.
    """
    if not isinstance(parameter, DTensor):
        return None
    sharded = [n for n, place in enumerate(parameter.placements) if isinstance(place, Shard)]
    if not sharded or prod(parameter.device_mesh.size(n) for n in sharded) == 1:
        return None
    if len(sharded) > 1 or parameter.placements[sharded[0]] != Shard(0):
        raise ValueError(f"Muon needs rows sharded in one mesh dimension: {parameter.placements}")
    return parameter.device_mesh.get_group(sharded[0])
