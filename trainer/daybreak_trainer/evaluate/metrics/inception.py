"""Inception v3 as FID uses it: torchvision's parameters, TensorFlow's graph.

The network of the original FID (2015-12-05) pools without counting the padding, takes a maximum in
its last block and has 1,008 classes. Its weights for torchvision's names go around as one file,
known by its SHA-256. Weights with torchvision's 1,000 classes are computed by torchvision's own
graph, and their distance is no FID.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FID_WEIGHTS = "6726825d"
"""First digits of the SHA-256 of the file `pt_inception-2015-12-05-6726825d.pth`."""
_FID_CLASSES = 1008
SIDE = 299


class InceptionFeatures(nn.Module):
    """Features `(batch, 2048)` behind the last pooling, from images in 0..1 `(batch, 3, h, w)`."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError where the weights are not Inception v3's."""
        super().__init__()
        from torchvision.models import inception_v3

        classes = len(weights["fc.bias"])
        network: Any = inception_v3(
            weights=None, init_weights=False, aux_logits=False, num_classes=classes
        )
        own = {k: v for k, v in weights.items() if not k.startswith("AuxLogits.")}
        network.load_state_dict(own)
        if classes == _FID_CLASSES:
            for name, pool in _POOLS.items():
                block = getattr(network, name)
                block.forward = _as_of_2015(block, pool)
        network.fc = nn.Identity()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        size = (SIDE, SIDE)
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        features: Tensor = self.network(2.0 * images - 1.0)
        return features


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)


Pool = Callable[[Tensor], Tensor]
_POOLS: dict[str, Pool] = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _average),
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _average),
    "Mixed_7b": _average,
    "Mixed_7c": _maximum,
}


def _as_of_2015(block: Any, pool: Pool) -> Callable[[Tensor], Tensor]:
    """The block's forward pass with another pooling in front of `branch_pool`."""

    def forward(x: Tensor) -> Tensor:
        branches = block._forward(x)
        return torch.cat([*branches[:-1], block.branch_pool(pool(x))], dim=1)

    return forward
