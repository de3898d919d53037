"""What a worker serves is right while its ranks are busy, dead, and restarted in place.

Every rank is a process of its own, as in a pod; the page is made by another one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

RANK = """
import os
from daybreak_trainer.data.counters import DataCounts
from daybreak_trainer.telemetry.memory import MemoryUse
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.phases import PHASES, StepTimes
from daybreak_trainer.telemetry.throughput import Throughput
metrics = train_metrics()
{code}
print(os.getpid())
"""
LAUNCHER = """
from prometheus_client.multiprocess import mark_process_dead
from daybreak_trainer.telemetry.metrics import exposition
for pid in {dead}:
    mark_process_dead(pid)
print(exposition().decode())
"""


class Pod:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _python(self, code: str) -> str:
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(self._folder)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rank(self, code: str) -> int:
        """A rank that does this and ends; its process id."""
        return int(self._python(RANK.format(code=code)))

    def page(self, *dead: int) -> dict[tuple[str, ...], float]:
        """Name and label values → value, of what a scrape shows when these are marked dead."""
        text = self._python(LAUNCHER.format(dead=dead))
        return {
            (sample.name.removeprefix("daybreak_train_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_ranks_add_up_and_the_run_s_gauges_are_the_last_ones_set(pod: Pod) -> None:
    """A rank that is restarted in place goes on counting where its pod was, and says anew how far
    the run is; it does not count twice."""
    for step in (5, 4):  # resumed from an older commit
        pod.rank(
            f"metrics.run(step={step}, total_steps=9, samples=1, training_seconds=2.0)\n"
            "metrics.step(images=8, seconds=0.5)\n"
            "metrics.health.rolled_back()\n"
            "metrics.goodput.ledger({'productive': 6.0, 'startup': 2.0})"
        )
    pod.rank("metrics.step(images=8, seconds=0.5)")
    page = pod.page()
    assert page["step",] == 4
    assert page["steps_total",] == 3
    assert page["images_total",] == 24
    assert page["step_seconds_sum",] == 1.5
    assert page["rollbacks_total",] == 2
    assert page["goodput_ratio",] == 0.75
    assert page["productive_seconds",] == 6
    assert page["lost_seconds", "startup"] == 2
    assert page["lost_seconds", "rolled_back"] == 0


def test_a_dead_rank_uses_no_memory_and_waits_for_nothing(pod: Pod) -> None:
    """What it counted stays."""
    living = pod.rank("metrics.speed.memory(0, MemoryUse(100))")
    dead = pod.rank(
        "metrics.speed.memory(1, MemoryUse(200, 30, 40, 50))\n"
        "metrics.loader.has_batch(1)\n"
        "metrics.loader.waits(1)\n"
        "metrics.loader.counts(DataCounts(downloaded_bytes=600, retries=1))\n"
        "metrics.loader.counts(DataCounts(downloaded_bytes=1000, retries=1))"
    )
    page = pod.page()
    assert page["memory_resident_bytes", "0"] == 100
    assert page["memory_peak_bytes", "1"] == 50
    waiting = ("loader_waiting_since_timestamp_seconds", "1")
    assert page[waiting] == pytest.approx(time.time(), abs=60)
    page = pod.page(dead)
    assert page["memory_resident_bytes", "0"] == 100
    assert ("memory_resident_bytes", "1") not in page
    assert waiting not in page
    assert page["loader_downloaded_bytes_total",] == 1000
    assert page["loader_retries_total",] == 1
    assert living != dead


def test_what_nobody_knows_is_not_on_the_page(pod: Pod) -> None:
    """A device without a known peak has no MFU: not 0, which would be a figure. Neither is there a
    checkpoint at step 0 before the first one."""
    pod.rank("metrics.speed.throughput(Throughput(10.0, 5.0, 0.25, 1e9, None, None))")
    page = pod.page()
    assert page["images_per_second_per_device",] == 5
    assert page["data_wait_ratio",] == 0.25
    assert page["device_flops_per_second",] == 1e9
    assert {"mfu_ratio", "hfu_ratio", "checkpoint_step", "loss"}.isdisjoint(n for n, *_ in page)


def test_checkpoints_phases_and_health(pod: Pod) -> None:
    pod.rank(
        "metrics.checkpoints.resumed(step=10, unix_time=1000.0)\n"
        "metrics.checkpoints.committed(step=20, unix_time=2000.0, seconds=4.0,\n"
        "    blocked_seconds=0.25, write_seconds=3.0, size_bytes=1 << 30)\n"
        "metrics.checkpoints.holds(40.0)\n"
        "metrics.checkpoints.committed(step=30, unix_time=3000.0, seconds=2.0,\n"
        "    blocked_seconds=2.0)\n"
        "metrics.checkpoints.holds(60.0)\n"
        "metrics.checkpoints.failed()\n"
        "metrics.speed.phases(StepTimes(1, dict.fromkeys(PHASES, 0.5), 3.0))\n"
        "metrics.health.restarts({'crashed': 2})\n"
        "metrics.health.stragglers({0: 1.0, 5: 1.5})\n"
        "metrics.health.storage('read', 1e8)"
    )
    page = pod.page()
    assert page["checkpoint_step",] == 30
    assert page["checkpoint_timestamp_seconds",] == 3000
    assert page["checkpoint_training_seconds",] == 60
    assert page["checkpoint_seconds_sum",] == 6
    assert page["checkpoint_blocked_seconds_sum",] == 2.25
    assert page["checkpoint_write_seconds_count",] == 1
    assert page["checkpoint_bytes",] == 1 << 30
    assert page["checkpoint_failures_total",] == 1
    assert page["step_phase_seconds_sum", "data"] == 0.5
    assert page["restarts", "crashed"] == 2
    assert page["straggler_ratio", "5"] == 1.5
    assert page["self_test_storage_bytes_per_second", "read"] == 1e8
