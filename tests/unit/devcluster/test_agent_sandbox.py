"""Sandboxes of the node agent, by real bubblewrap."""

import asyncio
import signal

from daybreak_devcluster.agent.sandbox import Command, start

_ROOT = ("--ro-bind", "/", "/", "--proc", "/proc")


def command(*argv: str) -> Command:
    return Command(argv, {}, "/", user=1234, group=1234, hostname="h", root=_ROOT)


async def test_a_command_that_ends_before_it_is_looked_at_has_an_end() -> None:
    """An agent with much to do learns of a sandbox's process when that has long ended: its exit
    code and its output are told all the same, and signals to it do nothing."""

    async def run() -> tuple[int, bytes]:
        written = bytearray()
        sandbox = await start(command("/no-such-command"), lambda _, chunk: written.extend(chunk))
        sandbox.send(signal.SIGTERM)
        return await sandbox.wait(), bytes(written)

    for code, written in await asyncio.gather(*(run() for _ in range(20))):
        assert code == 1
        assert written.startswith(b"bwrap: execvp /no-such-command"), written
