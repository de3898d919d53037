"""A development cluster leaves nothing behind, however it or its owner ends.

Each test runs its own cluster without nodes, in a process of its own where that process is killed.
Ends are awaited on process handles, never slept for.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from daybreak_devcluster import background
from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.info import ClusterInfo
from daybreak_devcluster.launch import StartError
from daybreak_devcluster.statedir import StateDirError

pytestmark = pytest.mark.cluster

PROGRAMS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
END_SECONDS = 60.0
OWNER = """
import sys
from pathlib import Path
from daybreak_devcluster.cluster import Cluster

with Cluster(Path(sys.argv[1]), nodes=(), report=lambda line: print(line, flush=True)) as cluster:
    print(cluster.info.to_json(), flush=True)
    sys.stdin.read()
"""


def programs(supervisor: int) -> dict[str, int]:
    """The supervisor's children: program name to process ID."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return {
        Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name: int(pid)
        for pid in children
    }


class Watched:
    """Handles on a cluster's processes, taken while it runs, to await their end."""

    def __init__(self, info: ClusterInfo) -> None:
        self.programs = programs(info.supervisor_pid)
        assert set(self.programs) == PROGRAMS
        pids = [info.supervisor_pid, *self.programs.values()]
        self._handles = {pid: os.pidfd_open(pid) for pid in pids}
        listeners = [listener for pid in pids for listener in listening(pid)]
        self._sockets = {listener.inode for listener in listeners}
        assert len(self._sockets) == 5
        assert urlsplit(info.server).port in {listener.port for listener in listeners}

    def kill(self, program: str) -> None:
        """SIGKILL one program."""
        signal.pidfd_send_signal(self._handles[self.programs[program]], signal.SIGKILL)

    def assert_gone(self) -> None:
        """Every process has ended and nobody holds a listener of theirs, within the time."""
        for pid, handle in self._handles.items():
            assert select.select([handle], [], [], END_SECONDS)[0], f"process {pid} still runs"
            os.close(handle)
        # Not whether the ports are free: another cluster may have been given them by now.
        assert self._sockets.isdisjoint({listener.inode for listener in all_listening()})


class Listener(NamedTuple):
    """A TCP socket that somebody listens on."""

    inode: str
    address: str
    """As the kernel writes it."""
    port: int


def all_listening() -> Iterator[Listener]:
    """All of this machine's."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                yield Listener(fields[9], address, int(port, 16))


def listening(pid: int) -> list[Listener]:
    """A process's own."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            sockets.add(str(link.readlink()))
    return [found for found in all_listening() if f"socket:[{found.inode}]" in sockets]


