"""What a corpus was, in few words: its fingerprint decides resume, and a change can be told."""

from __future__ import annotations

import xxhash

from daybreak_trainer.contract import Message


class StreamDescription(Message):
    url: str
    weight: float
    index: str
    """xxh3-128 of `index.json`."""
    shards: int
    samples: int
    """Without those that are skipped."""
    skips: str | None = None
    """xxh3-128 of `skip.json`."""
    buckets: str | None = None
    """xxh3-128 of the buckets in `dataset.json`."""
    source: str = ""
    licence: str = ""
    """As its card says."""
    resolution: int | None = None
    """Of its images, pixels: stages of this resolution draw from it. None where a description was
    written before that was told."""


class CorpusDescription(Message):
    """Decides, with the seed, every sample of every batch."""

    streams: tuple[StreamDescription, ...]
    validation_samples: int = 0
    """Held out of training, skipped ones included."""

    @property
    def fingerprint(self) -> str:
        """The same wherever the same bytes lie: addresses are no part of it. A resolution follows
        from them."""
        told = {"url", "source", "licence", "resolution"}
        parts = [stream.model_dump_json(exclude=told) for stream in self.streams]
        if self.validation_samples:
            parts.append(f"validation {self.validation_samples}")
        return xxhash.xxh3_128("\n".join(parts).encode()).hexdigest()


def digest(raw: bytes) -> str:
    return str(xxhash.xxh3_128(raw).hexdigest())
