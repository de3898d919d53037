"""Small datasets whose samples say their number, in any layout that a test needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from streaming import MDSWriter

SHAPE = (4, 2, 2)


def latent(number: int) -> npt.NDArray[np.float16]:
    return np.full(SHAPE, number % 2048, dtype=np.float16)


def write_latents(
    folder: Path,
    shards: Sequence[int],
    *,
    first: int = 0,
    skip: Mapping[str, Sequence[int]] | None = None,
    buckets: Mapping[str, Sequence[int]] | None = None,
    compression: str | None = None,
    resolution: int = 16,
    id_letters: int = 0,
) -> int:
    """Shards of these numbers of samples, numbered from `first`; `buckets` names the places of
    each bucket's shards, and `id_letters` makes samples large. Returns the next number."""
    number = first
    columns = {"latent": f"ndarray:float16:{','.join(map(str, SHAPE))}"}
    columns |= {"caption": "str", "id": "str"}
    infos = []
    for place, size in enumerate(shards):
        part = folder / f"part-{place}"
        with MDSWriter(
            out=str(part), columns=columns, hashes=["xxh64"], compression=compression
        ) as writer:
            for _ in range(size):
                sample = {
                    "latent": latent(number),
                    "caption": f"number {number}",
                    "id": str(number).rjust(id_letters, "0"),
                }
                writer.write(sample)
                number += 1
        (info,) = json.loads((part / "index.json").read_text())["shards"]
        for kind in ("raw_data", "zip_data"):
            if info[kind] is not None:
                old = info[kind]["basename"]
                new = old.replace("00000", f"{place:05d}")
                if (part / old).exists():
                    (part / old).rename(folder / new)
                info[kind]["basename"] = new
        (part / "index.json").unlink()
        part.rmdir()
        infos.append(info)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": infos}))
    card = {"source": "test", "samples": sum(shards), "resolution": resolution, "seed": 0}
    card |= {"licence": "none", "vocabulary": ["number"]}
    if buckets is not None:
        card["buckets"] = {
            bucket: [name_of(place) for place in places] for bucket, places in buckets.items()
        }
    (folder / "dataset.json").write_text(json.dumps(card))
    if skip is not None:
        (folder / "skip.json").write_text(json.dumps(skip))
    return number


def name_of(place: int) -> str:
    return f"shard.{place:05d}.mds"
