"""Logs: one line a record, as JSON in a pod, with the run that it is about.

Text of users (names, messages of workers and of the API server) can break no line: it is escaped.
Objects are never logged, so nothing that a user put into one gets here.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from kubernetes.aio.client.exceptions import ApiException

from daybreak_trainer.contract import rfc3339

Format = Literal["json", "text"]
_MAX_MESSAGE = 500
_about: ContextVar[dict[str, str | int]] = ContextVar("about")


@contextmanager
def about(namespace: str, run: str, attempt: int) -> Iterator[None]:
    """All that is logged inside, by this task, carries these keys."""
    token = _about.set({"namespace": namespace, "run": run, "attempt": attempt})
    try:
        yield
    finally:
        _about.reset(token)


def describe(error: BaseException) -> str:
    """An error in one line. The API server's answers are told by its sentence: headers and bodies
    can hold anything."""
    if isinstance(error, ApiException):
        try:
            said = str(json.loads(error.body or "{}").get("message", ""))
        except (ValueError, AttributeError):
            said = ""
        said = said if len(said) <= _MAX_MESSAGE else said[:_MAX_MESSAGE] + " ..."
        return f"the API server answered {error.status} {error.reason}: {said}".rstrip(": ")
    if isinstance(error, TimeoutError) and not str(error):
        return "there was no answer in time"
    return f"{type(error).__name__}: {error}"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str | int] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_about.get({}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        keys = "".join(f" {key}={value}" for key, value in _about.get({}).items())
        return "".join(map(_escaped, super().format(record) + keys))


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def configure(form: Format) -> None:
    """Everything at INFO to standard error; of kopf, what is worth a person's time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # kopf reports every event that it hands on; what came of it, the controller reports.
    for noisy in ("kopf.activities", "kopf.objects"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
