"""A real Prometheus for a test."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml
from addons import await_answer
from free_ports import free_port

ANSWER_SECONDS = 120.0
Json = dict[str, Any]


class Prometheus:
    """Scrapes while the `with` block runs; its files lie in `directory`, which exists."""

    def __init__(self, directory: Path, scrape_configs: Sequence[Json]) -> None:
        if shutil.which("prometheus") is None:
            pytest.fail("no prometheus on PATH; run `hack/setup.sh --test-tools`")
        self._directory = directory
        self._address = f"127.0.0.1:{free_port()}"
        self._config = directory / "prometheus.yml"
        self._config.write_text(yaml.safe_dump({"scrape_configs": list(scrape_configs)}))

    def __enter__(self) -> Self:
        self._log = (self._directory / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._config}",
                f"--storage.tsdb.path={self._directory / 'data'}",
                f"--web.listen-address={self._address}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        log = self._directory / "prometheus.log"
        await_answer("prometheus", self._process, f"http://{self._address}/-/ready", log)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        url = f"http://{self._address}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Json]:
        """An instant vector, of now."""
        result: list[Json] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def between(
        self, expression: str, start: float, end: float
    ) -> list[tuple[dict[str, str], list[float]]]:
        """Labels of each series and its values in that time, a second apart, without the NaNs that
        a division by nothing gives."""
        # The steps are counted from the start: one more, or the last fraction is not looked at.
        window = {"start": f"{start}", "end": f"{end + 1}", "step": "1"}
        answer = self.get("/api/v1/query_range", query=expression, **window)["result"]
        return [
            (series["metric"], values)
            for series in answer
            if (values := [float(v) for _, v in series["values"] if float(v) == float(v)])
        ]

    def wait_for(self, expressions: Sequence[str], seconds: float = ANSWER_SECONDS) -> None:
        """Returns as soon as each has a value, or after `seconds`: what has none then is for a test
        to say. A query that Prometheus refuses is, too."""
        deadline = time.monotonic() + seconds
        waiting = list(expressions)
        while waiting and time.monotonic() < deadline:
            try:
                waiting = [expression for expression in waiting if not self.query(expression)]
            except urllib.error.HTTPError:
                return
            time.sleep(0.2)
