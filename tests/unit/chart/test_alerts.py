"""The chart's alerts fire when they should, as Prometheus' own tool tells."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "charts" / "daybreak" / "alerts" / "rules.yaml"
CASES = Path(__file__).with_name("alerts.test.yaml")


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """promtool plays each case of alerts.test.yaml through the rules that the chart carries, and
    every alert has a case. What an alert says is for people; which one fires, for what, is fixed.
    """
    rules = yaml.safe_load(RULES.read_text())
    alerts = {rule["alert"]: rule.pop("annotations") for rule in rules["groups"][0]["rules"]}
    assert all(set(says) == {"summary", "description"} for says in alerts.values())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    cases = CASES.read_text().replace("RULES", "rules.yaml")
    assert set(alerts) == set(re.findall(r"alertname: (\w+)", cases))
    (tmp_path / CASES.name).write_text(cases)
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(tmp_path / CASES.name)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_use_only_metrics_that_exist() -> None:
    """Each is in docs/metrics.md, which another test holds to the code."""
    known = set(re.findall(r"`(daybreak_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    used = set(re.findall(r"\b(daybreak_\w+)\b", RULES.read_text()))
    assert used
    assert used <= known
