"""Vision models that others have trained, which tell the denoiser what an image shows.

Each is any vision transformer of Hugging Face: a local folder or a repository. They are frozen, lie
outside the sharded model, and compute in bf16 on a GPU.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daybreak_trainer.models.pretrained import frozen, is_unreachable, loaded

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation; most were trained with them."""
_SIZE = 224
_PROBE = (2, 3)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen vision transformer."""

    model: nn.Module
    patch_size: int
    image_size: int
    """Side of the images that it was trained on, in pixels."""
    mean: Tensor
    """Of what it takes, channels in 0..1, `(3, 1, 1)`."""
    std: Tensor
    dtype: torch.dtype
    width: int = 0
    """Of its features."""

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """What it sees in each patch of `images` `(batch, 3, height, width)` in -1..1, resized so
        that `grid` (rows, columns) of its patches cover them: `(batch, rows * columns, width)`,
        fp32. Gradients flow to `images` unless the caller stops them.
        """
        rows, columns = grid
        size = (rows * self.patch_size, columns * self.patch_size)
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        pixels = ((resized * 0.5 + 0.5 - self.mean) / self.std).to(self.dtype)
        # Tokens for the class, and registers, stand in front of those of the patches.
        tokens: Tensor = self.model(pixel_values=pixels, **_options(self.model)).last_hidden_state
        if tokens.ndim != 3 or tokens.shape[1] < rows * columns:
            raise ValueError("it has no token for each patch; a vision transformer is needed")
        return tokens[:, tokens.shape[1] - rows * columns :].float()


def load(field: str, source: str, device: torch.device) -> Teacher:
    """The teacher at `source`, which the recipe's `field` names.

    Raises:
        RecipeError: it cannot be loaded, or is no vision transformer.
        HubUnreachableError: its repository does not answer.
    """
    teacher = loaded(field, "a vision transformer", source, lambda: _load(source))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Teacher(
        model=teacher.model.to(device, dtype),
        patch_size=teacher.patch_size,
        image_size=teacher.image_size,
        mean=teacher.mean.to(device),
        std=teacher.std.to(device),
        dtype=dtype,
        width=teacher.width,
    )


def _load(source: str) -> Teacher:
    """Looks at a small image at once: what cannot is refused here, not in a step."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    vision = getattr(config, "vision_config", config)
    if not isinstance(getattr(vision, "patch_size", None), int):
        raise ValueError(f"a {config.model_type} has no patch_size; a vision transformer is needed")
    model = frozen(_vision_class(config), source).float()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in _normalisation(source))
    size = vision.image_size if isinstance(vision.image_size, int) else _SIZE
    teacher = Teacher(model, vision.patch_size, size, mean, std, torch.float32)
    with torch.no_grad():
        width = teacher.features(torch.zeros(1, 3, *_PROBE), _PROBE).shape[2]
    return Teacher(model, vision.patch_size, size, mean, std, torch.float32, width)


def _vision_class(config: Any) -> Any:
    """The class to load: the half that sees of a model of images and text, else the base model."""
    import transformers

    if not hasattr(config, "vision_config"):
        return transformers.AutoModel
    base = type(config).__name__.removesuffix("Config")
    return getattr(transformers, f"{base}VisionModel")


def _normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation as its preprocessor's settings say, ImageNet's where it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError as error:
        if is_unreachable(error):
            raise
        return _IMAGENET
    mean, std = settings.get("image_mean", _IMAGENET[0]), settings.get("image_std", _IMAGENET[1])
    return tuple(mean), tuple(std)


def _options(model: nn.Module) -> dict[str, bool]:
    """Some classes take images of another size only when told to."""
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        return {"interpolate_pos_encoding": True}
    return {}
