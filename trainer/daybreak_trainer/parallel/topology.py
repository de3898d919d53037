"""Which ranks share one copy of the model: all of them, or those of a node.

Sharding over all ranks (FSDP) holds the least memory. Sharding within a node and replicating across
nodes (HSDP) gathers weights over the node's fast links only; between nodes goes one all-reduce of
each rank's part of the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daybreak_trainer.recipe import RecipeError

REPLICATE, SHARD = "replicate", "shard"


class ComputeError(RecipeError):
    """Compute settings that these workers cannot follow; the message names the field."""


@dataclass(frozen=True)
class Topology:
    """Shape and names of the device mesh: `(ranks,)`, or `(nodes, ranks of a node)`."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def kind(self) -> Literal["fsdp", "hsdp"]:
        return "fsdp" if len(self.shape) == 1 else "hsdp"


def plan(
    sharding: Literal["auto", "fsdp", "hsdp"], *, world: int, nodes: int, ranks_per_node: int
) -> Topology:
    """The mesh of `world` ranks, numbered node by node. `ranks_per_node` is the fewest of any node.

    `auto` replicates from two nodes of several ranks on.

    Raises:
        ComputeError: hsdp where there is one node, or one rank a node, or nodes differ in size.
    """
    obstacle = _obstacle(world, nodes, ranks_per_node)
    if sharding == "hsdp" and obstacle:
        raise ComputeError(
            f"compute.sharding: hsdp needs several nodes of equally many ranks, at least two; "
            f"{obstacle}; use auto or fsdp, or change the number of nodes or of ranks on each"
        )
    if sharding == "fsdp" or obstacle:
        return Topology((world,), (SHARD,))
    return Topology((nodes, ranks_per_node), (REPLICATE, SHARD))


def _obstacle(world: int, nodes: int, ranks_per_node: int) -> str | None:
    if nodes < 2:
        return f"all {world} rank(s) are on one node"
    if nodes * ranks_per_node != world:
        return f"{world} ranks are not spread evenly over {nodes} nodes"
    if ranks_per_node < 2:
        return f"each of the {nodes} nodes has one rank"
    return None
