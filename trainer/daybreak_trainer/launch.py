"""PID 1 of a worker pod: `python -m daybreak_trainer.launch`.

Only the standard library is imported above `main`, so that a SIGTERM finds its handler within the
interpreter's own start. What a pod does is in `pod`, how its ranks run in `gang`, and what is said
of their end in `ending`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from daybreak_trainer.stop import StopWithoutRanks


def main(rank_main: Callable[[], int] | None = None) -> int:
    """Runs the pod; returns its exit code. `rank_main` replaces training in tests."""
    stop = StopWithoutRanks(_end_while_importing)
    from daybreak_trainer.pod import Pod

    pod = Pod(stop)
    stop.end = pod.end_now
    return pod.run(rank_main)


def _end_while_importing() -> None:
    from daybreak_trainer import ending

    ending.end_stopped({}, None)


if __name__ == "__main__":
    sys.exit(main())
