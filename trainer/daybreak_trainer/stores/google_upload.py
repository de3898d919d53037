"""An object of Cloud Storage that is being written: in one request where it is small, else in a
resumable upload, part by part. It is visible when the last byte has arrived, and not before."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from fsspec.spec import AbstractBufferedFile
from tenacity import Retrying

from daybreak_trainer.stores.errors import NO_BUCKET, NO_UPLOAD, AnswerError

if TYPE_CHECKING:
    from daybreak_trainer.stores.google import GoogleFileSystem

UNIT_BYTES = 256 << 10
"""Parts are multiples of this, but for the last."""
_RANGE = re.compile(r"bytes=0-(\d+)")


class Upload(AbstractBufferedFile):  # type: ignore[misc]
    """Raises what `GoogleSession.call` does; after that, or after `discard`, nothing is visible."""

    def __init__(
        self, fs: GoogleFileSystem, path: str, bucket: str, name: str, block_size: int
    ) -> None:
        super().__init__(fs, path, "wb", block_size=block_size)
        self.buffer: io.BytesIO
        self._session = fs.session
        self._bucket, self._name = bucket, name
        self._objects = f"{fs.session.endpoint}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        self._resumable: _Resumable | None = None

    def _initiate_upload(self) -> None:
        """Left to the first part, which may be the last."""

    def _upload_chunk(self, final: bool = False) -> bool:
        data = self.buffer.getvalue()
        if final and self._resumable is None:
            self._start("media", data)
            return True
        if self._resumable is None:
            location = self._start("resumable", None)
            self._resumable = _Resumable(self, location)
        now = len(data) if final else len(data) // UNIT_BYTES * UNIT_BYTES
        self._resumable.send(data[:now], final)
        self.offset += now
        self.buffer = io.BytesIO()
        self.buffer.write(data[now:])
        return False  # fsspec would drop the rest

    def _start(self, kind: str, body: bytes | None) -> str:
        """The address of a resumable upload, or nothing that means anything."""
        params = {"uploadType": kind, "name": self._name}
        headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
        try:
            reply = self._session.call("POST", self._objects, params, body, headers)
        except AnswerError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            text = f"there is no bucket {self._bucket}"
            raise AnswerError(NO_BUCKET, error.status, text) from error
        return reply.headers.get("Location", "")

    def __del__(self) -> None:
        """Nothing: fsspec's would make visible what was never closed."""

    def discard(self) -> None:
        """Gives up; asks once, for a store that an upload was given up for is not waited for."""
        self.closed = True
        if self._resumable is not None:
            with suppress(AnswerError):  # 499 says that it is done
                self._session.once("DELETE", self._resumable.location)


class _Resumable:
    """One resumable upload: what the store has of it is known, or asked for."""

    def __init__(self, upload: Upload, location: str) -> None:
        self._session = upload._session
        self._patience = upload._session.patience
        self._where = f"gs://{upload._bucket}/{upload._name}"
        self.location = location
        """Opens the upload to whoever knows it, so it is never said."""
        self._stored = 0
        self._is_whole = self._is_unsure = False

    def send(self, data: bytes, final: bool) -> None:
        """What follows the part before; `final` makes the object visible."""
        start = self._stored
        total = str(start + len(data)) if final else "*"

        def once() -> None:
            if self._is_unsure:  # the part before may have arrived, or half of it
                self._put(b"", f"bytes */{total}")
            while not self._is_whole and (final or self._stored < start + len(data)):
                self._put_rest(data, start, total)
            if self._is_whole and not final:
                text = f"it ended this upload after {self._stored} bytes"
                raise AnswerError(NO_UPLOAD, HTTPStatus.OK, text)

        Retrying(**self._patience.policy("PUT", lambda: self._where))(once)

    def _put_rest(self, data: bytes, start: int, total: str) -> None:
        before = self._stored
        if before < start:
            text = f"it has lost bytes {before} to {start} of this upload"
            raise AnswerError(NO_UPLOAD, HTTPStatus.PERMANENT_REDIRECT, text)
        rest = data[before - start :]
        span = f"{before}-{before + len(rest) - 1}" if rest else "*"
        self._put(rest, f"bytes {span}/{total}")
        if not self._is_whole and self._stored <= before:
            raise ConnectionError("a part was answered, but not taken")

    def _put(self, data: bytes, content_range: str) -> None:
        self._is_unsure = True
        headers = {"Content-Range": content_range}
        try:
            reply = self._session.once("PUT", self.location, None, data, headers)
        except AnswerError as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise
            raise AnswerError(NO_UPLOAD, error.status, "it has no such upload") from error
        self._is_unsure = False
        self._is_whole = reply.status != HTTPStatus.PERMANENT_REDIRECT
        if not self._is_whole:
            found = _RANGE.match(reply.headers.get("Range", ""))
            self._stored = int(found.group(1)) + 1 if found else 0
