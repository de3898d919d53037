"""Structured logs: one JSON object a line, one line an event, on standard error.

    {"time": "...", "level": "info", "event": "checkpoint_committed", "run": "prx-24h",
     "namespace": "team", "attempt": 3, "rank": 0, "step": 41000, "seconds": 12.3}

What other libraries say through `logging` and `warnings` comes out the same way, so a log pipeline
parses every line. Event names are stable, snake_case, past tense; `docs/operations.md` lists them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_LOGGER = logging.getLogger("daybreak")


class _Line(JsonFormatter):
    """Adds what tells a line of one rank from those of all others."""

    def __init__(self, context: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._context = context

    def process_log_record(self, log_record: MutableMapping[str, Any]) -> dict[str, Any]:
        event = log_record.pop("message", "")
        line = {"time": "", "level": "", "event": event, **self._context(), **log_record}
        return {name: _as_json(value) for name, value in line.items()}

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data["time"] = (
            datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )
        log_data["level"] = record.levelname.lower()
        if record.name != _LOGGER.name:
            log_data["logger"] = record.name


def _as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity, and a parser may refuse the whole line."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def configure(context: Callable[[], dict[str, Any]]) -> None:
    """Sends every log line of this process to standard error as JSON; `context` is asked anew for
    each line (run, attempt, rank, step)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(context))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs one event with its fields."""
    _LOGGER.log(level, name, extra=fields)
