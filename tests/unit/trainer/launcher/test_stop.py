"""SIGTERM outside the life of the ranks."""

from __future__ import annotations

import subprocess
import sys

LATE = """
import os, signal
from daybreak_trainer.stop import StopWithoutRanks

def end():
    os._exit(9)

def agent(number, frame):
    raise RuntimeError("a stop, to torchrun's agent")

stop = StopWithoutRanks(end)
signal.signal(signal.SIGTERM, agent)
stop.over()
os.kill(os.getpid(), signal.SIGTERM)
print("told its end")
"""


def test_a_stop_after_the_ranks_have_ended_changes_nothing() -> None:
    """The first pod that fails has the others deleted, while these are about to say how they ended:
    torchrun's handler, which raises, is no longer there."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told its end\n"), done.stderr
