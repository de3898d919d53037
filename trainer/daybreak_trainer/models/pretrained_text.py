"""A frozen text encoder from a local folder or a Hugging Face repository."""

from __future__ import annotations

import json
from typing import Any

import xxhash
from torch import nn
from transformers import PreTrainedTokenizerBase

from daybreak_trainer.models.pretrained import frozen


def load(path: str) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Tokenizer and encoder, on the CPU. Raises what the libraries raise;
    see `pretrained.loaded`."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    # Decoders' tokenizers pad in front, and what is cut to the longest caption has to begin alike.
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, frozen(_encoder_class(config), path)


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """xxh3-128 of its vocabulary and rules as they are serialised: the same under any address, and
    whatever it was last asked to cut and pad to."""
    described: dict[str, Any] = {"pad": tokenizer.pad_token_id}
    if tokenizer.is_fast:
        backend: Any = tokenizer
        rules = json.loads(backend.backend_tokenizer.to_str())
        described |= {key: rules[key] for key in rules if key not in ("truncation", "padding")}
    else:
        described |= {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.all_special_ids}
    text = json.dumps(described, sort_keys=True)
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def _encoder_class(config: Any) -> Any:
    """The class to load: the encoder alone of an encoder-decoder, else the base model.

    By name, not by `is_encoder_decoder`: a saved T5 encoder says it is none.
    """
    import transformers

    base = type(config).__name__.removesuffix("Config")
    return getattr(transformers, f"{base}EncoderModel", None) or transformers.AutoModel
