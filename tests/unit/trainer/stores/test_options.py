"""What a Secret's keys mean, and what goes to fsspec."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.stores.errors import StorageRefusedError
from daybreak_trainer.stores.options import options_for
from daybreak_trainer.stores.patience import Patience

OPTIONS = {"key": "k", "secret": "s", "endpoint_url": "http://store:9000"}
AWS = {
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_ENDPOINT_URL": "http://store:9000",
}


def test_the_names_of_aws_mean_the_same_as_those_of_s3fs() -> None:
    """Also the newer ones, both of a pair that say the same, and with the region."""
    plain = options_for("s3://bucket/x", OPTIONS)
    assert plain.items() >= OPTIONS.items()
    assert options_for("s3://bucket/x", AWS) == plain
    assert options_for("s3a://bucket/x", AWS | OPTIONS) == plain
    more = {"AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}
    wanted = options_for("s3://bucket/x", AWS | more)
    assert wanted == plain | {"token": "t", "client_kwargs": {"region_name": "eu-west-1"}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (AWS | {"key": "other"}, "AWS_ACCESS_KEY_ID and key of its Secret say different things"),
        ({"key": "k"}, "its Secret has key but no secret"),
        ({"AWS_SECRET_ACCESS_KEY": "s"}, "its Secret has secret but no key"),
        ({"anon": "perhaps"}, "key anon of its Secret is 'perhaps'; it must be true or false"),
    ],
)
def test_a_secret_that_makes_no_sense_is_said(options: dict[str, str], said: str) -> None:
    """With the names that its user gave, and never with a secret value."""
    with pytest.raises(StorageRefusedError, match=f"s3://bucket/x: .*{said}") as caught:
        options_for("s3://bucket/x", options)
    assert "'s'" not in str(caught.value)


def test_a_switch_is_what_its_text_says() -> None:
    """A Secret's file holds text, and any text would be true."""
    wanted = options_for(
        "s3://bucket", {"anon": "true", "use_ssl": "False", "requester_pays": True}
    )
    assert (wanted["anon"], wanted["use_ssl"], wanted["requester_pays"]) == (True, False, True)


def test_time_limits_are_ours_unless_the_secret_has_some() -> None:
    """And botocore's own repetitions do not multiply with ours."""
    config = {"read_timeout": 120, "max_pool_connections": 4}
    wanted = options_for("s3://bucket", {"config_kwargs": config}, Patience(connect_seconds=2))
    retries = {"total_max_attempts": 1}
    assert wanted["config_kwargs"] == {"connect_timeout": 2, "retries": retries} | config
    assert options_for("s3://bucket", {})["config_kwargs"]["max_pool_connections"] >= 64


KEY = json.dumps({"type": "service_account", "private_key": "hidden"})


def test_a_key_file_is_the_token_of_cloud_storage() -> None:
    """Under either name, parsed; numbers and addresses are what their text says."""
    wanted = options_for("gs://bucket/x", {"key.json": KEY, "block_size": "524288"})
    assert wanted["token"] == json.loads(KEY)
    assert wanted["block_size"] == 524288
    assert options_for("gcs://bucket/x", {"token": KEY, "block_size": 524288}) == wanted
    plain = {"token": "anon", "endpoint_url": "http://store:4443", "requester_pays": "project"}
    assert options_for("gs://bucket/x", plain).items() >= plain.items()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "k"}, "key key of its Secret means nothing for gs://; the keys are token, "),
        ({"token": KEY[:-1]}, "key token of its Secret must be the content of a key file"),
        ({"token": "/etc/key.json"}, "key token of its Secret must be the content of a key file"),
        ({"token": "anon", "key.json": KEY}, "keys token and key.json .* different things"),
        ({"endpoint_url": "store:4443"}, "must be http:// or https:// and a host"),
        ({"endpoint_url": "https://"}, "must be http:// or https:// and a host"),
        ({"endpoint_url": "https://store:port"}, "must be http:// or https:// and a host"),
        ({"block_size": "1000000"}, r"block_size .* must be a multiple of 262144 \(bytes\)"),
    ],
)
def test_a_secret_that_cloud_storage_cannot_use_is_said(options: dict[str, str], said: str) -> None:
    """With what would be right, and never with the key."""
    with pytest.raises(StorageRefusedError, match=f"gs://bucket/x: .*{said}") as caught:
        options_for("gs://bucket/x", options)
    assert "hidden" not in str(caught.value)


@given(
    url=st.sampled_from(["/mnt/x", "memory://x", "abfs://bucket/x", "file:///x"]),
    options=st.dictionaries(st.text(), st.text() | st.booleans()),
)
def test_other_stores_get_what_the_secret_says(url: str, options: dict[str, object]) -> None:
    """Unchanged, but for listings that are not to be remembered."""
    assert options_for(url, options) == {"use_listings_cache": False} | options
