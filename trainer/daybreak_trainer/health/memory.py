"""Whether the kernel has killed processes of this pod for the memory they used.

Of a rank that is killed, its container's end tells nothing: the launcher lives on. The pod's cgroup
counts such kills (cgroup v2, `memory.events`).
"""

from __future__ import annotations

from pathlib import Path

_EVENTS = Path("/sys/fs/cgroup/memory.events")


def oom_kills(events: Path = _EVENTS) -> int:
    """Processes of this pod that the kernel has killed for memory so far; 0 where nothing counts
    them."""
    try:
        lines = events.read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(counts.get("oom_kill", "0"))
