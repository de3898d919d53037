"""Cloud Storage (gs://) as an fsspec file system, on Google's own library for credentials.

Why not one that exists: docs/storage.md. What fsspec's base class does well is left to it; what
follows is one request of the JSON API each, or one listing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fsspec.spec import AbstractFileSystem

from daybreak_trainer.stores.checksum import Crc32c
from daybreak_trainer.stores.errors import NO_BUCKET, AnswerError
from daybreak_trainer.stores.google_session import ENDPOINT, GoogleSession
from daybreak_trainer.stores.google_upload import Upload
from daybreak_trainer.stores.patience import Patience

PART_BYTES = 32 << 20
_REMOVALS_AT_ONCE = 32
_LISTED = "nextPageToken,prefixes,items(name,size)"
Info = dict[str, Any]


class GoogleFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Paths are `bucket/name/of/object`. Raises what `GoogleSession.call` does, and
    FileNotFoundError where a bucket has no such object."""

    protocol = ("gs", "gcs")
    cachable = False  # processes are forked, and sessions are theirs

    def __init__(
        self,
        *,
        token: Mapping[str, Any] | str | None = None,
        endpoint_url: str = ENDPOINT,
        requester_pays: str | None = None,
        block_size: int = PART_BYTES,
        patience: Patience = Patience(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.blocksize = block_size
        self.session = GoogleSession(endpoint_url.rstrip("/"), token, requester_pays, patience)

    # --- addresses ------------------------------------------------------------------------------

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        bucket, _, name = GoogleFileSystem._strip_protocol(path).partition("/")
        return bucket, name

    def _objects(self, bucket: str) -> str:
        return f"{self.session.endpoint}/storage/v1/b/{quote(bucket, safe='')}/o"

    def _object(self, path: str) -> str:
        return self._address(*self._split(path))

    def _address(self, bucket: str, name: str) -> str:
        return f"{self._objects(bucket)}/{quote(name, safe='')}"

    # --- looking --------------------------------------------------------------------------------

    def _pages(self, bucket: str, prefix: str, **params: str) -> Iterator[Info]:
        wanted = {"prefix": prefix, "fields": _LISTED, **params}
        while True:
            try:
                page = self.session.call("GET", self._objects(bucket), wanted).json()
            except AnswerError as error:
                raise _no_bucket(error, bucket) from error
            yield page
            if not (following := page.get("nextPageToken")):
                return
            wanted["pageToken"] = following

    def _below(self, path: str) -> Iterator[Info]:
        """Of all objects below a folder, the empty ones that stand for folders included."""
        bucket, name = self._split(path)
        for page in self._pages(bucket, f"{name}/" if name else ""):
            for item in page.get("items", []):
                yield _file(bucket, item)

    def _missing(self, path: str) -> FileNotFoundError:
        """To be raised for an answer 404, which does not tell an object from its bucket."""
        bucket, _ = self._split(path)
        for _ in self._pages(bucket, "", maxResults="1"):
            break
        return FileNotFoundError(path)

    def _metadata(self, path: str, fields: str) -> Info:
        try:
            found: Info = self.session.call("GET", self._object(path), {"fields": fields}).json()
        except AnswerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise self._missing(path) from None
            raise
        return found

    def info(self, path: str, **_: Any) -> Info:
        path = self._strip_protocol(path)
        bucket, name = self._split(path)
        if name:
            with suppress(FileNotFoundError):
                return _file(bucket, self._metadata(path, "name,size"))
        for page in self._pages(bucket, f"{name}/" if name else "", maxResults="1"):
            if page.get("items") or not name:
                return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        bucket, name = self._split(path)
        prefix = f"{name}/" if name else ""
        found: list[Info] = []
        for page in self._pages(bucket, prefix, delimiter="/"):
            for folder in page.get("prefixes", []):
                whole = f"{bucket}/{folder.rstrip('/')}"
                found.append({"name": whole, "size": 0, "type": "directory"})
            found += [_file(bucket, i) for i in page.get("items", []) if i["name"] != prefix]
        if not found:
            found = [info for info in [self.info(path)] if info["type"] == "file"]
        return found if detail else [info["name"] for info in found]

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        """One listing, and not one for each folder; as fsspec's, nothing where there is nothing."""
        found = {info["name"]: info for info in self._below(path) if info["name"][-1] != "/"}
        if not found:
            with suppress(FileNotFoundError):
                info = self.info(path)
                found = {info["name"]: info} if info["type"] == "file" else {}
        return found if detail else list(found)

    # --- reading --------------------------------------------------------------------------------

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """From `start` up to `end`, counted from 0, or as much as there is of that."""
        first = start or 0
        if end is not None and end <= first:
            return b""
        headers = {}
        if first or end is not None:
            headers["Range"] = f"bytes={first}-{'' if end is None else end - 1}"
        try:
            reply = self.session.call("GET", self._object(path), {"alt": "media"}, None, headers)
        except AnswerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise self._missing(path) from None
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            raise
        whole = reply.status != HTTPStatus.PARTIAL_CONTENT
        return reply.body[first:end] if whole else reply.body

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> Upload:
        if mode != "wb":
            raise NotImplementedError(f"{path}: gs:// is opened to write; cat_file reads")
        bucket, name = self._split(path)
        return Upload(self, path, bucket, name, block_size or self.blocksize)

    def foretell(self, file: Any) -> Crc32c:
        """The CRC32C of what will be written to `file`."""
        return Crc32c()

    def stored(self, path: str) -> tuple[int, str | None]:
        """Size of an object, and the CRC32C that Cloud Storage has of its content."""
        found = self._metadata(path, "size,crc32c")
        return int(found["size"]), found.get("crc32c")

    # --- removing -------------------------------------------------------------------------------

    def rm_file(self, path: str) -> None:
        if not self._delete(self._object(path)):
            raise self._missing(path)

    _rm = rm_file

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """A file, or with `recursive` all that is below a folder; what another process removes
        meanwhile is fine."""
        bucket, _ = self._split(path)
        found = [info["name"] for info in self._below(path)] if recursive else []
        if not found:
            self.rm_file(path)
            return
        # Not by path, of which a folder's own object (`folder/`) would lose its end.
        addresses = [self._address(bucket, name.removeprefix(f"{bucket}/")) for name in found]
        with ThreadPoolExecutor(_REMOVALS_AT_ONCE) as pool:
            list(pool.map(self._delete, addresses))

    def _delete(self, address: str) -> bool:
        """False where there is no such object, or bucket."""
        try:
            self.session.call("DELETE", address)
        except AnswerError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True


def _file(bucket: str, item: Info) -> Info:
    return {"name": f"{bucket}/{item['name']}", "size": int(item.get("size", 0)), "type": "file"}


def _no_bucket(error: AnswerError, bucket: str) -> AnswerError:
    """A listing of what does not exist, or an upload into it."""
    if error.status != HTTPStatus.NOT_FOUND:
        return error
    return AnswerError(NO_BUCKET, error.status, f"there is no bucket {bucket}")
