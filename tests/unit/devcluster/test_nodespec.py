"""A node's capacity travels as one command line argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_devcluster.nodespec import NodeSpec, numbered_nodes

NAMES = st.from_regex(r"[a-z][a-z0-9./-]{0,20}", fullmatch=True)
QUANTITIES = st.from_regex(r"[0-9]{1,4}(m|Gi|Mi)?", fullmatch=True)


@given(st.dictionaries(NAMES, QUANTITIES, min_size=1))
def test_the_argument_is_read_back_as_written(capacity: dict[str, str]) -> None:
    """`parse` is the inverse of `capacity_argument`."""
    spec = NodeSpec("node", capacity)
    assert NodeSpec.parse("node", spec.capacity_argument()) == spec


@pytest.mark.parametrize("argument", ["cpu", "cpu=", "=1", "cpu=1,,memory=2Gi"])
def test_a_malformed_capacity_is_refused(argument: str) -> None:
    """The message shows what an item has to look like."""
    with pytest.raises(ValueError, match="is not name=quantity"):
        NodeSpec.parse("node", argument)


def test_numbered_nodes_have_different_names() -> None:
    """Nodes are counted from zero; none is allowed, for a control plane alone."""
    assert [node.name for node in numbered_nodes(2)] == ["node-0", "node-1"]
    assert numbered_nodes(0) == ()
