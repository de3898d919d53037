"""`python -m daybreak_devcluster.agent`: runs one node until SIGTERM."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from daybreak_devcluster.agent.agent import NodeAgent, Options
from daybreak_devcluster.agent.api import Api
from daybreak_devcluster.agent.sandbox import SandboxError, check
from daybreak_devcluster.nodespec import NodeSpec


async def _run(options: Options) -> None:
    async with Api(options.kubeconfig) as api:
        await NodeAgent(options, api).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="daybreak_devcluster.agent")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node-name", required=True)
    parser.add_argument("--capacity", required=True, metavar="NAME=QUANTITY,...")
    parser.add_argument("--state-dir", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        capacity = NodeSpec.parse(given.node_name, given.capacity).capacity
        check()
    except (ValueError, SandboxError) as error:
        print(f"node {given.node_name}: {error}", file=sys.stderr)
        return 1
    state_dir = given.state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / "agent.pid").write_text(f"{os.getpid()}\n")  # for `faults.drop_node`
    asyncio.run(_run(Options(given.kubeconfig, given.node_name, capacity, state_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
