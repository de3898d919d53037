"""The text tower: a small encoder trained with the denoiser, or a frozen pretrained one.

Both are Hugging Face classes that load without remote code. The joint tower is a DistilBERT over a
word-level vocabulary taken from the dataset's captions: a small, closed vocabulary needs no
subwords, and the encoder costs a few percent of the step. Its learned positions tell the first noun
of a caption from the second at once; a T5 encoder of the same size, which knows distances only,
drew fewer pairs and relations right after the same number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from daybreak_trainer.models.pretrained import frozen, loaded
from daybreak_trainer.recipe.text import Text

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"


@dataclass(frozen=True)
class TextTower:
    tokenizer: PreTrainedTokenizerBase
    encoder: nn.Module
    trained: bool
    """Whether the optimizer owns the encoder."""
    hidden_size: int
    max_tokens: int

    def tokenize(self, captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both `(batch, max_tokens)`, as `PRXPixelPipeline` tokenizes."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens["input_ids"].to(device), tokens["attention_mask"].bool().to(device)


def encode(encoder: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states of the captions, `(batch, tokens, hidden)`."""
    hidden: Tensor = encoder(input_ids=input_ids, attention_mask=mask)["last_hidden_state"]
    return hidden


def word_tokenizer(vocabulary: Sequence[str], max_tokens: int) -> PreTrainedTokenizerBase:
    """A tokenizer with one token a word; unknown words map to one token, and an end token makes
    the empty prompt a prompt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [PAD, UNKNOWN, END, *sorted(set(vocabulary) - {PAD, UNKNOWN, END})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=max_tokens,
    )


def build(recipe: Text, vocabulary: Sequence[str], seed: int) -> TextTower:
    """The text tower of a recipe.

    Raises:
        RecipeError: a pretrained encoder that cannot be loaded; the message names it.
        HubUnreachableError: its repository does not answer.
    """
    if recipe.kind == "pretrained":
        assert recipe.path is not None  # the recipe's own rule
        return _pretrained(recipe.path, recipe.max_tokens)
    from transformers import DistilBertConfig, DistilBertModel

    assert recipe.hidden_size is not None  # the recipe's own rule, as the next two
    assert recipe.depth is not None
    assert recipe.heads is not None
    tokenizer = word_tokenizer(vocabulary, recipe.max_tokens)
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
        # every step would wait for the one before it.
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = DistilBertModel(config)
    return TextTower(tokenizer, encoder, True, recipe.hidden_size, recipe.max_tokens)


def _pretrained(path: str, max_tokens: int) -> TextTower:
    """A frozen encoder from a local folder or a Hugging Face repository."""
    return loaded("recipe.text.path", "a text encoder", path, lambda: _load(path, max_tokens))


def _load(path: str, max_tokens: int) -> TextTower:
    """Encodes the empty prompt at once: what cannot encode is refused here, not in a step."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoder = frozen(_encoder_class(config), path)
    tower = TextTower(tokenizer, encoder, False, 0, max_tokens)
    hidden = encode(encoder, *tower.tokenize([""], torch.device("cpu")))
    return replace(tower, hidden_size=hidden.shape[-1])


def _encoder_class(config: Any) -> Any:
    """The class to load: the encoder alone of an encoder-decoder, else the base model.

    By name, not by `is_encoder_decoder`: a saved T5 encoder says it is none.
    """
    import transformers

    base = type(config).__name__.removesuffix("Config")
    return getattr(transformers, f"{base}EncoderModel", None) or transformers.AutoModel
