"""A launcher leaves CUDA alone, so that the ranks it forks can use the GPUs. No GPU is needed: what
torch asks of NVML and the driver is answered for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from worker_pods import make_pod

from daybreak_trainer.contract import ExitCode, Termination

EIGHT_GPUS = """
import sys, torch
torch.cuda._device_count_nvml = lambda: 8
from daybreak_trainer import launch
sys.exit(launch.main())
"""
TOUCHED = """
import sys, torch
ask = torch._C._cuda_getDeviceCount
torch._C._cuda_getDeviceCount = lambda: ask() + 8
torch.cuda._device_count_nvml = lambda: -1
from daybreak_trainer import launch
assert torch.cuda.is_available()
sys.exit(launch.main(lambda: 0))
"""


def end_of_pod(folder: Path, script: str) -> Termination:
    """A pod with one rank, in a process that has imported nothing before."""
    pod = make_pod(folder, ranks=1)
    subprocess.run([sys.executable, "-c", script], env=pod.environment, timeout=200, check=False)
    termination = Termination.decode((folder / "termination").read_text())
    assert termination is not None
    return termination


def test_ranks_get_as_far_as_the_driver(tmp_path: Path) -> None:
    """The launcher imports everything, diffusers too, which looks for devices meanwhile; a rank
    then finds this machine's missing driver, and not that its parent has touched CUDA."""
    end = end_of_pod(tmp_path, EIGHT_GPUS)
    assert end.reason == "TrainerError"
    assert "Found no NVIDIA driver" in end.message


def test_gpus_that_ranks_could_not_use_are_said(tmp_path: Path) -> None:
    """They would train on the CPU without a word."""
    end = end_of_pod(tmp_path, TOUCHED)
    assert (end.exit_code, end.reason) == (ExitCode.FAILED, "StartFailed")
    assert end.message.startswith("no rank could use the 8 GPUs: CUDA was touched before")
    assert "libnvidia-ml.so.1" in end.message
