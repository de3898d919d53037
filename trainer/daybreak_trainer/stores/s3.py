"""s3fs whose every request ends in bounded time and is repeated while its trouble may pass.

s3fs repeats too few kinds of failure (not a refused connection, not a 503 other than SlowDown) and
counts attempts instead of seconds; and nothing below it limits the sending of a body to a server
that has stopped reading. Both have to happen per request: the data of a stream passes only once.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync_wrapper
from s3fs import S3FileSystem  # type: ignore[import-untyped]
from tenacity import AsyncRetrying

from daybreak_trainer.stores.checksum import Etag
from daybreak_trainer.stores.patience import Patience

_REMOVALS_AT_ONCE = 32
_MD5_ETAG = re.compile(r'"?([0-9a-f]{32}(?:-[0-9]+)?)"?')


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]
    """s3fs takes `patience` beside its own options."""

    retries = 1  # `_call_s3` repeats

    def __init__(self, *args: Any, patience: Patience = Patience(), **kwargs: Any) -> None:  # noqa: B008 (frozen)
        super().__init__(*args, **kwargs)
        self.patience = patience

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        call = super()._call_s3
        body = kwargs.get("Body")
        limit = self.patience.request_seconds(len(body) if body is not None else 0)
        # The user's own read_timeout counts where it is longer.
        limit = max(limit, float(self.config_kwargs.get("read_timeout") or 0))

        async def once() -> Any:
            try:
                async with asyncio.timeout(limit):
                    return await call(method, *akwarglist, **kwargs)
            except TimeoutError as error:
                raise TimeoutError(f"no answer to {method} within {limit:g} s") from error

        def where() -> str:
            return f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', '')}"

        return await AsyncRetrying(**self.patience.policy(method, where))(once)

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        """An answer that is given up is not received any longer: it would slow down the next."""
        limit = self.patience.answer_seconds
        clock = asyncio.timeout(limit)
        try:
            async with clock:
                return bytes(await super()._cat_file(path, *args, **kwargs))
        except TimeoutError as error:
            if not clock.expired():  # a request had a limit of its own
                raise
            raise TimeoutError(f"the answer was not complete within {limit:g} s") from error

    cat_file = sync_wrapper(_cat_file)

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        """Once: a store that an upload was given up for is not waited for a second time."""
        async with asyncio.timeout(self.patience.request_seconds(0)):
            await super()._call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=mpu, **self.req_kw
            )

    abort_mpu = sync_wrapper(_abort_mpu)

    async def _rm(self, path: Any, recursive: bool = False, **kwargs: Any) -> Any:
        """One by one: s3fs's removal in bulk says nothing of objects that the store refused to
        remove, and needs a checksum that not every store knows."""
        return await AsyncFileSystem._rm(
            self, path, recursive=recursive, batch_size=_REMOVALS_AT_ONCE, **kwargs
        )

    rm = sync_wrapper(_rm)

    def foretell(self, file: Any) -> Etag:
        """The ETag of what will be written to `file`."""
        return Etag(file.blocksize)

    async def _stored(self, path: str) -> tuple[int, str | None]:
        bucket, key, _ = self.split_path(path)
        found = await self._call_s3("head_object", Bucket=bucket, Key=key, **self.req_kw)
        size = int(found["ContentLength"])
        encrypted = "kms" in found.get("ServerSideEncryption", "") or (
            "SSECustomerAlgorithm" in found
        )
        etag = _MD5_ETAG.fullmatch(found.get("ETag", ""))
        return size, etag.group(1) if etag and not encrypted else None

    stored = sync_wrapper(_stored)
    """Size of an object, and its ETag where S3 derives that from the MD5 of the content. A store
    may have ETags of the same form that mean something else."""
