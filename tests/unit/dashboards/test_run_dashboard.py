"""Every query of the run dashboard answers, on a real Prometheus that scrapes the real telemetry.

Two exporter processes play the workers of one run with the trainer's own metrics and HTTP server, a
third serves the operator's metrics. `tests/e2e` asks the same of a real run.
"""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dashboard import (
    DASHBOARD,
    FILE,
    ONLY_AFTER,
    ONLY_ON_A_GPU,
    PANELS,
    QUERIES,
    VARIABLES,
    resolved,
)
from prometheus import ANSWER_SECONDS, Prometheus

from daybreak_trainer.telemetry.phases import PHASES

EXPORTERS = Path(__file__).resolve().parent
NAME = re.compile(r"\b(daybreak_\w+|up)\b")
ASKED = {
    name: resolved(expression, namespace="research", run="demo")
    for name, expression in QUERIES.items()
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has scraped both workers for long enough to answer."""
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
        port = exporter.stdout.readline().strip()
        targets.append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
    scrape = {
        "job_name": "exporters",
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "honor_labels": True,
        "static_configs": targets,
    }
    with Prometheus(directory, [scrape]) as server:
        server.wait_for(list(ASKED.values()))
        yield server
    for exporter in exporters:
        exporter.communicate()


def passes_in_time(check: Callable[[], None]) -> None:
    """A scrape that a busy machine is too late for leaves a gap, and rates that are not what they
    are before and after it."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        with suppress(AssertionError):
            return check()
        time.sleep(0.5)
    check()


@pytest.mark.parametrize("name", ASKED)
def test_every_query_answers(prometheus: Prometheus, name: str) -> None:
    """Prometheus accepts the query and it has at least one finite value."""

    def check() -> None:
        values = [float(series["value"][1]) for series in prometheus.query(ASKED[name])]
        assert values, f"{name}: no series"
        assert all(value == value for value in values), f"{name}: {values}"

    passes_in_time(check)


def test_the_tiles_say_what_the_run_says(prometheus: Prometheus) -> None:
    """Where the exporters' figures are known, the tiles show them, and worker 1's empty gauges
    change nothing."""

    def values(name: str) -> list[float]:
        return [float(series["value"][1]) for series in prometheus.query(ASKED[name])]

    def labels(name: str, label: str) -> set[str]:
        return {series["metric"][label] for series in prometheus.query(ASKED[name])}

    def check() -> None:
        assert values("Prompt alignment A") == [0.75]
        assert values("Workers answering A") == [2]
        assert values("Loss A") == [0.125]
        assert len(values("Phase A")) == 1
        assert labels("Phase A", "phase") == {"Training"}
        assert labels("Prompt alignment by tag A", "tag") == {"single", "colours"}
        (done,) = values("Steps done A") or [0.0]
        assert 0 < done < 1
        assert values("MFU A") == [0.4375]
        assert values("Goodput A") == [0.75]
        assert values("Images per second, a device A") == [200]
        assert values("Device memory A") == [4 << 30]
        assert values("Restarts A") == [1]
        assert values("Failed saves A") == [0]
        assert values("Slowest rank A") == [1.125]
        assert values("Shards found in the cache A") == [0.75]
        by_phase = {
            series["metric"]["phase"]: float(series["value"][1])
            for series in prometheus.query(ASKED["Step time by phase A"])
        }
        assert by_phase == pytest.approx(dict.fromkeys(PHASES, 0.02 / 5), rel=0.3)
        # The exporters take 0.02 s a step and work for both workers on 8 images a step.
        (step_time,) = values("Step time A") or [math.inf]
        assert step_time < 0.1
        (not_committed,) = values("Not committed yet A") or [math.inf]
        assert 0 <= not_committed < ANSWER_SECONDS

    passes_in_time(check)


def test_it_uses_only_metrics_that_exist(prometheus: Prometheus) -> None:
    """Each name in a query or a variable is one that the telemetry exports."""
    known = set(prometheus.get("/api/v1/label/__name__/values"))
    used = {name for expression in ASKED.values() for name in re.findall(r"\b(\w+)\{", expression)}
    used |= {name for text in VARIABLES for name in re.findall(r"daybreak_\w+", text)}
    assert len(used) > 10
    assert used <= known, used - known


def test_panels_explain_themselves() -> None:
    """Each panel has a title, a unit, a description that ends in its metrics, and the data source
    of the dashboard's variable."""
    for panel in PANELS:
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


def test_a_panel_that_may_be_empty_says_when() -> None:
    """What needs a GPU, or something to have happened: these panels and no others say "Only"."""
    says = {
        name: re.findall(r"Only (on GPUs|after)", panel["description"])
        for panel in PANELS
        for name in (f"{panel['title']} {target['refId']}" for target in panel["targets"])
    }
    assert {name for name, only in says.items() if only == ["on GPUs"]} == set(ONLY_ON_A_GPU)
    assert {name for name, only in says.items() if only == ["after"]} == set(ONLY_AFTER)


def test_panels_do_not_collide() -> None:
    """IDs are unique and no two panels share a cell of the grid."""
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: set[tuple[int, int]] = set()
    for panel in everything:
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
    for name, expression in QUERIES.items():
        windows = re.findall(r"\[([^\]]+)\]", expression)
        assert set(windows) <= {"$__rate_interval"}, name


def test_the_file_is_in_its_normal_form() -> None:
    """Sorted keys and no instance's ID: an export from Grafana makes a small diff."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "daybreak-run"
    assert FILE.read_text() == json.dumps(DASHBOARD, indent=2, sort_keys=True) + "\n"
