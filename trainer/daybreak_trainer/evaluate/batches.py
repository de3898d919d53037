"""How much is drawn at once: memory bounds it, and large images are decoded one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Images = npt.NDArray[np.uint8]
MOST_ROWS = 32
_TOKENS = 8192
"""Image tokens that a device takes at once; guidance doubles them."""


def rows_at_once(tokens: int, most: int = MOST_ROWS) -> int:
    """Images of a batch of drawing, of so many tokens each: 32 of 256 tokens, 2 of 4096."""
    return max(1, min(most, _TOKENS // tokens))


def decoded(data: Tensor, decode: Callable[[Tensor], Tensor]) -> Images:
    """Images `(batch, height, width, 3)` on the host. `decode` turns `data` into images in -1..1
    `(1, 3, height, width)`, one at a time: an autoencoder's first layers at full size take
    gigabytes an image."""
    return np.concatenate([_bytes(decode(one)) for one in data[:, None]])


def _bytes(pixels: Tensor) -> Images:
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    found: Images = levels.permute(0, 2, 3, 1).cpu().numpy()
    return found
