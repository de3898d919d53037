"""A dataset in a bucket is what it is on a volume."""

from __future__ import annotations

from pathlib import Path

from bucket_server import BucketServer
from samples import opened

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.prepare.prepare import prepare


def test_a_dataset_in_a_bucket_is_the_dataset(bucket_server: BucketServer, tmp_path: Path) -> None:
    """With credentials as the provider names them: same fingerprint, same samples, shard by
    shard."""
    prepare("digits", tmp_path / "digits", count=40, shard_bytes=1 << 13)
    url = f"{bucket_server.scheme}://{bucket_server.new_bucket()}/datasets/digits"
    place = Storage(url, bucket_server.options())
    for file in (tmp_path / "digits").iterdir():
        place.write(file.name, file.read_bytes())
    here, local = opened(tmp_path / "digits", tmp_path / "unused")
    there, remote = opened(url, tmp_path / "cache", bucket_server.secret())
    assert there.fingerprint == here.fingerprint
    assert len(remote) == len(local) == 40
    for one, other in zip(local, remote, strict=True):
        assert (one.caption, one.id) == (other.caption, other.id)
        assert (one.image == other.image).all()
