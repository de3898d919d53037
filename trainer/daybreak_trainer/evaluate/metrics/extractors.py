"""Vision models that turn images into features, from local folders, files or the hub.

A score means what its extractor makes of it. So each says whether it is the standard one of its
metric, and a score is named by it: with any other, what FID's formula gives is no FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from daybreak_trainer.contract import ExtractorSettings
from daybreak_trainer.evaluate.metrics.inception import FID_WEIGHTS, InceptionFeatures
from daybreak_trainer.models.pretrained import HubUnreachableError, is_unreachable
from daybreak_trainer.settings import SettingsError

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Kind = Literal["inception", "clip", "dino"]

CMMD_CLIP = "openai/clip-vit-large-patch14-336"
CLIP_SCORE_CLIP = "openai/clip-vit-base-patch32"
FD_DINO = "facebook/dinov2-large"
"""FD-DINOv2 (arXiv 2306.04675)."""
_WEIGHTS = (".pth", ".pt", ".safetensors")
_BATCH = 32


@dataclass(frozen=True)
class Extractor:
    """`model` is on the CPU but while it is used (`on`)."""

    kind: Kind
    label: str
    """What scores are named by."""
    model: nn.Module
    processor: Any
    """Of images; None for Inception, which does it itself."""
    tokenizer: Any = None

    @torch.inference_mode()
    def images(self, images: Images, device: torch.device) -> Features:
        """Features of images `(n, height, width, 3)`: `(n, features)`."""
        found = []
        for start in range(0, len(images), _BATCH):
            chunk = images[start : start + _BATCH]
            found.append(self._features(chunk, device).float().cpu().numpy())
        return np.concatenate(found)

    def _features(self, images: Images, device: torch.device) -> Tensor:
        model: Any = self.model
        if self.processor is None:
            pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255.0
            features: Tensor = model(pixels)
            return features
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"].to(device)
        if self.kind == "clip":
            embeddings: Tensor = model.get_image_features(pixel_values=pixels)
            return embeddings
        hidden: Tensor = model(pixel_values=pixels).last_hidden_state
        # A transformer's first token stands for the image; a convolutional network's map has means.
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    @torch.inference_mode()
    def texts(self, captions: Sequence[str], device: torch.device) -> Features:
        """clip: embeddings of captions, `(n, features)`, cut to what the model reads."""
        model: Any = self.model
        found = []
        for start in range(0, len(captions), _BATCH):
            tokens = self.tokenizer(
                list(captions[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
                return_token_type_ids=False,
                return_tensors="pt",
            ).to(device)
            found.append(model.get_text_features(**tokens).float().cpu().numpy())
        return np.concatenate(found)


def load_extractors(settings: ExtractorSettings) -> tuple[Extractor, ...]:
    """Those that are asked for, on the CPU.

    Raises:
        SettingsError: one cannot be loaded; the message names it.
        HubUnreachableError: its repository does not answer.
    """
    found = []
    for kind, path in settings.given.items():
        try:
            found.append(_LOADERS[kind](path))
        except Exception as error:  # transformers, torch and safetensors raise classes of their own
            first = (str(error).strip() or repr(error)).splitlines()[0]
            where = f"evaluation.extractors.{kind}"
            if is_unreachable(error):
                raise HubUnreachableError(
                    f"{where}: cannot reach the hub for {path!r}: {first}"
                ) from error
            raise SettingsError(f"{where}: cannot load {path!r}: {first}") from error
    return tuple(found)


def _inception(path: str) -> Extractor:
    file = Path(path)
    if file.suffix not in _WEIGHTS:
        return _hugging_face("inception", path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = load_file(file)
    else:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    label = f"inception_v3 sha256:{digest[: len(FID_WEIGHTS)]}"
    return Extractor("inception", label, InceptionFeatures(weights), None)


def _clip(path: str) -> Extractor:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(path).eval().requires_grad_(False)
    processor = AutoImageProcessor.from_pretrained(path, use_fast=True)
    return Extractor("clip", _name(path), model, processor, AutoTokenizer.from_pretrained(path))


def _dino(path: str) -> Extractor:
    return _hugging_face("dino", path)


def _hugging_face(kind: Kind, path: str) -> Extractor:
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    processor = AutoImageProcessor.from_pretrained(path, use_fast=True)
    return Extractor(kind, _name(path), model, processor)


_LOADERS = {"inception": _inception, "clip": _clip, "dino": _dino}


def _name(path: str) -> str:
    """A repository by its name, which says what is in it; a folder, which may hold anything, by
    its own name and as a folder."""
    return f"folder {Path(path).name}" if Path(path).is_dir() else path
