"""Asks worker 0 how far it is. A worker is not trusted: no redirects, little data, little time."""

from __future__ import annotations

import aiohttp
from pydantic import ValidationError

from daybreak_trainer.contract import HTTP_PORT, Progress

_MAX_BYTES = 64 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


class ProgressClient:
    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False)

    async def ask(self, address: str) -> Progress | None:
        """The worker's progress, or None where it does not answer properly."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(
                f"http://{host}:{HTTP_PORT}/progress", allow_redirects=False
            ) as response:
                if response.status != 200:
                    return None
                raw = await response.content.read(_MAX_BYTES + 1)
                while len(raw) <= _MAX_BYTES and not response.content.at_eof():
                    raw += await response.content.read(_MAX_BYTES + 1 - len(raw))
                return None if len(raw) > _MAX_BYTES else Progress.model_validate_json(raw)
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None

    async def close(self) -> None:
        await self._session.close()
