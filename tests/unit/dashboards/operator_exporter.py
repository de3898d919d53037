"""Serves the operator's metrics, with a little of everything in them, until its input ends.

`python operator_exporter.py`; prints the port it serves on.
"""

import sys
import threading

from prometheus_client import REGISTRY, start_http_server

from daybreak_operator import metrics

PERIOD_SECONDS = 0.1

ended = threading.Event()


def wait_for_end() -> None:
    sys.stdin.read()
    ended.set()


server, thread = start_http_server(0, addr="127.0.0.1")
print(server.server_port, flush=True)
threading.Thread(target=wait_for_end, daemon=True).start()

run = {
    "metadata": {"namespace": "research", "name": "demo"},
    "status": {
        "phase": "Running",
        "evaluation": {"alignmentByTag": {"single": "1.0", "colours": "0.5"}},
    },
}
REGISTRY.register(metrics.RunCollector(lambda: [run]))
metrics.QUEUE_LENGTH.set(2)
while not ended.wait(PERIOD_SECONDS):
    metrics.RECONCILES.labels("done").inc()
    metrics.RECONCILE_SECONDS.observe(0.02)
server.shutdown()
