"""Child processes that never outlive the process that started them.

Every child asks the kernel to kill it when its parent dies (`PR_SET_PDEATHSIG`), so that not even
SIGKILL of the supervisor leaves one behind. The kernel ties that to the *thread* that forked: only
a process that forks from its main thread, as the supervisor does, may use this module.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Child:
    """One running program, with its output in a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.command = tuple(command)
        self._log = log
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the kernel knew of our wish
                os.kill(os.getpid(), signal.SIGKILL)

        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def exit_status(self) -> str | None:
        """How it ended ("exited 1", "was killed by SIGKILL"), or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited {code}"

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, indented for an error message."""
        return tail(self._log, count)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); does nothing where it has ended."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait_or_kill(self, seconds: float) -> None:
        """Wait for its end for that long, then SIGKILL; it is gone when this returns."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return
        self._process.kill()
        self._process.wait()


def tail(path: Path, count: int) -> str:
    """The last lines of a log file, indented by four spaces; says so where it is empty."""
    lines = path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []
    return "\n".join(f"    {line}" for line in lines) or f"    ({path} is empty)"
