"""LPIPS: a distance between images calibrated on what people see (arXiv 1801.03924).

The network is torchvision's vgg16; nothing is downloaded but what the recipe names. A folder, or a
repository of Hugging Face, holds two files:

- `vgg16.safetensors`: torchvision's ImageNet weights, `features.0.weight` to `features.28.bias`;
  others are passed over.
- `lpips.safetensors`: the calibration, `lin0.model.1.weight` to `lin4.model.1.weight`, each
  `(1, channels, 1, 1)`, under the names of the authors' `vgg.pth` (version 0.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from daybreak_trainer.models.pretrained import loaded

_TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
"""Layers of vgg16 whose outputs are compared, the last ReLU of each size, and their channels."""
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of ImageNet's images in -1..1, as the calibration was made."""
_EPSILON = 1e-10


class Lpips(nn.Module):
    """Frozen; gradients flow to the images."""

    mean: Tensor
    std: Tensor

    def __init__(self, vgg: dict[str, Tensor], calibration: dict[str, Tensor]) -> None:
        """Takes the tensors of both files.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):
            layers = cast(nn.Sequential, vgg16(weights=None).features)
        names = layers.state_dict()
        layers.load_state_dict(
            {name: _of(vgg, f"features.{name}", like.shape) for name, like in names.items()},
            assign=True,
        )
        self.layers = nn.ModuleList(list(layers)[: max(_TAPS) + 1])
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).reshape(3, 1, 1))
        for number, channels in enumerate(_TAPS.values()):
            shape = torch.Size((1, channels, 1, 1))
            weight = _of(calibration, f"lin{number}.model.1.weight", shape)
            self.register_buffer(f"weight_{number}", weight)
        self.requires_grad_(False).eval()

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The distance of each pair of images `(batch, 3, height, width)` in -1..1, `(batch,)`,
        fp32; sides of 16 pixels and more, for vgg16 halves them four times."""
        with torch.no_grad():
            targets = self._outputs(wanted)
        total = torch.zeros(len(found), device=found.device)
        for number, (one, other) in enumerate(zip(self._outputs(found), targets, strict=True)):
            weight: Tensor = getattr(self, f"weight_{number}").float()
            squared = (_unit(one.float()) - _unit(other.float())).square()
            total = total + (weight * squared).sum(dim=1).mean(dim=(1, 2))
        return total

    def _outputs(self, images: Tensor) -> list[Tensor]:
        first = cast(nn.Conv2d, self.layers[0])
        values = ((images.float() - self.mean) / self.std).to(first.weight.dtype)
        outputs = []
        for number, layer in enumerate(self.layers):
            values = layer(values)
            if number in _TAPS:
                outputs.append(values)
        return outputs


def load(field: str, source: str, device: torch.device) -> Lpips:
    """The distance whose files lie at `source`, which the recipe's `field` names.

    Raises:
        RecipeError: a file is missing, or is not as the module's docstring says.
        HubUnreachableError: its repository does not answer.
    """
    from safetensors.torch import load_file

    made = loaded(
        field,
        "LPIPS (vgg16.safetensors and lpips.safetensors)",
        source,
        lambda: Lpips(
            load_file(_file(source, "vgg16.safetensors")),
            load_file(_file(source, "lpips.safetensors")),
        ),
    )
    made.layers.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    return made.to(device)


def _file(source: str, name: str) -> str:
    if Path(source).is_dir():
        return str(Path(source) / name)
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(source, name))


def _of(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    if tensors[name].shape != shape:
        raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
    return tensors[name].float()


def _unit(features: Tensor) -> Tensor:
    """Of length 1 at each place."""
    return features / (features.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()
