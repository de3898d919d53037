"""A worker that trains nothing and reports through the real telemetry until its input ends.

`python worker_exporter.py WORKER DIRECTORY`; prints the port it serves on.
"""

import os
import sys
import threading
import time
from pathlib import Path

worker, directory = int(sys.argv[1]), Path(sys.argv[2])
directory.mkdir()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)

# prometheus-client reads that variable at import.
from daybreak_trainer.contract import MetricScore, Progress, Validation  # noqa: E402
from daybreak_trainer.data.counters import DataCounts  # noqa: E402
from daybreak_trainer.telemetry.ledger import CAUSES, PRODUCTIVE  # noqa: E402
from daybreak_trainer.telemetry.memory import MemoryUse  # noqa: E402
from daybreak_trainer.telemetry.metrics import train_metrics  # noqa: E402
from daybreak_trainer.telemetry.phases import PHASES, StepTimes  # noqa: E402
from daybreak_trainer.telemetry.server import WorkerServer  # noqa: E402
from daybreak_trainer.telemetry.throughput import Throughput  # noqa: E402

NOW = "2026-01-01T00:00:00Z"
TOTAL_STEPS = 1_000_000
STEP_SECONDS = 0.02
BATCH = 8

ended = threading.Event()


def wait_for_end() -> None:
    sys.stdin.read()
    ended.set()


metrics = train_metrics()
server = WorkerServer(
    "127.0.0.1",
    0,
    lambda: Progress(run_uid="u", attempt=1, phase="Training", started_at=NOW, updated_at=NOW),
)
print(server.port, flush=True)
threading.Thread(target=wait_for_end, daemon=True).start()

metrics.phase("Training")
metrics.stage(index=1, resolution=32)
metrics.speed.memory(worker, MemoryUse(1 << 30, 2 << 30, 3 << 30, 4 << 30))
metrics.health.matmul(worker, 7e14)
if worker == 0:
    metrics.health.restarts({"crashed": 1})
    metrics.health.stragglers({0: 1.0, 1: 1.125})
    metrics.health.grace(120.0)
    metrics.health.stop(9.0)
    metrics.health.all_gather(2e11)
    metrics.health.storage("read", 1e9)
    metrics.health.storage("write", 5e8)
    metrics.checkpoints.holds(0.0)
    fid = MetricScore(
        name="fid", value=9.5, extractor="e", standard=True, images=256, reference_images=256
    )
    metrics.validated(
        Validation(
            step=1,
            samples=256,
            loss=0.25,
            bins={"0-0.3": 0.5, "0.3-0.6": 0.125},
            alignment=0.75,
            alignment_by_tag={"single": 1.0, "colours": 0.5},
            metrics=(fid,),
            seconds=2.0,
        )
    )
step = 0
started = time.monotonic()
while not ended.wait(STEP_SECONDS):
    step += 1
    metrics.loader.waits(worker)
    metrics.loader.has_batch(worker)
    metrics.step(images=BATCH // 2, seconds=STEP_SECONDS)
    metrics.speed.phases(StepTimes(step, dict.fromkeys(PHASES, STEP_SECONDS / 5), STEP_SECONDS))
    metrics.loader.counts(DataCounts(step << 10, 3 * step, step, 0, step // 100))
    if worker == 0:
        metrics.run(
            step=step,
            total_steps=TOTAL_STEPS,
            samples=step * BATCH,
            training_seconds=time.monotonic() - started,
            loss=0.125,
            images_per_second=BATCH / STEP_SECONDS,
            gradient_norm=1.5,
            learning_rate=1e-4,
        )
        speed = BATCH / STEP_SECONDS
        metrics.speed.throughput(Throughput(speed, speed / 2, 0.0625, 5e14, 0.4375, 0.5))
        metrics.goodput.ledger({PRODUCTIVE: 75.0 * len(CAUSES)} | dict.fromkeys(CAUSES, 25.0))
        if step % 10 == 0:
            metrics.checkpoints.committed(
                step=step,
                unix_time=time.time(),
                seconds=0.3,
                blocked_seconds=0.01,
                write_seconds=0.2,
                size_bytes=1 << 20,
            )
            metrics.checkpoints.holds(time.monotonic() - started)
server.close()
