"""Every query of the run dashboard answers, on a real Prometheus that scrapes the real telemetry.

Two exporter processes play the workers of one run with the trainer's own metrics and HTTP server, a
third serves the operator's metrics.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DASHBOARD = Path(__file__).resolve().parents[3] / "charts" / "daybreak" / "dashboards" / "run.json"
EXPORTERS = Path(__file__).resolve().parent
NAME = re.compile(r"\b(daybreak_\w+|up)\b")
ALL_ANSWER_SECONDS = 60.0
VARIABLES = {"$namespace": "research", "$run": "demo", "$__rate_interval": "5s"}
Json = dict[str, Any]


def load() -> Json:
    dashboard: Json = json.loads(DASHBOARD.read_text())
    return dashboard


PANELS: list[Json] = load()["panels"]
QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel.get("targets", ())
] + [(item["name"], item["expr"]) for item in load()["annotations"]["list"]]


def resolved(expression: str) -> str:
    """The query as Grafana would send it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"unknown variable in {expression}"
    return expression


class Prometheus:
    """A Prometheus that scrapes the exporters; `query` gives an instant vector."""

    def __init__(self, directory: Path, targets: list[tuple[str, Json]]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        config = directory / "prometheus.yml"
        job = {
            "job_name": "workers",
            "scrape_interval": "500ms",
            "scrape_timeout": "500ms",
            "honor_labels": True,
            "static_configs": [{"targets": [at], "labels": labels} for at, labels in targets],
        }
        config.write_text(yaml.safe_dump({"scrape_configs": [job]}))
        self._log = (directory / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Json]:
        result: list[Json] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float:
        (series,) = self.query(expression)
        return float(series["value"][1])

    def wait_until_all_answer(self, expressions: list[str]) -> None:
        """Ask again until each has a value; what never has one is left to its own test."""
        deadline = time.monotonic() + ALL_ANSWER_SECONDS
        waiting = list(expressions)
        while waiting and time.monotonic() < deadline:
            try:
                waiting = [expression for expression in waiting if not self.query(expression)]
            except urllib.error.HTTPError:
                return
            except urllib.error.URLError:
                assert self.process.poll() is None, "prometheus ended"
            time.sleep(0.2)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has scraped both workers for long enough to answer."""
    if shutil.which("prometheus") is None:
        pytest.fail("no prometheus on PATH; run `hack/setup.sh --test-tools`")
    directory = tmp_path_factory.mktemp("prometheus")
    exporters, targets = [], []
    worker = {"namespace": "research", "run": "demo", "attempt": "1"}
    for arguments, labels in (
        (["worker_exporter.py", "0", str(directory / "0")], {**worker, "worker": "0"}),
        (["worker_exporter.py", "1", str(directory / "1")], {**worker, "worker": "1"}),
        (["operator_exporter.py"], {"namespace": "daybreak-system"}),
    ):
        exporter = subprocess.Popen(
            [sys.executable, str(EXPORTERS / arguments[0]), *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        exporters.append(exporter)
        assert exporter.stdout is not None
        targets.append((f"127.0.0.1:{exporter.stdout.readline().strip()}", labels))
    server = Prometheus(directory, targets)
    server.wait_until_all_answer([resolved(expression) for _, expression in QUERIES])
    yield server
    server.close()
    for exporter in exporters:
        exporter.communicate()


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_every_query_answers(prometheus: Prometheus, name: str, expression: str) -> None:
    """Prometheus accepts the query and it has at least one finite value."""
    values = [float(series["value"][1]) for series in prometheus.query(resolved(expression))]
    assert values, f"{name}: no series"
    assert all(value == value for value in values), f"{name}: {values}"


def expression_of(title: str, ref: str = "A") -> str:
    (panel,) = (panel for panel in PANELS if panel["title"] == title and panel["type"] != "row")
    (target,) = (target for target in panel["targets"] if target["refId"] == ref)
    return resolved(target["expr"])


def test_the_tiles_say_what_the_run_says(prometheus: Prometheus) -> None:
    """Where the exporters' figures are known, the tiles show them, and worker 1's empty gauges
    change nothing."""
    assert prometheus.value(expression_of("Prompt alignment")) == 0.75
    assert prometheus.value(expression_of("Workers answering")) == 2
    assert prometheus.value(expression_of("Loss")) == 0.125
    (phase,) = prometheus.query(expression_of("Phase"))
    assert phase["metric"]["phase"] == "Training"
    by_tag = prometheus.query(expression_of("Prompt alignment by tag"))
    assert {series["metric"]["tag"] for series in by_tag} == {"single", "colours"}
    assert 0 < prometheus.value(expression_of("Steps done")) < 1
    # The exporters take 0.02 s a step and work for both workers on 8 images a step.
    assert prometheus.value(expression_of("Step time")) < 0.1
    assert 0 <= prometheus.value(expression_of("Checkpoint age")) < ALL_ANSWER_SECONDS


def test_it_uses_only_metrics_that_exist(prometheus: Prometheus) -> None:
    """Each name in a query or a variable is one that the telemetry exports."""
    known = set(prometheus.get("/api/v1/label/__name__/values"))
    used = {name for _, expression in QUERIES for name in re.findall(r"\b(\w+)\{", expression)}
    variables = [
        item["definition"] for item in load()["templating"]["list"] if "definition" in item
    ]
    used |= {name for text in variables for name in re.findall(r"daybreak_\w+", text)}
    assert len(used) > 10
    assert used <= known, used - known


def test_panels_explain_themselves() -> None:
    """Each panel has a title, a unit, a description that ends in its metrics, and the data source
    of the dashboard's variable."""
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        last = panel["description"].split("\n")[-1]
        assert last.startswith(("Metric: ", "Metrics: ")), panel["title"]
        described = set(re.findall(r"`(\w+)`", last))
        used: set[str] = set()
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used |= set(NAME.findall(target["expr"]))
        base = {re.sub(r"_seconds_(bucket|sum|count)$", "_seconds", name) for name in used}
        assert described == base, panel["title"]


def test_panels_do_not_collide() -> None:
    """IDs are unique and no two panels share a cell of the grid."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own


def test_rates_follow_the_chart_s_interval() -> None:
    """A fixed window would be empty at a slow scrape interval or blur a short view."""
    for name, expression in QUERIES:
        windows = re.findall(r"\[([^\]]+)\]", expression)
        assert set(windows) <= {"$__rate_interval"}, name


def test_the_file_is_in_its_normal_form() -> None:
    """Sorted keys and no instance's ID: an export from Grafana makes a small diff."""
    dashboard = load()
    assert dashboard["id"] is None
    assert dashboard["uid"] == "daybreak-run"
    assert DASHBOARD.read_text() == json.dumps(dashboard, indent=2, sort_keys=True) + "\n"
