"""What a launcher may know of its node's GPUs without touching CUDA itself.

A process that has touched CUDA must not be forked: its children find no device, or are refused by
torch. Even to ask whether there is a device touches it, unless NVML answers instead, and libraries
ask that while they are imported. So NVML is asked wherever there is one, and what the launcher
wants to know it asks in a child.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, MutableMapping
from multiprocessing.connection import Connection

import torch

_ENV_ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Of torch (`torch.cuda.is_available`). A rank sees it too, and then fails on a GPU whose driver
does not work, instead of training on the CPU."""
_SECONDS = 120.0
"""For a driver to count its devices; without its daemon it loads firmware first."""
REMEDY = (
    "CUDA was touched before the ranks were started, which happens where NVML cannot count the "
    "devices: give the pod libnvidia-ml.so.1 (NVIDIA_DRIVER_CAPABILITIES must hold 'utility'), and "
    "no MIG names in CUDA_VISIBLE_DEVICES"
)


def ask_nvml(environment: MutableMapping[str, str]) -> None:
    """From now on; to be called before anything that looks for devices is imported."""
    environment[_ENV_ASK_NVML] = "1"


def count() -> int:
    """Devices that a rank of this node would find, as long as this process has not touched CUDA.

    Raises:
        RuntimeError: the driver does not answer.
    """
    return _in_child(torch.cuda.device_count)


def are_lost_to_children() -> bool:
    """Whether this process has touched CUDA, so that its forked children cannot use it.

    Raises:
        RuntimeError: the child that was to find out did not answer.
    """
    return bool(_in_child(_is_in_bad_fork))


def _is_in_bad_fork() -> int:
    is_bad: bool = torch.cuda._is_in_bad_fork()
    return int(is_bad)


def _in_child(question: Callable[[], int]) -> int:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(question, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_SECONDS):
            raise RuntimeError(f"the GPUs' driver has not answered within {_SECONDS:g} s")
        answer: int = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"looking for GPUs ended with {child.exitcode}") from None
    finally:
        ours.close()
        child.kill()
    child.join()
    return answer


def _answer(question: Callable[[], int], theirs: Connection) -> None:
    theirs.send(question())
