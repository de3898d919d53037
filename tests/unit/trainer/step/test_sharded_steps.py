"""However the ranks compute, the steps are those of one process with plain torch: four real ranks
over gloo against a loop without any of our parallelism, on the same samples and noise.
"""

from __future__ import annotations

import runpy
from dataclasses import asdict, replace
from math import isnan
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")
LENT = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
Case = LENT.Case
WORLD = 4
_SECONDS = 250.0

# A projector of the usual width would have tensors so large that torch's own norm, in fp32 on a CPU
# (4e-5 off), is no reference.
ALIGNED = {
    "alignment": {"teacher": "made in the test", "layer": 0, "weight": 0.5, "projectorSize": 32}
}
ROUTED = {"routing": {"kind": "tread", "share": 0.5, "first": 0, "last": 0}}
FUSED = {"routing": {"kind": "sprint", "share": 0.5, "first": 0, "last": 0}}
MASKED = {"prediction": "v", "masking": {"share": 0.5, "mixerDepth": 1}}

CASES = [
    Case("fsdp", {"sharding": "fsdp"}),
    Case("one-unit", {"sharding": "fsdp"}, units=False),
    Case("hsdp", {"sharding": "hsdp"}),
    Case("hsdp-muon", {"sharding": "hsdp"}, optimizer="muon"),
    Case("uneven", sizes=(5, 7, 6)),
    Case("fewer-samples-than-ranks", sizes=(3, 1, 2)),
    Case("accumulated", {"device_batch_size": 1}, sizes=(16, 16, 16)),
    Case("accumulated-fsdp", {"device_batch_size": 2, "sharding": "fsdp"}, sizes=(16, 16, 16)),
    # Three ranks with five samples and one with four, two at a time: passes of 1 or 2 that count.
    Case("accumulated-uneven", {"device_batch_size": 2}, sizes=(19, 13, 3)),
    Case("accumulated-muon", {"device_batch_size": 3}, sizes=(19, 13), optimizer="muon"),
    Case("recomputed", {"activation_checkpointing": "blocks", "device_batch_size": 1}),
    Case("recomputed-one-unit", {"activation_checkpointing": "blocks"}, units=False),
    Case("bf16", precision="bf16"),
    Case("bf16-accumulated", {"device_batch_size": 1}, sizes=(16, 16, 16), precision="bf16"),
    Case("bf16-muon", {"sharding": "hsdp"}, optimizer="muon", precision="bf16"),
    # Tokens that pass by, and a teacher that looks at those that stay.
    Case("aligned-and-routed", {"sharding": "fsdp"}, objective=ALIGNED | ROUTED),
    Case(
        "aligned-and-routed-accumulated",
        {"device_batch_size": 2, "activation_checkpointing": "blocks"},
        sizes=(19, 3),
        objective=ALIGNED | ROUTED | {"stratified": True},
    ),
    Case(
        "sana-aligned-and-fused",
        {"sharding": "fsdp", "activation_checkpointing": "blocks"},
        objective=ALIGNED | FUSED | {"prediction": "v"},
        optimizer="muon",
        denoiser="sana",
    ),
    Case("velocity-masked", {"sharding": "hsdp"}, objective=MASKED, optimizer="muon"),
    # A rank's samples are each other's negatives; one that is alone has none.
    Case("contrast", {"sharding": "fsdp"}, sizes=(8, 5, 8), objective={"contrast": 0.05}),
    Case("bad-adamw", sizes=(8, 8, 8, 8), bad=(1, 2)),
    Case("bad-first", sizes=(8, 8), bad=(0, 3)),
    Case("bad-muon", {"device_batch_size": 1}, sizes=(8, 8, 8), optimizer="muon", bad=(1, 0)),
]

OFF = {"alignment": ALIGNED["alignment"] | {"weight": 0.0}}

COMPILED = [
    Case("compiled", {"compile": "blocks"}, sizes=(8, 5, 8), rehearse=True),
    Case(
        "recomputed",
        {"compile": "blocks", "activation_checkpointing": "blocks", "sharding": "fsdp"},
        rehearse=True,
    ),
    Case(
        "budget",
        {"compile": "blocks", "activation_checkpointing": "budget", "memory_budget": 0.3},
        units=False,
        rehearse=True,
    ),
]

