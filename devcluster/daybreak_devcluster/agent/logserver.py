"""The HTTPS endpoint that the API server asks for container logs (`kubectl logs`).

It answers only to the API server's own client certificate. `kubectl exec`, `attach` and
`port-forward` are not offered and say so.
"""

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from daybreak_devcluster.agent.container import Container
from daybreak_devcluster.agent.logs import LogQuery
from daybreak_devcluster.pki import Authority

_CLIENT = "kube-apiserver-kubelet-client"
FindContainer = Callable[[str, str, str], Container | None]
"""Namespace, pod and container to the container, or None where it is not on this node."""


class LogServer:
    """Serves logs on a free port of one address."""

    def __init__(self, address: str, authority: str, find: FindContainer) -> None:
        self._address = address
        self._authority = authority
        self._find = find

    async def start(self, folder: Path) -> int:
        """Start to listen; returns the port. The server's certificate is kept in `folder`."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_route("*", "/{other:.*}", _not_offered)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        context = self._tls(folder)
        site = web.TCPSite(runner, self._address, 0, ssl_context=context)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    def _tls(self, folder: Path) -> ssl.SSLContext:
        Authority("daybreak-devcluster-node").server("node", [self._address]).write(folder, "logs")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self._authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(folder / "logs.crt", folder / "logs.key")
        return context

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        certificate = request.get_extra_info("peercert")
        subject = {key: value for part in certificate["subject"] for key, value in part}
        if subject.get("commonName") != _CLIENT:
            raise web.HTTPForbidden(text="only the API server may read logs here\n")
        names = [request.match_info[name] for name in ("namespace", "pod", "container")]
        container = self._find(*names)
        if container is None:
            raise web.HTTPNotFound(text=f"no container {'/'.join(names)} on this node\n")
        previous = request.query.get("previous") == "true"
        if len(container.logs) < 1 + previous:
            what = "was not restarted" if previous else "has not started"
            raise web.HTTPBadRequest(text=f"container {names[2]} {what}\n")
        try:
            query = _query(request)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        async for chunk in container.logs[-1 - previous].read(query):
            await response.write(chunk)
        return response


def _query(request: web.Request) -> LogQuery:
    asked = request.query
    since = None
    if "sinceSeconds" in asked:
        age = datetime.timedelta(seconds=int(asked["sinceSeconds"]))
        since = datetime.datetime.now(datetime.UTC) - age
    elif "sinceTime" in asked:
        since = datetime.datetime.fromisoformat(asked["sinceTime"]).astimezone(datetime.UTC)
    return LogQuery(
        follow=asked.get("follow") == "true",
        timestamps=asked.get("timestamps") == "true",
        tail_lines=int(asked["tailLines"]) if "tailLines" in asked else None,
        since=b"" if since is None else since.strftime("%Y-%m-%dT%H:%M:%S.%f").encode(),
        limit_bytes=int(asked["limitBytes"]) if "limitBytes" in asked else None,
    )


async def _not_offered(_request: web.Request) -> web.StreamResponse:
    text = "the development cluster's nodes serve logs only, no exec, attach or port-forward\n"
    raise web.HTTPNotImplemented(text=text)
