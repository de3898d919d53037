"""PID 1 of a worker pod: `python -m daybreak_trainer.launch`.

Only the standard library is imported above `main`, so that a SIGTERM finds its handler within the
interpreter's own start. What a pod does is in `pod`, how its ranks live in `gang` and `watch`,
and what is said of their end in `ending`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from daybreak_trainer.stop import Stop


def main(
    rank_main: Callable[[], int] | None = None, patience: Mapping[str, float] | None = None
) -> int:
    """Runs the pod; returns its exit code. `rank_main` replaces training, and `patience` some of
    `watch.Patience`, in tests."""
    stop = Stop(_end_while_importing)
    from daybreak_trainer.pod import Pod

    pod = Pod(stop)
    stop.end = pod.end_now
    return pod.run(rank_main, patience or {})


def _end_while_importing() -> None:
    from daybreak_trainer import ending

    ending.end_stopped({}, None)


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Past multiprocessing's exit handler: it waits for a rank that the kernel does not let die.
    os._exit(ended)
