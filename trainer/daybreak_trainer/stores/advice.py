"""What to do about a store that does not work, in the words of a TrainingRun's fields. Pure but for
a look whether a Secret is mounted."""

from __future__ import annotations

import errno
import ssl
from dataclasses import dataclass
from pathlib import Path

import botocore.exceptions as boto  # type: ignore[import-untyped]

from daybreak_trainer.stores.errors import FULL, NO_BUCKET, answer, is_passing
from daybreak_trainer.stores.options import GOOGLE_PROTOCOLS, S3_PROTOCOLS, protocol

_WRONG_KEYS = frozenset(
    {
        "401",
        "DefaultCredentialsError",  # Google's: there are none
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RefreshError",  # Google's: these give no access token
        "SignatureDoesNotMatch",
        "authError",
        "required",
    }
)
_WRONG_REGION = frozenset(
    {
        "301",
        "400",  # to a HEAD, which has no words
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
    }
)
_NOT_ALLOWED = frozenset(
    {"403", "AccessDenied", "AllAccessDisabled", "forbidden", "insufficientPermissions"}
)


@dataclass(frozen=True)
class Field:
    """Where a store is set in a TrainingRun."""

    path: str
    """`spec.checkpoint`."""
    url_name: str
    """`storage`, of `spec.checkpoint.storage`."""
    secret: Path
    """Where its Secret is mounted, if it has one."""


def field_of(role: str, secrets_dir: Path) -> Field:
    """Of the role `checkpoint`, `export` or `data-<number of the stream>`."""
    if role.startswith("data-"):
        return Field(f"spec.data.streams[{role.removeprefix('data-')}]", "url", secrets_dir / role)
    return Field(f"spec.{role}", "storage", secrets_dir / role)


def is_lasting(error: BaseException) -> bool:
    """Whether another attempt would meet the same; a full store may have been emptied by then."""
    full = isinstance(error, OSError) and error.errno in FULL
    return not full and not is_passing(error)


def advice(error: BaseException, url: str, field: Field) -> str:
    """One sentence's half: what to look at, or to change."""
    if protocol(url) in S3_PROTOCOLS:
        if (answer(error) or ("", 0))[0] in _WRONG_REGION:
            secret = _secret(field, "key, secret and AWS_REGION")
            return f"check the bucket's region: AWS_REGION in {secret}"
        return _bucket_advice(error, field, "key, secret and endpoint_url")
    if protocol(url) in GOOGLE_PROTOCOLS:
        return _bucket_advice(error, field, "token and endpoint_url")
    if protocol(url) == "file":
        return _volume_advice(error, field)
    return f"check {field.path}.{field.url_name} and {_secret(field, 'fsspec options')}"


_PERMISSIONS = "its user must be allowed to do that (docs/storage.md lists the permissions)"


def _bucket_advice(error: BaseException, field: Field, keys: str) -> str:
    secret = _secret(field, keys)
    code, _ = answer(error) or ("", 0)
    url_field = f"{field.path}.{field.url_name}"
    if code == NO_BUCKET:
        return f"create the bucket, or correct {url_field}"
    if code in _WRONG_KEYS or isinstance(error, boto.NoCredentialsError):
        return f"check {secret}"
    if code in _NOT_ALLOWED:
        return f"{_PERMISSIONS}; check {secret}"
    if code == "RequestTimeTooSkewed":
        return "set the node's clock"
    if isinstance(error, boto.SSLError | ssl.SSLError):
        return f"the endpoint's certificate must be one that this image trusts; check {url_field}"
    if is_passing(error):
        return f"check endpoint_url in {secret}, and whether the pod's network reaches the endpoint"
    return f"check {url_field} and {secret}"


def _volume_advice(error: BaseException, field: Field) -> str:
    volume = f"the volume of {field.path}.persistentVolumeClaim"
    code = error.errno if isinstance(error, OSError) else None
    if code in FULL:
        return f"make room on {volume}"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{volume} must be one that the pod's user may use so"
    return f"check {volume} and its server"


def _secret(field: Field, keys: str) -> str:
    if not field.secret.is_dir():
        return f"{field.path}.secretRef, which names no Secret (its keys would be {keys})"
    return f"the keys of the Secret of {field.path}.secretRef (mounted at {field.secret})"
