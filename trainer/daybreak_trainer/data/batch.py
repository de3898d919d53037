"""What a step is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.captions import ONE_CAPTION
from daybreak_trainer.data.order import Indices
from daybreak_trainer.recipe.text import Caption


@dataclass(frozen=True)
class StepPlan:
    """How many samples a step's global batch has; which ones follows from where the data stands."""

    step: int
    size: int
    captions: tuple[Caption, ...] = ONE_CAPTION
    """From which a sample's is drawn."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch of `global_size` samples, all of one bucket."""

    step: int
    positions: Indices
    """Positions of these samples in the run, `(local,)`. A step's positions are one range, but a
    rank's need not be: samples are dealt out so that each rank keeps to few shards."""
    indices: Indices
    """Numbers of these samples over all streams, `(local,)`."""
    tensors: Mapping[str, Tensor]
    """`image`: uint8 `(local, 3, height, width)`; every other fixed-shape array of the dataset,
    such as `latent`: its own type, `(local, *shape)`."""
    captions: tuple[str, ...]
    """The one that was drawn for each sample."""
    global_size: int
    own: int
    """How many of these samples count: all of them, or none. With more ranks than samples a rank
    may have none of its own; it gets another's, for every rank takes part in every collective."""
    bucket: tuple[int, int]
    """Height and width of its images in pixels."""
    after: DataPosition
    """Where the data stands once this batch was trained. It travels with the batch, so reading
    ahead can never skip samples at resume."""

    text_lengths: Indices | None = None
    """With precomputed embeddings: tokens of each, `(local,)`, on the host. The embeddings are
    among the tensors: `text`, and of 8 bits `text_scale` too (`data.embeddings.packed`)."""

    @property
    def whole(self) -> range:
        """Positions of the global batch."""
        return range(self.after.samples - self.global_size, self.after.samples)

    def to(self, device: torch.device) -> Batch:
        """With tensors on a device; the copy of pinned tensors may still be under way."""
        moved = {name: t.to(device, non_blocking=True) for name, t in self.tensors.items()}
        return replace(self, tensors=moved)
