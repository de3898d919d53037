"""What a family of denoisers is to the trainer: a diffusers transformer in pieces.

The pieces stand apart so that tokens can leave and come back between blocks. A family is a file:
a subclass of diffusers' transformer with the same parameter names, and a `build` (`denoiser.py`
lists them); its formula of FLOPs stands in `flops.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

Self = TypeVar("Self", bound="Context")


class Context(Protocol):
    """What a sample's blocks share: text, timestep, places of its tokens."""

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens a column and a row."""

    def at(self: Self, visible: Tensor) -> Self:
        """The same for tokens `visible` `(batch, count)` alone."""


class Denoiser(Protocol):
    """A module: `(batch, channels, height, width)` in and out."""

    @property
    def units(self) -> list[nn.Module]:
        """The transformer blocks, in the order of the forward pass."""

    def enter_stage(self, stage: int) -> None:
        """From here on images are of this stage of the recipe, from 0; as built, of the last."""

    def enter(
        self, noised: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, Any]:
        """Tokens `(batch, tokens, hidden)` and their context, of images, t in 0..1 `(batch,)`, text
        `(batch, text tokens, text width)` and its mask `(batch, text tokens)`."""

    def through(self, number: int, tokens: Tensor, context: Any) -> Tensor:
        """Tokens behind block `number`, which is called as a module: it may be sharded."""

    def leave(self, tokens: Tensor, context: Any) -> Tensor:
        """The image, zero at patches whose tokens are not there."""

    def block_matrices(self) -> dict[str, int]:
        """The matrices that turn hidden states into hidden states, by parameter name, and in how
        many parts each is to be orthogonalised (Muon)."""

    def learning_rate_factors(self) -> dict[str, float]:
        """On AdamW's learning rate, by parameter name; 1 for those that are not there."""

    def stock(self) -> nn.Module:
        """The diffusers transformer of this shape, with none of our code and with no weights: on
        the meta device."""

    def spelled_out(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`weights` by this module's names, in the order of its parameters, by those of the stock
        transformer: one at a time, for together they may be all that the host has room for."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
