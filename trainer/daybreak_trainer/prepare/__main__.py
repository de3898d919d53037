"""PID 1 of a pod that prepares data: `python -m daybreak_trainer.prepare`.

Only the standard library is imported above `main`, as in `launch`.
"""

from __future__ import annotations

import os
import sys

from daybreak_trainer.stop import Stop


def main() -> int:
    """Prepares this pod's parts; returns the exit code."""
    stop = Stop(_end_stopped)
    from daybreak_trainer.ending import report
    from daybreak_trainer.prepare.pod import run

    ended = run()
    stop.over()
    report(ended, None)
    return ended.exit_code


def _end_stopped() -> None:
    from daybreak_trainer.contract import ExitCode, Termination
    from daybreak_trainer.ending import report

    message = "stopped on request; parts that are prepared count, and another pod makes the rest"
    report(Termination(reason="Terminated", message=message, exit_code=ExitCode.TERMINATED), None)
    os._exit(ExitCode.TERMINATED)


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)
