"""A text encoder of a few thousand weights, as a folder that Hugging Face's classes write."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from daybreak_trainer.models.tokenizers import word_tokenizer

WIDTH = 24


def save_t5(folder: Path, words: list[str], seed: int = 0) -> Path:
    """Attends to all tokens."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(words) + 3, d_model=WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=4
    )
    T5EncoderModel(config).save_pretrained(folder)
    word_tokenizer(words, 64).save_pretrained(folder)
    return folder


def save_qwen(folder: Path, words: list[str]) -> Path:
    """A decoder: tokens attend to those before them."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words) + 3,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    word_tokenizer(words, 64).save_pretrained(folder)
    return folder


def save_endless_qwen(folder: Path) -> Path:
    """With Qwen's own kind of tokenizer, one token a byte, which puts no end token behind a text:
    of the empty prompt it makes nothing."""
    alphabet = sorted(ByteLevel.alphabet())
    save_qwen(folder, alphabet)
    (folder / "vocab.json").write_text(json.dumps({c: n for n, c in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    Qwen2TokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    return folder
