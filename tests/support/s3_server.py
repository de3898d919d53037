"""A real S3 server on loopback: versitygw."""

import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from bucket_server import BucketServer, Json
from s3_proxy import Exchange
from versitygw import VERSITYGW


@dataclass(frozen=True)
class Keys:
    """One user's credentials."""

    key: str
    secret: str


class S3Server(BucketServer):
    """versitygw over a folder; after `kill` and `start` what it held is there."""

    program, scheme = VERSITYGW, "s3"
    part_bytes = 5 << 20
    write_operation = "put_object"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("data", "users"):
            (folder / name).mkdir(parents=True)
        super().__init__(folder / "log")
        self.root = Keys("root-key", secrets.token_hex(8))

    def _arguments(self) -> list[str]:
        return [
            *("--port", f"127.0.0.1:{self.port}", "--quiet"),
            *("--iam-dir", str(self._folder / "users"), "--iam-cache-disable"),
            *("posix", str(self._folder / "data")),
        ]

    def _environment(self) -> dict[str, str]:
        return {"ROOT_ACCESS_KEY": self.root.key, "ROOT_SECRET_KEY": self.root.secret}

    # --- its users and buckets ------------------------------------------------------------------

    def client(self, keys: Keys | None = None) -> Any:
        """A boto3 client, of root if no keys are given."""
        keys = keys or self.root
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=keys.key,
            aws_secret_access_key=keys.secret,
            region_name="us-east-1",
        )

    def options(self, keys: Keys | None = None) -> Json:
        """fsspec options, as a Secret would give them."""
        keys = keys or self.root
        return {"key": keys.key, "secret": keys.secret, "endpoint_url": self.url}

    def secret(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.root.key,
            "AWS_SECRET_ACCESS_KEY": self.root.secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
        }

    def small_parts(self) -> Json:
        return {"default_block_size": self.part_bytes}

    def _make(self, bucket: str) -> None:
        self.client().create_bucket(Bucket=bucket)

    def folder(self, bucket: str) -> Path:
        """Where the bucket's objects lie; a file that is put there is one."""
        return self._folder / "data" / bucket

    def new_user(self, bucket: str, *actions: str) -> Keys:
        """A user who may do these things with a bucket and its objects, and nothing else."""
        keys = Keys(f"user-{secrets.token_hex(4)}", secrets.token_hex(8))
        subprocess.run(
            [
                str(VERSITYGW.find(print)),
                *("admin", "-a", self.root.key, "-s", self.root.secret),
                *("--endpoint-url", self.url, "create-user"),
                *("-a", keys.key, "-s", keys.secret, "-r", "user"),
            ],
            check=True,
            capture_output=True,
        )
        if actions:
            self._allow(bucket, keys, actions)
        return keys

    def _allow(self, bucket: str, keys: Keys, actions: tuple[str, ...]) -> None:
        of_bucket = [a for a in actions if a.startswith("s3:List") and "Parts" not in a]
        of_objects = [action for action in actions if action not in of_bucket]
        resource = f"arn:aws:s3:::{bucket}"
        statements = [
            {"Effect": "Allow", "Principal": {"AWS": [keys.key]}, "Action": which, "Resource": arn}
            for which, arn in ((of_bucket, resource), (of_objects, f"{resource}/*"))
            if which
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.client().put_bucket_policy(Bucket=bucket, Policy=policy)

    # --- how it speaks --------------------------------------------------------------------------

    def throttle(self, exchange: Exchange) -> None:
        exchange.answer(503, "SlowDown")

    def fail(self, exchange: Exchange) -> None:
        exchange.answer(500, "InternalError")

    def reads(self, exchange: Exchange) -> bool:
        return exchange.method == "GET" and "list-type=" not in exchange.path

    def ends_upload(self, exchange: Exchange) -> bool:
        return exchange.method == "POST" and "uploadId=" in exchange.path
