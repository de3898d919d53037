"""Fixtures for tests on a real control plane.

A conftest switches them on with `pytest_plugins = ["daybreak_devcluster.pytest_plugin"]`. The
cluster starts with the first test that asks for it and serves the whole test session; a test keeps
to its own `namespace`.
"""

import json
import secrets
from collections.abc import Iterator

import pytest

from daybreak_devcluster.binaries import find_binaries
from daybreak_devcluster.cluster import Cluster


def pytest_collection_finish(session: pytest.Session) -> None:
    """Find the programs, or build them, before any test's time limit runs."""
    asks = any("devcluster" in getattr(item, "fixturenames", ()) for item in session.items)
    if asks and not session.config.option.collectonly:
        find_binaries(session.config.get_terminal_writer().line)


@pytest.fixture(scope="session")
def devcluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A development cluster with one node, shared by the whole test session."""
    with Cluster(tmp_path_factory.mktemp("devcluster") / "state") as cluster:
        yield cluster
        failure = cluster.failure()
    if failure is not None:
        pytest.fail(failure)


@pytest.fixture
def namespace(devcluster: Cluster) -> Iterator[str]:
    """A fresh namespace that enforces the `restricted` Pod Security level.

    Its deletion is asked for at the end and not waited for: the namespace controller takes five
    seconds before it begins.
    """
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    devcluster.kubectl("create", "-f", "-", input=json.dumps(manifest))
    yield name
    devcluster.kubectl("delete", "namespace", name, "--wait=false", check=False)
