"""Credentials of Cloud Storage from what a Secret holds. Nobody is asked for anything yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.auth import identity_pool
from google.auth.credentials import AnonymousCredentials, Credentials, with_scopes_if_required
from google.oauth2 import credentials as user
from google.oauth2 import service_account

ANONYMOUS = "anon"
SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_KINDS: dict[str, Callable[..., Credentials]] = {
    "authorized_user": user.Credentials.from_authorized_user_info,
    "external_account": identity_pool.Credentials.from_info,
    "service_account": service_account.Credentials.from_service_account_info,
}


def credentials_of(token: Mapping[str, Any] | str | None) -> Credentials | None:
    """`token`: a key file's content, `ANONYMOUS`, or None for those that the pod has (application
    default credentials: workload identity, or a file that its environment names).

    Raises ValueError, which holds nothing of the key, where it makes no sense.
    """
    if token is None:
        return None
    if isinstance(token, str):
        return AnonymousCredentials()  # type: ignore[no-untyped-call]
    kind = token.get("type")
    if (load := _KINDS.get(str(kind))) is None:
        raise ValueError(f"the type of its token is {kind!r}, not one of {', '.join(_KINDS)}")
    try:
        # A user's token has the scopes that were agreed to, and is refused when asked for others.
        scoped: Credentials = with_scopes_if_required(load(dict(token)), SCOPES)  # type: ignore[no-untyped-call]
        return scoped
    except Exception as error:  # Google's, cryptography's and asn1's have no class in common
        raise ValueError(f"its token is no working {kind} key: {type(error).__name__}") from error
