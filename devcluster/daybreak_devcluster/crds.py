"""CustomResourceDefinitions: when objects of theirs can be made."""

import time

from daybreak_devcluster.cluster import Cluster

_LOOK_SECONDS = 0.1


def await_crd(cluster: Cluster, name: str, seconds: float = 120.0) -> None:
    """Return when the CustomResourceDefinition is established; raises `TimeoutError`.

    `kubectl wait` alone does not do: on one that has no conditions yet it gives up at once.
    """
    wait = ("wait", "--for=condition=Established", f"crd/{name}", "--timeout=5s")
    deadline = time.monotonic() + seconds
    while (done := cluster.kubectl(*wait, check=False)).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"CRD {name}: not established within {seconds:g} s: {done.stderr}")
        time.sleep(_LOOK_SECONDS)
