"""SIGTERM outside the life of the ranks."""

from __future__ import annotations

import subprocess
import sys

LATE = """
import os, signal
from daybreak_trainer.stop import Stop

def end():
    os._exit(9)

stop = Stop(end)
stop.over()
os.kill(os.getpid(), signal.SIGTERM)
print("told its end")
"""


def test_a_stop_after_the_ranks_have_ended_changes_nothing() -> None:
    """The first pod that fails has the others deleted while these are about to say how they
    ended."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told its end\n"), done.stderr
