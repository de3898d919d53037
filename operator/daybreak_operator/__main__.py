"""`python -m daybreak_operator`: runs the operator until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from daybreak_operator import log
from daybreak_operator.pace import PROGRESS_SECONDS
from daybreak_operator.process import Options, run
from daybreak_trainer.contract import ENV_POD_IP

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    lease = None
    if given.leader_elect:
        namespace = given.lease_namespace or _own_namespace()
        if namespace is None:
            parser.error("--leader-elect outside of a pod needs --lease-namespace")
        lease = (namespace, given.lease_name)
    log.configure(given.log_format)
    options = Options(
        namespaces=tuple(given.namespace),
        http_host=given.http_host,
        http_port=given.http_port,
        lease=lease,
        progress_seconds=given.progress_interval,
    )
    sys.exit(asyncio.run(run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="daybreak_operator", description=__doc__)
    add = parser.add_argument
    add("--namespace", action="append", default=[], help="watch only this one; may be repeated")
    add(
        "--http-host",
        default=os.environ.get(ENV_POD_IP, "127.0.0.1"),
        help="address of /healthz, /readyz and /metrics; default: the pod's own IP",
    )
    add("--http-port", type=int, default=8080)
    add(
        "--leader-elect",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="work only while holding a Lease; needed where there is more than one operator",
    )
    add("--lease-name", default="daybreak")
    add("--lease-namespace", help="default: the pod's own namespace")
    add(
        "--progress-interval",
        type=float,
        default=PROGRESS_SECONDS,
        metavar="SECONDS",
        help="progress is written into a run at most so often (default: %(default)g)",
    )
    add(
        "--log-format",
        choices=("json", "text"),
        default="json" if _own_namespace() else "text",
        help="default: json in a pod, else text",
    )
    return parser


def _own_namespace() -> str | None:
    """The pod's namespace; None outside of a pod."""
    path = _ACCOUNT / "namespace"
    return path.read_text().strip() if path.exists() else None


if __name__ == "__main__":
    main()
