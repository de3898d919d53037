"""The start-up self-test: passes quickly on what is sound, and names what is not."""

from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.health.self_test import (
    CPU_SIZES,
    DeviceResult,
    LinkResult,
    Result,
    judge,
    measure_storage,
)

SCRIPT = Path(__file__).parents[3] / "support" / "self_test_rank.py"
_SECONDS = 200.0

SOUND = Result(
    rank=0,
    node=0,
    device="cuda:0 H200",
    is_cuda=True,
    compute=DeviceResult(None, 1e-3, 700.0),
    links=LinkResult(0.0, True, 1e11),
    storage=None,
)


def ranks(**changes: dict[int, Any]) -> list[Result]:
    """Sixteen sound ranks but for changes of one field by rank."""
    results = [replace(SOUND, rank=n, node=n // 8, device=f"cuda:{n % 8} H200") for n in range(16)]
    for field, values in changes.items():
        for rank, value in values.items():
            results[rank] = replace(results[rank], **{field: value})
    return results


def told(results: list[Result]) -> list[str]:
    return [str(problem) for problem in judge(results)]


def test_sound_ranks_have_no_problem() -> None:
    """Nor has one that is somewhat slower."""
    assert told(ranks()) == []
    assert told(ranks(compute={3: DeviceResult(None, 0.0, 500.0)})) == []


def test_a_slow_device_is_named() -> None:
    """With its figure beside the median's."""
    assert told(ranks(compute={11: DeviceResult(None, 0.0, 480.0)})) == [
        "rank 11 (worker 1, cuda:3 H200): 480 TFLOP/s, where the median device has 700"
    ]


def test_a_slow_cpu_is_only_reported() -> None:
    """It shares its machine."""
    slow = ranks(compute={11: DeviceResult(None, 0.0, 1.0)})
    assert told([replace(result, is_cuda=False) for result in slow]) == []


@pytest.mark.parametrize("error", [0.3, float("nan"), float("inf")])
def test_wrong_numbers_are_a_fault_anywhere(error: float) -> None:
    """Also on a CPU."""
    for is_cuda in (True, False):
        wrong = ranks(compute={2: DeviceResult(None, error, 700.0)}, is_cuda={2: is_cuda})
        assert [problem.rank for problem in judge(wrong)] == [2]
        wrong = ranks(links={5: LinkResult(error, True, 1e11)}, is_cuda={5: is_cuda})
        assert [problem.rank for problem in judge(wrong)] == [5]
    assert told(ranks(links={5: LinkResult(0.0, False, 1e11)})) == [
        "rank 5 (worker 0, cuda:5 H200): gathered values are not what the ranks sent"
    ]


def run(
    context: ForkServerContext, url: Path, faults: list[str | None]
) -> list[tuple[Any, list[str]]]:
    """What each rank says, its results or its error, and logs."""
    port = free_port()
    processes, heard = [], []
    for rank, fault in enumerate(faults):
        ours, theirs = context.Pipe(duplex=False)
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(faults)),
            "LOCAL_WORLD_SIZE": str(len(faults)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        given = {"environment": environment, "url": str(url), "fault": fault, "said": theirs}
        process = context.Process(target=runpy.run_path, args=(str(SCRIPT), given))
        process.start()
        theirs.close()
        processes.append(process)
        heard.append(ours)
    said = []
    for ours, process in zip(heard, processes, strict=True):
        assert ours.poll(_SECONDS), "a rank says nothing"
        said.append(ours.recv())
        ours.close()
        process.join()
    return said


def test_three_ranks_test_each_other(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """All see all results, the storage is left as it was, and it takes moments."""
    heard = run(fork_server, tmp_path / "run-u", [None] * 3)
    assert [events for _, events in heard] == [["self_test_passed"], [], []]
    said = [results for results, _ in heard]
    assert said[0] == said[1] == said[2]
    assert [result.rank for result in said[0]] == [0, 1, 2]
    assert judge(said[0]) == []
    for result in said[0]:
        assert (result.node, result.device) == (7, "CPU")
        assert result.compute.tflops > 0
        assert result.links.gather_bytes_per_second > 0
    assert [result.storage is None for result in said[0]] == [False, True, True]
    assert [path for path in (tmp_path / "run-u").rglob("*") if path.is_file()] == []


def test_runs_that_share_a_storage_leave_each_other_alone(tmp_path: Path) -> None:
    """Two first ranks at the same moment: each finds what it wrote, and nothing stays."""
    storage = Storage(str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        tests = [pool.submit(measure_storage, storage, 0, CPU_SIZES) for _ in range(40)]
    assert [test.result().error for test in tests] == [None] * 40
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong", "rank 1 (worker 7, CPU): a matrix product is wrong by "),
        ("refuses", "rank 1 (worker 7, CPU): device-side assert triggered"),
    ],
)
def test_all_ranks_hear_of_one_bad_device(
    fork_server: ForkServerContext, tmp_path: Path, fault: str, message: str
) -> None:
    """One wrong value of 65,536 is enough; the others do not wait for a rank that has left."""
    for said, _ in run(fork_server, tmp_path, [None, fault]):
        assert said.startswith(f"SelfTestError: {message}")
        assert "rank 0" not in said


def test_a_storage_that_fails_is_no_bad_device(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """All ranks end with the storage's own words."""
    (tmp_path / "run-u").write_text("a file where a folder should be")
    for said, _ in run(fork_server, tmp_path / "run-u", [None] * 2):
        assert said.startswith(f"StorageError: {tmp_path}/run-u/self-test/0-"), said
