"""Asks worker 0 how far it is. A worker is not trusted: no redirects, little data, little time."""

from __future__ import annotations

import time

import aiohttp
from pydantic import ValidationError

from daybreak_trainer.contract import HTTP_PORT, Progress

_MAX_BYTES = 64 * 1024
_SECONDS = 2.0
_PAUSE_SECONDS = 20.0


class ProgressClient:
    def __init__(self, seconds: float = _SECONDS) -> None:
        """`seconds` for an answer."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        self._silent: dict[str, float] = {}
        """Addresses that let us wait in vain: until when (monotonic clock) they are not asked. Each
        try costs a look two seconds, and many such runs would have all looks wait."""

    async def ask(self, address: str) -> Progress | None:
        """The worker's progress, or None where it does not answer properly."""
        now = time.monotonic()
        if self._silent.get(address, 0.0) > now:
            return None
        try:
            return await self._asked(address)
        except TimeoutError:
            self._silent = {known: until for known, until in self._silent.items() if until > now}
            self._silent[address] = now + _PAUSE_SECONDS
            return None

    async def _asked(self, address: str) -> Progress | None:
        """Raises TimeoutError."""
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
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValidationError):
            return None

    async def close(self) -> None:
        await self._session.close()
