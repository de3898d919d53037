"""The run dashboard, as tests see it."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FILE = Path(__file__).resolve().parents[2] / "charts" / "daybreak" / "dashboards" / "run.json"
DASHBOARD: Json = json.loads(FILE.read_text())
PANELS: list[Json] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES: list[str] = [
    variable["definition"]
    for variable in DASHBOARD["templating"]["list"]
    if "definition" in variable
]
QUERIES: dict[str, str] = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
} | {item["name"]: item["expr"] for item in DASHBOARD["annotations"]["list"]}
"""Name → query: every panel's, and the annotations'."""

ONLY_ON_A_GPU = (
    "MFU A",
    "Device memory A",
    "MFU and HFU A",
    "MFU and HFU B",
    "Device memory by rank A",
    "Device memory by rank B",
)
ONLY_AFTER = (
    "Restarts A",
    "Restarts by cause A",
    "Slowest rank A",
    "Slow ranks A",
    "Shards found in the cache A",
    "Alignment while training A",
    "Image scores A",
)
"""Only after a restart, after more steps than the smoke run has, with data in a bucket, or after an
evaluation during training; the panels say so."""


def resolved(expression: str, *, namespace: str, run: str) -> str:
    """The query as Grafana would send it to a Prometheus that scrapes every second."""
    variables = {"$namespace": namespace, "$run": run, "$__rate_interval": "5s"}
    for name, value in variables.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"unknown variable in {expression}"
    return expression
