"""Opens a store by its URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fsspec

from daybreak_trainer.stores.errors import StorageRefusedError
from daybreak_trainer.stores.options import GOOGLE_PROTOCOLS, S3_PROTOCOLS, options_for, protocol
from daybreak_trainer.stores.patience import Patience


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
        if protocol(url) in (*S3_PROTOCOLS, *GOOGLE_PROTOCOLS):
            fs = _bucket_filesystem(protocol(url))(**wanted, patience=patience)
            if not (path := fs._strip_protocol(url).rstrip("/")):
                raise ValueError("it names no bucket")
            return fs, path
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **wanted)
        return found
    except (ImportError, ValueError, TypeError) as error:
        raise StorageRefusedError(
            f"{url}: not a storage URL this image can use: {error}"
        ) from error


def _bucket_filesystem(protocol: str) -> Any:
    """The class; its libraries take up to a second to import, and no volume needs them."""
    if protocol in S3_PROTOCOLS:
        from daybreak_trainer.stores.s3 import PatientS3FileSystem

        return PatientS3FileSystem
    from daybreak_trainer.stores.google import GoogleFileSystem

    return GoogleFileSystem
