"""Opens a store by its URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fsspec

from daybreak_trainer.stores.errors import StorageRefusedError
from daybreak_trainer.stores.options import S3_PROTOCOLS, options_for, protocol
from daybreak_trainer.stores.patience import Patience

_INSTEAD = {
    "gs": "the trainer image cannot hold the package gcsfs beside mosaicml-streaming; reach the "
    "bucket through Cloud Storage's S3 interface, s3:// with an HMAC key (docs/storage.md)",
}
_INSTEAD["gcs"] = _INSTEAD["gs"]


def open_filesystem(
    url: str, options: Mapping[str, Any] | None = None, patience: Patience | None = None
) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it; connects to nothing yet.

    Raises:
        StorageRefusedError: the URL names no store this image can use, or its options are wrong.
    """
    patience = patience or Patience()
    wanted = options_for(url, options or {}, patience)
    try:
        if protocol(url) in S3_PROTOCOLS:
            from daybreak_trainer.stores.s3 import PatientS3FileSystem  # a second to import

            fs = PatientS3FileSystem(**wanted, patience=patience)
            if not (path := fs._strip_protocol(url).rstrip("/")):
                raise ValueError("it names no bucket")
            return fs, path
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **wanted)
        return found
    except (ImportError, ValueError, TypeError) as error:
        reason = _INSTEAD.get(protocol(url), str(error))
        raise StorageRefusedError(
            f"{url}: not a storage URL this image can use: {reason}"
        ) from error
