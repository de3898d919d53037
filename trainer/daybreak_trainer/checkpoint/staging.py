"""Copies of the state in host memory, made while training goes on.

From a GPU the copies run on a stream of their own into pinned memory: nothing on the host waits,
and the update of the weights is only ordered behind them on the device. On a CPU they are made in
the writer's thread, and the update waits for them. Either way they have a whole forward and
backward pass to hide behind.

The copies' memory is kept from one save to the next: as much host memory as this rank's share of
the state has bytes (torch rounds pinned blocks up to a power of two).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Tensors = Mapping[str, Tensor]


def flattened(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a nested state by dotted name. What is no tensor (an optimizer's options) is
    the recipe's to say and is left out.

    Raises:
        ValueError: two tensors have one name.
    """
    found: dict[str, Tensor] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            if name in found:
                raise ValueError(f"two tensors of the state are named {name}")
            found[name] = value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(item, f"{name}.{key}" if name else str(key))

    visit(state, "")
    return found


class Staging:
    """One set of copies in the making."""

    def __init__(self, live: Tensors, copies: dict[str, Tensor], on_device: bool) -> None:
        self._live: Tensors = live
        self._copies = copies
        self._copied = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        self._host_done = threading.Event()

    def enqueue(self, stream: torch.cuda.Stream) -> None:
        """Training's thread, GPU only: orders the copies behind all that was computed so far."""
        assert self._copied is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._copy()
            self._copied.record(stream)

    def finish(self) -> Tensors:
        """Writer's thread: returns the copies once they hold the state."""
        try:
            if self._copied is None:
                self._copy()
            else:
                self._copied.synchronize()
        finally:
            self._live = {}
            self._host_done.set()
        return self._copies

    def before_update(self) -> None:
        """Training's thread: after this the live tensors may change."""
        if self._copied is None:
            self._host_done.wait()
        else:
            torch.cuda.current_stream().wait_event(self._copied)

    @torch.no_grad()
    def _copy(self) -> None:
        for name, tensor in self._live.items():
            local(self._copies[name]).copy_(local(tensor), non_blocking=True)


class Stager:
    """Makes `Staging`s, one at a time, in memory that is kept."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_device else None  # type: ignore[no-untyped-call]
        self._copies: dict[str, Tensor] = {}

    def reserve(self, live: Tensors) -> None:
        """Takes the memory for copies of `live` now, so that the first save need not."""
        self._copies = {name: self._room(name, tensor) for name, tensor in live.items()}

    def start(self, live: Tensors) -> Staging:
        """Begins to copy. The copies of the `Staging` before are overwritten."""
        self.reserve(live)
        staging = Staging(live, self._copies, self._on_device)
        if self._stream is not None:
            staging.enqueue(self._stream)
        return staging

    def _room(self, name: str, live: Tensor) -> Tensor:
        kept = self._copies.get(name)
        if kept is not None and _like(kept) == _like(live):
            return kept
        part = local(live)
        pinned = self._on_device and part.numel() > 0
        room = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)
        if isinstance(live, DTensor):
            # from_local would move it to the mesh's device.
            return DTensor(room, live._spec, requires_grad=False)  # type: ignore[no-untyped-call]
        return room


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    # to_local would dispatch an operator a tensor: a tenth of a second in a large model.
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()


def _like(tensor: Tensor) -> tuple[object, ...]:
    spec = tensor._spec if isinstance(tensor, DTensor) else None
    return spec, local(tensor).shape, tensor.dtype
