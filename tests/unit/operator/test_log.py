"""A record is one line, with the run that it is about, whatever users wrote into it."""

from __future__ import annotations

import asyncio
import json
import logging

from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.log import JsonFormatter, TextFormatter, about, describe

HOSTILE = 'a\nlevel=critical "x"\r\u2028\x1b[31m\u0000'


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, __file__, 1, "%s", (message,), None)


def test_no_text_breaks_a_line() -> None:
    """Neither as JSON, where it can be read back, nor as text, where it colours no terminal."""
    line = JsonFormatter().format(record(HOSTILE))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == HOSTILE
    assert json.loads(line)["level"] == "warning"
    text = TextFormatter().format(record(HOSTILE))
    assert len(text.splitlines()) == 1
    assert text.isprintable()


async def test_records_carry_the_run_that_is_being_looked_at() -> None:
    """Each task its own, and none outside."""

    async def look(name: str) -> dict[str, str]:
        with about("n", name, attempt=2):
            await asyncio.sleep(0)
            line: dict[str, str] = json.loads(JsonFormatter().format(record("x")))
            return line

    lines = await asyncio.gather(look("a"), look("b"))
    assert [(line["namespace"], line["run"], line["attempt"]) for line in lines] == [
        ("n", "a", 2),
        ("n", "b", 2),
    ]
    assert "run" not in json.loads(JsonFormatter().format(record("x")))


def test_an_answer_of_the_api_server_is_told_by_its_sentence() -> None:
    """Not with headers and body, which can hold anything; and not at any length."""
    error = ApiException(status=422, reason="Unprocessable Entity")
    error.body = json.dumps({"message": "spec.x is wrong " + "y" * 5000, "details": {"token": "t"}})
    told = describe(error)
    assert told.startswith("the API server answered 422 Unprocessable Entity: spec.x is wrong")
    assert len(told) < 700
    assert "token" not in told
    error.body = "<html>"
    assert describe(error) == "the API server answered 422 Unprocessable Entity"
