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
from daybreak_trainer.contract import Progress  # noqa: E402
from daybreak_trainer.telemetry.metrics import train_metrics  # noqa: E402
from daybreak_trainer.telemetry.server import WorkerServer  # noqa: E402

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
step = 0
started = time.monotonic()
while not ended.wait(STEP_SECONDS):
    step += 1
    metrics.step(images=BATCH // 2, seconds=STEP_SECONDS)
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
        if step % 10 == 0:
            metrics.checkpoint(step=step, seconds=0.3, unix_time=time.time())
server.close()
