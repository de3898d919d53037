"""A frozen text encoder from a local folder or a Hugging Face repository."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
import xxhash
from torch import nn
from transformers import PreTrainedTokenizerBase

from daybreak_trainer.models.pretrained import frozen


def load(
    path: str, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Tokenizer and encoder, on the CPU in `dtype`. Raises what the libraries raise;
    see `pretrained.loaded`."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    # Decoders' tokenizers pad in front, and what is cut to the longest caption has to begin alike.
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _make_a_prompt_of_nothing(tokenizer)
    kind, options = _encoder_class(config)
    return tokenizer, frozen(kind, path, dtype, **options)


def _make_a_prompt_of_nothing(tokenizer: Any) -> None:
    """Where a tokenizer makes no token of the empty prompt, as Qwen's, its end token follows every
    text from here on, in what is exported too.

    Attention over no token at all is nobody's rule: torch puts out zero, and diffusers' Sana, which
    adds -10,000 to scores, the mean over the padding. Guidance would be by another prompt than the
    one that was trained.

    Raises:
        ValueError: the tokenizer cannot be changed.
    """
    end = tokenizer.eos_token or tokenizer.pad_token
    if end is None or tokenizer("")["input_ids"]:
        return
    if not tokenizer.is_fast:
        raise ValueError(
            "its tokenizer makes no token of the empty prompt and cannot be given one; save it as "
            "a fast tokenizer (tokenizer.json)"
        )
    from tokenizers import processors

    rules = tokenizer.backend_tokenizer
    ending = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))]
    )
    before = rules.post_processor
    rules.post_processor = ending if before is None else processors.Sequence([before, ending])


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


def _encoder_class(config: Any) -> tuple[Any, dict[str, Any]]:
    """The class to load and what it is to be told: the encoder alone of an encoder-decoder, else
    the base model.

    By name, not by `is_encoder_decoder`: a saved T5 encoder says it is none. And T5Gemma's encoder
    class refuses the configuration of a model that still says it is one.
    """
    import transformers

    base = type(config).__name__.removesuffix("Config")
    if (alone := getattr(transformers, f"{base}EncoderModel", None)) is not None:
        return alone, {"is_encoder_decoder": False}
    return transformers.AutoModel, {}
