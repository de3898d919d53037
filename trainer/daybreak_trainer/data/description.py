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


class CorpusDescription(Message):
    """Decides, with the seed, every sample of every batch."""

    streams: tuple[StreamDescription, ...]

    @property
    def fingerprint(self) -> str:
        """The same wherever the same bytes lie: addresses are no part of it."""
        parts = [stream.model_dump_json(exclude={"url"}) for stream in self.streams]
        return xxhash.xxh3_128("\n".join(parts).encode()).hexdigest()


def digest(raw: bytes) -> str:
    return str(xxhash.xxh3_128(raw).hexdigest())


_WORDS = {
    "weight": "weight",
    "shards": "shards",
    "samples": "samples",
    "index": "index hash",
    "skips": "hash of the skip list",
    "buckets": "hash of the buckets",
}


def describe_change(old: CorpusDescription, new: CorpusDescription) -> str:
    """One line for a person: which streams differ, and in what; empty where none does."""
    changes = []
    if len(old.streams) != len(new.streams):
        changes.append(f"{len(old.streams)} streams → {len(new.streams)}")
    for number, (was, now) in enumerate(zip(old.streams, new.streams, strict=False)):
        differences = [
            f"{words} {_said(getattr(was, field))} → {_said(getattr(now, field))}"
            for field, words in _WORDS.items()
            if getattr(was, field) != getattr(now, field)
        ]
        if differences:
            changes.append(f"stream {number} ({now.url}): {', '.join(differences)}")
    return "; ".join(changes)


def _said(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value[:12] if isinstance(value, str) else str(value)
