"""`python -m daybreak_operator`: runs the operator until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os

import kopf
from kopf._core.engines.peering import Identity

from daybreak_operator.handlers import registry
from daybreak_trainer.contract import ENV_POD_IP


def main() -> None:
    parser = argparse.ArgumentParser(prog="daybreak_operator", description=__doc__)
    parser.add_argument(
        "--namespace", action="append", default=[], help="watch only this one; may be repeated"
    )
    parser.add_argument(
        "--http-host",
        default=os.environ.get(ENV_POD_IP, "127.0.0.1"),
        help="address of /healthz and /metrics; default: the pod's own IP",
    )
    parser.add_argument("--http-port", type=int, default=8080)
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # kopf reports every event that it hands on; what came of it, the controller reports.
    for noisy in ("kopf.activities", "kopf.objects"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    kopf.run(
        registry=registry(options.http_host, options.http_port),
        clusterwide=not options.namespace,
        namespaces=options.namespace,
        standalone=True,
        # Not used without peering, but kopf would look up the user's name, and a pod's user has
        # none.
        identity=Identity("daybreak-operator"),
    )


if __name__ == "__main__":
    main()
