"""What Google's libraries raise is final only where asking again would end the same way."""

from __future__ import annotations

import pytest
from google.auth.exceptions import RefreshError, TransportError

from daybreak_trainer.stores.errors import AnswerError, said
from daybreak_trainer.stores.google_credentials import credentials_of
from daybreak_trainer.stores.google_errors import plain_errors, refusal
from daybreak_trainer.stores.patience import Patience


def raised(cause: TransportError) -> type[Exception]:
    """By a pod's own identity, whose metadata server said or did `cause`."""

    def fail() -> None:
        raise RefreshError(cause) from cause

    outside = pytest.raises((ConnectionError, AnswerError))
    with outside as caught, plain_errors("GET", Patience(), None):
        fail()
    assert said(caught.value).endswith("metadata: no")
    return caught.type


def test_a_metadata_server_that_is_not_there_yet_may_come() -> None:
    """As in the first seconds of a pod; what it refuses stays refused."""
    assert raised(TransportError("metadata: no")) is ConnectionError
    assert raised(TransportError("metadata: no", object())) is AnswerError


def test_a_refusal_without_words_has_some() -> None:
    """Also with a status that HTTP does not know; and a proxy's page is cut."""
    assert said(refusal(499, b"")) == "it answered with status 499 (HTTP 499)"
    assert len(said(refusal(502, b"<p>" * 10_000))) < 500


def test_a_user_is_not_asked_for_other_scopes() -> None:
    """Than were agreed to when the key was made: Google would refuse its token."""
    user = {"type": "authorized_user", "refresh_token": "r", "client_id": "i", "client_secret": "s"}
    credentials = credentials_of(user)
    assert credentials is not None
    assert getattr(credentials, "scopes", None) is None
