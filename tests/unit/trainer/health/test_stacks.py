"""Where a rank's threads are, asked for by another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from daybreak_trainer.health import stacks

HELD = """
import ctypes, sys, threading
from pathlib import Path
from daybreak_trainer.health import stacks

def in_a_call_that_holds_the_interpreter():
    print("ready", flush=True)
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter's lock

threading.Thread(target=threading.Event().wait, daemon=True).start()
stacks.register(Path(sys.argv[1]), 0)
in_a_call_that_holds_the_interpreter()
"""


def test_a_rank_answers_from_a_call_that_holds_the_interpreter(tmp_path: Path) -> None:
    """No Python code of it can run: its threads' stacks come from a handler in C."""
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found = stacks.collect(tmp_path, {0: process.pid}, wait_seconds=10.0)
        finally:
            process.kill()
    assert "in wait" in found[0]
    assert "in in_a_call_that_holds_the_interpreter" in stacks.main_thread(found[0])
    assert "in wait" not in stacks.main_thread(found[0])


def test_a_rank_that_is_gone_has_no_stack(tmp_path: Path) -> None:
    """And is not waited for beyond the limit."""
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    assert stacks.collect(tmp_path, {0: process.pid}, wait_seconds=0.1) == {}
