"""Garbage is collected when it is told to be, and at no other time."""

from __future__ import annotations

import gc
import weakref

from daybreak_trainer.parallel.collector import Collector


class _Node:
    def __init__(self) -> None:
        self.me = self


def _garbage() -> weakref.ref[_Node]:
    """A cycle that only the collector can free."""
    return weakref.ref(_Node())


def test_garbage_goes_at_the_agreed_steps_only() -> None:
    """Every third step: a cycle that is dead after the first is still there after the second, and
    gone after the third. Enough objects to start the collector by itself change nothing."""
    with Collector(every_steps=3) as collector:
        dead = _garbage()
        for step in (1, 2):
            kept = [[] for _ in range(10_000)]  # type: ignore[var-annotated]
            collector.after_step(step)
            assert dead() is not None
            del kept
        collector.after_step(3)
        assert dead() is None


def test_what_dies_old_goes_too() -> None:
    """An object that outlived collections, and only then becomes garbage, is not kept for ever."""
    with Collector(every_steps=1) as collector:
        node = _Node()
        for step in range(1, 5):
            collector.after_step(step)
        gone = weakref.ref(node)
        del node
        collector.after_step(5)
        assert gone() is None


def test_python_is_as_before_at_the_end() -> None:
    """The collector runs by itself again, also after an error."""
    try:
        with Collector():
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
            raise KeyError
    except KeyError:
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
