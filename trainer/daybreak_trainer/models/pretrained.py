"""Loading what others trained: from a local folder or a Hugging Face repository, with errors that
say which field of the recipe asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import xxhash
from torch import Tensor, nn
from torch.func import functional_call

from daybreak_trainer.recipe import RecipeError

T = TypeVar("T")


class HubUnreachableError(Exception):
    """The model's repository did not answer; it may the next time."""


def loaded(field: str, kind: str, source: str, load: Callable[[], T]) -> T:
    """What `load` returns. `field` of the recipe names `source`, which must hold a `kind`, such as
    "a text encoder".

    Raises:
        RecipeError: it cannot be loaded.
        HubUnreachableError: its repository does not answer.
    """
    try:
        return load()
    except Exception as error:  # safetensors and tokenizers raise classes of their own
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        if is_unreachable(error):
            raise HubUnreachableError(
                f"{field}: cannot reach the hub for {source!r}: {first_line}"
            ) from error
        raise RecipeError(f"{field}: cannot load {kind} from {source!r}: {first_line}") from error


def is_unreachable(error: BaseException | None) -> bool:
    """Whether loading failed for want of an answer of the hub: transformers says so only in what
    its own error was caused by. A hub that is switched off (HF_HUB_OFFLINE) stays so."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    is_off = any(isinstance(link, OfflineModeIsEnabled) for link in chain)
    return not is_off and any(isinstance(link, LocalEntryNotFoundError) for link in chain)


def frozen(
    kind: Any,
    source: str,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **options: Any,
) -> nn.Module:
    """A model of transformers of class `kind`, with all weights that it needs, not to be trained:
    on the CPU, its weights read one by one into `dtype`; `auto` is what they are stored in.
    `options` go over its configuration.

    Raises:
        ValueError: weights are missing.
    """
    model, found = kind.from_pretrained(source, output_loading_info=True, dtype=dtype, **options)
    # transformers draws what is missing at random and goes on. A pooler is not used here, and many
    # encoders were saved without theirs.
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, among them {missing[0]}")
    module: nn.Module = model.requires_grad_(False).eval()
    return module


@torch.no_grad()
def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves a frozen module. Its weights get `dtype`; buffers do not: among them are the
    frequencies of rotary embeddings, which bf16 would put a radian off within a few hundred
    tokens."""
    module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def copied(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """The forward pass of a frozen module, by keyword, with copies of its tensors as if it were
    `placed`; it stays where and as it is."""
    tensors: dict[str, Tensor] = {}
    weights: dict[Tensor, Tensor] = {}
    # A part that has two names (T5's embedding) is named once: by the second `functional_call`
    # would take the copy for what it has to put back. A weight of two parts is copied once.
    for prefix, part in module.named_modules():
        for name, weight in part.named_parameters(prefix, recurse=False):
            if weight not in weights:
                weights[weight] = weight.to(device, dtype)
            tensors[name] = weights[weight]
        for name, buffer in part.named_buffers(prefix, recurse=False):
            tensors[name] = buffer.to(device)
    return lambda **given: functional_call(module, tensors, (), given, tie_weights=False)


def checksum(module: nn.Module) -> str:
    """xxh3-128 of all weights and their names: the same for one model under any address, read as it
    is stored or into fp32."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(value.shape)};".encode())
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        flat = value.detach().cpu().reshape(-1)  # a scalar, such as a counter, has no bytes to view
        digest.update(flat.view(torch.uint8).numpy())
    return str(digest.hexdigest())
