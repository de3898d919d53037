"""The start-up self-test: finds a device that computes wrongly or slowly, a link or a storage that
does not carry, before the money is spent.

Every rank measures, all ranks get all results, and one pure function judges them, so all fail
together and name the same culprits. Wrong numbers fail anywhere. A slow device fails on CUDA, where
all devices of a run are of one kind; CPUs share their machine, and are only reported.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.telemetry import log

SLOW_SHARE = 0.7
"""Of the median device's speed; below it a device is not worth waiting for at every step."""
_MEASUREMENTS = 5
"""The best counts: a neighbour, or clocks that are still rising, disturb some."""
_GRADIENT_VALUES = 1 << 16
"""By each rank."""
_TILE = 256
_MATRIX_ERROR = 0.02
"""Relative to the largest value: bf16 has 8 bits, the sums of products are kept in fp32."""


class SelfTestError(Exception):
    """Devices, links or the storage are not fit for training; the message names each."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: enough to keep a device busy, little enough for a few seconds."""

    matrix: int
    products: int
    """In one of several measurements."""
    gathered_bytes: int
    """By all ranks together, so that a rank of a large run needs no more memory."""
    stored_bytes: int
    """By the first rank of each node."""


CPU_SIZES = Sizes(matrix=256, products=4, gathered_bytes=1 << 20, stored_bytes=1 << 16)
CUDA_SIZES = Sizes(matrix=8192, products=4, gathered_bytes=1 << 30, stored_bytes=1 << 23)


@dataclass(frozen=True)
class DeviceResult:
    """One device by itself."""

    error: str | None = None
    """What it refused to do."""
    matrix_error: float = 0.0
    """Largest difference from the reference, relative to its largest value."""
    tflops: float = 0.0
    """10^12 floating-point operations a second."""


@dataclass(frozen=True)
class LinkResult:
    """One rank's side of the collectives."""

    gradient_error: float
    """Largest difference from the exact sum of all ranks' values."""
    gather_is_right: bool
    gather_bytes_per_second: float
    """Received from all other ranks together; 0 where there are none."""


@dataclass(frozen=True)
class StorageResult:
    error: str | None = None
    write_bytes_per_second: float = 0.0
    read_bytes_per_second: float = 0.0


@dataclass(frozen=True)
class Result:
    """What one rank found."""

    rank: int
    node: int
    device: str
    is_cuda: bool
    compute: DeviceResult
    links: LinkResult
    storage: StorageResult | None
    """None on ranks that are not their node's first."""


@dataclass(frozen=True)
class Problem:
    rank: int
    node: int
    device: str
    what: str

    def __str__(self) -> str:
        return f"rank {self.rank} (worker {self.node}, {self.device}): {self.what}"


def judge(results: Sequence[Result]) -> list[Problem]:
    """What is wrong with devices and links, by rank. Pure."""
    typical = median(result.compute.tflops for result in results)
    return [
        Problem(result.rank, result.node, result.device, what)
        for result in results
        for what in _faults(result, typical)
    ]


def _faults(result: Result, typical_tflops: float) -> list[str]:
    compute, links = result.compute, result.links
    if compute.error is not None:
        return [compute.error]
    faults = []
    # Not `>`: a comparison with NaN is false.
    if not compute.matrix_error <= _MATRIX_ERROR:
        faults.append(f"a matrix product is wrong by {compute.matrix_error:.3g} of its largest")
    if links.gradient_error != 0.0:
        faults.append(f"a reduced gradient is wrong by {links.gradient_error:.3g}")
    if not links.gather_is_right:
        faults.append("gathered values are not what the ranks sent")
    if result.is_cuda and compute.tflops < SLOW_SHARE * typical_tflops:
        faults.append(
            f"{compute.tflops:.0f} TFLOP/s, where the median device has {typical_tflops:.0f}"
        )
    return faults


