"""Keeps the power-function averages in the course of a run, for `daybreak ema`.

They are due whenever another of `recipe.ema.power.snapshots` equal parts of the run's samples is
done since they were kept last, by the course as it stands; and at the end. Copies are made between
two steps, the store is written beside training.
"""

from __future__ import annotations

import json
from concurrent.futures import Future

from daybreak_trainer.checkpoint import snapshots
from daybreak_trainer.checkpoint.layout import DATA, RECIPE, SnapshotRef
from daybreak_trainer.engine import Engine
from daybreak_trainer.export.tower import tower_files
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.state import RunState


class Keeper:
    """Every method is called by every rank, at the same step."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._power = engine, engine.power
        self._running: Future[tuple[SnapshotRef, ...]] | None = None
        self._documents: dict[str, bytes] = {}
        self._last = 0
        """Step of the last ones, whatever the store made of them: a store that fails is not tried
        again with every step."""

    def resumed(self, state: RunState) -> None:
        """After a resume or a roll-back: averages of steps that are gone are none of the run's."""
        self._running = None
        self._last = state.snapshots[-1].point.step if state.snapshots else 0
        if self._power is not None:
            self._engine.checkpointer.list_kept(state.snapshots)

    def after_step(self, state: RunState, course: Course) -> None:
        """Begins to keep them where they are due."""
        if self._power is None:
            return
        assert self._engine.recipe.ema.power is not None  # as the average
        parts = self._engine.recipe.ema.power.snapshots
        if is_due(state.step, self._last, course, parts):
            self._keep(state)

    def at_end(self, state: RunState) -> None:
        """The last ones, unless they are kept."""
        if self._power is None:
            return
        self.settle(state)
        if not (state.snapshots and state.snapshots[-1].point.step == state.step):
            self._keep(state)
            self.settle(state)

    def settle(self, state: RunState) -> None:
        """Waits for what is being written and notes it: a commit lists what was kept before it."""
        if self._running is not None:
            state.snapshots = self._running.result()
            self._running = None

    def _keep(self, state: RunState) -> None:
        assert self._power is not None
        self.settle(state)
        samples = int(self._power.samples)
        if not samples:  # no step has had a finite gradient yet
            return
        self._last = state.step
        self._running = self._engine.checkpointer.keep(
            state.step,
            samples,
            state.snapshots,
            tuple(self._power.shadows),
            snapshots.copies(self._power.shadows),
            self._described(),
        )

    def _described(self) -> dict[str, bytes]:
        """What an export needs beside weights; the first rank writes it."""
        engine = self._engine
        if not self._documents and engine.rank.is_first:
            documents = {RECIPE: engine.recipe.to_json(), DATA: engine.corpus.description.to_json()}
            self._documents = {
                name: json.dumps(json.loads(text), indent=2).encode()
                for name, text in documents.items()
            } | tower_files(engine.text)
        return self._documents


def is_due(step: int, last: int, course: Course, parts: int) -> bool:
    """Whether another of so many equal parts of the course's samples is done after `step` steps
    than was after `last`, when averages were kept last. Parts that pass at once (the course was cut
    short, an attempt went on behind one) are one snapshot, and none is missed."""
    total = course.samples_at(course.total_steps)
    done, before = (course.samples_at(number) * parts // total for number in (step, last))
    return done > before
