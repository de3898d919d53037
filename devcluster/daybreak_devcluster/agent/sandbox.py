"""Runs one command in a bubblewrap sandbox.

The command is process 1 of its own process namespace, as in a container: a signal that it does not
handle is ignored, and its end ends every process it started. The sandbox dies with this process,
whatever ends it (`--die-with-parent`), so the caller must start it from its main thread.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_BASE = (
    "--die-with-parent",
    "--as-pid-1",
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    *("--cap-drop", "ALL"),
)
_CHUNK_BYTES = 65536


class SandboxError(Exception):
    """bubblewrap is missing or may not make namespaces here."""


@dataclass(frozen=True)
class Command:
    """What to run and how."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    working_dir: str
    user: int
    group: int
    hostname: str
    root: Sequence[str] = field(repr=False)
    """bubblewrap's options that build the file system (`rootfs.root_options`)."""


Output = Callable[[str, bytes], None]
"""Takes "stdout" or "stderr" and a chunk; an empty chunk means the stream's end."""


class Sandbox:
    """A running command. Made by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pid: int,
        status: asyncio.ReadTransport,
        output: Sequence["asyncio.Task[None]"],
    ) -> None:
        self._process = process
        self._output = output
        self._status = status  # open until the end: bubblewrap writes to it then
        self._handle = _handle(pid)
        self.pid = 0 if self._handle is None else pid
        """Process 1 of the sandbox as the host numbers it; 0 where it ended at once."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to process 1; nothing happens where it has ended."""
        try:
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            pass

    async def wait(self) -> int:
        """Its exit code, 128 + n after signal n, once all output has been handed over."""
        code = await self._process.wait()
        await asyncio.gather(*self._output)
        self._status.close()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        return code if code >= 0 else 128 - code


async def start(command: Command, output: Output) -> Sandbox:
    """Start a command. Where bubblewrap cannot, it says why in the output ("bwrap: ...") and the
    exit code is 1."""
    options = [
        *_BASE,
        *("--uid", str(command.user), "--gid", str(command.group)),
        *("--hostname", command.hostname),
        *command.root,
        *("--chdir", command.working_dir),
    ]
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    arguments = _in_memory("\0".join(options).encode())
    try:
        process = await asyncio.create_subprocess_exec(
            *(_bubblewrap(), "--args", str(arguments), "--json-status-fd", str(status_write)),
            *("--", *command.argv),
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(arguments, status_write),
            start_new_session=True,
        )
    except BaseException:
        os.close(status_read)
        raise
    finally:
        os.close(arguments)
        os.close(status_write)
    assert process.stdout is not None
    assert process.stderr is not None
    pumps = [
        asyncio.create_task(_pump("stdout", process.stdout, output)),
        asyncio.create_task(_pump("stderr", process.stderr, output)),
    ]
    pid, status = await _child_pid(status_read)
    return Sandbox(process, pid, status, pumps)


def check() -> None:
    """Try an empty sandbox. Raises `SandboxError` where pods could not run on this machine."""
    options = [*_BASE, "--ro-bind", "/", "/", "--proc", "/proc"]
    done = subprocess.run([_bubblewrap(), *options, "--", "true"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SandboxError(
            f"bubblewrap cannot make a sandbox here: {done.stderr.strip()}. Pods need user, mount "
            "and process namespaces: allow unprivileged user namespaces (sysctl "
            "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        )


async def run_inside(
    pid: int, argv: Sequence[str], environment: Mapping[str, str], working_dir: str, seconds: float
) -> tuple[int, str]:
    """Run a command beside process `pid` of a sandbox (exec probes, preStop).

    Returns its exit code and the last of its output; -1 where it took longer than `seconds`.
    """
    process = await asyncio.create_subprocess_exec(
        *(
            _program("nsenter", "util-linux"),
            "--target",
            str(pid),
            "--user",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
        ),
        *("--preserve-credentials", f"--wdns={working_dir}", "--", *argv),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    except asyncio.TimeoutError:  # noqa: UP041 (the same class from 3.11 on, but say what is meant)
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return -1, f"took longer than {seconds:g} s"
    code = process.returncode or 0
    return (code if code >= 0 else 128 - code), output[-1024:].decode(errors="replace").strip()


def _bubblewrap() -> str:
    return _program("bwrap", "bubblewrap")


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name} is not installed: pods run with it (apt-get install {package})")
    return path


def _in_memory(content: bytes) -> int:
    """A descriptor to read the content from; the child inherits it. Options passed this way keep
    `ps` readable."""
    descriptor = os.memfd_create("bwrap-arguments")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _handle(pid: int) -> int | None:
    """What signals are sent by; None where the process has ended and bubblewrap has taken note of
    it, as it may have before we are told the number."""
    try:
        return os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        return None


async def _pump(name: str, stream: asyncio.StreamReader, output: Output) -> None:
    while chunk := await stream.read(_CHUNK_BYTES):
        output(name, chunk)
    output(name, b"")


async def _child_pid(descriptor: int) -> tuple[int, asyncio.ReadTransport]:
    """Read the first status line: 0 where bubblewrap ended before it had a child."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    line = await reader.readline()
    return (int(json.loads(line)["child-pid"]) if line else 0), transport