def run(
    rank: Rank, node: int, storage: Storage, sizes: Sizes, group: dist.ProcessGroup | None = None
) -> list[Result]:
    """Collective, once the ranks have joined: tests every device, the links between them and, from
    one rank a node, the run's storage, where a small file is written, read and removed. `node` is
    this pod's index. Returns all ranks' results on all ranks.

    Raises:
        SelfTestError: on all ranks, where any device or link has a fault.
        StorageError: on all ranks, where the storage failed one of them.
    """
    started = time.monotonic()
    own = Result(
        rank=rank.rank,
        node=node,
        device=_name(rank.device),
        is_cuda=rank.device.type == "cuda",
        compute=measure_device(rank.device, sizes),
        links=_measure_links(rank, sizes, group),
        storage=measure_storage(storage, rank.rank, sizes) if rank.local_rank == 0 else None,
    )
    _forget_memory(rank.device)
    results: list[Result] = [own] * rank.world
    dist.all_gather_object(results, own, group=group)
    problems = judge(results)
    if problems:
        shown = "; ".join(str(problem) for problem in problems[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise SelfTestError(f"{shown}{more}")
    stored = [result.storage for result in results if result.storage is not None]
    for storage_result in stored:
        if storage_result.error is not None:
            raise StorageError(storage_result.error)
    if rank.is_first:
        _report(results, stored, time.monotonic() - started)
    return results


def _report(results: list[Result], stored: list[StorageResult], seconds: float) -> None:
    tflops = [result.compute.tflops for result in results]
    log.event(
        "self_test_passed",
        seconds=round(seconds, 2),
        device=results[0].device,
        tflops_min=round(min(tflops), 4),
        tflops_median=round(median(tflops), 4),
        slowest_rank=min(results, key=lambda result: result.compute.tflops).rank,
        gather_bytes_per_second_min=round(min(r.links.gather_bytes_per_second for r in results)),
        storage_write_bytes_per_second_min=round(min(s.write_bytes_per_second for s in stored)),
        storage_read_bytes_per_second_min=round(min(s.read_bytes_per_second for s in stored)),
    )


def measure_device(device: torch.device, sizes: Sizes) -> DeviceResult:
    """Multiplies matrices of `sizes.matrix` rows and columns, and checks every value.

    The factors repeat one block of rows and one of columns, so each tile of the product must equal
    a small reference that is computed on the CPU in fp64.
    """
    tile, repeats = min(_TILE, sizes.matrix), max(1, sizes.matrix // _TILE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tile, sizes.matrix, generator=generator).to(dtype)
    columns = torch.randn(sizes.matrix, tile, generator=generator).to(dtype)
    reference = rows.double() @ columns.double()
    try:
        left, right = rows.to(device).repeat(repeats, 1), columns.to(device).repeat(1, repeats)
        product = left @ right
        _seconds_of_products(left, right, sizes.products)  # the first ones are slower
        seconds = min(
            _seconds_of_products(left, right, sizes.products) for _ in range(_MEASUREMENTS)
        )
        tiles = product.view(repeats, tile, repeats, tile).float()
        wanted = reference.float().to(device)[None, :, None, :]
        error = float((tiles - wanted).abs().max() / wanted.abs().max())
    except RuntimeError as error_of_device:
        lines = str(error_of_device).splitlines()
        return DeviceResult(error=lines[0] if lines else repr(error_of_device))
    operations = 2 * left.shape[0] * left.shape[1] * right.shape[1] * sizes.products
    return DeviceResult(None, error, operations / seconds / 1e12)


def _seconds_of_products(left: Tensor, right: Tensor, products: int) -> float:
    _wait(left.device)
    started = time.perf_counter()
    for _ in range(products):
        torch.mm(left, right)
    _wait(left.device)
    return time.perf_counter() - started


def _measure_links(rank: Rank, sizes: Sizes, group: dist.ProcessGroup | None) -> LinkResult:
    """Reduces and gathers values whose result is known to the bit."""
    world, device = rank.world, rank.device
    share = max(1, sizes.gathered_bytes // world)
    pattern = torch.arange(_GRADIENT_VALUES * world, device=device).remainder(128).float()
    # Small integers: their sums are exact in fp32, in any order.
    exact = pattern * world + math.comb(world, 2)
    whole, part = pattern + rank.rank, torch.empty(_GRADIENT_VALUES, device=device)
    dist.reduce_scatter_single(part, whole, group=group)
    dist.all_reduce(whole, group=group)
    # `torch.maximum` keeps a NaN, Python's `max` may not.
    error = torch.maximum(
        (whole - exact).abs().max(), (part - exact.view(world, -1)[rank.rank]).abs().max()
    )
    mine = torch.full((share,), rank.rank % 251, dtype=torch.uint8, device=device)
    gathered = torch.empty(world * share, dtype=torch.uint8, device=device)
    dist.all_gather_single(gathered, mine, group=group)  # the first one makes connections
    _wait(device)
    started = time.perf_counter()
    dist.all_gather_single(gathered, mine, group=group)
    _wait(device)
    seconds = time.perf_counter() - started
    senders = torch.arange(world, device=device).remainder(251).to(torch.uint8)
    is_right = bool((gathered.view(world, -1) == senders[:, None]).all())
    return LinkResult(float(error), is_right, (world - 1) * share / seconds)


def measure_storage(storage: Storage, rank: int, sizes: Sizes) -> StorageResult:
    """Writes, reads and removes `self-test/<rank>-<unique>` below `storage`, where other runs, and
    a leftover of this one, may be at their tests, too."""
    name, data = f"self-test/{rank}-{uuid.uuid4().hex}", os.urandom(sizes.stored_bytes)
    try:
        started = time.perf_counter()
        storage.write(name, data)
        written = time.perf_counter()
        found = storage.read(name)
        read = time.perf_counter()
        storage.remove(name)
    except (StorageError, FileNotFoundError) as error:
        return StorageResult(error=str(error))
    if found != data:
        return StorageResult(error=f"{storage.url}/{name}: what was read is not what was written")
    return StorageResult(None, len(data) / (written - started), len(data) / (read - written))


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return "CPU"
    return f"{device} {torch.cuda.get_device_name(device)}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_memory(device: torch.device) -> None:
    """What the test needed is free again, and no peak of the training."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
