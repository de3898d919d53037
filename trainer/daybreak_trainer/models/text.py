"""The text tower: a small encoder trained with the denoiser, or a frozen pretrained one.

Both are Hugging Face classes that load without remote code. The joint tower is a DistilBERT over
words or pieces of the dataset's captions (`tokenizers.py`), and costs a few percent of the step.
Its learned positions tell the first noun of a caption from the second at once; a T5 encoder of the
same size, which knows distances only, drew fewer pairs and relations right after the same number of
steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from daybreak_trainer.data.card import TextEmbeddings
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.models import pretrained_text
from daybreak_trainer.models.encoding import MaskForm, encode, form_without_reads
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.pretrained import checksum, loaded
from daybreak_trainer.models.tokenizers import piece_tokenizer, word_tokenizer
from daybreak_trainer.recipe.text import Text


class Conditioner(Protocol):
    """What draws and judges asks of it."""

    def condition(
        self, captions: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """What `TextToImage.forward` takes of captions, outside of a training step."""


@dataclass(frozen=True)
class TextTower:
    tokenizer: PreTrainedTokenizerBase
    encoder: nn.Module
    trained: bool
    """Whether the optimizer owns the encoder."""
    hidden_size: int
    padding: Padding
    mask_form: MaskForm = "padding"
    lower_case: bool = False
    """Whether captions are put into lower case and stripped, as `SanaPipeline` does to prompts."""

    @property
    def max_tokens(self) -> int:
        return self.padding.max_tokens

    def tokenize(self, captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask, True at real tokens, both `(batch, tokens)`, padded behind to one of
        `padding.lengths`; cut as `PRXPixelPipeline` cuts."""
        found = self.tokenizer(
            self._normalised(captions),
            padding="longest",
            max_length=self.max_tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = found["input_ids"].long(), found["attention_mask"].bool()
        missing = self.padding.length(ids.shape[1]) - ids.shape[1]
        ids = F.pad(ids, (0, missing), value=self.tokenizer.pad_token_id)
        return ids.to(device), F.pad(mask, (0, missing)).to(device)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption if none were cut."""
        # Without a word about captions longer than the encoder takes: that is what is asked.
        found = self.tokenizer(self._normalised(captions), verbose=False)["input_ids"]
        return [len(ids) for ids in found]

    def _normalised(self, captions: Sequence[str]) -> list[str]:
        return [text.lower().strip() if self.lower_case else text for text in captions]

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states `(batch, tokens, hidden)` of a frozen encoder, where it lies."""
        with torch.no_grad():
            return encode(self.encoder, input_ids, mask, self.mask_form)

    def embed(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states and mask of captions, on the encoder's device."""
        ids, mask = self.tokenize(captions, next(self.encoder.parameters()).device)
        return self.encode(ids, mask), mask

    def condition(
        self, captions: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """What `TextToImage.forward` takes of captions, outside of a training step."""
        if self.trained:
            ids, mask = self.tokenize(captions, device)
            return {"mask": mask, "input_ids": ids}
        hidden, mask = self.embed(captions)  # where the encoder lies, which may be the host
        return {"mask": mask.to(device), "text": hidden.to(device, dtype)}


def check_encoder(described: TextEmbeddings, tower: TextTower) -> None:
    """Raises DatasetError: embeddings are not what `tower` would encode captions to."""
    if described.max_tokens != tower.max_tokens:
        raise DatasetError(
            f"the data's embeddings are of captions of at most {described.max_tokens} tokens, "
            f"recipe.text.maxTokens is {tower.max_tokens}; change one of them"
        )
    if described.lower_case != tower.lower_case:
        case = "in lower case" if described.lower_case else "as they were written"
        option = "with" if tower.lower_case else "without"
        raise DatasetError(
            f"the data's embeddings are of captions {case}, which recipe.denoiser.kind does not "
            f"draw with; prepare the data {option} --lower-case, or change the kind"
        )
    if (found := checksum(tower.encoder)) != described.checksum:
        raise DatasetError(
            f"the data's embeddings are of {described.encoder} with weights "
            f"{described.checksum}, those of recipe.text.path are {found}; prepare the data with "
            "the recipe's encoder, or name the one that it was prepared with"
        )
    found = pretrained_text.tokenizer_checksum(tower.tokenizer)
    if described.tokenizer is not None and found != described.tokenizer:
        raise DatasetError(
            f"the data's embeddings are of {described.encoder} with tokenizer "
            f"{described.tokenizer}, that of recipe.text.path is {found}; prepare the data with "
            "the recipe's encoder, or restore the tokenizer that it was prepared with"
        )


def puts_into_lower_case(kind: str) -> bool:
    """Whether the pipeline that draws with this `denoiser.kind` puts prompts into lower case."""
    return kind == "sana"


def build(
    recipe: Text,
    vocabulary: Mapping[str, int] | Iterable[str],
    seed: int,
    *,
    lower_case: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> TextTower:
    """The text tower of a recipe. `vocabulary` are the words of the captions, and where pieces are
    learned how often each stands in them; `dtype` is that of a frozen encoder.

    Raises:
        RecipeError: a pretrained encoder that cannot be loaded; the message names it.
        HubUnreachableError: its repository does not answer.
    """
    if recipe.kind == "pretrained":
        assert recipe.path is not None  # the recipe's own rule
        return pretrained(recipe.path, Padding.of(recipe), lower_case=lower_case, dtype=dtype)
    from transformers import DistilBertConfig, DistilBertModel

    assert recipe.hidden_size is not None  # the recipe's own rule, as the next two
    assert recipe.depth is not None
    assert recipe.heads is not None
    tokenizer = _learned(recipe, Counter(vocabulary))
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=recipe.max_tokens,
        dim=recipe.hidden_size,
        hidden_dim=4 * recipe.hidden_size,
        n_layers=recipe.depth,
        n_heads=recipe.heads,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=0,
        # With torch's fused attention this class asks on the host whether any token is masked, and
        # takes no mask that is spelt out; every step would wait for the one before it.
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = DistilBertModel(config)
    padding = Padding.of(recipe)
    return TextTower(tokenizer, encoder, True, recipe.hidden_size, padding, lower_case=lower_case)


def _learned(recipe: Text, counts: Counter[str]) -> PreTrainedTokenizerBase:
    if recipe.vocabulary == "words":
        return word_tokenizer(list(counts), recipe.max_tokens)
    assert recipe.vocabulary_size is not None  # the recipe's own rule
    return piece_tokenizer(counts, recipe.vocabulary_size, recipe.max_tokens)


def pretrained(
    path: str,
    padding: Padding,
    field: str = "recipe.text.path",
    *,
    lower_case: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> TextTower:
    """A frozen encoder, on the CPU; `field` is where its path was written. It encodes the empty
    prompt at once: what cannot encode is refused here, not in a step.

    Raises:
        RecipeError, HubUnreachableError: as `build`.
    """

    def load() -> TextTower:
        tokenizer, encoder = pretrained_text.load(path, dtype)
        full = TextTower(tokenizer, encoder, False, 0, Padding(padding.max_tokens, None))
        hidden, _ = full.embed([""])
        form = form_without_reads(encoder, padding.max_tokens)
        return replace(
            full,
            hidden_size=hidden.shape[-1],
            padding=padding,
            mask_form=form,
            lower_case=lower_case,
        )

    return loaded(field, "a text encoder", path, load)
