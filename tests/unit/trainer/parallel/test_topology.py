"""Which ranks share one copy of the model."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.parallel.topology import ComputeError, Topology, plan

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@given(SIZES, st.sampled_from(["auto", "fsdp"]))
def test_every_rank_is_in_the_mesh_once(size: tuple[int, int], sharding: str) -> None:
    """Whatever the workers, auto and fsdp find a mesh of exactly all ranks; hsdp is taken by auto
    alone, from two nodes of two ranks on."""
    nodes, ranks = size
    found = plan(sharding, world=nodes * ranks, nodes=nodes, ranks_per_node=ranks)  # type: ignore[arg-type]
    assert prod(found.shape) == nodes * ranks
    assert len(found.shape) == len(found.names)
    assert (found.kind == "hsdp") == (sharding == "auto" and nodes >= 2 and ranks >= 2)


@given(SIZES)
def test_hsdp_shards_in_a_node_and_replicates_across(size: tuple[int, int]) -> None:
    """The inner dimension, whose ranks are neighbours, is the node; what cannot be is refused."""
    nodes, ranks = size
    if nodes == 1 or ranks == 1:
        with pytest.raises(ComputeError):
            plan("hsdp", world=nodes * ranks, nodes=nodes, ranks_per_node=ranks)
        return
    found = plan("hsdp", world=nodes * ranks, nodes=nodes, ranks_per_node=ranks)
    assert found == Topology((nodes, ranks), ("replicate", "shard"))


def test_nodes_of_unlike_size_share_one_copy() -> None:
    """Nodes of two and of four ranks: auto shards over all six, hsdp says why it cannot be."""
    assert plan("auto", world=6, nodes=2, ranks_per_node=2) == Topology((6,), ("shard",))
    with pytest.raises(ComputeError, match=r"compute\.sharding.*6 ranks are not spread evenly"):
        plan("hsdp", world=6, nodes=2, ranks_per_node=2)
