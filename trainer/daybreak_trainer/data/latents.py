"""Which latents a dataset holds, and whether they are those that a recipe trains on."""

from __future__ import annotations

from daybreak_trainer.contract import Message


class LatentSpace(Message):
    """`latents` in `dataset.json`: what made the column `latent`. Stored values are scaled already:
    `(z - shift) * scaling`."""

    autoencoder: str
    """The folder or repository it was loaded from, for people; the checksum decides."""
    checksum: str
    """xxh3-128 of its weights."""
    scaling: float
    shift: float
    channels: int
    downsampling: int

    def difference(self, other: LatentSpace) -> str | None:
        """The first thing in which latents of the two differ, in words."""
        for name in ("channels", "downsampling", "scaling", "shift", "checksum"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name} {ours} ({self.autoencoder}) instead of {theirs}"
        return None
