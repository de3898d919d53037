"""Worker pods as processes on this machine, for tests of the launcher."""

from __future__ import annotations

import json
import os
import runpy
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from free_ports import free_port
from storage_faults import Fault

from daybreak_trainer import contract
from daybreak_trainer.contract import RunSettings, StreamSettings, Termination
from daybreak_trainer.recipe import Recipe, resolve

SCRIPT = Path(__file__).with_name("worker_pod.py")
RECIPE = resolve({"preset": "smoke"})
SECONDS = 200.0
_ADDRESSES = (f"127.{os.getpid() % 200 + 20}.{n // 250}.{n % 250 + 1}" for n in count())
"""One a pod: each serves on its own address and the contract's port."""


@dataclass(frozen=True)
class Ready:
    pid: int
    round: int
    restarts: list[str]


@dataclass
class Pod:
    """One worker pod; `ready` hears from its ranks. What it prints is printed when it is closed."""

    folder: Path
    settings: RunSettings
    environment: dict[str, str]
    faults: tuple[Fault, ...] = ()
    """Of stores with a `gated://` URL."""
    process: ForkServerProcess = field(init=False)
    ready: Connection = field(init=False)

    def start(self, fork_server: ForkServerContext, ranks: list[str], **patience: float) -> None:
        self.ready, theirs = fork_server.Pipe(duplex=False)
        given = {
            "environment": self.environment,
            "ranks": ranks,
            "faults": self.faults,
            "ready": theirs,
            "patience": {"wedged": 0.5, "leave": 0.5} | patience,
        }
        self.process = fork_server.Process(target=runpy.run_path, args=(str(SCRIPT), given))
        self.process.start()
        theirs.close()

    def rank(self) -> Ready:
        """A rank that is where its script waits."""
        assert self.ready.poll(SECONDS), "no rank is ready"
        return Ready(*self.ready.recv())

    def signal(self, number: int) -> None:
        """To PID 1 alone."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int | None, Termination]:
        self.process.join(SECONDS)
        code = self.process.exitcode
        termination = Termination.decode((self.folder / "termination").read_text())
        assert termination is not None
        assert termination.exit_code == code
        return code, termination

    def close(self) -> None:
        if hasattr(self, "process"):
            if self.process.is_alive():
                self.process.kill()
            self.process.join()
            self.process.close()
            self.ready.close()
            print(self.log())

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log that tell of it, oldest first."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def log(self) -> str:
        """What the pod has printed so far."""
        return (self.folder / "log").read_text()


def make_pod(
    folder: Path, ranks: int = 2, node: int = 0, recipe: Recipe = RECIPE, **changes: object
) -> Pod:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "name": "run",
        "namespace": "ns",
        "uid": "u",
        "attempt": 1,
        "nodes": 1,
        "processes_per_node": ranks,
        "master_address": "127.0.0.1",
        "master_port": free_port(),
        "recipe_hash": recipe.hash,
        "streams": (StreamSettings(url="/data", role="data-0"),),
        "checkpoint_url": "/checkpoints",
        "grace_seconds": 1.0,
        "health": {"rankRestarts": 0},
    }
    settings = RunSettings.model_validate(values | changes)
    (folder / "recipe.json").write_text(recipe.to_json())
    environment = {
        contract.ENV_RUN: settings.to_json(),
        contract.ENV_WORK_DIR: str(folder / "work"),
        contract.ENV_RECIPE_PATH: str(folder / "recipe.json"),
        contract.ENV_TERMINATION_LOG: str(folder / "termination"),
        contract.ENV_POD_IP: next(_ADDRESSES),
        contract.ENV_NODE_INDEX: str(node),
        "TEST_FOLDER": str(folder),
        "TEST_SHARED": str(folder),
    }
    return Pod(folder, settings, environment)
