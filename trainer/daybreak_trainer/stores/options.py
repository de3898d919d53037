"""From the keys of a Secret to fsspec options. Pure.

A Secret's keys are fsspec options already. What people have in their Secrets for S3 are the names
of AWS's environment variables, and for Cloud Storage the file of a key; those are understood too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from daybreak_trainer.stores.errors import StorageRefusedError
from daybreak_trainer.stores.patience import Patience

S3_PROTOCOLS = ("s3", "s3a")
GOOGLE_PROTOCOLS = ("gs", "gcs")
_AWS_NAMES = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "AWS_ENDPOINT_URL": "endpoint_url",
    "AWS_ENDPOINT_URL_S3": "endpoint_url",
    "AWS_REGION": "region_name",
    "AWS_DEFAULT_REGION": "region_name",
}
_SWITCHES = frozenset(
    {
        "anon",
        "fixed_upload_size",
        "local_expiry_check",
        "requester_pays",
        "use_ssl",
        "version_aware",
    }
)
"""s3fs options that are true or false; a Secret's file says it as text, and any text is true."""
_GOOGLE_NAMES = {"key.json": "token"}
_GOOGLE_KEYS = ("token", "endpoint_url", "requester_pays", "block_size")
_GOOGLE_UNIT_BYTES = 256 << 10
_CONNECTIONS = 64
"""At once: more than downloads or an upload's parts; botocore has 10, and the others wait."""


def protocol(url: str) -> str:
    """`s3` of `s3://bucket/x`; `file` of a path."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator else "file"


def options_for(
    url: str, options: Mapping[str, Any], patience: Patience | None = None
) -> dict[str, Any]:
    """The fsspec options of a URL from what its Secret says, with what this trainer needs.

    For S3: the names of AWS's environment variables become s3fs's, and where the Secret says
    nothing else a silent server is given up after `patience`, and no request waits for another's
    connection (`config_kwargs`). For Cloud Storage: see `_google`. For every store: listings are
    never remembered, because other processes write too.

    Raises:
        StorageRefusedError: two keys say different things, one of key and secret is missing, a
            switch is neither true nor false, or a key for Cloud Storage is unknown or no use.
    """
    fresh = {"use_listings_cache": False}
    if protocol(url) in GOOGLE_PROTOCOLS:
        return fresh | _google(_renamed(options, url, _GOOGLE_NAMES), url)
    if protocol(url) not in S3_PROTOCOLS:
        return fresh | dict(options)
    wanted = _switched(_renamed(options, url, _AWS_NAMES), url)
    if (("key" in wanted) != ("secret" in wanted)) and not wanted.get("anon"):
        there, missing = ("key", "secret") if "key" in wanted else ("secret", "key")
        raise StorageRefusedError(f"{url}: its Secret has {there} but no {missing}")
    if (region := wanted.pop("region_name", None)) is not None:
        client = dict(wanted.get("client_kwargs") or {})
        wanted["client_kwargs"] = {"region_name": region, **client}
    patience = patience or Patience()
    wanted["config_kwargs"] = {
        "connect_timeout": patience.connect_seconds,
        "max_pool_connections": _CONNECTIONS,
        "read_timeout": patience.silence_seconds,
        "retries": {"total_max_attempts": 1},  # requests are repeated by `stores.s3`, once over
        **(wanted.get("config_kwargs") or {}),
    }
    # Parts of one size: some servers want that, and the whole's ETag can be foretold.
    return fresh | {"fixed_upload_size": True} | wanted


def _google(options: dict[str, Any], url: str) -> dict[str, Any]:
    """`token` is a key file's content, parsed, or `anon`; without it the pod's own identity is
    used."""

    def refuse(name: str, problem: str) -> StorageRefusedError:
        return StorageRefusedError(f"{url}: key {name} of its Secret {problem}")

    for name in options:
        if name not in _GOOGLE_KEYS:
            raise refuse(name, f"means nothing for gs://; the keys are {', '.join(_GOOGLE_KEYS)}")
    if "endpoint_url" in options and not _is_address(str(options["endpoint_url"])):
        raise refuse("endpoint_url", "must be http:// or https:// and a host")
    if "block_size" in options:
        size = str(options["block_size"])
        if not size.isdecimal() or not int(size) or int(size) % _GOOGLE_UNIT_BYTES:
            raise refuse("block_size", f"must be a multiple of {_GOOGLE_UNIT_BYTES} (bytes)")
        options["block_size"] = int(size)
    if isinstance(token := options.get("token"), str) and token != "anon":
        try:
            options["token"] = json.loads(token)
        except ValueError:
            options["token"] = None
        if not isinstance(options["token"], dict):
            raise refuse("token", "must be the content of a key file (JSON), or anon")
    return options


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or brackets that make no sense
        return False


def _renamed(options: Mapping[str, Any], url: str, names: Mapping[str, str]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in options.items():
        target = names.get(name, name)
        if target in renamed and renamed[target] != value:
            raise StorageRefusedError(
                f"{url}: the keys {origin[target]} and {name} of its Secret say different things; "
                "keep one of them"
            )
        renamed[target], origin[target] = value, name
    return renamed


def _switched(options: dict[str, Any], url: str) -> dict[str, Any]:
    for name in _SWITCHES & options.keys():
        if isinstance(value := options[name], str):
            if value.lower() not in ("true", "false"):
                raise StorageRefusedError(
                    f"{url}: key {name} of its Secret is {value!r}; it must be true or false"
                )
            options[name] = value.lower() == "true"
    return options
