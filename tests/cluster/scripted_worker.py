"""A worker without torch: it honours `contract.py` and trains nothing.

It runs in a pod of the development cluster in place of the trainer (see `lives.template`). Worker 0
walks through the recipe's steps and writes a journal and commits where the trainer writes them; the
others wait for it. `SCRIPT` in its environment, by attempt, is a `Script` as JSON: the step where
the last worker fails and how, or where worker 0 waits to be stopped; "*" is every other attempt.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from daybreak_trainer import contract
from daybreak_trainer.contract import CheckpointRef, ExitCode, Progress, RunSettings, Termination

DATASET_SIZE = 200
HISTORY = "history.jsonl.gz"
SETTINGS = "settings.json"
"""What the attempt's workers were told."""
TROUBLE = "TROUBLE"
"""In the run's storage: `full` or `slow`, and so it is for commits."""
_LOOK_SECONDS = 0.02
_SLOW_SECONDS = 5.0


@dataclass(frozen=True)
class Script:
    fail_at: int | None = None
    hold_at: int | None = None
    step_seconds: float = 0.01
    exit_code: int = ExitCode.FAILED
    """Of the one that fails."""
    last_words: Literal["told", "none", "garbage"] = "told"
    """Its termination message."""
    answers: Literal["progress", "huge", "slow", "redirect", "html"] = "progress"
    """What `/progress` gives."""
    stays: bool = False
    """The last worker does not end when worker 0 has, until it is killed."""


GARBAGE = "\\\"'{{.Values}}$(reboot)`id`\x00\x1b[2J<script>%s%n\u202e\n" * 120


def _now() -> str:
    return contract.rfc3339(datetime.now(UTC))


def samples(seed: int, position: int, size: int) -> str:
    """The signature of the global batch at a position of the data, as the trainer's journal has
    it."""
    # Here, for only worker 0 needs numpy, and a run has many workers that start.
    import numpy as np

    from daybreak_trainer.checkpoint.layout import DataPosition
    from daybreak_trainer.data.order import Cell, SampleOrder
    from daybreak_trainer.data.signature import signature

    shard = Cell(0, "8x8", np.array([0]), np.array([DATASET_SIZE]))
    slots = SampleOrder([shard], [1.0], seed).batch(DataPosition(samples=position), size)
    return f"{signature(slots.positions, slots.ordinals):016x}"


