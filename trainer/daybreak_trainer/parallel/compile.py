"""Compilation before the first step, and only once: every shape of the run is rehearsed, and what
the compiler made for it is kept beside the checkpoints for the next attempt, a file a shape. So an
attempt that dies while it compiles has not compiled in vain.

A lost or damaged file costs the time to compile again and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch._dynamo.config as dynamo_config
import torch._inductor.config as inductor_config
import torch.compiler
import torch.distributed as dist
import xxhash
from torch._dynamo.utils import counters
from torch.compiler._cache import CacheArtifactManager

from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.telemetry import log

_SPARE_COMPILATIONS = 8
_MOST_COMPILERS = 32
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Shape:
    """What a step's passes are compiled for."""

    height: int
    width: int
    """Of an image, pixels."""
    global_size: int
    """Images of a step over all ranks."""
    stage: int
    """Of the recipe, from 0: what is computed for an image differs between stages."""
    tokens: int
    """To which captions are padded."""

    def __str__(self) -> str:
        return f"stage{self.stage}-{self.height}x{self.width}-{self.global_size}-{self.tokens}"


class Rehearses(Protocol):
    """`step.TrainStep` is one."""

    def enter(self, stage: int) -> None: ...
    def rehearse(self, height: int, width: int, global_size: int, tokens: int) -> None: ...


def warm_up(
    step: Rehearses,
    shapes: Sequence[Shape],
    units: int,
    rank: Rank,
    group: dist.ProcessGroup | None,
    artifacts: Artifacts,
    done: Callable[[int], None],
) -> None:
    """Rehearses all `shapes` on all ranks together, after loading what an earlier attempt compiled,
    and keeps what is new after each. `units` is how many blocks are compiled; `done` hears how many
    shapes are done."""
    wanted = list(dict.fromkeys(shapes))
    # Into the cache on the node's disk, which its ranks share.
    loaded = {shape for shape in wanted if rank.is_first_of_node and artifacts.load(shape)}
    dist.barrier(group)
    _prepare_compiler(rank, len(wanted) * units + _SPARE_COMPILATIONS)
    started, before = time.monotonic(), _misses()
    for number, shape in enumerate(wanted, 1):
        missed = _misses()
        with CacheArtifactManager.with_fresh_cache():
            step.enter(shape.stage)
            step.rehearse(shape.height, shape.width, shape.global_size, shape.tokens)
            if rank.is_first and (_misses() > missed or shape not in loaded):
                artifacts.save(shape)
        done(number)
    if rank.is_first:
        log.event(
            "compile_warmed_up",
            shapes=len(wanted),
            compiled_graphs=_misses() - before,
            seconds=round(time.monotonic() - started, 3),
        )


def _prepare_compiler(rank: Rank, compilations: int) -> None:
    # Each rank would start a compiler for each processor of the node.
    threads = len(os.sched_getaffinity(0)) // rank.local_world
    inductor_config.compile_threads = max(1, min(_MOST_COMPILERS, threads))
    # By default the ninth variant of a function is refused.
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, compilations)
    dynamo_config.accumulated_recompile_limit = max(
        dynamo_config.accumulated_recompile_limit, compilations
    )


class Artifacts:
    """The compiler's artifacts of one kind of attempt, a file a shape. Its methods never raise for
    what the store does or holds."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key

    def load(self, shape: Shape) -> bool:
        """Fills the compiler's cache on this node's disk; whether there was something to load."""
        lost = partial(self._lost, "compile_artifacts_not_loaded", shape)
        try:
            raw = self._storage.read(self._name(shape))
        except FileNotFoundError:
            return False
        except StorageError as error:
            return lost(str(error))
        digest, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if xxhash.xxh64(data).digest() != digest:
            return lost("the file is damaged")
        try:
            loaded = torch.compiler.load_cache_artifacts(data) is not None
        except Exception as error:  # noqa: BLE001 (another version's format raises what it likes)
            return lost(repr(error))
        return loaded or lost("another version's format")

    def save(self, shape: Shape) -> bool:
        """Whether what this process has compiled or found in its cache is kept now. Within a fresh
        `CacheArtifactManager` of torch: from what was saved twice torch loads the second part."""
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            return False
        data, _ = saved
        try:
            self._storage.write(self._name(shape), xxhash.xxh64(data).digest() + data)
        except StorageError as error:
            return self._lost("compile_artifacts_not_saved", shape, str(error))
        log.event("compile_artifacts_saved", file=self._name(shape), bytes=len(data))
        return True

    def _name(self, shape: Shape) -> str:
        return f"{self._key}-{shape}.bin"

    def _lost(self, event: str, shape: Shape, reason: str) -> bool:
        log.event(event, logging.WARNING, file=self._name(shape), reason=reason)
        return False


def artifacts_key(recipe_hash: str, compute: ComputeSettings, device: torch.device) -> str:
    """What the artifacts depend on beside the shapes, as a file's name."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    conditions = "\n".join((torch.__version__, name, recipe_hash, compute.to_json()))
    return hashlib.sha256(conditions.encode()).hexdigest()[:16]


def _misses() -> int:
    return int(counters["inductor"]["fxgraph_cache_miss"])
