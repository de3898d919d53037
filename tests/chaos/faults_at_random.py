"""What befalls runs, their nodes, the operator and the API server: which, when, and to whom."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from api_proxy import ApiProxy
from crashing_operator import Plan
from kubernetes.client import ApiException
from lives import Stage
from scripted_worker import TROUBLE
from urllib3.exceptions import HTTPError

from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster, KubectlError

_GONE = (faults.FaultError, KubectlError, ApiException, HTTPError, OSError)
"""What was to be struck is not there just now, or the API server is not."""
_SECONDS_BETWEEN_GLOBAL = {"operator": 60.0, "watches": 45.0, "API server": 240.0, "node": 240.0}
_SECONDS_BETWEEN_FAULTS = {"scripted": 60.0, "real": 120.0}


@dataclass
class Victim:
    """A run, and what it suffered."""

    name: str
    kind: str
    """`scripted` or `real`."""
    most_nodes: int
    suffered: Counter[str] = field(default_factory=Counter)


class Mischief:
    """Strikes until its time is over; then everything that was taken away is given back."""

    def __init__(
        self, stage: Stage, proxy: ApiProxy, cluster: Cluster, victims: list[Victim], dice: Random
    ) -> None:
        self._stage, self.proxy, self._cluster = stage, proxy, cluster
        self._victims, self._dice = victims, dice
        self.around: Counter[str] = Counter()
        """Faults that are no single run's."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._repairs: dict[int, Callable[[], None]] = {}
        self._node_down = False

    def go_on(self, seconds: float) -> None:
        began = time.monotonic()
        for name, strike in {
            "operator": self._kill_operator,
            "watches": self._drop_watches,
            "API server": self._restart_apiserver,
            "node": self._drop_node,
        }.items():
            self._again(_SECONDS_BETWEEN_GLOBAL[name], name, strike)
        for victim in self._victims:
            self._strike_again(victim)
        while (now := time.monotonic()) < began + seconds:
            at, _, do = self._due[0]
            if at > now:
                time.sleep(min(at - now, 1.0))
                continue
            heapq.heappop(self._due)
            do()
        while self._repairs:
            for repair in list(self._repairs.values()):
                repair()
            time.sleep(1.0)

    # --- when ------------------------------------------------------------------------------------

    def _at(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), do))

    def _again(self, mean_seconds: float, name: str, strike: Callable[[], None]) -> None:
        def do() -> None:
            with suppress(*_GONE):
                strike()
                self.around[name] += 1
                _say(name)
            self._again(mean_seconds, name, strike)

        self._at(self._dice.expovariate(1 / mean_seconds), do)

    def _strike_again(self, victim: Victim) -> None:
        kinds = {
            "rank": self._kill_rank,
            "pod": self._delete_pod,
            "eviction": self._evict,
            "kill": self._kill_pod,
            "read-only": self._make_read_only,
            "suspend": self._suspend,
            "scale": self._scale,
        }
        if victim.kind == "scripted":
            del kinds["rank"]  # it has none: its pod is one process
            kinds |= {"full": self._fill, "slow": self._slow_down}

        def do() -> None:
            name, strike = self._dice.choice(sorted(kinds.items()))
            with suppress(*_GONE):
                if "completionTime" in self._stage.get(victim.name).get("status", {}):
                    return  # it has come through
                strike(victim)
                victim.suffered[name] += 1
                _say(f"{victim.name}: {name}")
            self._strike_again(victim)

        self._at(self._dice.expovariate(1 / _SECONDS_BETWEEN_FAULTS[victim.kind]), do)

    def _for_a_while(self, seconds: float, repair: Callable[[], None]) -> None:
        """Repairs after that time, or at the end."""
        number = next(self._numbers)

        def once() -> None:
            if self._repairs.pop(number, None) is None:
                return
            try:
                repair()
            except _GONE as error:  # the API server is on its way back: once more
                _say(f"again: {error}")
                self._for_a_while(2.0, repair)

        self._repairs[number] = once
        self._at(seconds, once)

    # --- to a run --------------------------------------------------------------------------------

    def _a_pod(self, victim: Victim) -> str:
        pods = self._stage.live_pods(victim.name)
        if not pods:
            raise FileNotFoundError(victim.name)
        return self._dice.choice(pods)

    def _kill_rank(self, victim: Victim) -> None:
        pod, namespace = self._a_pod(victim), self._stage.bench.namespace
        _, *others = faults.processes(
            self._cluster, namespace, pod, match="daybreak_trainer.launch"
        )
        if not others:
            raise FileNotFoundError(pod)
        os.kill(others[-1], signal.SIGKILL)

    def _delete_pod(self, victim: Victim) -> None:
        pod = self._a_pod(victim)
        self._cluster.kubectl(
            "delete", "pod", pod, "-n", self._stage.bench.namespace, "--wait=false"
        )

    def _evict(self, victim: Victim) -> None:
        self._stage.evict(self._a_pod(victim))

    def _kill_pod(self, victim: Victim) -> None:
        faults.kill_process(self._cluster, self._stage.bench.namespace, self._a_pod(victim))

    def _folder(self, victim: Victim) -> Path:
        return self._stage.bench.folder / "checkpoints" / victim.name

    def _make_read_only(self, victim: Victim) -> None:
        folders = [
            Path(path)
            for path, _, _ in os.walk(self._folder(victim))
            if Path(path).stat().st_mode & 0o200
        ]
        for folder in folders:
            folder.chmod(folder.stat().st_mode & ~0o222)

        def repair() -> None:
            for folder in folders:
                with suppress(FileNotFoundError):  # retention has removed it
                    folder.chmod(folder.stat().st_mode | 0o200)

        self._for_a_while(self._dice.uniform(5, 20), repair)

    def _trouble(self, victim: Victim, what: str) -> None:
        file = self._folder(victim) / TROUBLE
        file.write_text(what)
        self._for_a_while(self._dice.uniform(5, 20), lambda: file.unlink(missing_ok=True))

    def _fill(self, victim: Victim) -> None:
        self._trouble(victim, "full")

    def _slow_down(self, victim: Victim) -> None:
        self._trouble(victim, "slow")

    def _suspend(self, victim: Victim) -> None:
        self._stage.patch(victim.name, suspend=True)
        self._for_a_while(
            self._dice.uniform(5, 30), lambda: self._stage.patch(victim.name, suspend=False)
        )

    def _scale(self, victim: Victim) -> None:
        self._stage.scale(victim.name, self._dice.randint(1, victim.most_nodes))

    # --- to all ----------------------------------------------------------------------------------

    def _kill_operator(self) -> None:
        self._stage.operate(Plan())

    def _drop_watches(self) -> None:
        self.proxy.drop_watches(torn=self._dice.random() < 0.5)

    def _restart_apiserver(self) -> None:
        faults.restart_apiserver(self._cluster)

    def _drop_node(self) -> None:
        """One at a time, longer than it takes the control plane to give its pods up, or not."""
        node = self._dice.choice(self._cluster.info.nodes)
        if self._node_down:
            raise faults.FaultError("one is down already")
        faults.drop_node(self._cluster, node)
        self._node_down = True

        def repair() -> None:
            faults.return_node(self._cluster, node)
            self._node_down = False

        self._for_a_while(self._dice.uniform(10, 150), repair)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
