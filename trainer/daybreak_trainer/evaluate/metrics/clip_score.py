"""Does an image show its caption, as CLIP sees it?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def clip_score(images: npt.ArrayLike, texts: npt.ArrayLike) -> float:
    """Mean over pairs of `100 max(cos, 0)` (arXiv 2104.08718, whose own factor is 2.5); embeddings
    `(n, features)` of images and of their captions, in one order."""
    x, y = np.asarray(images, dtype=np.float64), np.asarray(texts, dtype=np.float64)
    cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return float(100.0 * np.clip(cosine, 0.0, None).mean())
