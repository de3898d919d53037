"""What a checkpoint was written with."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("daybreak", "torch", "diffusers")


def versions() -> dict[str, str]:
    """Of Python and of what decides how numbers come about, by name."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version()}
