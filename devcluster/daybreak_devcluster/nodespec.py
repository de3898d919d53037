"""What a node of the development cluster says it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

DEFAULT_CAPACITY: Mapping[str, str] = MappingProxyType({"cpu": "8", "memory": "16Gi", "pods": "40"})


@dataclass(frozen=True)
class NodeSpec:
    """A node's name and the capacity it registers, which need not be what the machine has."""

    name: str
    capacity: Mapping[str, str] = field(default_factory=lambda: DEFAULT_CAPACITY)
    """Resource name to quantity; `nvidia.com/gpu` makes pretend GPUs."""

    def capacity_argument(self) -> str:
        """The capacity as `cpu=8,memory=16Gi`."""
        return ",".join(f"{name}={quantity}" for name, quantity in self.capacity.items())

    @classmethod
    def parse(cls, name: str, argument: str) -> "NodeSpec":
        """The inverse of `capacity_argument`.

        Raises `ValueError` where an item is not `resource=quantity`.
        """
        items = [item.split("=", 1) for item in argument.split(",")]
        if wrong := [item for item in items if len(item) != 2 or not all(item)]:
            raise ValueError(f"capacity {argument!r}: {'='.join(wrong[0])!r} is not name=quantity")
        return cls(name, dict(items))


def numbered_nodes(count: int) -> tuple[NodeSpec, ...]:
    """`count` nodes of the default capacity, named node-0, node-1, …"""
    return tuple(NodeSpec(f"node-{index}") for index in range(count))
