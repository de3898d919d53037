"""What chance about one sample comes from: the run's seed and the sample's position in the run, so
any number of ranks draws the same, and every epoch draws anew."""

from __future__ import annotations

import hashlib


def sample_hash(seed: int, position: int, use: bytes) -> int:
    """64 bits (BLAKE2b, RFC 7693); `use`, of up to 16 bytes, keeps one draw apart from another."""
    digest = hashlib.blake2b(
        position.to_bytes(8, "little"),
        key=seed.to_bytes(16, "little"),
        person=use,
        digest_size=8,
    ).digest()
    return int.from_bytes(digest, "little")
