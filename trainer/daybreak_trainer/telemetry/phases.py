"""Where the time of a step goes, without a step waiting to be timed.

    timer.begin()
    with timer.phase("data"):
        batch = next(batches)
    with timer.phase("forward_backward"):
        ...
    timer.finish(step)
    for times in timer.ready():
        ...

On a CPU the host's clock says it all, and a step's times are ready at once. On a GPU the host only
queues work: `transfer`, `forward_backward` and `optimizer` are bracketed by CUDA events, which are
read when the device has passed them, a step or more later. `data` and `staging` are waits of the
host and stay on its clock there too; where the host runs ahead of the device, such a wait may cost
the device nothing, so they are an upper bound.

On a GPU `transfer` is the captions' token ids and masks alone. `DeviceFeed` copies images on a
stream of its own beside the step before; that copy is in no phase, and where it is not done in time
the device's wait for it lies before `transfer`, in `total_seconds` only. On a CPU nothing is
copied, and `transfer` is the making of token ids.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast, get_args

if TYPE_CHECKING:  # the launcher serves metrics before it has imported torch
    import torch

Phase = Literal["data", "transfer", "forward_backward", "optimizer", "staging"]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
_DEVICE_PHASES: Final[frozenset[Phase]] = frozenset({"transfer", "forward_backward", "optimizer"})


class DeviceEvent(Protocol):
    """A mark in a device's queue; `torch.cuda.Event(enable_timing=True)` is one."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: DeviceEvent, /) -> float: ...


@dataclass(frozen=True)
class StepTimes:
    """One step of this rank."""

    step: int
    seconds: Mapping[Phase, float]
    """By phase; a phase that was entered twice (micro-batches) is added up, one that was not
    entered is 0."""
    total_seconds: float
    """On the host's clock, from the end of the step before."""


@dataclass
class _Step:
    """A step whose device times are not known yet."""

    step: int
    total_seconds: float
    host: dict[Phase, float]
    events: list[tuple[Phase, DeviceEvent, DeviceEvent]] = field(default_factory=list)


class StepTimer:
    """Times the phases of each step of this rank. Phases do not nest.

    `clock` and `new_event` are replaced in tests.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        new_event: Callable[[], DeviceEvent] | None = None,
    ) -> None:
        if new_event is None and device.type == "cuda":
            new_event = _cuda_event
        self._clock = clock
        self._spans: dict[Phase, _HostSpan | _DeviceSpan] = {
            name: _DeviceSpan(self, name, new_event)
            if new_event is not None and name in _DEVICE_PHASES
            else _HostSpan(self, name)
            for name in PHASES
        }
        self._host: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[Phase, DeviceEvent, DeviceEvent]] = []
        self._waiting: deque[_Step] = deque()
        self._idle: list[DeviceEvent] = []
        self._inside: Phase | None = None
        self._mark = clock()

    def phase(self, name: Phase) -> _HostSpan | _DeviceSpan:
        """A context manager; the time inside is of phase `name`."""
        return self._spans[name]

    def begin(self) -> None:
        """The next step begins now: what happened since the last one is part of no step."""
        self._mark = self._clock()
        self._host = dict.fromkeys(PHASES, 0.0)
        self._events = []

    def finish(self, step: int) -> None:
        """Step `step` ends here, and the next one begins."""
        now = self._clock()
        self._waiting.append(_Step(step, now - self._mark, self._host, self._events))
        self._host, self._events, self._mark = dict.fromkeys(PHASES, 0.0), [], now

    def ready(self) -> list[StepTimes]:
        """The steps whose times became known since the last call, in order. Waits for nothing."""
        done: list[StepTimes] = []
        while self._waiting and all(end.query() for _, _, end in self._waiting[0].events):
            done.append(self._read(self._waiting.popleft()))
        return done

    def _read(self, step: _Step) -> StepTimes:
        seconds = dict(step.host)
        for phase, start, end in step.events:
            seconds[phase] += start.elapsed_time(end) / 1000.0
            self._idle += (start, end)
        return StepTimes(step.step, seconds, step.total_seconds)

    def _enter(self, name: Phase) -> None:
        if self._inside is not None:
            raise RuntimeError(f"phase {name} begins inside phase {self._inside}: they do not nest")
        self._inside = name


class _HostSpan:
    __slots__ = ("_name", "_start", "_timer")

    def __init__(self, timer: StepTimer, name: Phase) -> None:
        self._timer, self._name, self._start = timer, name, 0.0

    def __enter__(self) -> None:
        self._timer._enter(self._name)
        self._start = self._timer._clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        timer = self._timer
        timer._host[self._name] += timer._clock() - self._start
        timer._inside = None


class _DeviceSpan:
    __slots__ = ("_name", "_new", "_start", "_timer")

    def __init__(self, timer: StepTimer, name: Phase, new: Callable[[], DeviceEvent]) -> None:
        self._timer, self._name, self._new = timer, name, new
        self._start: DeviceEvent | None = None

    def __enter__(self) -> None:
        self._timer._enter(self._name)
        self._start = self._recorded()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._start is not None  # entered
        self._timer._events.append((self._name, self._start, self._recorded()))
        self._timer._inside = None

    def _recorded(self) -> DeviceEvent:
        """An event in the current stream's queue; used ones are taken again."""
        idle = self._timer._idle
        event = idle.pop() if idle else self._new()
        event.record()
        return event


def _cuda_event() -> DeviceEvent:
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return cast(DeviceEvent, event)
