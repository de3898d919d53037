"""Runs the operator again and again, and kills it at a chosen call to the API server.

`python crashing_operator.py <namespace> <folder>`: each line on standard input is a `Plan` as JSON.
It ends the operator that runs and starts another that follows the plan. When that one dies, a fresh
one takes its place, as on a cluster. The operator is `daybreak_operator.__main__`, unchanged: what
counts its calls is laid around the client library's one function for requests. Only the imports are
done once and inherited (fork), for they cost two seconds.

`<folder>/calls` gets a line for each writing call of a plan's operators, and for each that trouble
befell; `<folder>/log` their logs.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

# What the operator would import when it first uses it, every operator anew.
import kubernetes.config  # noqa: F401
from kubernetes.aio.client import BatchV1Api, CoreV1Api, CustomObjectsApi  # noqa: F401
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.client.rest import RESTClientObject

import daybreak_operator.__main__ as operator

WRITING = ("POST", "PUT", "PATCH", "DELETE")
KILLED = "killed"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Plan:
    """Kills are at a writing call, counted from 1 in each process."""

    kill_before: int | None = None
    kill_after: int | None = None
    since: str = ""
    """The call that is the first one, such as `DELETE pods`; otherwise the process's first."""
    again: bool = False
    """The operators that follow are killed in the same way."""
    troubles: tuple[str, ...] = ()
    """What befalls one of every ten calls, reading ones too, each in its turn: an HTTP status for
    an answer, or `lost`: the call is made and its answer does not arrive."""
    ahead_seconds: float = 0.0
    """Of its clock, before everybody else's."""
    elects: bool = False
    """It writes while it holds the Lease of the installed operator."""


def main() -> None:
    gc.freeze()  # what is inherited is not looked through again in every operator
    namespace, folder = sys.argv[1], Path(sys.argv[2])
    plan, pid, alive = Plan(), 0, -1
    while True:
        ready, _, _ = select.select([sys.stdin] + [alive] * (alive >= 0), [], [])
        if alive in ready:
            _reap(pid, alive)
            plan = plan if plan.again else Plan()
        elif line := sys.stdin.readline():
            if alive >= 0:
                os.kill(pid, signal.SIGKILL)
                _reap(pid, alive)
            plan = Plan(**json.loads(line))
            (folder / "calls").write_text("")
        else:
            return  # the operator dies with us
        pid = os.fork()
        if pid == 0:
            _operate(namespace, folder, plan)
        alive = os.pidfd_open(pid)


def _reap(pid: int, alive: int) -> None:
    os.waitpid(pid, 0)
    os.close(alive)


def _operate(namespace: str, folder: Path, plan: Plan) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _lay_around(plan, folder / "calls")
    _set_clock(plan.ahead_seconds)
    sys.argv = ["daybreak_operator", "--namespace", namespace, "--http-port", "0"]
    sys.argv += ["--progress-interval", "2"]
    if plan.elects:
        sys.argv += ["--leader-elect", "--lease-namespace", "daybreak-system"]
    operator.main()


def _set_clock(ahead_seconds: float) -> None:
    """For all of the operator's own modules, which read the time by one function."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=ahead_seconds)

    for name, module in list(sys.modules.items()):
        if name.startswith("daybreak_operator") and vars(module).get("datetime") is datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def _befalls(troubles: tuple[str, ...]) -> Iterator[str | None]:
    """For each call what befalls it. Chance has no part but in which of the ten it is: after forty
    calls, four troubles have all been there."""
    dice = Random(0)
    for trouble in itertools.cycle(troubles):
        ten = [trouble, *[None] * 9]
        dice.shuffle(ten)
        yield from ten
    yield from itertools.repeat(None)


def _is(method: str, url: str, kind: str) -> bool:
    """Whether a call is of that kind; the empty one is every kind."""
    wanted, _, resource = kind.partition(" ")
    return not kind or (method == wanted and resource in urlsplit(url).path.split("/"))


def _lay_around(plan: Plan, calls: Path) -> None:
    request = RESTClientObject.request
    count, befalls = 0, _befalls(plan.troubles)

    def note(line: str) -> None:
        with calls.open("a") as file:
            file.write(line + "\n")

    async def counted(self: Any, method: str, url: str, *rest: Any, **more: Any) -> Any:
        nonlocal count
        writing = method in WRITING and (count > 0 or _is(method, url, plan.since))
        count += writing
        number = count  # of this call: others may begin before it is answered
        call = f"{number} {method} {urlsplit(url).path}"
        if writing and number == plan.kill_before:
            note(f"{call} {KILLED} before")
            os.kill(os.getpid(), signal.SIGKILL)
        trouble = next(befalls)
        if trouble is not None and trouble != "lost":
            note(f"{call} {trouble}")
            raise ApiException(status=int(trouble), reason="on purpose")
        answer = await request(self, method, url, *rest, **more)
        if trouble is not None:
            note(f"{call} {trouble}")
            raise TimeoutError
        if writing:
            note(f"{call} {answer.status}")
        if writing and number == plan.kill_after:
            note(f"{call} {KILLED} after")
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    RESTClientObject.request = counted


if __name__ == "__main__":
    main()
