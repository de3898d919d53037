"""The column `latent`: images through a frozen autoencoder, once and for all.

In fp32 and in passes of always the same size: kernels for different batch sizes add in different
orders, and in half precision that shows (mosaicml/diffusion issue 69). Stored as float16: scaled
latents are about 1 in size, where it is eight times as fine as bfloat16, which NumPy lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daybreak_trainer.data.card import bucket_name
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import IMAGE, LATENT
from daybreak_trainer.data.shard import UNDECODABLE, decode_image
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.prepare.rewrite import Row, SampleError

_ROWS = 8
"""Of a pass."""
_DECODING_THREADS = 8
_TYPE = np.dtype("<f2")
Size = tuple[int, int]


class LatentColumn:
    """See `rewrite.NewColumn`. The autoencoder is moved to a GPU, where there is one."""

    name = LATENT

    def __init__(self, autoencoder: Autoencoder) -> None:
        self._autoencoder, self._space = autoencoder, autoencoder.space
        autoencoder.module.to("cuda" if torch.cuda.is_available() else "cpu")

    def identity(self) -> Mapping[str, Any]:
        return self._space.model_dump(mode="json", exclude={"autoencoder"})

    def record(self) -> dict[str, Any]:
        return {"latents": self._space}

    def encoding(self, size: Size) -> str:
        side = self._space.downsampling
        if any(pixels % side for pixels in size):
            raise DatasetError(
                f"images of {bucket_name(*size)} px do not fill places of {side} px, which "
                f"{self._space.autoencoder} makes; prepare the images with --multiple {side}, or "
                f"at a --resolution that {side} divides"
            )
        return f"ndarray:float16:{self._space.channels},{size[0] // side},{size[1] // side}"

    def values(
        self, rows: Sequence[Row], encodings: Mapping[str, str], size: Size
    ) -> Iterator[bytes]:
        """See `rewrite.NewColumn`; while a pass is computed, the images of the next are decoded."""
        self.encoding(size)
        if IMAGE not in encodings:
            raise DatasetError(f"there is no column {IMAGE} to make latents of")
        edges = [*range(0, len(rows), _ROWS), len(rows)]

        def decode(number: int) -> npt.NDArray[np.uint8]:
            pixels = np.empty((3, *size), dtype=np.uint8)
            try:
                decode_image(encodings[IMAGE], rows[number][IMAGE], pixels, size)
            except UNDECODABLE as error:
                raise SampleError(number, f"its image cannot be decoded: {error}") from None
            return pixels

        with ThreadPoolExecutor(_DECODING_THREADS) as threads:
            passes = list(pairwise(edges))
            coming = [threads.submit(decode, n) for n in range(*passes[0])]
            for number, (begin, end) in enumerate(passes):
                images = np.stack([future.result() for future in coming])
                following = passes[number + 1] if number + 1 < len(passes) else (0, 0)
                coming = [threads.submit(decode, n) for n in range(*following)]
                for row, latent in zip(range(begin, end), self._encode(images), strict=True):
                    if not np.isfinite(latent).all():
                        raise SampleError(row, "its latent is not finite in float16")
                    yield latent.tobytes()

    def _encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        filled = np.zeros((_ROWS, *images.shape[1:]), dtype=np.uint8)
        filled[: len(images)] = images
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            latents: Tensor = self._autoencoder.encode(torch.from_numpy(filled))
        return latents[: len(images)].cpu().numpy().astype(_TYPE)
