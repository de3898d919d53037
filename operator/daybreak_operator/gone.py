"""What went while its watch was cut: kopf tells of no deletion when a watch begins anew."""

from __future__ import annotations

import logging

from aiohttp import ClientError
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.cache import Cache, Key
from daybreak_operator.cluster import Cluster
from daybreak_operator.log import describe

_log = logging.getLogger(__name__)


async def forget_gone(cache: Cache, cluster: Cluster) -> list[Key]:
    """Takes runs that do not exist any more from the cache, and returns their keys. One that is
    over is never written to, so no answer would tell."""
    known = [(key, body["metadata"]["uid"]) for key, body in cache.runs.items()]
    gone: list[Key] = []
    for namespace in sorted({namespace for (namespace, _), _ in known}):
        try:
            there = await cluster.run_uids(namespace)
        except (ApiException, ClientError, OSError) as error:
            _log.warning("runs of %s cannot be listed: %s", namespace, describe(error))
            continue
        for key, uid in known:
            if key[0] == namespace and uid not in there:
                cache.gone(key, uid)
                gone.append(key)
    cache.sweep()
    return gone
