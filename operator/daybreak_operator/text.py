"""Text of others (workers, kubelets, registries, webhooks) on its way into status and Events."""

from __future__ import annotations

_LOOKED_AT = 8
"""Times the limit: what is beyond is not even read."""


def plain(text: str, limit: int) -> str:
    """One line of at most `limit` characters that a terminal only shows: line breaks and control
    characters become spaces."""
    shown = "".join(c if c.isprintable() else " " for c in text[: limit * _LOOKED_AT])
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
