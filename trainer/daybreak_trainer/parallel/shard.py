"""From a module on one device to the same module over all ranks, in this order: what the backward
pass computes again, compilation of each unit, FSDP2 of each unit and of the rest.

Parameter names stay as they are, so a checkpoint does not depend on how it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch._functorch.config as functorch_config
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.parallel.topology import ComputeError, plan

ONE_UNIT_PARAMETERS = 1 << 24
"""Gathering block by block saves memory that a smaller model does not need, and its collectives
cost more than they move: with 2.6 M parameters on two cores a step took a quarter longer."""


def mesh_of(rank: Rank, compute: ComputeSettings) -> DeviceMesh:
    """The mesh that `compute.sharding` asks for on these workers.

    Raises:
        ComputeError: these workers cannot be meshed so.
    """
    topology = plan(
        compute.sharding, world=rank.world, nodes=rank.nodes, ranks_per_node=rank.ranks_per_node
    )
    return init_device_mesh(rank.device.type, topology.shape, mesh_dim_names=topology.names)


def shard(
    model: nn.Module,
    units: Sequence[nn.Module],
    mesh: DeviceMesh,
    dtype: torch.dtype,
    compute: ComputeSettings,
    *,
    one_unit_parameters: int = ONE_UNIT_PARAMETERS,
) -> None:
    """Shards `model` in place over `mesh`; `units` are its transformer blocks in the order of the
    forward pass, and `model` has the forward pass.

    Parameters stay fp32, compute runs in `dtype`, gradients are reduced in fp32. Inputs are not
    cast: timesteps and rotary tables must stay fp32 (bf16 has 8 bits of mantissa). A model of at
    most `one_unit_parameters` is gathered as a whole.

    Raises:
        ComputeError: a memory budget without compilation.
    """
    _recompute(units, compute)
    if compute.compile == "blocks":
        for unit in units:
            # Each shape is compiled as it is: symbolic numbers of tokens cost speed, and all passes
            # of a step have one size.
            unit.compile(fullgraph=True, dynamic=False)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    if sum(p.numel() for p in model.parameters()) > one_unit_parameters:
        for unit in units:
            # The backward pass begins with the last unit: it is not worth letting go of.
            keep = unit is units[-1]
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=not keep)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        _prefetch(model, units)
    else:
        fully_shard(model, mesh=mesh, mp_policy=policy)


def _recompute(units: Sequence[nn.Module], compute: ComputeSettings) -> None:
    if compute.activation_checkpointing == "budget":
        if compute.compile == "none":
            raise ComputeError(
                "compute.activationCheckpointing: budget is the compiler's choice of what to keep; "
                "set compute.compile to blocks, or activationCheckpointing to blocks or none"
            )
        functorch_config.activation_memory_budget = compute.memory_budget
    elif compute.activation_checkpointing == "blocks":
        for unit in units:
            # In place of a wrapping module, which would rename every parameter below it.
            cast(Any, unit).forward = _checkpointed(unit.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


def _prefetch(model: nn.Module, units: Sequence[nn.Module]) -> None:
    """While a unit computes, the next one's weights are gathered, even where the host is late. The
    backward pass does so by itself."""
    chain = [cast(FSDPModule, module) for module in (model, *units)]
    for module, following in pairwise(chain):
        module.set_modules_to_forward_prefetch([following])
