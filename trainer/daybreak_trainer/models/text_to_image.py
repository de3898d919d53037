"""What is trained, as one module: the denoiser, the text encoder where it is trained too, and what
helps both to learn.

One module means one FSDP root, one optimizer, one EMA and one set of names in a checkpoint:
`denoiser.*`, `text_encoder.*` and `aux.*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from daybreak_trainer.models import auxiliary
from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models import text as texts
from daybreak_trainer.models.auxiliary import Fusion, Projector
from daybreak_trainer.models.encoding import encode
from daybreak_trainer.models.family import Denoiser
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.models.tricks import (
    NONE,
    Prediction,
    Tricks,
    gather,
    marked,
    put_back,
    visible_tokens,
)
from daybreak_trainer.recipe import Recipe

_LAYER = re.compile(r"\b(blocks?|layers?)\.\d+\.")
_NOT_HIDDEN = re.compile(r"\brelative_attention_bias\b")


class TextToImage(nn.Module):
    """Predicts the clean image, or the velocity, from a noised one and its caption's tokens."""

    def __init__(
        self,
        denoiser: Denoiser,
        text_encoder: nn.Module | None,
        aux: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.aux = nn.ModuleDict() if aux is None else aux
        """Trained, sharded and saved as the rest, and never exported."""
        self._of_evaluation = NONE

    def forward(
        self,
        noised: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        input_ids: Tensor | None = None,
        text: Tensor | None = None,
        *,
        scores: Tensor | None = None,
        tricks: Tricks | None = None,
    ) -> Prediction:
        """Of `noised` `(batch, channels, height, width)` at `timesteps` `(batch,)`.

        Takes token ids `(batch, tokens)` where the encoder is trained, else `text`, its hidden
        states `(batch, tokens, hidden)`; `mask` is `(batch, tokens)`. `scores` `(batch, image
        tokens)`, uniform in 0..1, say which tokens `tricks` leave out; without them none is.
        `tricks` are None where the weights are judged.
        """
        if self.text_encoder is not None:
            assert input_ids is not None
            text = encode(self.text_encoder, input_ids, mask)
        assert text is not None
        tokens, context = self.denoiser.enter(noised, timesteps, text, mask)
        walk = _Walk(self, scores, self._of_evaluation if tricks is None else tricks, context)
        for number in range(len(self.denoiser.units)):
            tokens = walk.before(number, tokens)
            tokens = self.denoiser.through(number, tokens, walk.context)
            tokens = walk.after(number, tokens)
        output = self.denoiser.leave(tokens, walk.context)
        return Prediction(output, walk.hidden, walk.hidden_visible, walk.kept)

    def enter(self, recipe: Recipe, stage: int) -> None:
        """From here on images are of this stage of the recipe, from 0, and judged with what the
        stage trains. A model as built is in the last stage."""
        self.denoiser.enter_stage(stage)
        self._of_evaluation = Tricks.of(recipe, recipe.stages[stage]).of_evaluation

    @property
    def units(self) -> list[nn.Module]:
        """The denoiser's transformer blocks, in the order of the forward pass."""
        return self.denoiser.units

    @property
    def teacher_width(self) -> int | None:
        """Of the features that hidden states are projected to."""
        return cast(Projector, self.aux["projector"]).width if "projector" in self.aux else None

    def block_matrices(self) -> dict[str, int]:
        """The weight matrices of the transformer blocks by parameter name, and in how many parts
        each is to be orthogonalised (Muon): what turns hidden states into hidden states, not
        embeddings, modulation, projections in and out, biases and gains."""
        found = {f"denoiser.{name}": n for name, n in self.denoiser.block_matrices().items()}
        if self.text_encoder is not None:
            found |= {
                f"text_encoder.{name}": 1
                for name, parameter in self.text_encoder.named_parameters()
                if parameter.ndim == 2 and _LAYER.search(name) and not _NOT_HIDDEN.search(name)
            }
        return found

    def learning_rate_factors(self) -> dict[str, float]:
        """What a parameter's learning rate is multiplied by with AdamW, by name; 1 for those that
        are not there (muP: `recipe.denoiser.initialisation`)."""
        factors = self.denoiser.learning_rate_factors()
        return {f"denoiser.{name}": factor for name, factor in factors.items()}


class _Walk:
    """One pass through the blocks: which tokens are on the way, and what was read of them."""

    def __init__(
        self, model: TextToImage, scores: Tensor | None, tricks: Tricks, context: Any
    ) -> None:
        self._model, self._scores, self._tricks = model, scores, tricks
        self._whole = self.context = context
        self._visible: Tensor | None = None
        self._saved: Tensor | None = None
        self.hidden: Tensor | None = None
        self.hidden_visible: Tensor | None = None
        self.kept: Tensor | None = None

    def before(self, number: int, tokens: Tensor) -> Tensor:
        """The tokens that enter a block."""
        routing, masking = self._tricks.routing, self._tricks.masking
        if routing is not None and number == routing.first:
            self._saved = tokens
            tokens = self._leave_out(tokens, routing.share)
        if masking is not None and number == masking.mixer_depth:
            total = tokens.shape[1]
            tokens = self._leave_out(tokens, masking.share)
            if self._visible is not None:
                self.kept = marked(self._visible, total)
        return tokens

    def after(self, number: int, tokens: Tensor) -> Tensor:
        """The tokens that go on behind a block."""
        if number == self._tricks.capture:
            self.hidden, self.hidden_visible = tokens, self._visible
            if "projector" in self._model.aux:
                self.hidden = self._model.aux["projector"](tokens, self._whole.grid)
        routing = self._tricks.routing
        if routing is not None and number == routing.last:
            tokens = self._come_back(tokens)
        return tokens

    def _leave_out(self, tokens: Tensor, share: float) -> Tensor:
        if self._scores is None:
            return tokens
        self._visible = visible_tokens(self._scores, share)
        self.context = self._whole.at(self._visible)
        return gather(tokens, self._visible)

    def _come_back(self, tokens: Tensor) -> Tensor:
        saved, visible = self._saved, self._visible
        assert saved is not None  # the first routed block lies before the last
        assert self._tricks.routing is not None
        self._saved = self._visible = None
        self.context = self._whole
        if self._tricks.routing.kind == "sprint":
            return cast(Fusion, self._model.aux["fusion"])(saved, tokens, visible)  # type: ignore[no-any-return]
        return tokens if visible is None else put_back(saved, visible, tokens)


def text_tower(
    recipe: Recipe,
    vocabulary: Mapping[str, int] | Iterable[str],
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> TextTower:
    """The text tower of `build`; `dtype` is that of a frozen encoder.

    Raises:
        RecipeError, HubUnreachableError: a pretrained text encoder that cannot be loaded.
    """
    lower_case = texts.puts_into_lower_case(recipe.denoiser.kind)
    seed = recipe.seed + 1
    return texts.build(recipe.text, vocabulary, seed, lower_case=lower_case, dtype=dtype)


def build(
    recipe: Recipe,
    vocabulary: Mapping[str, int] | Iterable[str],
    teacher_width: int | None = None,
    tower: TextTower | None = None,
) -> tuple[TextToImage, TextTower]:
    """Freshly initialised model and text tower; equal on every rank. `teacher_width` is the width
    of the features that hidden states are aligned with; None builds no projector. `tower` is the
    text tower where there is one already.

    Raises:
        RecipeError, HubUnreachableError: a pretrained text encoder that cannot be loaded.
    """
    tower = text_tower(recipe, vocabulary) if tower is None else tower
    denoiser = denoisers.build(recipe, tower.hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 2)
        aux = auxiliary.build(recipe, teacher_width)
    return TextToImage(denoiser, tower.encoder if tower.trained else None, aux), tower