TOLERANCE = {"fp32": (1e-4, 2e-6), "bf16": (0.05, 4e-3)}
"""Of weights, over how far they moved in all steps, and of losses and norms. Rounding, which AdamW
makes large where a gradient is nearly zero. Measured: 2e-5 and 2e-7; in bf16, whose products have
three digits, 2e-2 and 9e-4."""


def outcomes(
    context: ForkServerContext, folder: Path, cases: list[Any], world: int = WORLD
) -> dict[str, Any]:
    """What each case came to on `world` ranks."""
    out = folder / f"outcomes-{world}.pt"
    ranks = []
    for rank in range(world):
        given = {
            "rank": rank,
            "world": world,
            "store": str(folder / f"store-{world}"),
            "cases": [asdict(case) for case in cases],
            "out": str(out),
        }
        ranks.append(context.Process(target=runpy.run_path, args=(str(SCRIPT), given)))
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_SECONDS)
    assert [process.exitcode for process in ranks] == [0] * world
    return {name: SimpleNamespace(**found) for name, found in torch.load(out).items()}


@pytest.fixture(scope="module")
def found(fork_server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Any:
    off = Case("aligned-by-nothing", {"sharding": "fsdp"}, objective=OFF)
    return outcomes(fork_server, tmp_path_factory.mktemp("steps"), [*CASES, off])


def strayed(case: Any, mine: Any, plain: Any) -> tuple[float, float]:
    """How far the ranks' weights, and their average, are from those of one process, over how far
    these moved in all steps."""
    begin = {n: p.detach() for n, p in LENT.model_of(case.recipe)[0].named_parameters()}

    def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
        apart = sum(float((found[n] - wanted[n]).square().sum()) for n in begin)
        moved = sum(float((wanted[n] - begin[n]).square().sum()) for n in begin)
        return float((apart / moved) ** 0.5)

    return distance(mine.weights, plain.weights), distance(mine.average, plain.average)


def agree(case: Any, mine: Any) -> None:
    plain = LENT.reference(case)
    assert mine.names == plain.names
    assert mine.taken == plain.taken
    assert mine.untouched
    assert mine.read == [], "the host looked at a value in the middle of a step"
    weights, numbers = TOLERANCE[case.precision]
    for here, there in ((mine.losses, plain.losses), (mine.norms, plain.norms)):
        for one, other, taken in zip(here, there, plain.taken, strict=True):
            assert one == pytest.approx(other, rel=numbers) if taken else isnan(one)
    assert max(strayed(case, mine, plain)) < weights


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_ranks_take_the_steps_of_one_process(case: Any, found: Any) -> None:
    """Losses, gradient norms, weights and averages; a bad step changes nothing on any rank, to the
    bit, and the next one is fine; a checkpoint's names do not tell how it was computed."""
    agree(case, found[case.name])


def test_an_alignment_of_no_weight_is_none(found: Any) -> None:
    """REPA with weight 0: what is exported learns what it learns without, to the bit."""
    plain, off = found["fsdp"], found["aligned-by-nothing"]
    assert off.losses == plain.losses
    assert off.weights.keys() > plain.weights.keys()
    for name, value in plain.weights.items():
        assert torch.equal(off.weights[name], value), name


def test_recomputed_blocks_are_computed_twice(found: Any) -> None:
    """Once in each forward pass, and once more in each backward pass: two passes a step with one
    image at a time."""
    assert found["fsdp"].forwards == 3
    assert found["recomputed-one-unit"].forwards == 2 * 3
    assert found["recomputed"].forwards == 2 * 2 * 3


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.training, pytest.mark.e2e]) for case in COMPILED],
    ids=lambda case: case.name,
)
def test_compiled_steps_are_those_of_one_process(
    case: Any, fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """With blocks compiled, whatever is recomputed; and once the shapes are rehearsed, which
    changes nothing, no step compiles anything."""
    # One rank fills the compiler's cache, with passes as large as those of the four; each of the
    # four would take as long, on the same cores.
    alone = replace(case, compute=case.compute | {"sharding": "auto"}, sizes=(2,))
    outcomes(fork_server, tmp_path, [alone], world=1)
    found = outcomes(fork_server, tmp_path, [case])[case.name]
    agree(case, found)
    rehearsed, after = found.graphs
    assert rehearsed == after == 1, "both blocks share one compiled graph"