class Owner:
    """A process that holds a cluster in a `with` block."""

    def __init__(self, state_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(state_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def read_info(self) -> ClusterInfo:
        """Wait until its cluster is ready."""
        while not (line := self.read_line()).startswith("{"):
            assert line, "the owner ended before its cluster was ready"
        return ClusterInfo.from_json(line)

    def close(self) -> None:
        """Let go of its pipes; ends it where a failed test left it running."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    """A starting cluster in `tmp_path / "state"`, owned by another process."""
    started = Owner(tmp_path / "state")
    yield started
    started.close()


def test_every_listener_is_on_loopback_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    """The five ports are bound to 127.0.0.1 alone; a normal stop ends processes, listeners and
    files."""
    with Cluster(tmp_path / "state", nodes=()) as cluster:
        watched = Watched(cluster.info)
        for program, pid in watched.programs.items():
            addresses = {listener.address for listener in listening(pid)}
            assert addresses == {"0100007F"}, f"{program} listens on {addresses}"
        assert cluster.info.start_seconds > 0
        assert cluster.failure() is None
    watched.assert_gone()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_cluster_ends_with_its_owner(
    owner: Owner, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGKILL of the owner end the cluster and remove its files."""
    watched = Watched(owner.read_info())
    owner.process.send_signal(number)
    watched.assert_gone()
    owner.process.wait(END_SECONDS)
    assert not (tmp_path / "state").exists()


def test_ctrl_c_during_the_start_leaves_nothing(owner: Owner, tmp_path: Path) -> None:
    """An interrupt between etcd's readiness and the API server's ends what was started."""
    assert owner.read_line() == "etcd is ready\n"
    supervisor = int((tmp_path / "state" / "devcluster.lock").read_text())
    handles = [os.pidfd_open(pid) for pid in (supervisor, *programs(supervisor).values())]
    assert len(handles) == 3
    owner.process.send_signal(signal.SIGINT)
    assert owner.process.wait(END_SECONDS) != 0
    for handle in handles:
        assert select.select([handle], [], [], END_SECONDS)[0]
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_program_ends_the_cluster_and_is_named(tmp_path: Path) -> None:
    """Where one program is killed, the rest ends too, and `failure` says which one it was."""
    with Cluster(tmp_path / "state", nodes=()) as cluster:
        watched = Watched(cluster.info)
        watched.kill("kube-scheduler")
        watched.assert_gone()
        failure = cluster.failure()
        assert failure is not None
        assert "kube-scheduler was killed by SIGKILL" in failure
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_supervisor_are_cleared(tmp_path: Path) -> None:
    """SIGKILL of the supervisor takes the programs along; the next start clears the files."""
    state = tmp_path / "state"
    owner = Owner(state)
    info = owner.read_info()
    watched = Watched(info)
    os.kill(info.supervisor_pid, signal.SIGKILL)
    watched.assert_gone()
    owner.close()
    assert (state / "etcd").exists()
    assert background.status(state).state == "dead"

    said: list[str] = []
    with Cluster(state, nodes=(), report=said.append) as cluster:
        assert any("cleared what a dead cluster left" in line for line in said)
        cluster.kubectl("get", "namespaces")
    assert not state.exists()


def test_two_clusters_live_side_by_side_but_not_in_one_directory(tmp_path: Path) -> None:
    """Ports and files do not collide; a directory in use is refused and the cluster survives."""
    with (
        Cluster(tmp_path / "one", nodes=()) as one,
        Cluster(tmp_path / "two", nodes=()) as two,
    ):
        one.kubectl("create", "namespace", "only-in-one")
        assert "only-in-one" not in two.kubectl("get", "namespaces", "-o", "name").stdout
        with pytest.raises(StartError, match="already runs in"):
            Cluster(tmp_path / "one", nodes=()).start()
        assert "only-in-one" in one.kubectl("get", "namespaces", "-o", "name").stdout
    assert list(tmp_path.iterdir()) == []


def test_up_status_down(tmp_path: Path) -> None:
    """A cluster in the background outlives the call that started it, until `down`."""
    state = tmp_path / "state"
    with (tmp_path / "console").open("w") as output:
        info = background.up(nodes=(), state_dir=state, console=Console(file=output))
        try:
            watched = Watched(info)
            with pytest.raises(StateDirError, match="already runs in"):
                background.up(nodes=(), state_dir=state, console=Console(file=output))
            running = background.status(state)
            assert (running.state, running.info) == ("running", info)
        finally:
            assert background.down(state)
    watched.assert_gone()
    assert not state.exists()
    assert background.status(state).state == "absent"
    assert not background.down(state)


def test_up_outlives_the_process_that_called_it(tmp_path: Path) -> None:
    """`up` in a process that ends leaves a usable cluster; its terminal's end does not matter."""
    state = tmp_path / "state"
    script = (
        "import sys; from pathlib import Path; from daybreak_devcluster import background\n"
        "print(background.up(nodes=(), state_dir=Path(sys.argv[1])).to_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(state)],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    try:
        info = ClusterInfo.from_json(done.stdout)
        assert background.status(state).info == info
        answer = subprocess.run(
            [info.kubectl, "--kubeconfig", info.kubeconfig, "get", "--raw", "/version"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(answer.stdout)["gitVersion"] == info.version
    finally:
        background.down(state)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_never_touched(tmp_path: Path) -> None:
    """A directory with files that no cluster made is refused by start and by `down`."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StartError, match="is not a development cluster's state directory"):
        Cluster(tmp_path, nodes=()).start()
    with pytest.raises(StateDirError, match="is not a development cluster's state directory"):
        background.down(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
