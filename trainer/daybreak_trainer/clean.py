"""What a batch's images are to the denoiser: pixels in -1..1, or an autoencoder's scaled latents,
read from the data or made of the images in every step."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from daybreak_trainer.data.card import CARD, bucket_size
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import IMAGE, LATENT
from daybreak_trainer.data.latents import LatentSpace
from daybreak_trainer.models import flops
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.recipe import Recipe

_STORED = ("float16", "float32")


def columns(recipe: Recipe, *, compared: bool = False) -> tuple[str, ...]:
    """What a batch of the recipe must hold beside text. A teacher looks at images, whatever the
    denoiser works on, and so does who compares drawn ones with them (`compared`)."""
    if recipe.latent is None or not recipe.latent.precomputed:
        return (IMAGE,)
    aligned = any(recipe.objective.in_stage(stage).alignment for stage in recipe.stages)
    return (LATENT, IMAGE) if aligned or compared else (LATENT,)


def check(recipe: Recipe, corpus: Corpus, space: LatentSpace) -> None:
    """That stored latents are those of the recipe's autoencoder, `space`.

    Raises:
        DatasetError: a stream's are not; the message says in what they differ.
    """
    assert recipe.latent is not None  # there is an autoencoder
    if not recipe.latent.precomputed:
        return
    for card, stream in zip(corpus.cards, corpus.description.streams, strict=True):
        where = f"{stream.url}/{CARD}"
        if card.latents is None:
            raise DatasetError(
                f"{where}: does not say which autoencoder made the column {LATENT} (latents); "
                "write it with daybreak prepare --latents"
            )
        if (difference := card.latents.difference(space)) is not None:
            raise DatasetError(
                f"{where}: its latents have {difference}, as recipe.latent.autoencoder "
                f"({space.autoencoder}) has; name the one that they were made with, or prepare "
                "the data again"
            )
    for bucket, found in corpus.buckets.items():
        latent = next(column for column in found if column.name == LATENT)
        height, width = (side // space.downsampling for side in bucket_size(bucket))
        wanted = (space.channels, height, width)
        if latent.shape != wanted or latent.dtype not in _STORED:
            raise DatasetError(
                f"bucket {bucket} of the data has latents {latent.encoding}; recipe.latent needs "
                f"{' or '.join(_STORED)} of shape {','.join(map(str, wanted))}"
            )


def check_resolution(recipe: Recipe, corpus: Corpus, resolution: int) -> None:
    """That a stage, whose corpus this is, has latents of its own resolution: images are made
    smaller as they are read, and latents cannot be.

    Raises:
        DatasetError: it has not.
    """
    if LATENT in columns(recipe) and corpus.reduction > 1:
        raise DatasetError(
            f"no stream has latents at {resolution} px, which a stage of the recipe needs; prepare "
            f"one with --resolution {resolution} --latents"
        )


class CleanReader:
    """Makes of a batch's tensors what noise is added to."""

    def __init__(
        self,
        recipe: Recipe,
        autoencoder: Autoencoder | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`autoencoder` is the recipe's, where it has one; a copy of it encodes in `dtype` on
        `device`, if latents are not there already."""
        self._recipe, self._encoder = recipe, None
        if recipe.latent is not None and not recipe.latent.precomputed:
            assert autoencoder is not None
            module = copy.deepcopy(autoencoder.module).to(device, dtype)
            self._encoder = Autoencoder(module, autoencoder.space)

    def clean(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`(rows, channels, height, width)`, fp32, of columns `(rows, ...)` on the device."""
        if self._encoder is not None:
            return self._encoder.encode(tensors[IMAGE])
        if self._recipe.latent is not None:
            return tensors[LATENT].float()
        return _pixels(tensors[IMAGE])

    def images(self, tensors: Mapping[str, Tensor], clean: Tensor) -> Tensor | None:
        """The images in -1..1, for those who look at them; None where the batch has none."""
        if self._recipe.latent is None:
            return clean
        return _pixels(tensors[IMAGE]) if IMAGE in tensors else None

    def blank(self, height: int, width: int) -> dict[str, Tensor]:
        """One row of zeros of everything that a batch of this bucket holds."""
        made = {IMAGE: torch.zeros(1, 3, height, width, dtype=torch.uint8)}
        if (latent := self._recipe.latent) is not None:
            sides = (side // latent.downsampling for side in (height, width))
            made[LATENT] = torch.zeros(1, latent.channels, *sides, dtype=torch.float16)
        return {name: made[name] for name in columns(self._recipe)}

    def tokens(self, clean: Tensor) -> int:
        """Image tokens of a row of `clean`."""
        patch = self._recipe.denoiser.patch_size
        return (clean.shape[2] // patch) * (clean.shape[3] // patch)

    def flops(self, height: int, width: int) -> float:
        """Of encoding one image in a step; 0 where none is encoded."""
        if (encoder := self._encoder) is None:
            return 0.0
        image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        return flops.counted(lambda: encoder.encode(image))


def _pixels(images: Tensor) -> Tensor:
    return (images.float() / 127.5).sub_(1.0)