class Worker:
    def __init__(self) -> None:
        self.run = RunSettings.model_validate_json(os.environ[contract.ENV_RUN])
        self.index = int(os.environ[contract.ENV_NODE_INDEX])
        scripts = json.loads(os.environ.get("SCRIPT", "{}"))
        self.script = Script(**scripts.get(str(self.run.attempt), scripts.get("*", {})))
        recipe = json.loads(contract.RECIPE_PATH.read_text())
        (stage,) = recipe["stages"]
        self.seed, self.steps, self.batch = recipe["seed"], stage["steps"], stage["batchSize"]
        self.storage = Path(self.run.checkpoint_url, f"run-{self.run.uid}")
        self.folder = self.storage / f"attempt-{self.run.attempt:04d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.joinpath(f"started-{os.environ[contract.ENV_POD_NAME]}").touch()
        self.folder.joinpath(SETTINGS).write_text(self.run.to_json())
        self.stop = Event()
        self.progress = Progress(
            run_uid=self.run.uid,
            attempt=self.run.attempt,
            phase="Starting",
            total_steps=self.steps,
            started_at=_now(),
            updated_at=_now(),
        )
        self.journal: list[dict[str, Any]] = []

    def says(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update={**changes, "updated_at": _now()})

    # --- worker 0 ----------------------------------------------------------------------------

    def train(self) -> Termination:
        self._resume()
        self.says(phase="Training")
        while self.progress.step < self.steps:
            if self._asked_to_stop():
                return self._stopped()
            if self.progress.step == self.script.fail_at and self.run.nodes == 1:
                return self._fails()
            if self.progress.step not in (self.script.fail_at, self.script.hold_at):
                self._step()
            time.sleep(self.script.step_seconds)
        self._commit()
        self._tell("DONE")
        return self._ends("Done", ExitCode.DONE)

    def _step(self) -> None:
        position = self.progress.samples
        step = self.progress.step + 1
        self.journal.append(
            {
                "step": step,
                "position": position,
                "size": self.batch,
                "samples": samples(self.seed, position, self.batch),
                "loss": 1 / step,
                "world": self.run.nodes,
            }
        )
        self.says(
            step=step,
            samples=position + self.batch,
            loss=1 / step,
            first_step_at=self.progress.first_step_at or _now(),
            ledger={"productive": step * self.script.step_seconds},
        )
        self._tell("STEP", str(step))
        if step % (self.run.checkpoint_interval_steps or self.steps) == 0:
            self._commit()

    def _commit(self) -> None:
        step = self.progress.step
        match self._trouble():
            case "full":
                raise OSError(errno.ENOSPC, "no space left in the script's storage")
            case "slow":
                time.sleep(_SLOW_SECONDS)
        folder = self.folder / f"step-{step:08d}"
        folder.mkdir(exist_ok=True)
        lines = [json.dumps(line) + "\n" for line in self.journal]
        (folder / HISTORY).write_bytes(gzip.compress("".join(lines).encode()))
        (folder / "COMMIT.json").write_text(json.dumps({"samples": self.progress.samples}))
        self.says(checkpoint=CheckpointRef(step=step, time=_now(), url=str(folder)))

    def _trouble(self) -> str | None:
        try:
            return Path(self.run.checkpoint_url, TROUBLE).read_text()
        except FileNotFoundError:
            return None

    def _resume(self) -> None:
        """Goes on from the newest commit of the attempts before this one, or of this one."""
        commits = sorted(self.storage.glob("attempt-*/step-*/COMMIT.json"))
        if not commits:
            return
        folder = commits[-1].parent
        lines = gzip.decompress((folder / HISTORY).read_bytes()).splitlines()
        self.journal = [json.loads(line) for line in lines]
        origin = CheckpointRef(step=len(self.journal), time=_now(), url=str(folder))
        self.says(
            step=len(self.journal),
            samples=json.loads(commits[-1].read_text())["samples"],
            resumed_from=origin,
            checkpoint=origin,
        )

    def _asked_to_stop(self) -> bool:
        return self.stop.is_set() or (self.folder / "STOP").exists()

    def _stopped(self) -> Termination:
        self.says(phase="Stopping")
        self._commit()
        self._tell("STOPPED")
        return self._ends("Checkpointed", ExitCode.CHECKPOINTED)

    # --- the others --------------------------------------------------------------------------

    def follow(self) -> Termination:
        """Ends as worker 0 ends; the last one fails where the script says so."""
        deadline = None
        last = self.index == self.run.nodes - 1
        while True:
            if self.stop.is_set() and deadline is None:
                self._tell("STOP")
                deadline = time.monotonic() + self.run.grace_seconds / 2
            if self._told("STOPPED") is not None:
                return self._ends("Checkpointed", ExitCode.CHECKPOINTED)
            if self._told("DONE") is not None and not (last and self.script.stays):
                return self._ends("Done", ExitCode.DONE)
            fail_at, step = self.script.fail_at, self._told("STEP")
            if last and fail_at is not None and step == str(fail_at):
                return self._fails()
            if deadline is not None and time.monotonic() > deadline:
                return self._ends("Terminated", ExitCode.TERMINATED)
            time.sleep(_LOOK_SECONDS)

    # --- both --------------------------------------------------------------------------------

    def _tell(self, name: str, text: str = "") -> None:
        partial = self.folder / f".{name}-{self.index}"
        partial.write_text(text)
        partial.replace(self.folder / name)

    def _told(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return None

    def _fails(self) -> Termination:
        return self._ends("ScriptedFailure", self.script.exit_code)

    def _ends(self, reason: str, code: int) -> Termination:
        return Termination(
            reason=reason,
            message=f"the script's {reason}",
            exit_code=code,
            step=self.progress.step,
            samples=self.progress.samples,
            checkpoint=self.progress.checkpoint,
            progress=self.progress if self.index == 0 else None,
        )


def _serve(worker: Worker) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/progress":
                return self._answer(b"ok\n")
            body = worker.progress.to_json().encode()
            match worker.script.answers:
                case "huge":
                    self._answer(body[:-1] + b', "more": "' + b"x" * (1 << 20) + b'"}')
                case "html":
                    self._answer(b"<html><script>alert(1)</script></html>")
                case "redirect":
                    self.send_response(302)
                    self.send_header("Location", "http://169.254.169.254/latest/meta-data")
                    self._answer(b"", started=True)
                case "slow":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(1)
                case "progress":
                    self._answer(body)

        def _answer(self, body: bytes, *, started: bool = False) -> None:
            if not started:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has gone away is no news."""

    address = (os.environ[contract.ENV_POD_IP], contract.HTTP_PORT)
    Thread(target=Server(address, Handler).serve_forever, daemon=True).start()


def main() -> int:
    worker = Worker()
    signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
    _serve(worker)
    termination = worker.train() if worker.index == 0 else worker.follow()
    failed = termination.reason == "ScriptedFailure"
    if not failed or worker.script.last_words == "told":
        contract.TERMINATION_LOG.write_bytes(termination.encode())
    elif worker.script.last_words == "garbage":
        contract.TERMINATION_LOG.write_text(GARBAGE)
    return termination.exit_code


if __name__ == "__main__":
    sys.exit(main())
