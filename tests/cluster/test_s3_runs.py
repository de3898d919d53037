"""Whole runs whose data, checkpoints and model are in buckets, with a Secret for each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from runs import Bench
from s3_server import Keys, S3Server

from daybreak_cli.playground import install_operator
from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.export.publish import check
from daybreak_trainer.prepare.prepare import prepare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.training,
    pytest.mark.e2e,
    pytest.mark.timeout(600),
]

STEPS = 30
READ = ("s3:GetObject", "s3:ListBucket")
WRITE = (*READ, "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


class Buckets:
    """A bucket each for data, checkpoints and models, and a user for each."""

    def __init__(self, server: S3Server, bench: Bench, folder: Path) -> None:
        self.server, self.bench = server, bench
        self.data, self.checkpoints, self.models = (server.new_bucket() for _ in range(3))
        prepare("digits", folder / "digits", count=200, shard_bytes=1 << 14)
        place = Storage(f"s3://{self.data}/digits", server.options())
        for file in (folder / "digits").iterdir():
            place.write(file.name, file.read_bytes())
        reader = server.new_user(self.data, *READ)
        self.secret("data", key=reader.key, secret=reader.secret, endpoint_url=server.url)
        writer = server.new_user(self.checkpoints, *WRITE)
        self.aws_secret("checkpoints", writer)
        writer = server.new_user(self.models, *WRITE)
        options = {"client_kwargs": {"endpoint_url": server.url, "region_name": "us-east-1"}}
        keys = {"key": writer.key, "secret": writer.secret}
        self.secret("models", **{"options.json": json.dumps(options | keys)})

    def secret(self, name: str, **keys: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": keys,
        }
        self.bench.cluster.kubectl(
            *("apply", "-n", self.bench.namespace, "-f", "-"), input=json.dumps(body)
        )

    def aws_secret(self, name: str, keys: Keys) -> None:
        """With the names of AWS's environment variables."""
        self.secret(
            name,
            AWS_ACCESS_KEY_ID=keys.key,
            AWS_SECRET_ACCESS_KEY=keys.secret,
            AWS_ENDPOINT_URL=self.server.url,
            AWS_REGION="us-east-1",
        )

    def apply(self, name: str, steps: int = STEPS) -> None:
        def place(kind: str, url: str, secret: str) -> dict[str, Any]:
            return {kind: url, "secretRef": {"name": secret}}

        self.bench.apply(
            name,
            recipe={
                "preset": "smoke",
                "stages": [{"resolution": 16, "steps": steps, "batchSize": 6}],
            },
            data={"streams": [place("url", f"s3://{self.data}/digits", "data")]},
            checkpoint=place("storage", f"s3://{self.checkpoints}/runs", "checkpoints")
            | {"interval": "10steps", "keepLast": 2},
            export=place("storage", f"s3://{self.models}/exports", "models"),
        )


@pytest.fixture
def buckets(devcluster: Cluster, namespace: str, s3: S3Server, tmp_path: Path) -> Buckets:
    install_operator(devcluster)
    return Buckets(s3, Bench(devcluster, namespace, tmp_path), tmp_path)


def test_a_run_without_volumes_completes(buckets: Buckets) -> None:
    """Two workers, three Secrets in three dialects, users who may no more than the docs say: data
    is read, checkpoints are committed and pruned, the model is there."""
    buckets.apply("bucket")
    status = buckets.bench.end("bucket")
    assert status["phase"] == "Complete", buckets.bench.events("bucket")
    assert status["attempt"] == 1
    uid = buckets.bench.get("bucket")["metadata"]["uid"]
    assert status["checkpoint"]["step"] == STEPS
    assert status["checkpoint"]["url"].startswith(f"s3://{buckets.checkpoints}/runs/run-{uid}/")
    root = buckets.server.options()
    commits = [
        file
        for file in Storage(f"s3://{buckets.checkpoints}", root).files()
        if file.endswith("/COMMIT.json")
    ]
    assert [commit.split("/")[-2] for commit in commits] == ["step-00000020", "step-00000030"]
    card = check(Storage(f"s3://{buckets.models}/exports", root), "bucket", uid)
    assert card is not None
    assert card.step == STEPS
    assert "model_index.json" in card.files


def test_an_outage_of_the_server_costs_no_attempt(
    devcluster: Cluster, namespace: str, own_s3: S3Server, tmp_path: Path
) -> None:
    """It is killed while a run trains, and comes back once a worker has missed it: checkpoint and
    model are complete, at the first attempt."""
    install_operator(devcluster)
    bench = Bench(devcluster, namespace, tmp_path)
    buckets = Buckets(own_s3, bench, tmp_path)
    buckets.apply("outage", steps=120)
    bench.worker_at_step("outage", 15)
    own_s3.kill()
    selector = ("-l", "daybreak.dev/run=outage", "--tail=-1", "-n", namespace)
    deadline = time.monotonic() + 180
    while "storage_request_repeated" not in devcluster.kubectl("logs", *selector).stdout:
        assert time.monotonic() < deadline, "no worker has missed the server"
        time.sleep(0.5)
    own_s3.start()
    status = bench.end("outage")
    assert status["phase"] == "Complete", bench.events("outage")
    assert (status["attempt"], status["checkpoint"]["step"]) == (1, 120)


def test_a_wrong_secret_ends_a_run_before_it_trains(buckets: Buckets) -> None:
    """No attempt is wasted on it: the status says which Secret, and what the store said."""
    buckets.aws_secret("checkpoints", Keys(buckets.server.root.key, "wrong"))
    buckets.apply("refused")
    status = buckets.bench.end("refused")
    assert status["phase"] == "Failed"
    assert status["attempt"] == 1
    assert status["lastFailure"]["exitCode"] == 64
    message = status["lastFailure"]["message"]
    assert message.startswith(
        f"spec.checkpoint: cannot write in s3://{buckets.checkpoints}/runs: SignatureDoesNotMatch"
    )
    assert "check the keys of the Secret of spec.checkpoint.secretRef (mounted at /etc" in message
    assert message in buckets.bench.events("refused")
    assert not status.get("progress", {}).get("step")
