"""Container probes: HTTP, TCP and commands, against the pod's own address."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

Json = dict[str, Any]
RunInside = Callable[[list[str], float], Awaitable[tuple[int, str]]]
"""Runs a command beside the container's process within so many seconds: exit code and output."""


async def verdicts(
    probe: Json, container: Json, pod_ip: str, run_inside: RunInside
) -> AsyncIterator[tuple[bool, str]]:
    """Probe for ever; yield (passed, last failure's message) whenever a threshold is reached."""
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    period = probe.get("periodSeconds", 10)
    thresholds = {True: probe.get("successThreshold", 1), False: probe.get("failureThreshold", 3)}
    last: bool | None = None
    streak = 0
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        failure = await probe_once(probe, container, pod_ip, run_inside)
        passed = failure is None
        streak = streak + 1 if passed == last else 1
        last = passed
        if streak >= thresholds[passed]:
            yield passed, failure or ""
        await asyncio.sleep(max(0.0, period - (loop.time() - begun)))


async def probe_once(
    probe: Json, container: Json, pod_ip: str, run_inside: RunInside
) -> str | None:
    """One attempt: None where it passed, else why not."""
    seconds = float(probe.get("timeoutSeconds", 1))
    try:
        if "exec" in probe:
            code, output = await run_inside(probe["exec"]["command"], seconds)
            return None if code == 0 else f"command exited {code}: {output}"
        if "tcpSocket" in probe:
            action = probe["tcpSocket"]
            host = action.get("host") or pod_ip
            connection = asyncio.open_connection(host, _port(action["port"], container))
            _, writer = await asyncio.wait_for(connection, seconds)
            writer.close()
            return None
        return await _http(probe["httpGet"], container, pod_ip, seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return str(error)


async def _http(action: Json, container: Json, pod_ip: str, seconds: float) -> str | None:
    scheme = action.get("scheme", "HTTP").lower()
    host = action.get("host") or pod_ip
    url = f"{scheme}://{host}:{_port(action['port'], container)}{action.get('path', '/')}"
    headers = {item["name"]: item["value"] for item in action.get("httpHeaders") or ()}
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        # Like a kubelet: the certificate is not looked at, and a redirect counts as an answer.
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as response,
    ):
        return None if 200 <= response.status < 400 else f"{url} answered {response.status}"


def _port(port: int | str, container: Json) -> int:
    if isinstance(port, int):
        return port
    for item in container.get("ports") or ():
        if item.get("name") == port:
            return int(item["containerPort"])
    raise ValueError(f"the container has no port named {port!r}")
