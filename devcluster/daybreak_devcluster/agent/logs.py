"""Container logs: one file per container start, in the format that container runtimes write.

Each line is `<time> <stream> <F|P> <text>`; P marks a piece whose line goes on. The agent adds the
times, so `kubectl logs --timestamps` and `--since` work.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

_MAX_LINE_BYTES = 16384
_TAIL_BYTES = 2048
_TAIL_LINES = 80


def now_nano() -> str:
    """The time as RFC 3339 with nanoseconds, UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


class ContainerLog:
    """The log of one start of a container; written by the agent, read by any number of readers."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._rests = {"stdout": b"", "stderr": b""}
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the container has ended and everything is written."""
        return self._file.closed

    def feed(self, stream: str, chunk: bytes) -> None:
        """Take a chunk of a stream; an empty one is its end."""
        time = now_nano().encode()
        name = stream.encode()
        *lines, rest = (self._rests[stream] + chunk).split(b"\n")
        text = b"".join(b"%s %s F %s\n" % (time, name, line) for line in lines)
        if rest and (not chunk or len(rest) > _MAX_LINE_BYTES):
            text += b"%s %s P %s\n" % (time, name, rest)
            rest = b""
        self._rests[stream] = rest
        if text:
            self._file.write(text)
            self._wake()

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def tail(self) -> str:
        """The end of the log, as a termination message that falls back to logs wants it."""
        raw = self.path.read_bytes().split(b"\n")[-_TAIL_LINES - 1 :]
        return b"".join(_text(line) for line in raw)[-_TAIL_BYTES:].decode(errors="replace")

    def first_line(self) -> str:
        """The first line, without its prefix; empty where there is none."""
        with self.path.open("rb") as handle:
            return _text(handle.readline()).decode(errors="replace").rstrip("\n")

    async def read(self, query: "LogQuery") -> AsyncIterator[bytes]:
        """Yield what the query asks for; with `follow`, until the container's end."""
        left = query.limit_bytes
        with self.path.open("rb") as handle:
            first = True
            while True:
                changed, ended = self._changed, self.closed
                lines = handle.readlines()  # not splitlines(): a \r ends no line
                if first and query.since:
                    lines = [line for line in lines if line.split(b" ", 1)[0] >= query.since]
                if first and query.tail_lines is not None:
                    lines = lines[len(lines) - min(len(lines), query.tail_lines) :]
                first = False
                text = b"".join(_text(line, query.timestamps) for line in lines)
                if left is not None:
                    text, left = text[:left], left - len(text[:left])
                if text:
                    yield text
                if not query.follow or ended or left == 0:
                    return
                await changed.wait()


@dataclass(frozen=True)
class LogQuery:
    """What `kubectl logs` can ask for."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since: bytes = b""
    """RFC 3339 in UTC; empty for all."""
    limit_bytes: int | None = None


def _text(line: bytes, timestamps: bool = False) -> bytes:
    parts = line.removesuffix(b"\n").split(b" ", 3)
    if len(parts) < 4:  # cut by a read of the file's end
        return b""
    time, _stream, flag, text = parts
    prefix = time + b" " if timestamps else b""
    return prefix + text + (b"\n" if flag == b"F" else b"")
