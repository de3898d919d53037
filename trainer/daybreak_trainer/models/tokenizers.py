"""Tokenizers made from a dataset's captions, for text encoders that are trained from scratch.

Both split captions into words and punctuation, in lower case, and end them with a token of its own,
which makes the empty prompt a prompt. What they are made of lies in the dataset's card, so every
rank makes the same one and no shard is read for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"
_LEARNING_WORDS = 2_000_000
"""Pieces are learned from about so many words: their counts are scaled down to it."""


def word_tokenizer(vocabulary: Sequence[str], max_tokens: int) -> PreTrainedTokenizerBase:
    """One token a word; unknown words map to one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = [PAD, UNKNOWN, END, *sorted(set(vocabulary) - {PAD, UNKNOWN, END})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finished(tokenizer, max_tokens)


def piece_tokenizer(
    counts: Mapping[str, int], size: int, max_tokens: int
) -> PreTrainedTokenizerBase:
    """At most `size` byte-pair pieces of words (arXiv 1508.07909), over bytes: every text has
    tokens, whatever its alphabet. Equal for equal `counts`, which say how often each word stands in
    the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(True, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, UNKNOWN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(counts), trainer)
    return _finished(tokenizer, max_tokens)


def _words(counts: Mapping[str, int]) -> Iterator[str]:
    """Each word about as often as it was counted, in proportion; at least once."""
    scale = min(1.0, _LEARNING_WORDS / max(sum(counts.values()), 1))
    for word in sorted(counts):
        yield " ".join([word] * max(round(counts[word] * scale), 1))


def _finished(tokenizer: Any, max_tokens: int) -> PreTrainedTokenizerBase:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=max_tokens,
        padding_side="right",
    )
